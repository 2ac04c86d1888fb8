"""`[budget]`: what a sweep may spend. A trunk is begun only while all that is begun, and it, fit; what does not fit is listed as left out.

Everything follows from the folder, under the lock of the claims, so that any number of launchers and workers share one budget. Begun trunks
count in full (their FLOPs by the plan; their disk and time as used, and as expected while they are trained). The rest is admitted cheapest
first: the most runs for the money.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scaling import claim as claims
from scaling.accounting import count_parameters
from scaling.budget_limits import Amount, limit_of
from scaling.calibration import Calibration, read_calibration
from scaling.config import Budget
from scaling.estimate import seconds_left
from scaling.plan import Trunk, group_trunks
from scaling.record import Folder, Resolved, disk_usage, path_step, write_atomic

METER_SECONDS = 2.0
TABLES_BYTES = 4e6
"""Plots, page and tables of a sweep, kept free of its disk budget."""


@dataclass(frozen=True)
class Guard:
    """The budget of one results folder."""

    folder: Folder
    trunks: list[Trunk]
    budget: Budget
    calibration: Calibration

    @classmethod
    def of(cls, folder: Folder, resolved: Resolved) -> "Guard":
        """The guard of a sweep, with the seconds measured on this machine."""
        return cls(folder, group_trunks(resolved.runs), resolved.sweep.budget, read_calibration(os.cpu_count() or 1))

    def left_out(self) -> dict[str, str]:
        """Why trunks may not be begun (or continued), by trunk_id: `budget.flops: 3.1e12 more needed, 2.0e12 left`."""
        limit = limit_of(self.budget)
        if self.budget == Budget():
            return {}
        spent = Amount(disk=disk_usage(self.folder.root) + TABLES_BYTES if self.budget.disk is not None else 0.0)
        waiting: list[tuple[Trunk, Amount]] = []
        for trunk in self.trunks:
            spent += Amount(flops=trunk.flops if self._is_begun(trunk) else 0.0, time=_seconds_spent(self.folder, trunk.trunk_id))
            need = self.need(trunk)
            if claims.is_live(self.folder, trunk.trunk_id):
                spent += Amount(time=need.time, disk=need.disk)
            elif need != Amount():
                waiting.append((trunk, need))
        refused = {}
        for trunk, need in sorted(waiting, key=lambda entry: (not self._is_begun(entry[0]), entry[0].role == "holdout", entry[1].flops)):
            for name in ("flops", "time", "disk"):
                free, more = getattr(limit, name) - getattr(spent, name), getattr(need, name)
                if more > free:
                    refused[trunk.trunk_id] = (
                        f"left out: budget.{name}: {_shown(name, more)} more needed, {_shown(name, max(free, 0))} left"
                    )
                    break
            else:
                spent += need
        return refused

    def need(self, trunk: Trunk) -> Amount:
        """What the rest of a trunk takes: FLOPs that are not counted yet, seconds, bytes."""
        pending = [run for run in trunk.runs if not self.folder.run(run.run_id).exists()]
        if not pending:
            return Amount()
        weights = 4.0 * count_parameters(trunk.config.model).total
        states = 0 if any(self.folder.trunk(trunk.trunk_id).glob("state-*")) else 3  # parameters and two averages
        disk = weights * (len(pending) + 3 + 2 * states) + 20e3 * len(pending)  # one more state while another is written, points, records
        costs = self.calibration.predict(trunk.config)
        seconds = seconds_left(self.folder, trunk, self.calibration) + costs.warm
        return Amount(0.0 if self._is_begun(trunk) else trunk.flops, seconds, disk)

    def _is_begun(self, trunk: Trunk) -> bool:
        states = any(path_step(path) > 0 for path in self.folder.trunk(trunk.trunk_id).glob("state-*"))
        live = claims.is_live(self.folder, trunk.trunk_id)
        return live or states or any(self.folder.run(run.run_id).exists() for run in trunk.runs)

    @contextmanager
    def metered(self, trunk_id: str, stop: Callable[[], None]) -> Iterator[None]:
        """Bill the seconds of the block to a trunk, also while it runs; call `stop` once the time of the whole sweep is spent."""
        if self.budget.time is None:
            yield
            return
        limit, began, before = limit_of(self.budget).time, time.monotonic(), _seconds_spent(self.folder, trunk_id)
        ended = threading.Event()

        def bill() -> None:
            with suppress(OSError):
                write_atomic(_bill(self.folder, trunk_id), json.dumps({"seconds": before + time.monotonic() - began}).encode())

        def meter() -> None:
            while not ended.wait(METER_SECONDS):
                bill()
                if sum(_seconds_spent(self.folder, trunk.trunk_id) for trunk in self.trunks) + METER_SECONDS > limit:
                    stop()

        thread = threading.Thread(target=meter, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            bill()


def _bill(folder: Folder, trunk_id: str) -> Path:
    return folder.trunk(trunk_id) / "spent.json"


def _seconds_spent(folder: Folder, trunk_id: str) -> float:
    """Seconds of workers that went into a trunk so far, all attempts together."""
    try:
        return float(json.loads(_bill(folder, trunk_id).read_bytes())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _shown(name: str, amount: float) -> str:
    return {"flops": f"{amount:.2e}", "time": f"{amount:.0f} s", "disk": f"{amount / 1e6:.2f} MB"}[name]
