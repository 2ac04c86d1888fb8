"""One `scaling run` and its account: how long its parts took, what the workers' time went to, what that teaches about this machine."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from scaling.calibration import learn, read_calibration, write_calibration
from scaling.config import RunConfig
from scaling.display import Display, clock
from scaling.engines import Engine
from scaling.estimate import Estimate
from scaling.launch import launch
from scaling.loggers import Logger
from scaling.record import Folder, Resolved, read_result, write_json
from scaling.timings import Stopwatch, Timings, describe, read_timings, worker_seconds


@dataclass
class Session:
    """The command's own time is billed to `preparation`, `training`, `forecast` and `analysis` by the stopwatch it began with.

    Training ends at `deadline` (of `time.monotonic`) with saved states.
    """

    folder: Folder
    resolved: Resolved
    workers: int
    stopwatch: Stopwatch
    deadline: float = math.inf
    engine: Engine | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    laps: list[tuple[RunConfig, Timings]] = field(default_factory=list)
    before: set[str] = field(default_factory=set)
    logs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Note which runs were there when the session began."""
        self.before = {path.name for path in self.folder.runs.glob("*")}

    def tune(self) -> None:
        """Train the tuning runs until every best rate lies between the rates tried; the grid then has the rates of their law."""
        from scaling.cli.tuning import tuned

        def train(part: Resolved) -> None:
            write_json(self.folder.resolved, part)
            self.stopwatch.switch("training")
            launch(
                self.folder.root,
                workers=self.workers,
                next_runs=lambda: None,
                display=self._watchers(part),
                deadline=self.deadline,
                engine=self.engine,
            )
            self.stopwatch.switch("preparation")

        self.resolved = tuned(self.resolved, self.folder, train=train)

    def adapt(self, until: str, *, budget: float | None) -> None:
        """Train rounds until a goal is reached; the sweep then has the runs that were chosen."""
        from scaling.cli.adaptive import adapt, parse_goal

        def train(part: Resolved, note: Callable[[], str]) -> None:
            write_json(self.folder.resolved, part)
            self.stopwatch.switch("training")
            launch(
                self.folder.root,
                workers=self.workers,
                next_runs=lambda: None,
                display=Display(self.folder, part, note=note),
                engine=self.engine,
            )
            self.stopwatch.switch("preparation")

        self.resolved = adapt(self.resolved, self.folder, parse_goal(until), budget=budget, workers=self.workers, train=train)

    def train(self) -> None:
        """Run local workers until nothing is pending, with the forecast before the hold-outs."""
        self.stopwatch.switch("training")
        launch(
            self.folder.root,
            workers=self.workers,
            next_runs=self._forecast,
            display=self._watchers(self.resolved),
            deadline=self.deadline,
            engine=self.engine,
        )
        self.stopwatch.switch("analysis")
        self.seconds = self.stopwatch.lap().seconds
        ended = [(run, read_result(self.folder, run.run_id, files=False)) for run in self.resolved.runs if run.run_id not in self.before]
        self.laps = [(run, timings) for run, result in ended if (timings := read_timings(result))]

    def _watchers(self, resolved: Resolved) -> "Watchers":
        return Watchers([Display(self.folder, resolved), *(Logger(kind, self.folder, resolved) for kind in self.logs)])

    def _forecast(self) -> None:
        from scaling.cli.loop import forecast_holdouts

        with self.stopwatch.during("forecast"):
            forecast_holdouts(self.folder.root, self.resolved)

    @property
    def worker_seconds(self) -> dict[str, float]:
        """Seconds of all workers by kind."""
        wall = self.seconds.get("training", 0.0) + self.seconds.get("forecast", 0.0)
        return worker_seconds([lap for _, lap in self.laps], workers=self.workers, wall_seconds=wall)

    def close(self, expected: Estimate) -> str:
        """End the account and renew the calibration by what was trained; returns lines for the terminal."""
        self.seconds |= self.stopwatch.lap().seconds
        whole = sum(self.seconds.values())
        training = whole - self.seconds.get("analysis", 0.0)
        lines = [f"training {clock(training)}, analysis {clock(whole - training)}; {clock(expected.seconds)} were expected for both"]
        if self.laps:
            whose = f"{self.workers} workers" if self.workers else "workers started elsewhere"
            lines.append(f"time of {whose}: {describe(self.worker_seconds)}")
            command = {name: self.seconds[name] for name in ("preparation", "forecast", "analysis") if name in self.seconds}
            spread = self.resolved.sweep.devices.spread
            known = learn(read_calibration(self.workers, spread), self.laps, **command)
            write_calibration(known, workers=self.workers, spread=spread)
        return "\n".join(lines)


@dataclass(frozen=True)
class Watchers:
    """All that look at a sweep while it trains."""

    each: list[Display | Logger]

    def update(self, *, last: bool = False) -> None:
        """Let each look."""
        for watcher in self.each:
            watcher.update(last=last)
