"""Curves for TensorBoard and Weights & Biases, written from the folder beside the tables: whoever trains needs to know nothing of them.

`RESULTS/tensorboard` and `RESULTS/wandb` hold a folder for every finished run, complete once it has its name, and TensorBoard also one for
every trunk in training. They are copies; delete them, and the next `scaling run ... --log` writes them anew.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from scaling import claim as claims
from scaling.config import RunConfig, UserError
from scaling.plan import Trunk, group_trunks
from scaling.record import Folder, Resolved, read_metrics, read_result, remove

EVERY_SECONDS = 5.0
CURVES = ("train_loss", "learning_rate", "grad_norm")
FINAL = ("loss", "bits_per_byte", "flops", "train_seconds")
LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


@dataclass
class Logger:
    """One kind of log of one results folder; call `update` often.

    Parameters
    ----------
    kind : {"tensorboard", "wandb"}
    """

    kind: str
    folder: Folder
    resolved: Resolved
    _looked: float = -EVERY_SECONDS
    _broken: bool = False
    _live: dict[str, tuple[int, int, Any]] = field(default_factory=dict)  # trunk -> attempt, bytes read, writer

    @property
    def root(self) -> Path:
        """Where the logs lie."""
        return self.folder.root / self.kind

    def update(self, *, last: bool = False) -> None:
        """Write what has ended since, and for TensorBoard what has been trained since; what goes wrong here stops no sweep."""
        now = time.monotonic()
        if self._broken or (not last and now - self._looked < EVERY_SECONDS):
            return
        self._looked = now
        try:
            self._write()
        except Exception as error:
            self._broken = True
            print(f"--log {self.kind} stopped: {type(error).__name__}: {error}; the sweep goes on", file=sys.stderr, flush=True)

    def _write(self) -> None:
        write = {"tensorboard": _tensorboard_run, "wandb": _wandb_run}[self.kind]
        for run in self.resolved.runs:
            if self.folder.run(run.run_id).exists() and not (self.root / run.run_id).exists():
                self._write_run(run, write)
        if self.kind == "tensorboard":
            for trunk in group_trunks(self.resolved.runs):
                self._follow(trunk)

    def _write_run(self, run: RunConfig, write: Callable[[Path, RunConfig, dict[str, Any], list[dict[str, Any]]], None]) -> None:
        result = read_result(self.folder, run.run_id, files=False)
        if result is None:  # damaged, and set aside: it is trained and logged again
            return
        staged = self.root / f".{run.run_id}.{os.getpid()}.tmp"
        remove(staged)
        staged.mkdir(parents=True)
        write(staged, run, result, read_metrics(self.folder.run(run.run_id) / "metrics.jsonl"))
        if (self.root / run.run_id).exists():  # another launcher was faster
            remove(staged)
        else:
            staged.rename(self.root / run.run_id)

    def _follow(self, trunk: Trunk) -> None:
        """Append the new points of a trunk in training; of one that has ended, leave the runs alone."""
        name, target = trunk.trunk_id, self.root / f"training-{trunk.trunk_id}"
        if all(self.folder.run(run.run_id).exists() for run in trunk.runs):
            if name in self._live:
                self._live.pop(name)[2].close()
            if target.exists():
                remove(target)
            return
        claim = claims.read_claim(self.folder, name)
        path = self.folder.trunk(name) / f"attempt-{claim.attempt}" / "metrics.jsonl" if claim else None
        if claim is None or path is None or not path.exists():
            return
        attempt, read, writer = self._live.get(name, (-1, 0, None))
        if attempt != claim.attempt:
            if writer is not None:
                writer.close()
            remove(target)
            read, writer = 0, _writer(target)
        with open(path, "rb") as file:
            file.seek(read)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]  # the last line may be half written
        for line in lines.splitlines():
            point = msgspec.json.decode(line)
            if point["branch"] == "trunk":
                _add_point(writer, point)
        writer.flush()
        self._live[name] = (claim.attempt, read + len(lines), writer)


def check_library(kind: str) -> None:
    """Say in one line what to install when the library of a kind of log is missing.

    Raises
    ------
    UserError
    """
    if find_spec(LIBRARIES[kind]) is None:
        raise UserError(f"--log {kind} needs the package {LIBRARIES[kind]}; install it with `.venv/bin/pip install {LIBRARIES[kind]}`")


def _configuration(run: RunConfig) -> dict[str, Any]:
    """The run's configuration as flat names: `model.d_model`, `training.seed_init`, ..."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                add(f"{prefix}.{name}" if prefix else name, part)
        else:
            flat[prefix] = value if isinstance(value, (str, int, float, bool)) else str(value)

    add("", msgspec.to_builtins(run))
    return flat


def _final(result: dict[str, Any]) -> dict[str, float]:
    return {f"final/{name}": float(result[name]) for name in FINAL if isinstance(result.get(name), (int, float))}


def _writer(folder: Path):
    from tensorboardX import SummaryWriter

    return SummaryWriter(logdir=str(folder))


def _add_point(writer, point: dict[str, Any]) -> None:
    for name in CURVES:
        writer.add_scalar(name, point[name], global_step=point["step"])


def _tensorboard_run(staged: Path, run: RunConfig, result: dict[str, Any], points: list[dict[str, Any]]) -> None:
    from tensorboardX.summary import hparams

    with _writer(staged) as writer:
        for point in points:
            _add_point(writer, point)
        final = _final(result)
        # In the run's own event file: SummaryWriter.add_hparams would open a second folder for every run.
        for summary in hparams(hparam_dict=_configuration(run), metric_dict=final):
            writer.file_writer.add_summary(summary)
        for name, value in final.items():
            writer.add_scalar(name, value, global_step=run.steps)


def _wandb_run(staged: Path, run: RunConfig, result: dict[str, Any], points: list[dict[str, Any]]) -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    settings = wandb.Settings(mode="offline", silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True)
    logged = wandb.init(
        project="scaling", group=run.trunk_id, id=run.run_id, name=run.run_id, config=_configuration(run), dir=str(staged),
        settings=settings,
    )  # fmt: skip
    for point in points:
        logged.log({name: point[name] for name in ("tokens", *CURVES)}, step=point["step"])
    logged.summary.update({"status": result["status"], **_final(result)})
    logged.finish()
