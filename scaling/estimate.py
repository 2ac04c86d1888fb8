"""How long a sweep will take here: the order in which workers take trunks, played through with the seconds of `scaling.calibration`."""

from dataclasses import dataclass, field

from scaling.calibration import Calibration, unmeasured
from scaling.config import ModelConfig
from scaling.plan import Trunk, by_preference
from scaling.record import Folder, path_step

PASS_SECONDS = 0.4
"""What a pass over fitted trunks or hold-outs takes beside their work: who waits looks every 0.2 s, processes begin and end."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of the whole command, and whether they rest on measurements of this machine."""

    seconds: float
    measured: bool


@dataclass
class _Worker:
    free: float
    at: ModelConfig | None = None
    compiled: set[ModelConfig] = field(default_factory=set)


@dataclass
class _Play:
    """The workers of a sweep, and when each shape's programs are in the compilation cache."""

    calibration: Calibration
    workers: list[_Worker]
    cached: dict[ModelConfig, float]

    def compile(self, worker: _Worker, trunk: Trunk) -> None:
        """Let a worker compile a trunk's programs, or fetch them if another has."""
        model = trunk.config.model
        if model in worker.compiled:
            return
        costs = self.calibration.predict(trunk.config)
        worker.free += costs.warm if self.cached.get(model, float("inf")) <= worker.free else costs.cold
        self.cached[model] = min(worker.free, self.cached.get(model, float("inf")))
        worker.compiled.add(model)

    def train(self, left: dict[str, float], trunks: list[Trunk]) -> None:
        """Let the workers take trunks until none is left."""
        todo = [trunk for trunk in trunks if trunk.trunk_id in left]
        while todo:
            worker = min(self.workers, key=lambda worker: worker.free)
            busy = {other.at for other in self.workers if other is not worker and other.at and other.free > worker.free}
            trunk = by_preference(todo, compiled=worker.compiled, busy=busy)[0]
            todo.remove(trunk)
            worker.at = trunk.config.model
            self.compile(worker, trunk)
            worker.free += left[trunk.trunk_id]


def estimate(folder: Folder, trunks: list[Trunk], calibration: Calibration, *, workers: int) -> Estimate:
    """Estimate the time of `scaling run`: what is left of pending trunks (dearest first), hold-outs after their forecast, the analysis."""
    left = {trunk.trunk_id: seconds for trunk in trunks if (seconds := seconds_left(folder, trunk, calibration))}
    seconds = calibration.preparation + calibration.analysis
    if left:
        roles = {trunk.role for trunk in trunks if trunk.trunk_id in left}
        seconds += _training_seconds(left, trunks, calibration, workers=min(max(workers, 1), len(left))) + PASS_SECONDS * len(roles)
    return Estimate(seconds, not unmeasured(calibration, [trunk.config for trunk in trunks if trunk.trunk_id in left]))


def _training_seconds(left: dict[str, float], trunks: list[Trunk], calibration: Calibration, *, workers: int) -> float:
    cached = {shape.model: 0.0 for shape in calibration.shapes}
    play = _Play(calibration, [_Worker(free=calibration.start_up) for _ in range(workers)], cached)
    fitted, held_out = ([trunk for trunk in trunks if (trunk.role == "holdout") == held] for held in (False, True))
    play.train(left, fitted)
    if any(trunk.trunk_id in left for trunk in held_out):
        forecast = max(worker.free for worker in play.workers) + calibration.forecast
        for worker in sorted(play.workers, key=lambda worker: worker.free):
            for trunk in held_out:  # whoever has nothing to do compiles ahead
                play.compile(worker, trunk)
            worker.free = max(worker.free, forecast)
        play.train(left, held_out)
    return max(worker.free for worker in play.workers)


def seconds_left(folder: Folder, trunk: Trunk, calibration: Calibration) -> float:
    """Seconds of training, evaluation and records that a trunk still needs; 0 when all its runs have ended."""
    runs = [run for run in trunk.runs if not folder.run(run.run_id).exists()]
    if not runs:
        return 0.0
    saved = [step for path in folder.trunk(trunk.trunk_id).glob("state-*.safetensors") if (step := path_step(path)) <= runs[0].branch_step]
    steps = runs[-1].branch_step - max([0, *saved]) + sum(run.steps - run.branch_step for run in runs)
    costs = calibration.predict(trunk.config)
    return steps * costs.step + len(runs) * (trunk.config.data.evaluation_windows * costs.window + calibration.records)
