"""Engines that start `scaling worker RESULTS` elsewhere: a Slurm array, Ray tasks. The folder does the rest (docs/clusters.md)."""

import getpass
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from scaling.config import UserError
from scaling.record import write_atomic

ASK_SECONDS = 5.0
"""How often the engine is asked whether its workers still run."""


class EngineFailed(Exception):
    """The engine cannot start workers, or they end and nothing gets further."""


class Engine(Protocol):
    """What `launch` needs: call `keep` often while trunks are pending, `close` at the end."""

    def keep(self, wanted: int, reached: object) -> None:
        """Have workers running, `wanted` at most; `reached` changes when the sweep gets further."""

    def close(self) -> None:
        """End what still runs."""


@dataclass
class Patience:
    """Give up when workers have ended three times and nothing got further."""

    tries: int = 0
    reached: object = None

    def spend(self, reached: object, *, what: str) -> None:
        """Count one more start.

        Raises
        ------
        EngineFailed
            At the fourth in vain.
        """
        self.tries = self.tries + 1 if reached == self.reached else 1
        self.reached = reached
        if self.tries > 3:
            raise EngineFailed(f"{what} ended 3 times and the sweep got no further; its log says why")


def worker_command(root: Path) -> list[str]:
    """The command that an engine runs, with this Python."""
    return [sys.executable, "-m", "scaling.cli.main", "worker", str(root.resolve())]


@dataclass
class Slurm:
    """An array job of workers: requeued when preempted or when a node fails, submitted again while trunks are pending.

    `options` go to sbatch as they are (`--partition=gpu --account=me`).
    """

    root: Path
    workers: int
    time_limit: str | None = None
    gpus: int = 0
    options: str = ""
    job: str = ""
    asked: float = 0.0
    patience: Patience = field(default_factory=Patience)

    def script(self, wanted: int) -> str:
        """The batch script, also kept in the folder as `slurm.sh`."""
        logs = self.root.resolve() / "slurm-%A_%a.log"
        lines = ["#!/bin/bash", f"#SBATCH --job-name=scaling-{self.root.name}", f"#SBATCH --array=0-{min(self.workers, wanted) - 1}"]
        lines += ["#SBATCH --ntasks=1", "#SBATCH --requeue", "#SBATCH --open-mode=append", f"#SBATCH --output={logs}"]
        lines += ["#SBATCH --signal=TERM@30"]  # states are saved before the time limit
        lines += [f"#SBATCH --time={self.time_limit}"] if self.time_limit else []
        lines += [f"#SBATCH --gpus-per-task={self.gpus}"] if self.gpus else []
        lines += [f"#SBATCH {option}" for option in shlex.split(self.options)]
        return "\n".join([*lines, f"exec srun --kill-on-bad-exit=0 {shlex.join(worker_command(self.root))}", ""])

    def keep(self, wanted: int, reached: object) -> None:
        """Submit an array if none is in the queue."""
        if time.monotonic() - self.asked < ASK_SECONDS:
            return
        self.asked = time.monotonic()
        if self.job and self._is_queued():
            return
        self.patience.spend(reached, what=f"Slurm job {self.job}")
        path = self.root / "slurm.sh"
        write_atomic(path, self.script(wanted).encode())
        self.job = self._call("sbatch", "--parsable", str(path)).split(";")[0].strip()
        print(f"Slurm job {self.job}: {min(self.workers, wanted)} workers", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Cancel what is left in the queue; workers save their states."""
        if self.job and self._is_queued():
            self._call("scancel", self.job)

    def _is_queued(self) -> bool:
        user = getpass.getuser()
        return bool(
            self._call("squeue", "--noheader", "--user", user, "--jobs", self.job, "--format=%i", allowed=("Invalid job id",)).strip()
        )

    def _call(self, *command: str, allowed: tuple[str, ...] = ()) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except FileNotFoundError:
            raise UserError(f"--executor slurm: no {command[0]} here; run this where jobs are submitted, or use --executor local") from None
        if done.returncode and not any(words in done.stderr for words in allowed):
            raise EngineFailed(f"{command[0]}: {done.stderr.strip()}")
        return done.stdout


@dataclass
class Ray:
    """Ray tasks of workers on a cluster: each runs `scaling worker`; Ray starts them again when their node dies."""

    root: Path
    workers: int
    address: str | None = None
    gpus: int = 0
    tasks: list[Any] = field(default_factory=list)
    patience: Patience = field(default_factory=Patience)
    _ray: Any = None

    def keep(self, wanted: int, reached: object) -> None:
        """Have `workers` tasks, or as many as trunks wait."""
        ray = self._connected()
        ended, self.tasks = ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0) if self.tasks else ([], [])
        for task in ended:
            try:
                code, words = ray.get(task)
                if code:
                    print(f"a worker ended with exit code {code}: {words}", file=sys.stderr, flush=True)
            except ray.exceptions.RayError as error:
                print(f"a worker's node is gone: {type(error).__name__}", file=sys.stderr, flush=True)
        if not self.tasks:
            self.patience.spend(reached, what="Ray tasks")
            start = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=3)(run_worker)
            self.tasks = [start.remote(worker_command(self.root)) for _ in range(min(self.workers, wanted))]

    def close(self) -> None:
        """Cancel what still runs."""
        if self._ray is not None:
            for task in self.tasks:
                self._ray.cancel(task)
            self._ray.shutdown()

    def _connected(self) -> Any:
        if self._ray is None:
            try:
                import ray
            except ImportError:
                raise UserError("--executor ray needs Ray: pip install 'scaling-harness[ray]', here and on every node") from None
            ray.init(address=self.address, log_to_driver=False)
            self._ray = ray
        return self._ray


def run_worker(command: list[str]) -> tuple[int, str]:
    """What a Ray task does: one worker in a process of its own, ended with the task; its exit code and last words."""
    process = subprocess.Popen([*command, "--follow"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        words = process.stderr.read() if process.stderr else ""  # the pipe of its standard input closes when this process dies
        return process.wait(), " ".join(words.split("\n")[-2:])[:300]
    finally:
        if process.stdin:
            process.stdin.close()
