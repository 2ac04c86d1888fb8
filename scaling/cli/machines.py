"""Other machines: who starts workers there, the worker itself, and whether a folder can be shared."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.cli.numbers import not_negative, positive

if TYPE_CHECKING:
    from scaling.engines import Engine

EXAMPLES = {
    "worker": "scaling worker results/quickstart",
    "check": "scaling check results --machines 2      (on both at once)",
}


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Register this module's commands."""

    def add(name: str, function, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {EXAMPLES[name]}")
        made.set_defaults(run=function)
        return made

    worker = add("worker", worker_command, "one worker: train what is free in a results folder until nothing is")
    worker.add_argument("results", metavar="RESULTS", type=Path)
    worker.add_argument("--cpu", type=int, default=None, help="pin to this core")
    worker.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="one of several processes that train every run together: where the first listens; auto: as Slurm, Open MPI or Kubernetes say",
    )
    worker.add_argument("--processes", type=not_negative, help="how many there are")
    worker.add_argument("--process", type=not_negative, help="which one this is, from 0")
    worker.add_argument("--follow", action="store_true", help="wait for hold-outs to be released; end when standard input closes")
    check = add("check", check_command, "can several machines share this folder? locks, replacement of files, clocks (docs/clusters.md)")
    check.add_argument("folder", metavar="FOLDER", type=Path, help="any folder on the shared file system")
    check.add_argument("--machines", metavar="N", type=positive, default=1, help="how many meet: start the command on each (default: 1)")


def add_engine_arguments(run: argparse.ArgumentParser) -> None:
    """What `scaling run` is told of other machines."""
    run.add_argument("--executor", choices=["local", "slurm", "ray"], default="local", help="who starts the workers (docs/clusters.md)")
    run.add_argument("--time-limit", metavar="TIME", help="slurm: of each job, as sbatch reads it: 02:00:00")
    run.add_argument("--gpus", type=not_negative, default=0, help="slurm and ray: GPUs of each worker")
    run.add_argument("--sbatch", metavar="OPTIONS", default="", help='slurm: more options of sbatch: "--partition=gpu --account=me"')
    run.add_argument("--address", help="ray: the cluster's address (default: one on this machine)")


def chosen_engine(arguments: argparse.Namespace, root: Path) -> "Engine | None":
    """Who starts the workers, when it is not this process."""
    from scaling.config import UserError

    belongs = {"slurm": ("time_limit", "gpus", "sbatch"), "ray": ("address", "gpus"), "local": ()}[arguments.executor]
    for name in ("time_limit", "gpus", "sbatch", "address"):
        if getattr(arguments, name) and name not in belongs:
            raise UserError(f"--{name.replace('_', '-')} says nothing to --executor {arguments.executor}; see `scaling run --help`")
    if arguments.executor == "local":
        return None
    if arguments.workers == 0:
        raise UserError(f"--executor {arguments.executor} needs --workers 1 or more (0 waits for workers that you start yourself)")
    from scaling.engines import DEFAULT_WORKERS, Ray, Slurm

    workers = arguments.workers or DEFAULT_WORKERS
    if arguments.executor == "slurm":
        return Slurm(root, workers, arguments.time_limit, arguments.gpus, arguments.sbatch)
    return Ray(root, workers, arguments.address, arguments.gpus)


def worker_command(arguments: argparse.Namespace) -> int:
    """Train what is free, then end."""
    from scaling.config import UserError
    from scaling.launch import be_a_worker, pending_trunks
    from scaling.record import Folder, read_resolved
    from scaling.timings import Stopwatch

    stopwatch = Stopwatch(since=time.monotonic() - time.process_time())  # the process has been busy since it began
    several = (arguments.processes, arguments.process)
    if arguments.coordinator in (None, "auto") and several != (None, None):
        raise UserError("--processes and --process go with --coordinator HOST:PORT")
    if arguments.coordinator not in (None, "auto") and (None in several or not arguments.process < arguments.processes):
        raise UserError("--coordinator HOST:PORT needs --processes N and --process I, with I from 0 to N - 1")
    here = 1 if arguments.coordinator == "auto" else read_resolved(arguments.results).sweep.devices.spread // (arguments.processes or 1)
    stop = be_a_worker(cpu=arguments.cpu, dies_with_stdin=arguments.follow, cpu_devices=here)
    from scaling.worker import join, work

    if arguments.coordinator:
        join(arguments.coordinator, processes=arguments.processes, process=arguments.process)

    trained = work(
        arguments.results,
        follow=arguments.follow,
        notify=lambda words: print(words, file=sys.stderr, flush=True),
        stopwatch=stopwatch,
        stop=stop,
    )
    if not arguments.follow:
        left = pending_trunks(Folder(arguments.results), read_resolved(arguments.results))
        waiting = f"; {len(left)} trunks left (other workers, or hold-outs that wait for their forecast)" if left else ""
        print(f"worker: trained {trained} trunks{waiting}; next: scaling run SWEEP.toml fits and reports", file=sys.stderr)
    return 0


def check_command(arguments: argparse.Namespace) -> int:
    """One line a finding; exit code 1 if something is not as it must be."""
    from scaling.shared_folder import check

    findings = check(arguments.folder, machines=arguments.machines)
    for finding in findings:
        print(f"{'ok' if finding.good else 'FAILED':8}{finding.what}")
    return int(not all(finding.good for finding in findings))
