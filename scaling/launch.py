"""Claim a trunk, train it, record it: the worker, and the parent that keeps local workers going.

The folder is the only coordinator: a worker takes the dearest free trunk until nothing is left. Any engine that can start
`scaling worker RESULTS` on machines that share the folder adds workers. Hold-out trunks are free only once their forecast is registered.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scaling import claim as claims
from scaling.config import ModelConfig
from scaling.corpus import Corpus, cache_folder
from scaling.devices import lane_key
from scaling.environment import keep_freed_memory, worker_environment
from scaling.forecasts import forecast_hash
from scaling.plan import Trunk, by_preference, group_trunks
from scaling.record import Folder, Resolved, read_failure, read_resolved, read_result, write_json
from scaling.timings import Stopwatch

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.2, 5.0
MAX_DEATHS = 3
"""A trunk whose worker died this often under one parent without an exception of its own is recorded as failed."""


class WorkersFailed(Exception):
    """Workers end before they can claim anything."""


def pending_trunks(folder: Folder, resolved: Resolved) -> list[Trunk]:
    """Trunks with runs that have no result and that have not failed, dearest first."""
    return [
        trunk
        for trunk in group_trunks(resolved.runs)
        if read_failure(folder, trunk.trunk_id) is None and any(not folder.run(run.run_id).exists() for run in trunk.runs)
    ]


def is_released(folder: Folder, trunk: Trunk) -> bool:
    """Whether a trunk may be trained: always when fitted; a hold-out only once all its runs are forecast."""
    return trunk.role != "holdout" or all(forecast_hash(folder, run.run_id) for run in trunk.runs)


# ---------------------------------------------------------------- the worker


def work(
    root: Path, *, follow: bool = False, notify: Callable[[str], None] = lambda message: None, stopwatch: Stopwatch | None = None
) -> int:
    """Train what is free in a results folder until nothing is; returns the number of trunks that this worker trained.

    With `follow`, wait for trunks that are not released yet (until standard input closes) and compile their programs meanwhile.
    `stopwatch` began with the process, if that is known.
    """
    stopwatch = stopwatch or Stopwatch()
    from scaling.batches import compile_ahead
    from scaling.corpus import load
    from scaling.population import Population
    from scaling.program import count_compiled
    from scaling.train import Trainer

    count_compiled(stopwatch)
    folder = Folder(root)
    resolved = read_resolved(root)
    loaded: dict[str, Corpus] = {}  # memory-mapped, so many cost nothing

    def corpus_of(trunk: Trunk) -> Corpus:
        data = trunk.config.data
        if data.corpus_hash not in loaded:
            loaded[data.corpus_hash] = load(
                data.corpus, content_hash=data.corpus_hash, tokenizer=data.tokenizer, options=resolved.sweep.text
            )
        return loaded[data.corpus_hash]

    trained = 0
    compiled: set[ModelConfig] = set()
    stopwatch.switch("records")
    while True:
        pending = pending_trunks(folder, resolved)
        released = [trunk for trunk in pending if is_released(folder, trunk)]
        busy = {trunk.config.model for trunk in released if claims.is_live(folder, trunk.trunk_id)}
        for trunk in by_preference(released, compiled=compiled, busy=busy):
            corpus = corpus_of(trunk)  # before the claim: text that cannot be had is nobody's failure but this machine's
            records, trainers = resolved.sweep.records, []
            for member in lane_mates(trunk, released):
                if len(trainers) < trunk.config.lanes and (claim := claims.take(folder, member.trunk_id)):
                    trainers.append(Trainer(folder, member, claim, corpus, records.keep, records.checkpoint_seconds, notify, stopwatch))
                elif not trainers:
                    break
            if not trainers:
                continue
            compiled.add(trunk.config.model)
            _train_claimed(folder, trainers, trainers[0].train if trunk.config.lanes == 1 else Population(trainers).train)
            trained += len(trainers)
            break
        else:
            if not follow or not pending:
                return trained
            for trunk in pending:
                if not is_released(folder, trunk) and trunk.config.model not in compiled:
                    with stopwatch.during("compilation"):
                        compile_ahead(corpus_of(trunk), trunk.config)
                    compiled.add(trunk.config.model)
            with stopwatch.during("waiting"):
                time.sleep(POLL_SECONDS)


def lane_mates(trunk: Trunk, released: list[Trunk]) -> list[Trunk]:
    """A trunk, and those that can be trained in other lanes of its program."""
    if trunk.config.lanes == 1:
        return [trunk]
    key = lane_key(trunk.config)
    return [trunk, *(other for other in released if other is not trunk and lane_key(other.config) == key)]


def _train_claimed(folder: Folder, trainers: list, train: Callable[[], None]) -> None:
    try:
        with claims.heartbeat(folder, *(trainer.trunk.trunk_id for trainer in trainers)):
            train()
    except claims.ClaimLost:
        trainers[0].notify(f"{trainers[0].trunk.trunk_id}: taken over by another worker")
    except Exception as error:  # one trunk's failure is recorded and must not stop the others
        detail = traceback.format_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        for trainer in trainers:
            if trainer.pending:
                trainer.notify(f"{trainer.trunk.trunk_id}: failed: {reason}")
                failure = {"reason": reason, "attempt": trainer.claim.attempt, "traceback": detail}
                write_json(folder.failure(trainer.trunk.trunk_id), failure)
    finally:
        for trainer in trainers:
            claims.release(folder, trainer.trunk.trunk_id, trainer.claim)


def be_a_worker(*, cpu: int | None, dies_with_stdin: bool) -> None:
    """Settings before JAX is imported: one thread, one core, freed memory kept, shared compilation cache, end with parent."""
    keep_freed_memory()
    os.environ.update(worker_environment())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if cpu is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})
    if dies_with_stdin:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides

        def watch() -> None:
            while os.read(0, 4096):
                pass
            os._exit(0)  # the parent is gone (or done): whatever is unpublished is done again by the next worker

        threading.Thread(target=watch, daemon=True).start()


# ---------------------------------------------------------------- the parent of local workers


def usable_cpus() -> list[int]:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def launch(root: Path, *, workers: int, next_runs: Callable[[], None], display) -> None:
    """Run local workers until nothing is pending.

    `next_runs` is called whenever only unreleased hold-outs are left; it registers what releases them (this module knows nothing of laws).
    A worker that dies is replaced; a trunk that kills `MAX_DEATHS` of them is recorded as failed.
    """
    folder, resolved = Folder(root), read_resolved(root)
    cpus = usable_cpus()
    running: dict[int, subprocess.Popen] = {}
    deaths: Counter[str] = Counter()
    try:
        while True:
            began = time.monotonic()
            pending = pending_trunks(folder, resolved)
            if not pending:
                return
            if not any(is_released(folder, trunk) for trunk in pending):
                next_runs()
                if not any(is_released(folder, trunk) for trunk in pending):
                    return
                continue
            for slot in range(min(workers, len(pending))):
                if slot not in running:
                    running[slot] = _start_worker(root, cpu=cpus[slot % len(cpus)] if workers <= len(cpus) else None)
            for slot, process in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    if process.returncode != 0:
                        _record_death(folder, pending, process, deaths)
            display.update()
            # Many runs take long to look at, and workers need the cores; a process that was suspended meanwhile must not sleep on.
            time.sleep(min(max(POLL_SECONDS, 20 * (time.monotonic() - began)), LONGEST_POLL_SECONDS))
    finally:
        for process in running.values():
            if process.stdin:
                process.stdin.close()
        for process in running.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
        display.update(last=True)


def _start_worker(root: Path, *, cpu: int | None) -> subprocess.Popen:
    command = [sys.executable, "-m", "scaling.cli.main", "worker", str(root), "--follow"]
    if cpu is not None:
        command += ["--cpu", str(cpu)]
    with open(root / "workers.log", "ab") as log:  # the child keeps its own handle
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)


def _record_death(folder: Folder, pending: list[Trunk], process: subprocess.Popen, deaths: Counter[str]) -> None:
    """Note which trunk a dead worker was at; after `MAX_DEATHS` the trunk counts as failed."""
    code = process.returncode
    held = [trunk for trunk in pending if (claim := claims.read_claim(folder, trunk.trunk_id)) and claim.pid == process.pid]
    if not held:
        deaths["start"] += 1
        if deaths["start"] >= MAX_DEATHS:
            raise WorkersFailed(f"workers end at once with exit code {code}; the last lines of {folder.root / 'workers.log'} say why")
    for trunk in held:
        deaths[trunk.trunk_id] += 1
        if deaths[trunk.trunk_id] >= MAX_DEATHS:
            reason = f"worker died {MAX_DEATHS} times (last: {'signal' if code < 0 else 'exit code'} {abs(code)}); out of memory?"
            write_json(folder.failure(trunk.trunk_id), {"reason": reason})


def check_results(folder: Folder, resolved: Resolved) -> int:
    """Verify the checksums of all finished runs; damaged ones are set aside. Returns the number of finished runs."""
    return sum(read_result(folder, run.run_id) is not None for run in resolved.runs)
