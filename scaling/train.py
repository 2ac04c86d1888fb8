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
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
from jax import lax

from scaling.accounting import training_flops_per_token
from scaling.architectures import architecture_of
from scaling.checkpoint import decode_tree, encode_tree, restore_tree
from scaling.claim import Claim, owned
from scaling.config import ModelConfig, OptimizerConfig, Precision, RunConfig, TrunkConfig
from scaling.corpus import Corpus
from scaling.environment import environment
from scaling.evaluate import compile_evaluation, held_out_losses
from scaling.forecasts import forecast_hash
from scaling.mixture import training_windows
from scaling.optimizer import make_optimizer, rate_multiplier
from scaling.plan import Trunk
from scaling.record import Folder, encode_metrics, path_step, publish_run, read_result, remove, set_aside, write_atomic
from scaling.stopping import Stop, Stopped
from scaling.timings import Stopwatch
from scaling.tokenizer import token_dtype

LOG_EVERY = 50
"""Steps per segment: one call of the compiled program, one logged point."""

_NEVER = (1e9, 2e9)  # cooldown bounds of the trunk itself

State = dict[str, Any]
Point = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """Compiled functions for one shape; shared by all runs that have it."""

    start: Callable[[int], State]
    advance: Callable[..., tuple[State, jax.Array, jax.Array]]
    advance_population: Callable[..., tuple[State, jax.Array, jax.Array]]
    """`advance` of several members at once: state, windows, rates and schedule have a first axis for them."""


@lru_cache(maxsize=4)
def program(model: ModelConfig, optimizer: OptimizerConfig, precision: Precision = "float32") -> Program:
    """Build the training program of a shape. Rates and schedule are arguments of the program, not part of it."""
    transform, architecture = make_optimizer(optimizer, precision), architecture_of(model, precision)

    def start(seed: int) -> State:
        parameters = architecture.initial_parameters(model, seed)
        state = {"parameters": parameters, "optimizer": jax.jit(transform.init)(parameters)}
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)  # no weak types: they would compile `advance` twice

    def one_step(step, first, state, windows, rates, schedule):
        batch = lax.dynamic_index_in_dim(windows, step - first, keepdims=False).astype(jnp.int32)
        loss, gradients = jax.value_and_grad(lambda p: architecture.mean_loss(model, p, batch))(state["parameters"])
        directions, optimizer_state = transform.update(gradients, state["optimizer"], state["parameters"])
        multiplier = rate_multiplier(step.astype(jnp.float32), **schedule)

        def new_value(path, value, direction):
            group = architecture.group_of(str(path[-1].key))
            decay = rates["weight_decay"] * value if group == "matrix" else 0.0
            return value - multiplier * rates[group] * (direction + decay)

        parameters = jax.tree_util.tree_map_with_path(new_value, state["parameters"], directions)
        return {"parameters": parameters, "optimizer": optimizer_state}, loss, gradients

    def advance(state, first, stop, windows, rates, schedule):
        """Steps `first` to `stop` (exclusive); losses (LOG_EVERY,) filled from the front, and the last gradient norm."""

        def body(step, carry):
            state, losses, _ = carry
            state, loss, gradients = one_step(step, first, state, windows, rates, schedule)
            return state, lax.dynamic_update_index_in_dim(losses, loss, step - first, 0), optax.tree.norm(gradients)

        return lax.fori_loop(first, stop, body, (state, jnp.full((LOG_EVERY,), jnp.nan), jnp.float32(0)))

    donated = () if precision == "float32" else (0,)  # on a GPU the new state takes the place of the old one
    return Program(
        start=start,
        advance=jax.jit(advance, donate_argnums=donated),
        advance_population=jax.jit(jax.vmap(advance, in_axes=(0, None, None, 0, 0, 0)), donate_argnums=donated),
    )


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
    """Everything that training one claimed trunk needs."""

    folder: Folder
    trunk: Trunk
    claim: Claim
    corpus: Corpus
    keep: str = "final"
    checkpoint_seconds: float = 20.0
    notify: Callable[[str], None] = field(default=lambda message: None)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    stop: Stop = field(default_factory=Stop)

    @property
    def config(self) -> TrunkConfig:
        """Config shared by the branches."""
        return self.trunk.config

    @property
    def attempt_folder(self) -> Path:
        """Working files of this attempt."""
        return self.folder.trunk(self.trunk.trunk_id) / f"attempt-{self.claim.attempt}"

    @property
    def cuts(self) -> list[int]:
        """Steps at which a segment of the trunk must end, whatever is still to do."""
        return [run.branch_step for run in self.trunk.runs]

    # ------------------------------------------------------------ the loop

    def train(self) -> None:
        """Train every branch that has no result yet, shortest first.

        Raises
        ------
        ClaimLost
            If another worker took the trunk over meanwhile.
        Stopped
            If somebody asked; the state is saved.
        """
        pending = [run for run in self.trunk.runs if read_result(self.folder, run.run_id) is None]
        progress: Progress | None = None
        if pending:
            with self.stopwatch.during("compilation"):
                compile_training(self.config)
        ended: Diverged | None = None  # once the trunk has diverged, so have all longer branches
        for run in pending:
            if ended is None:
                try:
                    progress = self._trunk_to(run.branch_step, progress)
                except Diverged as divergence:
                    ended = divergence
            if ended is not None:
                self._publish_diverged(run, ended, progress)
                continue
            assert progress is not None
            try:
                branch = self._cooldown(run, progress)
            except Diverged as divergence:
                self._publish_diverged(run, divergence, progress)
                continue
            loss = self._evaluate(branch.state["parameters"])
            if not math.isfinite(loss["loss"]):
                self._publish_diverged(run, Diverged(run.steps), branch)
                continue
            self._publish_done(run, branch, loss)
        self._prune(last=True)
        if pending:
            self.notify(f"{self.trunk.trunk_id}: complete after step {pending[-1].steps}")

    def _trunk_to(self, branch_step: int, progress: Progress | None) -> Progress:
        if progress is None or progress.step > branch_step:
            progress = self._load("trunk", branch_step) or self._fresh()
        progress = self._advance(progress, branch_step, cooldown=_NEVER, phase="trunk")
        self._save("trunk", progress)
        return progress

    def _cooldown(self, run: RunConfig, trunk: Progress) -> Progress:
        start = self._load(run.run_id, run.steps)
        if start is None:
            start = Progress(state=jax.tree.map(jnp.copy, trunk.state), step=trunk.step, points=list(trunk.points))  # the trunk goes on
        return self._advance(start, run.steps, cooldown=(run.branch_step, run.steps), phase=run.run_id)

    def _fresh(self) -> Progress:
        compiled = program_of(self.config)
        return Progress(state=compiled.start(self.config.seed_init), step=0, points=[])

    def _advance(self, progress: Progress, stop: int, *, cooldown: tuple[float, float], phase: str) -> Progress:
        compiled = program_of(self.config)
        rates, schedule = rates_of(self.config), schedule_of(self.config, cooldown)
        batch_tokens, length = self.config.data.batch_tokens, self.config.model.sequence_length
        state, step, points = progress.state, progress.step, list(progress.points)
        saved_at = time.monotonic()
        with open(self.attempt_folder / "metrics.jsonl", "ab") as live:
            while step < stop:
                end = min([stop, (step // LOG_EVERY + 1) * LOG_EVERY, *(cut for cut in self.cuts if cut > step)])
                with self.stopwatch.during("training"):
                    windows = self._windows(step, end, length)
                    state, losses, gradient_norm = compiled.advance(state, step, end, windows, rates, schedule)
                    losses = np.asarray(losses)[: end - step].astype(np.float64)
                self.stopwatch.steps += end - step
                if not np.isfinite(losses).all():
                    raise Diverged(step + int(np.argmin(np.isfinite(losses))) + 1)
                multiplier = _multiplier(np.float32(end - 1), schedule)
                point = {
                    "phase": "trunk" if phase == "trunk" else "cooldown",
                    "step": end,
                    "tokens": end * batch_tokens,
                    "train_loss": float(losses.mean()),
                    "learning_rate": float(multiplier) * self.config.optimizer.learning_rate,
                    "grad_norm": float(gradient_norm),
                }
                points.append(point)
                step = end
                live.write(encode_metrics([{**point, "branch": phase}]))
                live.flush()
                if step < stop and (self.stop.requested or time.monotonic() - saved_at > self.checkpoint_seconds):
                    self._save(phase, Progress(state, step, points))
                    saved_at = time.monotonic()
                    if self.stop.requested:
                        raise Stopped(f"{self.trunk.trunk_id}: stopped; saved at step {step}")
        return Progress(state, step, points)

    def _windows(self, first: int, stop: int, length: int) -> np.ndarray:
        """Token windows of steps `first` to `stop`: (LOG_EVERY, batch, length + 1) unsigned, zero beyond `stop`."""
        data, batch = self.config.data, self.config.data.batch_tokens // length
        windows = training_windows(self.corpus, data, seed=data.seed_data, first=first * batch, count=(stop - first) * batch, length=length)
        out = np.zeros((LOG_EVERY, batch, length + 1), token_dtype(self.config.model.vocab_size))
        out[: stop - first] = windows.reshape(stop - first, batch, length + 1)
        return out

    # ------------------------------------------------------------ evaluation and publication

    def _evaluate(self, parameters: dict) -> dict[str, Any]:
        """Held-out loss, overall and of each domain of the corpus."""
        with self.stopwatch.during("compilation"):
            compile_evaluation(self.config.model, self.config.precision)
        with self.stopwatch.during("evaluation"):
            data = self.config.data
            windows, split, precision = data.evaluation_windows, data.evaluation_split, self.config.precision
            return held_out_losses(self.config.model, parameters, self.corpus, windows=windows, split=split, precision=precision)

    def _publish_done(self, run: RunConfig, branch: Progress, loss: dict[str, float]) -> None:
        weights = branch.state["parameters"]
        metadata = {"run_id": run.run_id, "format": "scaling-harness weights, docs/formats.md"}
        flops = run.tokens * training_flops_per_token(self.config.model)
        result = {
            "status": "done",
            **loss,
            "train_loss": branch.points[-1]["train_loss"],
            "flops": flops,
        }
        self._publish(run, result, branch.points, {"weights.safetensors": encode_tree(weights, metadata)})

    def _publish_diverged(self, run: RunConfig, divergence: Diverged, progress: Progress | None) -> None:
        self.notify(f"{run.run_id}: diverged at step {divergence.step}")
        result = {"status": "diverged", "reason": str(divergence), "step": divergence.step}
        self._publish(run, result, progress.points if progress else [], {})

    def _publish(self, run: RunConfig, result: dict[str, Any], points: list[Point], files: dict[str, bytes]) -> None:
        staged = self.attempt_folder / f"run-{run.run_id}"
        remove(staged)
        staged.mkdir(parents=True)
        for name, data in files.items():
            (staged / name).write_bytes(data)
        (staged / "metrics.jsonl").write_bytes(encode_metrics(points))
        config = msgspec.to_builtins(run)
        forecast = forecast_hash(self.folder, run.run_id)
        (staged / "config.json").write_text(json.dumps({**config, "forecast": forecast}, indent=1, sort_keys=True))
        (staged / "environment.json").write_text(json.dumps(environment(), indent=1, sort_keys=True))
        record = {
            "run_id": run.run_id,
            "trunk_id": self.trunk.trunk_id,
            "attempt": self.claim.attempt,
            "numerics_id": environment()["numerics_id"],
            "host": environment()["host"],
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "timings": msgspec.to_builtins(self.stopwatch.lap()),
            **result,
        }
        with owned(self.folder, self.trunk.trunk_id, self.claim):
            publish_run(staged, self.folder.run(run.run_id), record)

    # ------------------------------------------------------------ saved states

    def _state_path(self, phase: str, step: int) -> Path:
        name = f"state-{step}.safetensors" if phase == "trunk" else f"branch-{phase}-{step}.safetensors"
        return self.folder.trunk(self.trunk.trunk_id) / name

    def _save(self, phase: str, progress: Progress) -> None:
        """Publish a state: first its points, then the state, then drop what it replaces."""
        path = self._state_path(phase, progress.step)
        if path.exists():
            return
        metadata = {
            "trunk_id": self.trunk.trunk_id,
            "phase": phase,
            "step": str(progress.step),
            "numerics_id": environment()["numerics_id"],
            "points": json.dumps(progress.points),
        }
        with owned(self.folder, self.trunk.trunk_id, self.claim):
            if phase == "trunk":
                write_atomic(self.folder.trunk(self.trunk.trunk_id) / "metrics.jsonl", encode_metrics(progress.points))
            write_atomic(path, encode_tree(progress.state, metadata))
        self._prune()

    def _load(self, phase: str, at_most: int) -> Progress | None:
        """The latest intact saved state of a phase at or before a step, from the same numerics; damaged ones are set aside."""
        folder = self.folder.trunk(self.trunk.trunk_id)
        found = [(path_step(path), path) for path in folder.glob(self._state_path(phase, 0).name.replace("-0.", "-*."))]
        for step, path in sorted((entry for entry in found if 0 < entry[0] <= at_most), reverse=True):
            progress = self._read_state(path, phase, step)
            if progress is not None:
                self.notify(f"{self.trunk.trunk_id}: continues at step {step}")
                return progress
        return None

    def _read_state(self, path: Path, phase: str, step: int) -> Progress | None:
        try:
            tensors, metadata = decode_tree(path.read_bytes())
            points = json.loads(metadata["points"])
            if (self.trunk.trunk_id, phase, str(step)) != (metadata["trunk_id"], metadata["phase"], metadata["step"]):
                raise ValueError("state of another trunk, phase or step")
        except (OSError, ValueError, KeyError) as error:
            self.notify(f"damaged state set aside: {set_aside(path).name} ({error})")
            return None
        if metadata["numerics_id"] != environment()["numerics_id"]:
            return None
        return Progress(state=restore_tree(tensors, self._fresh().state), step=step, points=points)

    def _prune(self, *, last: bool = False) -> None:
        """Keep what the sweep says: `final` the last trunk state; `all` every state; `none` nothing once the trunk is done."""
        folder = self.folder.trunk(self.trunk.trunk_id)
        states = sorted(folder.glob("state-*.safetensors"), key=path_step)
        branches = sorted(folder.glob("branch-*.safetensors"), key=path_step)
        done = [path for path in branches if path_step(path) != path_step(branches[-1])]
        doomed = {"final": states[:-1] + done, "all": done, "none": states[:-1] + done}[self.keep]
        if last:
            doomed += branches + (states if self.keep == "none" else []) + [*folder.glob("attempt-*"), *folder.glob(".*.tmp")]
        for path in doomed:
            remove(path)


# ---------------------------------------------------------------- pieces


def _shape_only(optimizer: OptimizerConfig) -> OptimizerConfig:
    """The part of the optimizer that is compiled in: rates are arguments of the program."""
    return OptimizerConfig(
        learning_rate=0.0,
        embedding_learning_rate=0.0,
        head_learning_rate=0.0,
        weight_decay=0.0,
        momentum=optimizer.momentum,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        kind=optimizer.kind,
        options=optimizer.options,
    )


@jax.jit
def _multiplier(step, schedule):
    return rate_multiplier(step, **schedule)


def program_of(config: TrunkConfig) -> Program:
    """The program of a trunk; trunks that differ in rates, schedule or seeds share it."""
    return program(config.model, _shape_only(config.optimizer), config.precision)


def rates_of(config: TrunkConfig) -> dict[str, np.float32]:
    """Rates by parameter group, as arguments of the program."""
    o = config.optimizer
    rates = {"matrix": o.learning_rate, "embedding": o.embedding_learning_rate, "head": o.head_learning_rate}
    return {name: np.float32(value) for name, value in {**rates, "weight_decay": o.weight_decay}.items()}


def schedule_of(config: TrunkConfig, cooldown: tuple[float, float] = _NEVER) -> dict[str, np.float32]:
    """Arguments of `rate_multiplier` beside the step."""
    values = {
        "batch_tokens": config.data.batch_tokens,
        "warmup_steps": config.schedule.warmup_steps,
        "decay_power": config.schedule.decay_power,
        "decay_from_tokens": config.schedule.decay_from_tokens,
        "cooldown_start": cooldown[0],
        "cooldown_end": cooldown[1],
        "cosine": config.schedule.shape == "cosine",
        "linear": config.schedule.shape == "linear",
        "total_steps": config.schedule.total_steps,
        "final_rate": config.schedule.final_rate,
    }
    return {name: np.float32(value) for name, value in values.items()}


def compile_ahead(config: TrunkConfig) -> None:
    """Compile what a trunk runs, or fetch it from the shared cache."""
    compile_training(config)
    compile_evaluation(config.model, config.precision)


def count_compiled(stopwatch: Stopwatch) -> None:
    """Count in `stopwatch` every program that is compiled from now on (and not found in the shared cache)."""

    def note(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_misses":
            stopwatch.compiled += 1

    jax.monitoring.register_event_listener(note)


def compile_training(config: TrunkConfig) -> None:
    """Compile the program of a trunk by training no step with it, so that the first step finds it ready."""
    compiled, length = program_of(config), config.model.sequence_length
    windows = np.zeros((LOG_EVERY, config.data.batch_tokens // length, length + 1), token_dtype(config.model.vocab_size))
    schedule = schedule_of(config)
    jax.block_until_ready(compiled.advance(compiled.start(config.seed_init), 0, 0, windows, rates_of(config), schedule))
    _multiplier(np.float32(0), schedule)
