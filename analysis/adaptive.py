"""Train until the answer is good enough: after each round, whether the target's interval is narrow enough, and if not, what next.

This is optional stopping: the interval that ends it is the one that happened to be narrow. How often it then holds the truth is measured by
simulation (benchmarks/stopping.py, docs/design.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.design import Z95, Plan, Pool, next_round, plan_batch
from analysis.surface import Places, Surface, fit_surface

Array = np.ndarray
START_RUNS = 6  # bought cheapest first, of two sizes and two lengths at least, before the first fit
HALVINGS = 6  # of the budget: the smallest that promises the goal is planned with


@dataclass(frozen=True)
class Goal:
    """A 95 % interval (law and drift) of the loss at params N and tokens D that is narrower than `width` (nats, high less low)."""

    params: float
    tokens: float
    width: float

    @property
    def place(self) -> Places:
        """The target."""
        return Places.of(np.array([self.params]), np.array([self.tokens]))


@dataclass(frozen=True)
class Decision:
    """What to do now.

    Attributes
    ----------
    chosen : list of int
        Runs of the pool to train; none when it is over.
    why : str
        "start", "narrow it", "reached", "budget spent", "nothing left".
    loss, low, high : float
        Predicted loss and its interval, nats; NaN before the first fit.
    """

    chosen: list[int]
    why: str
    loss: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")

    @property
    def width(self) -> float:
        """Width of the interval, nats."""
        return self.high - self.low


def interval_of(surface: Surface, goal: Goal) -> tuple[float, float, float]:
    """Loss at the target and the ends of its 95 % interval, nats."""
    mean, sd = float(surface.predict(goal.place)[0]), float(np.sqrt(max(surface.covariance(goal.place)[0, 0], 0.0)))
    low, high = mean - Z95 * sd, mean + Z95 * sd
    return float(np.exp(mean)), float(np.exp(low)), float(np.exp(high))


def decide(places: Places, log_loss: Array, pool: Pool, goal: Goal, *, budget: float, least: int = 1) -> Decision:
    """Decide after a round.

    Parameters
    ----------
    places, log_loss : (n,)
        Runs that ended well.
    pool : Pool
        Those that could still be trained.
    budget : float
        FLOPs left.
    least : int
        Runs of a round at least (how many can be trained side by side).
    """
    if len(places) < START_RUNS or len(np.unique(places.x)) < 2 or len(np.unique(places.y)) < 2:
        chosen = _start(places, pool, budget)
        return Decision(chosen, "start" if chosen else "budget spent")
    surface = fit_surface(places, log_loss, target=goal.place)
    found = interval_of(surface, goal)
    if found[2] - found[1] < goal.width:
        return Decision([], "reached", *found)
    if not len(pool):
        return Decision([], "nothing left", *found)
    plan = _smallest_plan(surface, pool, goal, budget)
    if not plan.chosen:
        return Decision([], "budget spent", *found)
    return Decision(next_round(plan, budget=sum(plan.flops), least=least), "narrow it", *found)


def _smallest_plan(surface: Surface, pool: Pool, goal: Goal, budget: float) -> Plan:
    """Plan with the least of several budgets that is expected to reach the goal; with all of it when none is."""
    loss = float(np.exp(surface.predict(goal.place)[0]))
    wanted = (goal.width / (2 * Z95 * loss)) ** 2
    plan = Plan([], [], [])
    for halving in range(HALVINGS, -1, -1):
        plan = plan_batch(surface, pool, goal.place, budget=budget / 2**halving)
        if plan.chosen and plan.left < wanted:
            break
    return plan


def _start(places: Places, pool: Pool, budget: float) -> list[int]:
    """Cheapest runs first, until there are enough of two sizes and two lengths."""
    chosen: list[int] = []
    left = budget
    x, y = set(np.round(places.x, 9)), set(np.round(places.y, 9))
    while len(places) + len(chosen) < START_RUNS or len(x) < 2 or len(y) < 2:
        cost = pool.costs(chosen)
        cost[chosen] = np.inf
        here_x, here_y = np.round(pool.places.x, 9), np.round(pool.places.y, 9)
        if len(places) + len(chosen) >= START_RUNS - 2:  # the last two must bring what is missing
            cost = np.where((len(x) < 2) & np.isin(here_x, list(x)) | (len(y) < 2) & np.isin(here_y, list(y)), np.inf, cost)
        if not len(cost) or cost.min() > left:
            break
        best = int(cost.argmin())
        chosen.append(best)
        left -= float(cost[best])
        x.add(here_x[best])
        y.add(here_y[best])
    return chosen
