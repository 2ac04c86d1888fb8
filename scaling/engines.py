"""Engines that start `scaling worker RESULTS` elsewhere: a Slurm array, Ray tasks. The folder does the rest (docs/clusters.md)."""

import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from scaling.config import UserError
from scaling.deaths import last_line
from scaling.record import write_atomic

ASK_SECONDS = 5.0
"""How often Slurm is asked whether its jobs are still in the queue."""
CONNECT_SECONDS = 5.0
"""How long a Ray address may take to answer."""
DEFAULT_WORKERS = 8
"""Workers at once when nobody says how many; never more than there are free trunks."""
GRACE_SECONDS = 10.0
"""How long a cancelled Ray task may take to save its state."""
MAX_STARTS = 3
"""So often workers are started without the sweep getting further."""


class EngineFailed(Exception):
    """The engine cannot start workers, or they end and nothing gets further."""


class NothingGained(EngineFailed):
    """Workers are started and end, and the sweep gets no further."""


class Engine(Protocol):
    """What `launch` needs: call `keep` often while trunks are pending, `close` at the end."""

    workers: int

    def keep(self, free: int, reached: object) -> None:
        """Have workers for so many free trunks; `reached` changes when the sweep gets further."""

    def close(self) -> None:
        """End what still runs."""


@dataclass
class Patience:
    """Give up when workers have been started `MAX_STARTS` times and nothing got further."""

    starts: int = 0
    reached: object = None

    def spend(self, reached: object) -> bool:
        """Count one more start; whether it may be made."""
        self.starts = self.starts + 1 if reached == self.reached else 1
        self.reached = reached
        return self.starts <= MAX_STARTS


def worker_command(root: Path) -> list[str]:
    """One worker, by this Python."""
    return [sys.executable, "-m", "scaling.cli.main", "worker", str(root)]


# ---------------------------------------------------------------- Slurm


@dataclass
class Slurm:
    """An array job of workers: requeued when preempted or when a node fails, submitted again while trunks are free.

    `options` go to sbatch as they are (`--partition=gpu --account=me`).
    """

    root: Path
    workers: int
    time_limit: str | None = None
    gpus: int = 0
    options: str = ""
    job: str = ""
    asked: float = -math.inf
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        """Look for what is needed before anything is trained.

        Raises
        ------
        UserError
            There is no Slurm here, or something cannot be written into a script.
        """
        self.root = self.root.resolve()
        missing = [name for name in ("sbatch", "squeue", "scancel") if not shutil.which(name)]
        if missing:
            raise UserError(f"--executor slurm: no {missing[0]} here; run this where jobs are submitted, or use --executor local")
        if self.time_limit and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time_limit):
            raise UserError(f"--time-limit {self.time_limit!r}: use MINUTES, HH:MM:SS or DAYS-HH:MM:SS, as sbatch does")
        try:
            shlex.split(self.options)
        except ValueError as error:
            raise UserError(f"--sbatch {self.options!r}: {error}") from None
        if re.search(r"[\n'\\]", f"{self.root}") or re.search(r"[\n'\\]", self.options):
            raise UserError("--executor slurm: no single quotes, backslashes or line breaks in --sbatch and in the path of the results")

    def script(self, count: int) -> str:
        """The batch script for `count` workers, also kept in the folder as `slurm.sh`."""
        logs = str(self.root / "slurm-").replace("%", "%%") + "%A_%a.log"
        options = [
            f"--job-name=scaling-{self.root.name}",
            f"--array=0-{count - 1}",
            "--ntasks=1",
            "--requeue",
            "--open-mode=append",
            f"--output={logs}",
            "--signal=B:TERM@60",  # states are saved before the time limit
            *([f"--time={self.time_limit}"] if self.time_limit else []),
            *([f"--gpus-per-task={self.gpus}"] if self.gpus else []),
            *shlex.split(self.options),
        ]
        lines = [f"#SBATCH {shlex.quote(option)}" for option in options]
        return "\n".join(["#!/bin/bash", *lines, f"exec {shlex.join(worker_command(self.root))}", ""])

    def keep(self, free: int, reached: object) -> None:
        """Submit an array if there are free trunks and no job is in the queue."""
        if not free or time.monotonic() - self.asked < ASK_SECONDS:
            return
        self.asked = time.monotonic()
        if self._is_queued():
            return
        if not self.patience.spend(reached):
            self._give_up()
        count, path = min(self.workers, free), self.root / "slurm.sh"
        write_atomic(path, self.script(count).encode())
        done = _ask("sbatch", "--parsable", str(path))
        if done.returncode:
            raise EngineFailed(f"sbatch: {done.stderr.strip()}")
        self.job = done.stdout.split(";")[0].strip()
        print(f"Slurm job {self.job}: {count} workers", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Cancel what is left in the queue; workers save their states."""
        if self._is_queued():
            _ask("scancel", self.job)

    def _is_queued(self) -> bool:
        """Whether the job has not ended; a controller that does not answer knows nothing of its end."""
        if not self.job:
            return False
        done = _ask("squeue", "--noheader", f"--jobs={self.job}", "--format=%i")
        return bool(done.stdout.strip()) if done.returncode == 0 else "Invalid job id" not in done.stderr

    def _give_up(self) -> NoReturn:
        logs = sorted(self.root.glob("slurm-*.log"), key=lambda path: path.stat().st_mtime)
        if not logs:
            raise UserError(f"{MAX_STARTS} Slurm jobs ended without a log in {self.root}: nodes must see this folder under this path")
        raise NothingGained(f"{MAX_STARTS} Slurm jobs ended and nothing got further; {logs[-1]} ends: {last_line(logs[-1])}")


def _ask(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------- Ray


@dataclass
class Ray:
    """Ray tasks of workers on a cluster: each runs `scaling worker`; Ray starts them again when their node dies."""

    root: Path
    workers: int
    address: str | None = None
    gpus: int = 0
    tasks: list[Any] = field(default_factory=list)
    patience: Patience = field(default_factory=Patience)
    said: str = "nothing"
    _ray: Any = None

    def __post_init__(self) -> None:
        """Connect before anything is trained.

        Raises
        ------
        UserError
            Ray is not installed, or nothing answers at the address.
        """
        self.root = self.root.resolve()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--executor ray needs Ray: `make ray`, or pip install 'scaling-harness[ray]', here and on every node") from None
        if self.address:
            _check_address(self.address)
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            signal.signal(signal.SIGTERM, terminate)  # Ray puts one of its own there, with another exit code
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"--address {self.address}: no Ray cluster there ({first}); start one with `ray start --head`") from None
        self._ray = ray

    def keep(self, free: int, reached: object) -> None:
        """Have as many tasks as workers are wanted, or as trunks are free."""
        ray = self._ray
        ended, self.tasks = ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0) if self.tasks else ([], [])
        for task in ended:
            self._hear(task)
        if not free or self.tasks:
            return
        if not self.patience.spend(reached):
            raise NothingGained(f"Ray tasks ended {MAX_STARTS} times and nothing got further; {self.said}")
        start = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=3)(run_worker)
        self.tasks = [start.remote(str(self.root)) for _ in range(min(self.workers, free))]
        print(f"Ray: {len(self.tasks)} workers", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ask what still runs to save and end; end it after a grace."""
        for force in (False, True):
            for task in self.tasks:
                self._ray.cancel(task, force=force)
            if self.tasks:
                _, self.tasks = self._ray.wait(self.tasks, num_returns=len(self.tasks), timeout=GRACE_SECONDS)
        self.tasks = []

    def _hear(self, task: Any) -> None:
        try:
            code, self.said = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            code, self.said = 1, f"a worker's node is gone ({type(error).__name__})"
        if code == 2:
            raise UserError(f"a Ray node cannot work in {self.root}: {self.said}")
        if code:
            print(f"a Ray task ended with exit code {code}: {self.said}", file=sys.stderr, flush=True)


def _check_address(address: str) -> None:
    """Ask whether anything listens: Ray itself would try for a minute, then end the process."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--address {address!r}: use HOST:PORT, as `ray start --head` prints it, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: nothing answers there ({error}); `ray status` names a cluster's address") from None


def run_worker(root: str) -> tuple[int, str]:
    """What a Ray task does: one worker in a process of its own, which ends when this one does; its exit code and last words."""
    log = Path(root) / f"ray-{socket.gethostname()}-{os.getpid()}.log"
    try:
        with open(log, "ab") as words:
            process = subprocess.Popen([*worker_command(Path(root)), "--follow"], stdin=subprocess.PIPE, stdout=words, stderr=words)
    except OSError as error:
        return 2, f"{socket.gethostname()}: {error}; every node must see the results folder under this path"
    try:
        while process.poll() is None:
            time.sleep(0.2)  # a cancelled task is interrupted between two of these, not within `wait`
    except KeyboardInterrupt:
        assert process.stdin is not None
        process.stdin.close()  # the worker saves its state; Ray kills the children of a task that has ended
        process.wait(timeout=GRACE_SECONDS)
        raise
    return process.returncode, f"{log} ends: {last_line(log)}"
