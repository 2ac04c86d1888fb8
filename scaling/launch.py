"""Starting workers: the settings of their process, and the parent that keeps local ones going.

The folder is the only coordinator: a worker (`scaling.worker`) takes the dearest free trunk until nothing is left. Any engine that can
start `scaling worker RESULTS` on machines that share the folder adds workers. Hold-out trunks are free only once their forecast is
registered.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from scaling import claim as claims
from scaling.budget import Guard
from scaling.config import Devices, UserError
from scaling.corpus import cache_folder
from scaling.deaths import Deaths, reached
from scaling.engines import Engine, NothingGained
from scaling.environment import keep_freed_memory, platform_of_workers, visible_gpus, worker_environment
from scaling.forecasts import forecast_of, mend_forecasts
from scaling.plan import Trunk, group_trunks
from scaling.record import Folder, Resolved, read_failure, read_resolved, read_result
from scaling.stopping import Stop

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
    return trunk.role != "holdout" or all(forecast_of(folder, run.run_id) for run in trunk.runs)


# ---------------------------------------------------------------- settings of a worker


def be_a_worker(*, cpu: int | None, dies_with_stdin: bool, cpu_devices: int = 1) -> Stop:
    """Settings, and JAX imported with them: one thread, one core, freed memory kept, shared compilation cache, end with parent.

    `cpu_devices`: how many devices a CPU plays, where there are no others. Returns what others ask this worker to stop by: SIGTERM, or
    (`dies_with_stdin`) the end of its parent.
    """
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda *_: stop.request(grace=TERMINATED_GRACE))
    keep_freed_memory()
    os.environ.update(worker_environment(cpu_devices=cpu_devices))
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
    from scaling.compiled import seal_compilation_cache  # imports JAX, which reads the environment

    seal_compilation_cache()
    return stop


# ---------------------------------------------------------------- the parent of local workers


def usable_cpus() -> list[int]:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def default_workers(devices: Devices) -> int:
    """How many workers there should be here: one a core, or one for as many GPUs as a run is spread over; one on anything else.

    Raises
    ------
    UserError
        A run needs more GPUs than there are.
    """
    platform, gpus = platform_of_workers(), len(visible_gpus())
    if platform == "cpu":
        return len(usable_cpus())
    if 0 < gpus < devices.spread:
        raise UserError(
            f"devices.data x devices.parameters = {devices.spread}, but there are {gpus} GPUs here; use fewer, or --workers 0 and a "
            "`scaling worker --coordinator ...` on every machine (docs/gpu.md)"
        )
    return max(1, gpus // devices.spread) if platform == "cuda" else 1


def place_of(slot: int, *, workers: int, devices: Devices) -> tuple[list[str], dict[str, str]]:
    """What a local worker gets for its own: arguments that pin it to a core, or the environment that shows it its GPUs."""
    if platform_of_workers() == "cpu":
        cpus = usable_cpus()
        return (["--cpu", str(cpus[slot % len(cpus)])] if workers <= len(cpus) else []), {}
    gpus = visible_gpus()
    first = slot % max(1, len(gpus) // devices.spread) * devices.spread
    return [], {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + devices.spread])} if gpus else {}


def launch(
    root: Path, *, workers: int, next_runs: Callable[[], None], display, deadline: float = math.inf, engine: Engine | None = None
) -> None:
    """Run local workers until nothing is pending (with none, wait for those elsewhere), or until `deadline` (of `time.monotonic`).

    `next_runs` is called whenever only unreleased hold-outs are left; it registers what releases them (this module knows nothing of laws).
    A worker that dies is replaced; a trunk that kills several of them without getting further is recorded as failed (`scaling.deaths`).
    At the deadline workers save their states. An `engine` starts workers elsewhere; then there are none here.
    """
    folder, resolved = Folder(root), read_resolved(root)
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
            if engine is not None:
                free = [trunk for trunk in pending if is_released(folder, trunk) and not claims.is_live(folder, trunk.trunk_id)]
                try:
                    engine.keep(len(free), [reached(folder, trunk) for trunk in pending])
                except NothingGained as why:
                    deaths.give_up(free, why)
            for slot in range(min(0 if engine is not None else workers, len(pending))):
                if slot not in running:
                    running[slot] = _start_worker(root, *place_of(slot, workers=workers, devices=resolved.sweep.devices))
            for slot, process in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    if process.returncode != 0:
                        deaths.record(pending, process)
            display.update()
            # Many runs take long to look at, and workers need the cores; a process that was suspended meanwhile must not sleep on.
            time.sleep(min(max(POLL_SECONDS, 20 * (time.monotonic() - began)), LONGEST_POLL_SECONDS))
    finally:
        if engine is not None:
            engine.close()
        for process in running.values():
            if process.stdin:
                process.stdin.close()
        for process in running.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
        display.update(last=True)


def _start_worker(root: Path, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "scaling.cli.main", "worker", str(root), "--follow", *arguments]
    with open(root / "workers.log", "ab") as log:  # the child keeps its own handle
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **environment})


def check_results(folder: Folder, resolved: Resolved, *, notify: Callable[[str], None]) -> int:
    """Verify the checksums of all finished runs; damaged ones are set aside and named. Returns the number of finished runs."""
    finished = 0
    for run in resolved.runs:
        there = folder.run(run.run_id).exists()
        intact = read_result(folder, run.run_id) is not None
        finished += intact
        if there and not intact:
            notify(f"damaged run set aside, to be trained again: {folder.run(run.run_id)}")
    mend_forecasts(folder, resolved, notify=notify)
    return finished
