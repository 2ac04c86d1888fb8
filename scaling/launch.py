"""Claim a trunk, train it, record it: the worker, and the parent that keeps local workers going.

The folder is the only coordinator: a worker takes the dearest free trunk until nothing is left. Any engine that can start
`scaling worker RESULTS` on machines that share the folder adds workers. Hold-out trunks are free only once their forecast is registered.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from scaling import claim as claims
from scaling.budget import Guard
from scaling.config import ModelConfig
from scaling.corpus import cache_folder
from scaling.deaths import Deaths
from scaling.environment import keep_freed_memory, worker_environment
from scaling.forecasts import forecast_hash
from scaling.plan import Trunk, by_preference, group_trunks
from scaling.record import Folder, Resolved, read_failure, read_resolved, read_result, write_json
from scaling.stopping import Stop, Stopped
from scaling.timings import Stopwatch

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.2, 5.0
PARENT_GONE_GRACE, TERMINATED_GRACE = 4.0, 8.0
"""Seconds in which a worker may save its state when its parent is gone, and when it gets SIGTERM."""


def pending_trunks(folder: Folder, resolved: Resolved) -> list[Trunk]:
    """Trunks with runs that have no result, that have not failed and that the budget does not leave out; dearest first."""
    pending = [
        trunk
        for trunk in group_trunks(resolved.runs)
        if read_failure(folder, trunk.trunk_id) is None and any(not folder.run(run.run_id).exists() for run in trunk.runs)
    ]
    left_out = Guard.of(folder, resolved).left_out() if pending else {}
    return [trunk for trunk in pending if trunk.trunk_id not in left_out]


def is_released(folder: Folder, trunk: Trunk) -> bool:
    """Whether a trunk may be trained: always when fitted; a hold-out only once all its runs are forecast."""
    return trunk.role != "holdout" or all(forecast_hash(folder, run.run_id) for run in trunk.runs)


# ---------------------------------------------------------------- the worker


def work(
    root: Path,
    *,
    follow: bool = False,
    notify: Callable[[str], None] = lambda message: None,
    stopwatch: Stopwatch | None = None,
    stop: Stop | None = None,
) -> int:
    """Train what is free in a results folder until nothing is; returns the number of trunks that this worker trained.

    With `follow`, wait for trunks that are not released yet (until standard input closes) and compile their programs meanwhile.
    `stopwatch` began with the process, if that is known; `stop` is how others ask this worker to end.
    """
    stopwatch, stop = stopwatch or Stopwatch(), stop or Stop()
    from scaling.corpus import load
    from scaling.train import Trainer, compile_ahead, count_compiled

    count_compiled(stopwatch)
    folder = Folder(root)
    resolved = read_resolved(root)
    guard = Guard.of(folder, resolved)
    loaded = {}  # memory-mapped, so many cost nothing
    trained = 0
    compiled: set[ModelConfig] = set()
    stopwatch.switch("records")
    while not stop.requested:
        pending = pending_trunks(folder, resolved)
        released = [trunk for trunk in pending if is_released(folder, trunk)]
        busy = {trunk.config.model for trunk in released if claims.is_live(folder, trunk.trunk_id)}
        for trunk in by_preference(released, compiled=compiled, busy=busy):
            data = trunk.config.data
            if data.corpus_hash not in loaded:  # before the claim: text that cannot be had is nobody's failure but this machine's
                loaded[data.corpus_hash] = load(
                    data.corpus, content_hash=data.corpus_hash, tokenizer=data.tokenizer, options=resolved.sweep.text
                )
            claim = claims.take(folder, trunk.trunk_id, allowed=lambda trunk=trunk: trunk.trunk_id not in guard.left_out())
            if claim is None:
                continue
            records, corpus = resolved.sweep.records, loaded[data.corpus_hash]
            trainer = Trainer(folder, trunk, claim, corpus, records.keep, records.checkpoint_seconds, notify, stopwatch, stop)
            compiled.add(trunk.config.model)
            with guard.metered(trunk.trunk_id, stop.soon):
                _train_claimed(trainer)
            trained += 1
            break
        else:
            if not follow or not pending:
                return trained
            for trunk in pending:
                if not is_released(folder, trunk) and trunk.config.model not in compiled:
                    with stopwatch.during("compilation"):
                        compile_ahead(trunk.config)
                    compiled.add(trunk.config.model)
            with stopwatch.during("waiting"):
                time.sleep(POLL_SECONDS)
    return trained


def _train_claimed(trainer) -> None:
    folder, trunk_id = trainer.folder, trainer.trunk.trunk_id
    try:
        with claims.heartbeat(folder, trunk_id), trainer.stop.during_training():
            trainer.train()
    except claims.ClaimLost:
        trainer.notify(f"{trunk_id}: taken over by another worker")
    except Stopped as stopped:
        trainer.notify(str(stopped))
    except OSError:  # a full disk, a folder that is gone: the machine's fault and not the trunk's, so this worker ends
        raise
    except Exception as error:  # one trunk's failure is recorded and must not stop the others
        detail = traceback.format_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        trainer.notify(f"{trunk_id}: failed: {reason}")
        write_json(folder.failure(trunk_id), {"reason": reason, "attempt": trainer.claim.attempt, "traceback": detail})
    finally:
        claims.release(folder, trunk_id, trainer.claim)


def be_a_worker(*, cpu: int | None, dies_with_stdin: bool) -> Stop:
    """Settings before JAX is imported: one thread, one core, freed memory kept, shared compilation cache, end with parent.

    Returns what others ask this worker to stop by: SIGTERM, or (`dies_with_stdin`) the end of its parent.
    """
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda *_: stop.request(grace=TERMINATED_GRACE))
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
            stop.request(grace=PARENT_GONE_GRACE)

        threading.Thread(target=watch, daemon=True).start()
    return stop


# ---------------------------------------------------------------- the parent of local workers


def usable_cpus() -> list[int]:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def launch(root: Path, *, workers: int, next_runs: Callable[[], None], display, deadline: float = math.inf) -> None:
    """Run local workers until nothing is pending, or until `deadline` (of `time.monotonic`): then they save their states.

    `next_runs` is called whenever only unreleased hold-outs are left; it registers what releases them (this module knows nothing of laws).
    A worker that dies is replaced; a trunk that kills several of them without getting further is recorded as failed (`scaling.deaths`).
    """
    folder, resolved = Folder(root), read_resolved(root)
    cpus = usable_cpus()
    running: dict[int, subprocess.Popen] = {}
    deaths = Deaths(folder)
    try:
        while True:
            began = time.monotonic()
            pending = pending_trunks(folder, resolved)
            if not pending or began > deadline:
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
                        deaths.record(pending, process)
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


def check_results(folder: Folder, resolved: Resolved, *, notify: Callable[[str], None]) -> int:
    """Verify the checksums of all finished runs; damaged ones are set aside and named. Returns the number of finished runs."""
    finished = 0
    for run in resolved.runs:
        there = folder.run(run.run_id).exists()
        intact = read_result(folder, run.run_id) is not None
        finished += intact
        if there and not intact:
            notify(f"damaged run set aside, to be trained again: {folder.run(run.run_id)}")
    return finished
