"""Commands that make runs: plan, run, worker, status, clean."""

import argparse
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.cli.numbers import not_negative
from scaling.cli.status import status_command

if TYPE_CHECKING:
    from scaling.calibration import Calibration
    from scaling.cli.session import Session
    from scaling.plan import Trunk
    from scaling.record import Resolved

EXAMPLES = {
    "plan": "scaling plan sweeps/quickstart.toml",
    "run": "scaling run sweeps/quickstart.toml --workers 2",
    "worker": "scaling worker results/quickstart",
    "status": "scaling status results/quickstart --watch",
    "clean": "scaling clean results/quickstart --delete",
}


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Register this module's commands."""

    def add(name: str, function, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {EXAMPLES[name]}")
        made.set_defaults(run=function)
        return made

    plan = add("plan", plan_command, "show what a sweep would run: parameters, tokens, FLOPs, estimated time")
    run = add("run", run_command, "train what is missing, then fit, plot and report; safe to interrupt and to repeat")
    for made in (plan, run):
        made.add_argument("sweep", metavar="SWEEP.toml", help="the sweep file, or the name of a packaged sweep: quickstart")
        made.add_argument(
            "--workers",
            type=not_negative,
            default=None,
            help="processes on this machine (default: one a core, or one a GPU; 0: none, wait for `scaling worker` elsewhere)",
        )
        made.add_argument("--results", metavar="DIR", type=Path, default=Path("results"), help="root of results (default: results)")
    run.add_argument("--max-time", metavar="TIME", help="end after so long, states saved and the laws of what is done written: 45 min, 2h")
    run.add_argument(
        "--log", choices=["tensorboard", "wandb"], action="append", default=[], help="curves for this program too; may be repeated"
    )
    plan.add_argument(
        "--hardware", metavar="NAME|FILE.toml:NAME", help="device-hours and money too: h100, h200, a100, rtx4090, cpu, or yours"
    )
    run.add_argument("--retry", choices=["failed"], help="try runs again that failed or diverged")
    run.add_argument(
        "--until", metavar="GOAL", help='train of the grid only what "ci_width(loss@params=N,tokens=D) < WIDTH" needs (docs/design.md)'
    )
    run.add_argument("--budget", metavar="FLOPS", help="with --until: training compute that may be spent (default: the whole grid's)")
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
    status = add("status", status_command, "done / running / failed / diverged / missing, with reasons")
    status.add_argument("results", metavar="RESULTS", type=Path)
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="the live view of whoever trains this folder, until all is done or Ctrl-C")
    how.add_argument("--json", action="store_true", help="every run with its status, for scripts")
    status.add_argument("--run", dest="run_id", metavar="ID", help="with --provenance: which run (default: the lowest loss)")
    status.add_argument("--provenance", action="store_true", help="from a run's number back to its config, text, code and machine")
    clean = add("clean", clean_command, "what is kept, what can go, how much disk")
    clean.add_argument("results", metavar="RESULTS", type=Path)
    clean.add_argument("--delete", action="store_true", help="delete what can go (saved states, left-over attempts, damaged files)")


def program() -> str:
    """How to type the command here: `scaling`, or the path it was started by when that is not on the PATH."""
    if shutil.which("scaling") or not sys.argv[0].endswith("scaling"):
        return "scaling"
    return os.path.relpath(sys.argv[0])


def _say(text: str) -> None:
    """A note for the person, apart from what is meant for other programs."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- plan and run


def _resolve(path: str, *, results: Path):
    """Sweep file -> Resolved and its results folder; everything that can be wrong is said here, before anything is written."""
    from analysis.laws import get_law
    from scaling.cli.texts import check_texts, prepare_texts
    from scaling.config import UserError
    from scaling.plan import resolve
    from scaling.record import Resolved
    from scaling.sweep_file import load_sweep

    sweep = load_sweep(path)
    for law in sweep.fit.laws:
        get_law(law)
    check_texts(sweep)
    runs = resolve(sweep, corpus_hash="unknown")  # impossible shapes are named before the text is read
    fitted, needed = sum(run.role == "fit" for run in runs), len(get_law(sweep.forecast_rule.law).parameters) + 2
    if sweep.holdout and fitted < needed:
        raise UserError(
            f"{path}: law {sweep.forecast_rule.law} needs {needed} runs to forecast the hold-out, the grid has {fitted}; "
            "add sizes, tokens or seeds, or leave [holdout] out"
        )
    hashes, texts = prepare_texts(sweep, runs)
    corpus_hash, facts = next(iter(texts.items()))
    resolved = Resolved(sweep=sweep, corpus_hash=corpus_hash, corpus_facts=facts, runs=resolve(sweep, corpus_hash=hashes), texts=texts)
    if sweep.tune:
        from scaling.cli.tuning import tuned
        from scaling.record import Folder

        resolved = tuned(resolved, Folder(results / sweep.name), train=None)
    return resolved, results / sweep.name


def plan_command(arguments: argparse.Namespace) -> int:
    """Print the table of runs to stdout and the totals to stderr."""
    from scaling.accounting import count_parameters, training_flops_per_token
    from scaling.config import format_quantity
    from scaling.display import clock
    from scaling.estimate import estimate
    from scaling.launch import default_workers, pending_trunks
    from scaling.plan import group_trunks
    from scaling.record import Folder

    resolved, root = _resolve(arguments.sweep, results=arguments.results)
    folder = Folder(root)
    workers = arguments.workers or default_workers(resolved.sweep.devices)
    print("role     run_id                            params_non_embedding  params_total    tokens     flops  state")
    for run in resolved.runs:
        parameters = count_parameters(run.trunk.model)
        flops = run.tokens * training_flops_per_token(run.trunk.model)
        state = "done" if folder.run(run.run_id).exists() else "to do"
        print(
            f"{run.role:8} {run.run_id:34} {parameters.non_embedding:>19,} {parameters.total:>13,} "
            f"{format_quantity(run.tokens):>9} {flops:9.2e}  {state}"
        )
    trunks = group_trunks(resolved.runs)
    todo = pending_trunks(folder, resolved)
    total = sum(trunk.flops for trunk in trunks)
    expected = estimate(folder, todo, _calibrated(todo, workers=workers, spread=resolved.sweep.devices.spread), workers=workers)
    rough = "" if expected.measured else " (rough: from typical rates)"
    print(
        f"{len(resolved.runs)} runs on {len(trunks)} trunks, {total:.2e} FLOPs with shared trunks counted once; "
        f"{len(todo)} trunks to do, with the analysis about {clock(expected.seconds)} on {workers} workers{rough}\n"
        f"results will be in {root}   next: {program()} run {arguments.sweep}",
        file=sys.stderr,
    )
    if arguments.hardware is not None:
        from scaling.hardware import bill, read_device

        sizes = [float(count_parameters(trunk.config.model).non_embedding) for trunk in trunks]
        told = bill(read_device(arguments.hardware), [trunk.flops for trunk in trunks], sizes)
        print(f"the whole sweep on {arguments.hardware}: {told}", file=sys.stderr)
    if (root / "fits.csv").is_file():
        from scaling.cli.loop import where_seeds_pay

        print(where_seeds_pay(root, resolved), file=sys.stderr)
    return 0


def _calibrated(todo: list["Trunk"], *, workers: int, spread: int) -> "Calibration":
    """Read what is known of this machine; where it says nothing about trunks that are to be trained, measure first."""
    from scaling.calibration import (
        MeasuringFailed,
        is_measurable,
        measure,
        measuring_seconds,
        read_calibration,
        unmeasured,
        write_calibration,
    )
    from scaling.display import clock
    from scaling.launch import usable_cpus

    calibration = read_calibration(workers, spread)
    configs = [config for config in unmeasured(calibration, [trunk.config for trunk in todo]) if is_measurable(config)]
    if spread > 1 or not configs:
        return calibration
    print(f"measuring this machine (about {clock(measuring_seconds(configs, workers=workers))}, once)", file=sys.stderr, flush=True)
    try:
        calibration = measure(calibration, configs, workers=workers, cpus=usable_cpus())
    except MeasuringFailed as error:
        print(f"it could not be measured: {error}", file=sys.stderr)
        return calibration
    write_calibration(calibration, workers=workers)
    return calibration


def run_command(arguments: argparse.Namespace) -> int:
    """Train what is missing, forecast and train the hold-outs, then tables, laws, plots, report."""
    from scaling.timings import Stopwatch

    stopwatch = Stopwatch("preparation", since=time.monotonic() - time.process_time())
    from scaling.calibration import read_calibration
    from scaling.cli.session import Session
    from scaling.config import Budget, UserError
    from scaling.deaths import forget_deaths
    from scaling.display import clock
    from scaling.estimate import estimate
    from scaling.launch import check_results, default_workers, pending_trunks
    from scaling.loggers import Logger, check_library
    from scaling.record import Folder, write_atomic, write_json
    from scaling.sweep_file import find_sweep

    for kind in arguments.log:
        check_library(kind)
    budget = _check_until(arguments)
    resolved, root = _resolve(arguments.sweep, results=arguments.results)
    folder = Folder(root)
    workers = default_workers(resolved.sweep.devices) if arguments.workers is None else arguments.workers
    deadline = _deadline(arguments.max_time, workers)
    if arguments.until and (arguments.max_time or resolved.sweep.budget != Budget()):
        raise UserError("--until bounds its compute by --budget; leave --max-time and [budget] out")
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / "sweep.toml", find_sweep(arguments.sweep).read_bytes())
    if arguments.retry:
        _forget_failures(folder, resolved)
    session = Session(folder, resolved, workers, stopwatch, deadline=deadline, logs=tuple(arguments.log))
    if resolved.sweep.tune:
        session.tune()
        resolved = session.resolved
    if arguments.until:
        session.adapt(arguments.until, budget=budget)
        resolved = session.resolved
    write_json(folder.resolved, resolved)
    for note in forget_deaths(folder, resolved):
        _say(note)
    todo = len(resolved.runs) - check_results(folder, resolved, notify=_say)
    pending = pending_trunks(folder, resolved)
    expected = estimate(folder, pending, read_calibration(workers, resolved.sweep.devices.spread), workers=workers)
    note = f"{todo} of {len(resolved.runs)} runs to train" if todo else "nothing to train"
    rough = "" if expected.measured else f" (rough: `{program()} plan` measures this machine)"
    about = f"about {clock(expected.seconds)}{rough}"
    print(f"{resolved.sweep.name}: {note}, {workers} workers, {about}, results in {root}", file=sys.stderr, flush=True)
    stopwatch.switch("analysis")
    if pending or arguments.until:
        session.train()
        _write_provenance(session, command=f"scaling run {arguments.sweep} --workers {workers}")
    for kind in arguments.log:
        Logger(kind, folder, resolved).update(last=True)
    rows = _analyse(root, resolved)
    print(f"\n{session.close(expected)}", file=sys.stderr)
    left_out = [row for row in rows if row["reason"].startswith("left out: ")]
    if left_out:
        print(f"{len(left_out)} runs {left_out[0]['reason']}; `{program()} status {root}` lists them", file=sys.stderr)
    undone = [row for row in rows if row["status"] in ("failed", "missing", "running") and row not in left_out]
    if diverged := sum(row["status"] == "diverged" for row in rows):
        print(f"{diverged} runs diverged (listed in {root / 'exclusions.csv'})", file=sys.stderr)
    if undone:
        print(f"{len(undone)} runs remain undone: {undone[0]['run_id']}: {undone[0]['status']} {undone[0]['reason']}", file=sys.stderr)
        print(f"next: {program()} status {root}, then {program()} run {arguments.sweep} --retry failed", file=sys.stderr)
        return 3
    return 0


def _deadline(max_time: str | None, workers: int) -> float:
    """When training must end for the analysis to end in time."""
    from scaling.budget_limits import parse_duration
    from scaling.calibration import read_calibration
    from scaling.launch import PARENT_GONE_GRACE

    if max_time is None:
        return math.inf
    begun = time.monotonic() - time.process_time()
    return begun + parse_duration(max_time, what="--max-time") - read_calibration(workers).analysis - PARENT_GONE_GRACE


def _check_until(arguments: argparse.Namespace) -> float | None:
    """Return the FLOPs of --budget, after a look at --until."""
    from scaling.config import UserError, parse_quantity

    if arguments.until:
        from scaling.cli.adaptive import parse_goal

        parse_goal(arguments.until)
    elif arguments.budget:
        raise UserError("--budget is for --until: say what the compute is for, or leave it out")
    return parse_quantity(arguments.budget) if arguments.budget else None


def _analyse(root: Path, resolved: "Resolved") -> list[dict[str, Any]]:
    """Rebuild the tables, then fit, plot and report what can be; returns the rows of runs.csv."""
    from analysis.errors import UserError
    from scaling.cli.loop import analyse_and_report
    from scaling.tables import write_tables

    rows = write_tables(root, resolved)
    try:
        print(analyse_and_report(root, resolved, program=program()), flush=True)
    except UserError as error:  # too few runs ended well for any law; what there is stays in the tables
        print(f"no law was fitted: {error}", file=sys.stderr)
    return rows


def _write_provenance(session: "Session", *, command: str) -> None:
    """`provenance.json`: the command, what its time went to, and the environment of its runs (each run folder has its own)."""
    from scaling.record import write_json

    paths = [session.folder.run(run.run_id) / "environment.json" for run in session.resolved.runs]
    environments = [json.loads(path.read_bytes()) for path in paths if path.exists()]
    facts = {
        "command": command,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "training_wall_seconds": round(sum(session.seconds.values()), 1),
        "worker_seconds": {kind: round(seconds, 1) for kind, seconds in session.worker_seconds.items()},
        "environment": environments[-1] if environments else None,
        "numerics_ids": sorted({entry["numerics_id"] for entry in environments}),
        "corpus_facts": session.resolved.corpus_facts,
    }
    write_json(session.folder.root / "provenance.json", facts)


def _forget_failures(folder, resolved) -> None:
    """Make failed and diverged runs pending again."""
    from scaling.plan import group_trunks
    from scaling.record import read_result, remove

    for trunk in group_trunks(resolved.runs):
        folder.failure(trunk.trunk_id).unlink(missing_ok=True)
        for run in trunk.runs:
            result = read_result(folder, run.run_id, files=False)
            if result and result["status"] == "diverged":
                remove(folder.run(run.run_id))


# ---------------------------------------------------------------- worker, clean


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

    trained = work(arguments.results, follow=arguments.follow, notify=_say, stopwatch=stopwatch, stop=stop)
    if not arguments.follow:
        left = pending_trunks(Folder(arguments.results), read_resolved(arguments.results))
        waiting = f"; {len(left)} trunks left (other workers, or hold-outs that wait for their forecast)" if left else ""
        print(f"worker: trained {trained} trunks{waiting}; next: {program()} run SWEEP.toml fits and reports", file=sys.stderr)
    return 0


def clean_command(arguments: argparse.Namespace) -> int:
    """Disk by kind; with --delete, remove what can be made again or is left over."""
    from scaling import claim as claims
    from scaling.corpus import cache_folder
    from scaling.record import Folder, disk_usage, read_resolved, remove

    read_resolved(arguments.results)
    folder, root = Folder(arguments.results), arguments.results
    live = {path.name for path in (root / "trunks").glob("*") if claims.is_live(folder, path.name)}
    removable = [
        path
        for pattern in (
            "trunks/*/state-*.safetensors",
            "trunks/*/branch-*.safetensors",
            "trunks/*/attempt-*",
            "**/*.damaged-*",
            "**/.*.tmp",
        )
        for path in root.glob(pattern)
        if not live & set(path.parts)
    ]
    size = sum(disk_usage(path) if path.is_dir() else path.stat().st_size for path in removable)
    rows = [
        ("kept", "runs (results, curves, final weights)", disk_usage(folder.runs)),
        (
            "kept",
            "tables, plots, report",
            sum(path.stat().st_size for path in root.glob("*.*") if path.is_file()) + disk_usage(root / "plots"),
        ),
        ("can go", f"{len(removable)} saved states, left-over attempts, damaged files", size),
        ("shared", f"cache in {cache_folder()} (safe to delete by hand)", disk_usage(cache_folder())),
    ]
    for state, what, amount in rows:
        print(f"{state:7} {amount / 1e6:10.1f} MB  {what}")
    if arguments.delete:
        for path in removable:
            remove(path)
        print(f"deleted {size / 1e6:.1f} MB; an extended sweep will train these trunks from their start", file=sys.stderr)
    elif removable:
        print(f"next: {program()} clean {root} --delete", file=sys.stderr)
    return 0
