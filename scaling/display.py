"""The live view of a running sweep, read from the folder alone: a redrawn table on a terminal, plain lines elsewhere.

Whoever trains (this machine's workers, another launcher, a cluster) writes `attempt-K/metrics.jsonl`; this module only looks.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from scaling import claim as claims
from scaling.accounting import training_flops_per_token
from scaling.config import RunConfig, format_quantity
from scaling.plan import Trunk, group_trunks
from scaling.record import Folder, Resolved, read_failure

PLAIN_EVERY_SECONDS = 15.0
REDRAW_EVERY_SECONDS = 1.0
"""A redraw takes some 20 ms of a core that a worker could use."""
TAIL_BYTES = 8192  # of a file of metrics: some forty points
SPARK_WIDTH = 24
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class TrunkView:
    """What can be seen of one trunk from outside."""

    trunk: Trunk
    done_runs: int
    done_flops: float
    done_tokens: float
    live: bool
    recent: list[dict[str, Any]]
    failed: bool

    @property
    def point(self) -> dict[str, Any] | None:
        """The last point of the live attempt."""
        return self.recent[-1] if self.recent else None


def look(folder: Folder, trunk: Trunk) -> TrunkView:
    """Read the state of a trunk: finished runs, and the last point of a live attempt."""
    finished = [run for run in trunk.runs if folder.run(run.run_id).exists()]
    claim = claims.read_claim(folder, trunk.trunk_id) if len(finished) < len(trunk.runs) else None
    live = claim is not None and claims.is_live(folder, trunk.trunk_id)
    recent = _recent_points(folder.trunk(trunk.trunk_id) / f"attempt-{claim.attempt}" / "metrics.jsonl") if live and claim else []
    per_step = trunk.config.data.batch_tokens * training_flops_per_token(trunk.config.model)
    steps = _steps_done(trunk, finished, recent[-1] if recent else None)
    tokens = steps * trunk.config.data.batch_tokens
    failed = read_failure(folder, trunk.trunk_id) is not None
    return TrunkView(
        trunk=trunk, done_runs=len(finished), done_flops=steps * per_step, done_tokens=tokens, live=live, recent=recent, failed=failed
    )


def _steps_done(trunk: Trunk, finished: list[RunConfig], point: dict[str, Any] | None) -> float:
    """Trained steps of a trunk, its shared part once; `point` is the last of the live attempt (`branch`: "trunk" or a run_id)."""
    if len(finished) == len(trunk.runs):
        return trunk.trained_steps
    cooldowns = sum(run.steps - run.branch_step for run in finished)
    reached = max((run.branch_step for run in finished), default=0)
    current = next((run for run in trunk.runs if point and run.run_id == point.get("branch") and run not in finished), None)
    if point and point.get("branch") == "trunk":
        reached = max(reached, point["step"])
    elif point and current:
        reached = max(reached, current.branch_step)
        cooldowns += point["step"] - current.branch_step
    return reached + cooldowns


def _recent_points(path: Path) -> list[dict[str, Any]]:
    """Points at the end of a file of metrics, oldest first; none where nothing can be read."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            start = max(0, file.tell() - TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")[1 if start else 0 : -1]
        return [msgspec.json.decode(line) for line in lines]
    except (OSError, ValueError):
        return []


def sparkline(values: list[float], width: int = SPARK_WIDTH) -> str:
    """Draw values as a line of bars, the last `width` of them at most.

    >>> sparkline([4.0, 3.0, 2.0, 1.0])
    '█▆▃▁'
    """
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[0] for value in shown)


@dataclass
class Display:
    """Draws the progress of a sweep to stderr; call `update` often."""

    folder: Folder
    resolved: Resolved
    console: Console = field(default_factory=lambda: Console(stderr=True))
    note: Callable[[], str] | None = None  # one more line; asked again when a run has ended
    _live: Live | None = None
    _began: float = field(default_factory=time.monotonic)
    _drawn: float | None = None
    _history: list[tuple[float, float, float]] = field(default_factory=list)  # time, FLOPs done, tokens done
    _told: tuple[int, str] = (-1, "")  # finished runs, and the note then

    def update(self, *, last: bool = False) -> None:
        """Redraw (terminal) or print a line now and then (no terminal); `last` leaves the final state on the screen."""
        now = time.monotonic()
        plain = not self.console.is_terminal
        every = PLAIN_EVERY_SECONDS if plain else REDRAW_EVERY_SECONDS
        if not last and self._drawn is not None and now - self._drawn < every:
            return
        self._drawn = now
        views = [look(self.folder, trunk) for trunk in group_trunks(self.resolved.runs)]
        headline = self._headline(views, now)
        if plain:
            print(headline, file=sys.stderr, flush=True)
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        self._live.update(Group(headline, self._table(views)), refresh=True)
        if last:
            self._live.stop()
            self._live = None

    def _headline(self, views: list[TrunkView], now: float) -> str:
        total = sum(view.trunk.flops for view in views)
        done = sum(view.trunk.flops if view.failed else view.done_flops for view in views)
        runs, finished = sum(len(view.trunk.runs) for view in views), sum(view.done_runs for view in views)
        tokens = sum(view.done_tokens for view in views)
        recent = [entry for entry in self._history[1:] if now - entry[0] < 30]
        self._history = [*self._history[:1], *recent, (now, done, tokens)]
        (start, first, _), (then, _, before) = self._history[0], self._history[min(1, len(self._history) - 1)]
        rate = (done - first) / max(now - start, 1e-9)
        speed = (tokens - before) / max(now - then, 1e-9)
        left = f"{clock((total - done) / rate)} left" if rate > 0 else "time left: not known yet"
        losses = [view.point["train_loss"] for view in views if view.point]
        loss = f"train loss {min(losses):.3f}" if losses else "train loss -"
        share = f"{finished}/{runs} runs · {done / total:4.0%}"
        if self.note is not None and finished != self._told[0]:
            self._told = (finished, self.note())
        note = f"\n{self._told[1]}" if self._told[1] else ""
        return f"{share} · {format_quantity(speed)} tokens/s · {loss} · {clock(now - self._began)} gone · {left}{note}"

    def _table(self, views: list[TrunkView]) -> Table:
        table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        for column in ("trunk", "runs", "", "tokens", "train loss", ""):
            table.add_column(column)
        for view in views:
            state = "[red]failed[/]" if view.failed else f"{view.done_runs}/{len(view.trunk.runs)}"
            label = view.trunk.trunk_id.rpartition("-")[0] + (" (hold-out)" if view.trunk.role == "holdout" else "")
            bar = ProgressBar(total=view.trunk.flops, completed=view.done_flops, width=24)
            tokens = format_quantity(view.point["tokens"]) if view.point else ""
            loss = f"{view.point['train_loss']:.3f}" if view.point else ""
            table.add_row(label, state, bar, tokens, loss, sparkline([point["train_loss"] for point in view.recent]))
        return table


def clock(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 05 min`.

    >>> clock(200)
    '3 min 20 s'
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
