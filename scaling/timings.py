"""Where a worker's wall time goes: every second is billed to one kind, so that nothing is left out and nothing counted twice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

KINDS = ("training", "evaluation", "compilation", "start-up", "records", "waiting")
"""`records` is what remains: claims, saved states, publication. `waiting`: for a trunk that is released, or for the last worker."""

OVERHEAD = ("compilation", "start-up", "records")


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """What one run's share of its worker's time was spent on (`timings` in result.json).

    Attributes
    ----------
    seconds : wall seconds by kind, since the worker's last run was published
    steps : training steps in that time (fewer than the run's when a saved state was continued)
    compiled : programs that were compiled; none when all came from the cache
    """

    seconds: dict[str, float]
    steps: int = 0
    compiled: int = 0


@dataclass
class Stopwatch:
    """Bills the time that passes to the current kind."""

    kind: str = "start-up"
    since: float = field(default_factory=time.monotonic)
    steps: int = 0
    compiled: int = 0
    _seconds: dict[str, float] = field(default_factory=dict)

    def switch(self, kind: str) -> None:
        """Bill what comes next to another kind."""
        now = time.monotonic()
        self._seconds[self.kind] = self._seconds.get(self.kind, 0.0) + now - self.since
        self.kind, self.since = kind, now

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Bill the block to a kind."""
        outer = self.kind
        self.switch(kind)
        try:
            yield
        finally:
            self.switch(outer)

    def lap(self) -> Timings:
        """What has passed since the last lap."""
        self.switch(self.kind)
        lap = Timings(seconds={kind: round(value, 6) for kind, value in self._seconds.items()}, steps=self.steps, compiled=self.compiled)
        self._seconds, self.steps, self.compiled = {}, 0, 0
        return lap


def read_timings(result: dict[str, Any] | None) -> Timings | None:
    """Timings in a run's result, or None when there are none."""
    try:
        return msgspec.convert(result["timings"], Timings) if result else None
    except (KeyError, msgspec.ValidationError):
        return None


def worker_seconds(laps: list[Timings], *, workers: int, wall_seconds: float) -> dict[str, float]:
    """Seconds of all workers by kind; what no run accounts for was waiting (for other workers, for the forecast)."""
    total = {kind: sum(lap.seconds.get(kind, 0.0) for lap in laps) for kind in KINDS}
    total["waiting"] += max(0.0, workers * wall_seconds - sum(total.values()))
    return total


def describe(seconds: dict[str, float]) -> str:
    """`training 84 %, evaluation 9 %, start-up and compilation 5 %, records 1 %, waiting 1 %`.

    >>> describe({"training": 8.0, "evaluation": 1.0, "compilation": 0.5, "start-up": 0.4, "records": 0.04, "waiting": 0.06})
    'training 80 %, evaluation 10 %, start-up and compilation 9 %, records 0.4 %, waiting 0.6 %'
    """
    whole = sum(seconds.values()) or 1.0
    shares = {kind: seconds.get(kind, 0.0) / whole for kind in KINDS}
    shares["start-up and compilation"] = shares.pop("start-up") + shares.pop("compilation")
    order = ("training", "evaluation", "start-up and compilation", "records", "waiting")
    return ", ".join(f"{kind} {_percent(shares[kind])}" for kind in order)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.0095 else f"{100 * share:.0f} %"
