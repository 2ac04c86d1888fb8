"""What this machine takes for one training step, one evaluation, one compilation: measured once, kept in the cache, renewed by every sweep.

The file's name holds what its numbers depend on (processor, jaxlib, flags, the code that is compiled, how many workers run side by side),
so that a stale one is never found; one that cannot be read counts as none.
"""

import math
import subprocess
import sys
import time
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from scaling.accounting import training_flops_per_token
from scaling.config import RECIPE_VERSION, ModelConfig, Positive, Precision, RunConfig, TrunkConfig, canonical_hash
from scaling.corpus import cache_folder
from scaling.environment import machine_facts, platform_of_workers, visible_gpus
from scaling.sealed import read_sealed, write_sealed
from scaling.timings import Timings

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]

_COMPILED_CODE = ("accelerated", "environment", "evaluate", "fast", "model", "optimizer", "program")
_TYPICAL_FLOPS_PER_SECOND = ((32, 1.6e10), (64, 2.6e10), (128, 3.5e10), (10**9, 4.5e10))
"""Sustained training FLOP/s of one CPU core by width, measured on an AVX2 server core (LOG.md): used where nothing has been measured."""
_GPU_LAYER_SECONDS, _GPU_FLOPS_PER_SECOND = 2e-4, 4e14
"""A step of one GPU: so much a layer, however small, and the FLOPs at this rate; within 28 % of seven shapes on an H200 (docs/gpu.md)."""
_GPU_POPULATION_FLOPS_PER_SECOND = ((64, 4e13), (144, 6e13), (256, 9e13), (10**9, 4e14))
"""The rate of a population by width: all its lanes' tensors go through memory. Within 1.6 of 128 lanes at 512 and at 2,048 tokens each."""
MEASURABLE_SECONDS = 2.0
"""A step that takes longer by the typical rates is not measured: `scaling plan` would take minutes."""
_TYPICAL_COLD, _TYPICAL_WARM = 7.0, 1.0
"""Seconds to compile the programs of a shape, and to fetch them from the compilation cache (LOG.md): used where neither was seen."""


class MeasuringFailed(Exception):
    """A measuring process ended without a result."""


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Seconds that one shape of model takes at one batch size.

    Attributes
    ----------
    flops : of one training step; kept, because a model of one's own cannot be counted where it is not registered
    step : one training step (in a population of `lanes`: one lane's share of it)
    window : held-out loss of one window
    cold, warm : compiling its programs; fetching them from the compilation cache (None: not seen yet)
    """

    model: ModelConfig
    batch_tokens: Positive
    flops: Annotated[float, msgspec.Meta(gt=0)]
    step: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    window: Seconds
    cold: Seconds | None = None
    warm: Seconds | None = None
    precision: Precision = "float32"
    lanes: Positive = 1

    @property
    def key(self) -> Hashable:
        """What `shape_key` gives for a trunk of this shape."""
        return self.model, self.batch_tokens, self.precision, self.lanes

    @property
    def family(self) -> Hashable:
        """Shapes between which seconds can be interpolated."""
        return _family(self.model, self.batch_tokens, self.precision, self.lanes)


def shape_key(config: TrunkConfig) -> tuple[ModelConfig, int, Precision, int]:
    """What trunks of one shape share."""
    return config.model, config.data.batch_tokens, config.precision, config.lanes


class Costs(NamedTuple):
    """Seconds predicted for a shape, with the fields of `Shape`."""

    step: float
    window: float
    cold: float
    warm: float


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that has been measured on this machine; the defaults are those of the machine in LOG.md.

    Attributes
    ----------
    start_up : from the start of a worker to its first claim
    records : claims, saved states and publication, a run
    preparation, forecast, analysis : of `scaling run`: before the workers start; before the hold-outs; after the last run
    """

    shapes: tuple[Shape, ...] = ()
    start_up: Seconds = 2.0
    records: Seconds = 0.05
    preparation: Seconds = 1.5
    forecast: Seconds = 1.5
    analysis: Seconds = 7.0

    def predict(self, config: TrunkConfig) -> Costs:
        """Seconds of any shape: between those measured in proportion to the FLOPs of a step; typical ones where none is of its kind."""
        flops = _flops(config)
        family = sorted((s for s in self.shapes if s.family == _family(*shape_key(config))), key=lambda s: s.flops)
        nearest_first = sorted(family, key=lambda s: abs(s.flops - flops))
        cold = next((s.cold for s in nearest_first if s.cold is not None), _TYPICAL_COLD)
        warm = next((s.warm for s in nearest_first if s.warm is not None), _TYPICAL_WARM)
        if not family:
            step = typical_step_seconds(config)
            window = step * config.model.sequence_length / config.data.batch_tokens / 3  # forward only is a third
            return Costs(step, window, cold, warm)
        beyond = flops / min(max(flops, family[0].flops), family[-1].flops)

        def between(values: list[float]) -> float:
            return float(np.interp(flops, [s.flops for s in family], values)) * beyond

        return Costs(between([s.step for s in family]), between([s.window for s in family]), cold, warm)

    def with_shapes(self, shapes: Iterable[Shape]) -> "Calibration":
        """The same with newer measurements of some shapes."""
        known = {s.key: s for s in self.shapes}
        for new in shapes:
            old = known.get(new.key, new)
            cold, warm = (new.cold if new.cold is not None else old.cold), (new.warm if new.warm is not None else old.warm)
            known[new.key] = msgspec.structs.replace(new, cold=cold, warm=warm)
        return msgspec.structs.replace(self, shapes=tuple(sorted(known.values(), key=lambda s: s.flops)))


def step_flops(model: ModelConfig, batch_tokens: int) -> float:
    """FLOPs of one training step."""
    return float(batch_tokens * training_flops_per_token(model))


def _flops(config: TrunkConfig) -> float:
    return step_flops(config.model, config.data.batch_tokens)


def typical_step_seconds(config: TrunkConfig) -> float:
    """A training step where nothing has been measured, by what workers train on; of a population one lane's share."""
    flops, width = _flops(config), config.model.d_model
    if platform_of_workers() == "cpu":
        return flops / _at_width(_TYPICAL_FLOPS_PER_SECOND, width)
    speed = _GPU_FLOPS_PER_SECOND if config.lanes == 1 else _at_width(_GPU_POPULATION_FLOPS_PER_SECOND, width)
    return _GPU_LAYER_SECONDS * config.model.n_layers / config.lanes + flops / speed


def _at_width(speeds: tuple[tuple[int, float], ...], width: int) -> float:
    return next(speed for upper, speed in speeds if width <= upper)


def _family(model: ModelConfig, batch_tokens: int, precision: Precision, lanes: int) -> Hashable:
    return model.kind, model.options, batch_tokens, model.sequence_length, model.n_layers, model.vocab_size, precision, lanes


def unmeasured(calibration: Calibration, configs: Iterable[TrunkConfig]) -> list[TrunkConfig]:
    """The smallest and largest shape of each family, where they lie outside of what has been measured; the others lie between."""
    families: dict[Hashable, list[TrunkConfig]] = {}
    for config in configs:
        families.setdefault(_family(*shape_key(config)), []).append(config)
    wanted = []
    for family, members in families.items():
        known = [s.flops for s in calibration.shapes if s.family == family]
        ends = {_flops(config): config for config in (min(members, key=_flops), max(members, key=_flops))}
        wanted += [config for flops, config in ends.items() if not known or not min(known) <= flops <= max(known)]
    return wanted


# ---------------------------------------------------------------- the file


def calibration_path(workers: int, spread: int = 1) -> Path:
    """Where the calibration for `workers` workers side by side, each on `spread` devices, lies: with the compiled programs."""
    code = [canonical_hash((Path(__file__).parent / f"{name}.py").read_text()) for name in _COMPILED_CODE]
    key = canonical_hash([machine_facts(), RECIPE_VERSION, code, workers, spread])
    return cache_folder() / "compiled" / "calibration" / f"{key}.sealed"


def read_calibration(workers: int, spread: int = 1) -> Calibration:
    """What is known of this machine: nothing, when the file is missing, damaged or from another version."""
    try:
        known = read_sealed(calibration_path(workers, spread))
        return msgspec.json.decode(known, type=Calibration) if known else Calibration()
    except (OSError, ValueError):
        return Calibration()


def write_calibration(calibration: Calibration, *, workers: int, spread: int = 1) -> None:
    """Keep it for the next command."""
    write_sealed(calibration_path(workers, spread), msgspec.json.encode(calibration))


# ---------------------------------------------------------------- measuring and learning


def is_measurable(config: TrunkConfig) -> bool:
    """Whether a step of a trunk is short enough to be measured while somebody waits, and there is what it would be measured on."""
    there = platform_of_workers() != "cuda" or visible_gpus()
    return bool(there) and typical_step_seconds(config) * config.lanes <= MEASURABLE_SECONDS


def measuring_seconds(configs: list[TrunkConfig], *, workers: int) -> float:
    """About how long `measure` takes when nothing is compiled yet."""
    return Calibration().start_up + math.ceil(len(configs) / workers) * (_TYPICAL_COLD + 2.0)


def measure(calibration: Calibration, configs: list[TrunkConfig], *, workers: int, cpus: list[int]) -> Calibration:
    """Add shapes, measured in `workers` processes side by side, as they will run: shared caches, memory and clock are in the result.

    Each process measures its part of the shapes; with more processes than shapes several measure the same.

    Raises
    ------
    MeasuringFailed
        A process ended without a result; the message holds its exit code and the last line it said.
    """
    processes = []
    for number in range(workers):
        part = configs[number % len(configs) :: workers]
        pinned = cpus[number % len(cpus)] if workers <= len(cpus) else None
        job = {"configs": part, "cpu": pinned, "began": time.monotonic()}
        process = subprocess.Popen(
            [sys.executable, "-m", "scaling.measure", msgspec.json.encode(job)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
    results = []
    for process in processes:
        out, said = process.communicate()
        if process.returncode != 0:
            reason = (said.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            raise MeasuringFailed(f"exit code {process.returncode}: {reason}")
        sys.stderr.write(said.decode(errors="replace"))
        results.append(msgspec.json.decode(out, type=Calibration))
    shapes = [_mean([s for result in results for s in result.shapes if s.key == shape_key(config)]) for config in configs]
    return msgspec.structs.replace(calibration.with_shapes(shapes), start_up=max(result.start_up for result in results))


def _mean(seen: list[Shape]) -> Shape:
    def mean(values: list[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return float(np.mean(numbers)) if numbers else None

    step, window = float(np.mean([s.step for s in seen])), float(np.mean([s.window for s in seen]))
    return msgspec.structs.replace(seen[0], step=step, window=window, cold=mean([s.cold for s in seen]), warm=mean([s.warm for s in seen]))


def learn(calibration: Calibration, laps: list[tuple[RunConfig, Timings]], **command: float) -> Calibration:
    """The calibration after a sweep: what its runs really took; `command` renews `preparation`, `forecast` and `analysis`."""
    by_shape: dict[Hashable, list[tuple[RunConfig, Timings]]] = {}
    for run, lap in laps:
        if lap.steps and lap.seconds.get("training") and lap.seconds.get("evaluation"):
            by_shape.setdefault(shape_key(run.trunk), []).append((run, lap))
    calibration = calibration.with_shapes(_learnt(members[0][0].trunk, members) for members in by_shape.values())
    changes: dict[str, Any] = {name: max(0.0, value) for name, value in command.items()}
    starts = [lap.seconds["start-up"] for _, lap in laps if lap.seconds.get("start-up")]
    if starts:
        changes["start_up"] = float(np.mean(starts))
    if laps:
        changes["records"] = float(np.mean([lap.seconds.get("records", 0.0) for _, lap in laps]))
    return msgspec.structs.replace(calibration, **changes)


def _learnt(config: TrunkConfig, members: list[tuple[RunConfig, Timings]]) -> Shape:
    def total(kind: str) -> float:
        return sum(lap.seconds.get(kind, 0.0) for _, lap in members)

    def compilation(laps: list[Timings]) -> float | None:
        seconds = [lap.seconds["compilation"] for lap in laps if lap.seconds.get("compilation", 0.0) > 0.05]  # less: compiled before
        return float(np.mean(seconds)) if seconds else None

    return Shape(
        model=config.model,
        batch_tokens=config.data.batch_tokens,
        precision=config.precision,
        lanes=config.lanes,
        flops=step_flops(config.model, config.data.batch_tokens),
        step=total("training") / sum(lap.steps for _, lap in members),
        window=total("evaluation") / sum(run.trunk.data.evaluation_windows for run, _ in members),
        cold=compilation([lap for _, lap in members if lap.compiled]),
        warm=compilation([lap for _, lap in members if not lap.compiled]),
    )
