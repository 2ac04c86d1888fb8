"""What to train next: the runs that take most off the uncertainty of a target's loss, for a budget of FLOPs.

The uncertainty is that of `analysis.surface`: of the law's parameters (variance) and of the law itself (bias, which cheap runs far from the
target cannot settle). In that Gaussian model the fall of the variance does not depend on the losses that come out, so that a whole batch
can be planned: greedily, by gain over a power of the cost, and of several powers the plan that leaves the least (a gain per FLOP alone buys
the cheap end only; the best of both kinds of greedy is within a constant of the best plan: Leskovec et al. 2007).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.frames import Frame
from analysis.reading import is_blank, read_table
from analysis.runs import U_COLUMNS, Runs
from analysis.surface import Places, Surface, fit_surface

Array = np.ndarray
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the cost under the gain
MOST_RUNS = 60  # of one plan
LEAST_GAIN = 0.005  # share of the target's variance that a run must take off to be suggested
ROUND = 0.25  # share of what is left of the budget that is spent before the next fit
Z95 = 1.959963984540054
SUGGESTION_COLUMNS = "order run_id trunk_id params tokens flops flops_total half_width_before half_width_after".split()


@dataclass(frozen=True)
class Pool:
    """Runs that could be trained, and what they cost.

    Attributes
    ----------
    run_id : (m,) str
    places : Places
    own : (m,)
        FLOPs that a run takes for itself: all of them, or its cooldown.
    trunk : (m,) int
        Which runs share a trunk.
    along, saved : (m,)
        FLOPs of the trunk up to where the run leaves it, and up to the last saved state before that; 0 for independent runs.
    """

    run_id: Array
    places: Places
    own: Array
    trunk: Array
    along: Array
    saved: Array

    @classmethod
    def independent(cls, run_id: Array, places: Places, flops: Array) -> Pool:
        """Runs that share nothing."""
        nothing = np.zeros(len(places))
        return cls(np.asarray(run_id), places, np.asarray(flops, dtype=np.float64), np.arange(len(places)), nothing, nothing)

    def __len__(self) -> int:
        return len(self.own)

    def rows(self, keep: Array) -> Pool:
        """Return some of the runs."""
        places = Places(self.places.x[keep], self.places.y[keep])
        return Pool(self.run_id[keep], places, self.own[keep], self.trunk[keep], self.along[keep], self.saved[keep])

    def costs(self, chosen: list[int]) -> Array:
        """FLOPs that each run would add to those chosen: (m,). A trunk is trained once, from a saved state before its first branch."""
        first, last = np.full(self.trunk.max() + 1, np.inf), np.full(self.trunk.max() + 1, -np.inf)
        np.minimum.at(first, self.trunk[chosen], self.saved[chosen])
        np.maximum.at(last, self.trunk[chosen], self.along[chosen])
        trained = np.where(np.isfinite(first), last - np.where(np.isfinite(first), first, 0.0), 0.0)
        wanted = np.maximum(last[self.trunk], self.along) - np.minimum(first[self.trunk], self.saved)
        return self.own + wanted - trained[self.trunk]

    def bill(self, chosen: list[int]) -> float:
        """FLOPs of some runs, one after the other."""
        return sum(float(self.costs(chosen[:i])[run]) for i, run in enumerate(chosen))


@dataclass(frozen=True)
class Plan:
    """Runs in the order in which they were chosen, what each adds to the bill, and the target's variance after each (log loss)."""

    chosen: list[int]
    flops: list[float]
    variance: list[float]

    @property
    def left(self) -> float:
        """Variance after all."""
        return self.variance[-1] if self.variance else np.inf


def greedy(covariance: Array, pool: Pool, *, noise: float, budget: float, power: float, about_target: bool = True) -> Plan:
    """Choose runs one after the other, by gain over ``cost^power``, until nothing more is affordable or takes .5 % off.

    Parameters
    ----------
    covariance : (t + m, t + m)
        Of the log losses at the target's places and at the pool's.
    about_target : bool
        The gain is the fall of the target's mean variance (V-optimal); else of the log determinant (D-optimal).
    """
    covariance, aims = covariance.copy(), len(covariance) - len(pool)
    least = LEAST_GAIN if about_target else 0.0
    chosen, bill, variances = [], [], []
    free, left = np.ones(len(pool), dtype=bool), budget
    while len(chosen) < MOST_RUNS:
        cost = pool.costs(chosen)
        variance = np.maximum(np.diag(covariance)[aims:], 0.0)
        gain = (covariance[:aims, aims:] ** 2).mean(axis=0) / (variance + noise**2) if about_target else np.log1p(variance / noise**2)
        possible = free & (cost <= left * (1 + 1e-9)) & (gain > least * float(np.diag(covariance)[:aims].mean()))
        if not possible.any():
            break
        best = int(np.where(possible, gain / cost**power, -np.inf).argmax())
        column = covariance[:, aims + best].copy()
        covariance -= np.outer(column, column) / (column[aims + best] + noise**2)
        free[best], left = False, left - cost[best]
        chosen.append(best)
        bill.append(float(cost[best]))
        variances.append(float(np.maximum(np.diag(covariance)[:aims], 0.0).mean()))
    return Plan(chosen, bill, variances)


def plan_batch(surface: Surface, pool: Pool, target: Places, *, budget: float) -> Plan:
    """Plan how to spend a budget: of the greedy plans the one that leaves the least variance; cheapest runs first."""
    covariance = surface.covariance(target + pool.places)
    plans = [greedy(covariance, pool, noise=surface.noise, budget=budget, power=power) for power in POWERS]
    best = min(plans, key=lambda plan: plan.left)
    return _in_order(covariance, pool, best.chosen, noise=surface.noise)


def _in_order(covariance: Array, pool: Pool, chosen: list[int], *, noise: float) -> Plan:
    """Order the same runs by what each then adds to the bill, cheapest first."""
    covariance, aims = covariance.copy(), len(covariance) - len(pool)
    order, bill, variances, left = [], [], [], list(chosen)
    while left:
        cost = pool.costs(order)
        best = min(left, key=lambda run: cost[run])
        left.remove(best)
        column = covariance[:, aims + best].copy()
        covariance -= np.outer(column, column) / (column[aims + best] + noise**2)
        order.append(best)
        bill.append(float(cost[best]))
        variances.append(float(np.maximum(np.diag(covariance)[:aims], 0.0).mean()))
    return Plan(order, bill, variances)


def next_round(plan: Plan, *, budget: float, least: int = 1) -> list[int]:
    """Return the cheap part of a plan, `least` runs and up to the one that crosses a quarter of the budget: train it, then plan again."""
    spent = np.cumsum(plan.flops)
    count = max(least, 1 + int(np.searchsorted(spent, ROUND * budget, side="right")))
    return plan.chosen[:count]


Baseline = Callable[[Surface | None, Pool, Places, float, np.random.Generator], list[int]]


def _affordable(order: Array, pool: Pool, budget: float) -> list[int]:
    """Take runs in this order as long as the budget allows, passing over those that it does not."""
    chosen: list[int] = []
    left = budget
    for run in order:
        cost = pool.costs(chosen)[run]
        if cost <= left * (1 + 1e-9):
            chosen.append(int(run))
            left -= cost
    return chosen


def _greedy_baseline(*, about_target: bool) -> Baseline:
    def choose(surface: Surface | None, pool: Pool, target: Places, budget: float, generator: np.random.Generator) -> list[int]:
        del generator
        assert surface is not None
        covariance = surface.covariance(target + pool.places, law_only=True)
        plan = greedy(covariance, pool, noise=surface.noise, budget=budget, power=1.0, about_target=about_target)
        return next_round(plan, budget=budget)

    return choose


#: What `suggest` is compared with. Orders spend the whole budget; the optimal designs take the law for true, by gain per FLOP, in rounds.
BASELINES: dict[str, tuple[Baseline, bool]] = {
    "random": (lambda s, pool, t, budget, g: _affordable(g.permutation(len(pool)), pool, budget), False),
    "cheapest first": (lambda s, pool, t, budget, g: _affordable(np.argsort(pool.costs([]), kind="stable"), pool, budget), False),
    "cost-weighted random": (
        lambda s, pool, t, budget, g: _affordable(np.argsort(g.exponential(size=len(pool)) * pool.costs([])), pool, budget), False
    ),
    "D-optimal": (_greedy_baseline(about_target=False), True),
    "V-optimal": (_greedy_baseline(about_target=True), True),
}  # fmt: skip


def places_of(frame: Frame) -> Places:
    """Places of runs: columns N, D, and U where the table has it and every row is filled."""
    unique = frame["U"].to_numpy() if "U" in frame and np.isfinite(frame["U"].to_numpy(dtype=np.float64)).all() else None
    return Places.of(frame["N"].to_numpy(), frame["D"].to_numpy(), unique)


def suggest(runs: Runs, pool: Pool, target: Places, *, budget: float, trunk_id: Array | None = None) -> tuple[Frame, Surface]:
    """Suggest runs to train, cheapest first, and say how wide the target's interval is expected to be after each.

    Parameters
    ----------
    runs : Runs
        What has been trained.
    pool : Pool
        What could be trained.
    target : Places
        Where the loss is wanted; of several places the mean variance counts.
    budget : float
        FLOPs.

    Returns
    -------
    DataFrame
        order, run_id, trunk_id, params, tokens (new ones, or worth as much), flops (added to the bill), flops_total, half_width_before,
        half_width_after: half-width of the 95 % interval of the target's loss as a share of it (law and drift, without noise of one run).
    Surface

    Raises
    ------
    UserError
        When there are fewer than 3 runs, or nothing in the pool is affordable.
    """
    surface = fit_surface(places_of(runs.frame), np.log(runs.frame["loss"].to_numpy()), target=target)
    if not len(pool):
        raise UserError("there are no candidates that are not trained yet; name others with --candidates")
    plan = plan_batch(surface, pool, target, budget=budget)
    if not plan.chosen:
        raise UserError(f"--budget {budget:g} pays for no candidate; the cheapest costs {pool.costs([]).min():.3g} FLOPs")
    before = [float(np.diag(surface.covariance(target)).mean()), *plan.variance[:-1]]
    names = pool.run_id if trunk_id is None else trunk_id
    rows = [
        (i + 1, pool.run_id[run], names[run], float(np.exp(pool.places.x[run])), float(np.exp(pool.places.y[run])), flops, total,
         Z95 * was**0.5, Z95 * now**0.5)
        for i, (run, flops, total, was, now) in enumerate(
            zip(plan.chosen, plan.flops, np.cumsum(plan.flops).tolist(), before, plan.variance, strict=True)
        )
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=SUGGESTION_COLUMNS), surface


def replay(
    pool: Pool, log_loss: Array, target: Places, *, method: str, budget: float, start: Array, generator: np.random.Generator
) -> list[int]:
    """Spend a budget on runs whose losses are known, as if they were trained one round after the other: the runs bought.

    Parameters
    ----------
    log_loss : (m,)
        Seen only once a run is bought.
    method : str
        "suggest", or a name of `BASELINES`.
    start : (k,) int
        Runs bought first, at least 3; their cost counts.
    """
    bought, spent = [int(run) for run in start], float(pool.own[start].sum())
    while True:
        rest = np.setdiff1d(np.arange(len(pool)), bought)
        if not len(rest) or pool.own[rest].min() > budget - spent:
            return bought
        others, left = pool.rows(rest), budget - spent
        places = Places(pool.places.x[bought], pool.places.y[bought])
        choose, fits = BASELINES.get(method, (None, True))
        surface = fit_surface(places, log_loss[bought], target=target) if fits else None
        if choose is not None:
            chosen = choose(surface, others, target, left, generator)
        else:
            assert surface is not None
            chosen = next_round(plan_batch(surface, others, target, budget=left), budget=left)
        if not chosen:
            return bought
        bought += [int(rest[run]) for run in chosen]
        spent += float(pool.own[rest[chosen]].sum())


def read_pool(path: str | Path, *, n_column: str, d_column: str, skip: Runs | None = None) -> Pool:
    """Candidates from a CSV: parameters, tokens (and unique tokens) in the columns that runs have; FLOPs from `flops`, else 6 N D.

    Rows whose run_id was trained already (in `skip`) are left out.

    Raises
    ------
    UserError
        When a column is missing, or a value is no finite number above 0.
    """
    table = read_table(Path(path))
    values = {}
    for name, column in (("N", n_column), ("D", d_column)):
        if column not in table:
            raise UserError(f"{path}: candidates need a column {column!r} (the law's {name}); found: {', '.join(table.columns[:40])}")
        values[name] = _numbers(table, column, path)
    flops = 6 * values["N"] * values["D"]
    if "flops" in table and not is_blank(table["flops"]).any():
        flops = _numbers(table, "flops", path)
    names = table["run_id"].to_numpy() if "run_id" in table else np.array([f"candidate-{i + 1}" for i in range(len(table))])
    done = set() if skip is None or "run_id" not in table else set(skip.frame["run_id"].astype(str))
    unique = next((name for name in U_COLUMNS if name in table and not is_blank(table[name]).any()), None)
    places = Places.of(values["N"], values["D"], None if unique is None else _numbers(table, unique, path))
    pool = Pool.independent(names, places, flops)
    return pool.rows(np.flatnonzero([str(name) not in done for name in names]))


def _numbers(table: Frame, column: str, path: str | Path) -> Array:
    numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if len(bad):
        raise UserError(f"{path}: row {bad[0] + 1}, column {column}: {table[column].iloc[bad[0]]!r} must be a finite number above 0")
    return numbers
