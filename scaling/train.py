"""Training one trunk with its branches: the only training loop.

The trunk runs at its (slowly decaying) rate; each branch leaves it at `branch_step`, cools down to zero, is evaluated on the fixed
held-out windows and published. Work goes in segments of at most `LOG_EVERY` steps, cut at fixed steps, so that a run that was interrupted
and one that was not compute the same bits.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax.sharding import Mesh

from scaling.accounting import training_flops_per_token
from scaling.batches import text_of
from scaling.checkpoint import decode_tree, encode_tree, restore_tree
from scaling.claim import Claim, owned
from scaling.config import RunConfig, TrunkConfig
from scaling.corpus import Corpus
from scaling.environment import environment
from scaling.evaluate import compile_evaluation, held_out_losses
from scaling.forecasts import COPY, forecast_of
from scaling.mesh import agreed, on_host, place_state
from scaling.plan import Trunk
from scaling.program import LOG_EVERY, NEVER, State, compile_training, multiplier_at, program_of, rates_of, schedule_of
from scaling.record import Folder, encode_metrics, path_step, publish_run, read_result, remove, set_aside, write_atomic
from scaling.stopping import Stop, Stopped
from scaling.timings import Stopwatch

TRUNK = "trunk"
"""Phase of the trunk itself; that of a branch is its run_id."""

Point = dict[str, Any]


class Diverged(Exception):
    """The training loss is no longer finite."""

    def __init__(self, step: int):
        super().__init__(f"training loss is not finite at step {step}")
        self.step = step


@dataclass
class Progress:
    """Where a trunk stands: the state after `step` steps, and the logged points that led there."""

    state: State
    step: int
    points: list[Point]


@dataclass(frozen=True)
class Trainer:
    """Everything that training one claimed trunk needs.

    `claim` is None in all but the first of several processes that train a trunk together: they compute along and write nothing.
    """

    folder: Folder
    trunk: Trunk
    claim: Claim | None
    corpus: Corpus
    keep: str = "final"
    checkpoint_seconds: float = 20.0
    notify: Callable[[str], None] = field(default=lambda message: None)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    mesh: Mesh | None = None
    stop: Stop = field(default_factory=Stop)

    @property
    def config(self) -> TrunkConfig:
        """Config shared by the branches."""
        return self.trunk.config

    @property
    def attempt_folder(self) -> Path:
        """Working files of this attempt."""
        assert self.claim is not None
        return self.folder.trunk(self.trunk.trunk_id) / f"attempt-{self.claim.attempt}"

    @property
    def cuts(self) -> list[int]:
        """Steps at which a segment of the trunk must end, whatever is still to do."""
        return [run.branch_step for run in self.trunk.runs]

    # ------------------------------------------------------------ the loop

    @property
    def pending(self) -> list[RunConfig]:
        """Branches that have no result yet, shortest first."""
        missing = agreed([read_result(self.folder, run.run_id) is None for run in self.trunk.runs])
        return [run for run, is_missing in zip(self.trunk.runs, missing, strict=True) if is_missing]

    def train(self) -> None:
        """Train every branch that has no result yet, shortest first.

        Raises
        ------
        ClaimLost
            If another worker took the trunk over meanwhile.
        Stopped
            If somebody asked; the state is saved.
        """
        pending = self.pending
        progress: Progress | None = None
        if pending:
            with self.stopwatch.during("compilation"):
                compile_training(self.config, text_of(self.corpus, self.config, 0, 0, self.mesh), self.mesh)
        ended: Diverged | None = None  # once the trunk has diverged, so have all longer branches
        for run in pending:
            if ended is None:
                try:
                    progress = self._trunk_to(run.branch_step, progress)
                except Diverged as divergence:
                    ended = divergence
            if ended is not None:
                self.publish_diverged(run, ended, progress)
                continue
            assert progress is not None
            try:
                branch = self._cooldown(run, progress)
            except Diverged as divergence:
                self.publish_diverged(run, divergence, progress)
                continue
            self.publish(run, branch)
        self.prune(last=True)
        if pending:
            self.notify(f"{self.trunk.trunk_id}: complete after step {pending[-1].steps}")

    def _trunk_to(self, branch_step: int, progress: Progress | None) -> Progress:
        if progress is None or progress.step > branch_step:
            progress = self.load(TRUNK, branch_step) or self.fresh()
        progress = self._advance(progress, branch_step, cooldown=NEVER, phase=TRUNK)
        self.save(TRUNK, progress)
        return progress

    def _cooldown(self, run: RunConfig, trunk: Progress) -> Progress:
        start = self.load(run.run_id, run.steps)
        if start is None:
            start = Progress(state=jax.tree.map(jnp.copy, trunk.state), step=trunk.step, points=list(trunk.points))  # the trunk goes on
        return self._advance(start, run.steps, cooldown=(run.branch_step, run.steps), phase=run.run_id)

    def fresh(self) -> Progress:
        """The start."""
        return Progress(state=program_of(self.config, self.mesh).start(self.config.seed_init), step=0, points=[])

    def _advance(self, progress: Progress, stop: int, *, cooldown: tuple[float, float], phase: str) -> Progress:
        compiled = program_of(self.config, self.mesh)
        rates, schedule = rates_of(self.config), schedule_of(self.config, cooldown)
        state, step, points = progress.state, progress.step, list(progress.points)
        saved_at = time.monotonic()
        while step < stop:
            end = self.segment_end(step, stop)
            with self.stopwatch.during("training"):
                text = text_of(self.corpus, self.config, step, end, self.mesh)
                state, losses, gradient_norm = compiled.advance(state, step, end, text, rates, schedule)
                losses = np.asarray(losses)[: end - step].astype(np.float64)
            self.stopwatch.steps += end - step
            points.append(self.log(phase, step, losses, gradient_norm=float(gradient_norm), schedule=schedule))
            step = end
            if step < stop and agreed(self.stop.requested or time.monotonic() - saved_at > self.checkpoint_seconds):
                self.save(phase, Progress(state, step, points))
                saved_at = time.monotonic()
                if agreed(self.stop.requested):
                    raise Stopped(f"{self.trunk.trunk_id}: stopped; saved at step {step}")
        return Progress(state, step, points)

    def segment_end(self, step: int, stop: int) -> int:
        """Where a segment that begins at `step` ends."""
        return min([stop, (step // LOG_EVERY + 1) * LOG_EVERY, *(cut for cut in self.cuts if cut > step)])

    def log(self, phase: str, step: int, losses: np.ndarray, *, gradient_norm: float, schedule: dict[str, np.float32]) -> Point:
        """The point of the segment that began at `step`, also written to the attempt's live metrics.

        Raises
        ------
        Diverged
            If a loss is not finite.
        """
        if not np.isfinite(losses).all():
            raise Diverged(step + int(np.argmin(np.isfinite(losses))) + 1)
        end = step + len(losses)
        point = {
            "phase": "trunk" if phase == TRUNK else "cooldown",
            "step": end,
            "tokens": end * self.config.data.batch_tokens,
            "train_loss": float(losses.mean()),
            "learning_rate": float(multiplier_at(np.float32(end - 1), schedule)) * self.config.optimizer.learning_rate,
            "grad_norm": gradient_norm,
        }
        if self.claim is not None:
            with open(self.attempt_folder / "metrics.jsonl", "ab") as live:
                live.write(encode_metrics([{**point, "branch": phase}]))
        return point

    # ------------------------------------------------------------ evaluation and publication

    def _evaluate(self, parameters: dict) -> dict[str, Any]:
        """Held-out loss, overall and of each domain of the corpus."""
        with self.stopwatch.during("compilation"):
            compile_evaluation(self.config.model, self.config.precision, self.mesh)
        with self.stopwatch.during("evaluation"):
            return held_out_losses(
                self.config.model,
                parameters,
                self.corpus,
                windows=self.config.data.evaluation_windows,
                split=self.config.data.evaluation_split,
                precision=self.config.precision,
                mesh=self.mesh,
            )

    def publish(self, run: RunConfig, branch: Progress) -> None:
        """Evaluate a branch that is at its end, and publish it."""
        loss = self._evaluate(branch.state["parameters"])
        if not math.isfinite(loss["loss"]):
            self.publish_diverged(run, Diverged(run.steps), branch)
            return
        metadata = {"run_id": run.run_id, "format": "scaling-harness weights, docs/formats.md"}
        result = {
            "status": "done",
            **loss,
            "train_loss": branch.points[-1]["train_loss"],
            "flops": run.tokens * training_flops_per_token(self.config.model),
        }
        weights = on_host(branch.state["parameters"])
        self._publish(run, result, branch.points, {"weights.safetensors": encode_tree(weights, metadata)})

    def publish_diverged(self, run: RunConfig, divergence: Diverged, progress: Progress | None) -> None:
        """Publish that a branch has no loss."""
        self.notify(f"{run.run_id}: diverged at step {divergence.step}")
        result = {"status": "diverged", "reason": str(divergence), "step": divergence.step}
        self._publish(run, result, progress.points if progress else [], {})

    def _publish(self, run: RunConfig, result: dict[str, Any], points: list[Point], files: dict[str, bytes]) -> None:
        if self.claim is None:
            return
        staged = self.attempt_folder / f"run-{run.run_id}"
        remove(staged)
        staged.mkdir(parents=True)
        for name, data in files.items():
            (staged / name).write_bytes(data)
        (staged / "metrics.jsonl").write_bytes(encode_metrics(points))
        config = msgspec.to_builtins(run)
        forecast = forecast_of(self.folder, run.run_id)
        if forecast:
            (staged / COPY).write_bytes(forecast.read_bytes())
        name = forecast.stem if forecast else None
        (staged / "config.json").write_text(json.dumps({**config, "forecast": name}, indent=1, sort_keys=True))
        (staged / "environment.json").write_text(json.dumps(environment(), indent=1, sort_keys=True))
        record = {
            "run_id": run.run_id,
            "trunk_id": self.trunk.trunk_id,
            "attempt": self.claim.attempt,
            "numerics_id": environment()["numerics_id"],
            "devices": 1 if self.mesh is None else self.mesh.size,
            "host": environment()["host"],
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "timings": msgspec.to_builtins(self.stopwatch.lap()),
            **result,
        }
        with owned(self.folder, self.trunk.trunk_id, self.claim):
            publish_run(staged, self.folder.run(run.run_id), record)

    # ------------------------------------------------------------ saved states

    def _state_path(self, phase: str, step: int) -> Path:
        name = f"state-{step}.safetensors" if phase == TRUNK else f"branch-{phase}-{step}.safetensors"
        return self.folder.trunk(self.trunk.trunk_id) / name

    def save(self, phase: str, progress: Progress) -> None:
        """Publish a state: first its points, then the state, then drop what it replaces."""
        path = self._state_path(phase, progress.step)
        if agreed(path.exists()):
            return
        state = on_host(progress.state)
        if self.claim is None:
            return
        metadata = {
            "trunk_id": self.trunk.trunk_id,
            "phase": phase,
            "step": str(progress.step),
            "numerics_id": environment()["numerics_id"],
            "points": json.dumps(progress.points),
        }
        with owned(self.folder, self.trunk.trunk_id, self.claim):
            if phase == TRUNK:
                write_atomic(self.folder.trunk(self.trunk.trunk_id) / "metrics.jsonl", encode_metrics(progress.points))
            write_atomic(path, encode_tree(state, metadata))
        self.prune()

    def load(self, phase: str, at_most: int) -> Progress | None:
        """The latest intact saved state of a phase at or before a step, from the same numerics; damaged ones are set aside."""
        progress = None if self.claim is None else self._latest(phase, at_most)
        step = int(agreed(progress.step if progress else 0))
        return self._read_state(phase, step) if step and progress is None else progress

    def _latest(self, phase: str, at_most: int) -> Progress | None:
        pattern = self._state_path(phase, 0).name.replace("-0.", "-*.")
        found = {path_step(path) for path in self.folder.trunk(self.trunk.trunk_id).glob(pattern)}
        for step in sorted((step for step in found if 0 < step <= at_most), reverse=True):
            try:
                progress = self._read_state(phase, step)
            except (OSError, ValueError, KeyError) as error:
                self.notify(f"damaged state set aside: {set_aside(self._state_path(phase, step)).name} ({error})")
                continue
            if progress is not None:
                self.notify(f"{self.trunk.trunk_id}: continues at step {step}")
                return progress
        return None

    def _read_state(self, phase: str, step: int) -> Progress | None:
        """A saved state on the devices of this run, whatever it was written on; None when it is of other numerics."""
        tensors, metadata = decode_tree(self._state_path(phase, step).read_bytes())
        points = json.loads(metadata["points"])
        if (self.trunk.trunk_id, phase, str(step)) != (metadata["trunk_id"], metadata["phase"], metadata["step"]):
            raise ValueError("state of another trunk, phase or step")
        if metadata["numerics_id"] != environment()["numerics_id"]:
            return None
        return Progress(state=place_state(self.mesh, restore_tree(tensors, self.fresh().state)), step=step, points=points)

    def prune(self, *, last: bool = False) -> None:
        """Keep what the sweep says: `final` the last trunk state; `all` every state; `none` nothing once the trunk is done."""
        if self.claim is None:
            return
        folder = self.folder.trunk(self.trunk.trunk_id)
        states = sorted(folder.glob("state-*.safetensors"), key=path_step)
        branches = sorted(folder.glob("branch-*.safetensors"), key=path_step)
        done = [path for path in branches if path_step(path) != path_step(branches[-1])]
        doomed = {"final": states[:-1] + done, "all": done, "none": states[:-1] + done}[self.keep]
        if last:
            doomed += branches + (states if self.keep == "none" else []) + [*folder.glob("attempt-*"), *folder.glob(".*.tmp")]
        for path in doomed:
            remove(path)
