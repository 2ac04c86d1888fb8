"""Power laws of compute-optimal sizes: ``N* = k_N C^a`` and ``D* = k_D C^b``, from optima, with intervals by resampling runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from analysis.envelope import compute_grid, envelope_draws, envelope_optima
from analysis.errors import UserError
from analysis.frames import Frame
from analysis.isoflop import METHODS, OptimaDraws, find_budgets, isoflop_draws, isoflop_optima
from analysis.sampling import percentile_band

APPROACHES = ("envelope", *(f"isoflop-{method}" for method in METHODS))
LEAST_OPTIMA = 3
#: Where fewer than half of the draws keep an optimum (or a slope), percentiles of the rest would describe chosen draws.
LEAST_SHARE = 0.5
NAN = float("nan")


@dataclass(frozen=True)
class Allocation:
    """Power laws of the compute-optimal N and D, by least squares of their logarithms on log C.

    Attributes
    ----------
    a, b : float
        Exponents of N* and D*; `a_se`, `b_se` their standard errors (NaN for two points), `a_low` to `b_high` percentile intervals.
    params_coefficient, tokens_coefficient : float
        N* and D* at C = 1.
    params_r2, tokens_r2 : float
        Share of the (weighted) variance explained.
    n_points : int
        Different optima; an envelope's staircase counts a model once, and the standard errors are widened accordingly.
    draws : (n_draws, 4) float64 or None
        a, log k_N, b, log k_D of resampled runs.
    reason : str
        Why there is no interval; empty when there is one.
    """

    a: float
    b: float
    a_se: float
    b_se: float
    params_coefficient: float
    tokens_coefficient: float
    params_r2: float
    tokens_r2: float
    n_points: int
    a_low: float = NAN
    a_high: float = NAN
    b_low: float = NAN
    b_high: float = NAN
    ci_level: float = 0.95
    draws: np.ndarray | None = None
    reason: str = "no runs were resampled"

    def optimum(self, flops: float) -> tuple[float, float]:
        """N* and D* for a budget in FLOPs."""
        return self.params_coefficient * flops**self.a, self.tokens_coefficient * flops**self.b

    def interval(self, flops: float) -> tuple[float, float, float, float]:
        """Interval of N*, then of D*, for a budget in FLOPs; NaN without draws."""
        if self.draws is None:
            return NAN, NAN, NAN, NAN
        n, d = (np.exp(self.draws[:, i + 1] + self.draws[:, i] * np.log(flops)) for i in (0, 2))
        return *percentile_band(n, self.ci_level), *percentile_band(d, self.ci_level)


def fit_allocation(optima: Frame, *, weights: np.ndarray | None = None) -> Allocation:
    """Fit ``log N* = log k_N + a log C`` and ``log D* = log k_D + b log C`` by (weighted) least squares.

    Parameters
    ----------
    optima : DataFrame
        flops, params_opt, tokens_opt; any table of optima, also a published one. Rows that are not finite, not `bracketed`, or without
        a weight above 0 are left out.
    weights : (n_rows,) float64, optional
        Such as 1 / variance of log N* (Porian et al. 2024).

    Raises
    ------
    UserError
        When fewer than two different optima at two different budgets are usable.
    """
    table = optima[["flops", "params_opt", "tokens_opt"]].to_numpy(dtype=np.float64)
    weight = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=np.float64)
    usable = np.isfinite(table).all(axis=1) & (table > 0).all(axis=1) & np.isfinite(weight) & (weight > 0)
    if "bracketed" in optima:
        usable &= optima["bracketed"].to_numpy(dtype=bool)
    log_c, log_n, log_d = np.log(table[usable]).T
    points = len(np.unique(log_n))
    if points < 2 or len(np.unique(log_c)) < 2:
        raise UserError(f"allocation: {points} usable optima; at least 2 at different budgets are needed, {LEAST_OPTIMA} for an interval")
    a, log_k_n, a_se, params_r2 = _line(log_c, log_n, weight[usable], points)
    b, log_k_d, b_se, tokens_r2 = _line(log_c, log_d, weight[usable], points)
    return Allocation(
        a=a, b=b, a_se=a_se, b_se=b_se, params_coefficient=float(np.exp(log_k_n)), tokens_coefficient=float(np.exp(log_k_d)),
        params_r2=params_r2, tokens_r2=tokens_r2, n_points=points,
    )  # fmt: skip


def allocate(
    frame: Frame, *, approach: str, budget_column: str | None = None, draws: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[Frame, Allocation]:
    """Find the optima of one approach and their power laws, with intervals by resampling.

    Each draw resamples whole trunks where trunks hold several runs (else the runs within each budget; without budgets, those of each
    model), finds the optima again and fits again.

    Parameters
    ----------
    frame : DataFrame
        N, D, C, loss; trunk_id where known.
    approach : {"envelope", "isoflop-parabola", "isoflop-cubic", "isoflop-interpolated"}
    draws : int
        0 for no intervals.
    seed : int
    level : float

    Returns
    -------
    tuple of DataFrame and Allocation
        The optima carry percentile intervals `params_ci_low`, `params_ci_high`, and the same of tokens and loss;
        NaN where fewer than half of the draws keep that optimum.

    Raises
    ------
    UserError
        When the approach is unknown or finds fewer than two optima (the envelope: fewer than three different winners).
    """
    if approach not in APPROACHES:
        raise UserError(f"approach {approach!r} is unknown; allowed: {', '.join(APPROACHES)}")
    if approach == "envelope":
        optima = envelope_optima(frame)
        find: Callable[[np.ndarray], OptimaDraws] = partial(envelope_draws, frame, flops=compute_grid(frame))
    else:
        method = approach.removeprefix("isoflop-")
        optima = isoflop_optima(frame, budget_column=budget_column, method=method)
        find = partial(isoflop_draws, frame, budgets=find_budgets(frame, budget_column=budget_column), method=method)
    _need_optima(optima, approach)
    allocation = replace(fit_allocation(optima), ci_level=level)
    if draws == 0:
        return optima, allocation
    if allocation.n_points < LEAST_OPTIMA:
        return optima, replace(allocation, reason=f"{allocation.n_points} optima; an interval needs at least {LEAST_OPTIMA}")
    found = find(resample_counts(frame, draws=draws, seed=seed, budget_column=budget_column))
    used = optima["bracketed"].to_numpy(dtype=bool)
    for name, values in (("params", found.params), ("tokens", found.tokens), ("loss", found.loss)):
        kept = used & (np.isfinite(values).mean(axis=0) >= LEAST_SHARE)
        bands = [percentile_band(column, level) if keep else (NAN, NAN) for keep, column in zip(kept, values.T, strict=True)]
        optima[[f"{name}_ci_low", f"{name}_ci_high"]] = np.array(bands)
    lines = _draw_lines(found)
    if len(lines) < LEAST_SHARE * draws:
        reason = f"only {len(lines)} of {draws} draws of the runs keep {LEAST_OPTIMA} optima: too few runs for an interval"
        return optima, replace(allocation, reason=reason)
    (a_low, a_high), (b_low, b_high) = percentile_band(lines[:, 0], level), percentile_band(lines[:, 2], level)
    return optima, replace(allocation, a_low=a_low, a_high=a_high, b_low=b_low, b_high=b_high, draws=lines, reason="")


def resample_counts(frame: Frame, *, draws: int, seed: int, budget_column: str | None = None) -> np.ndarray:
    """How often each draw takes each run, (n_draws, n_runs) float64; see `allocate` for what is resampled."""
    generator = np.random.default_rng(seed)
    name = next((name for name in ("trunk_id", "run_id") if name in frame), None)
    trunk = pd.factorize(frame[name].astype(str), sort=True)[0] if name else np.arange(len(frame))
    trunks = trunk.max() + 1
    if trunks < len(frame):
        return generator.multinomial(trunks, np.full(trunks, 1 / trunks), size=draws)[:, trunk].astype(np.float64)
    budgets = [budget for budget in find_budgets(frame, budget_column=budget_column) if not budget.reason]
    stratum = pd.factorize(frame["N"], sort=True)[0]
    for number, budget in enumerate(budgets, start=1):
        stratum[budget.rows] = -number
    counts = np.zeros((draws, len(frame)))
    for label in np.unique(stratum):
        rows = np.flatnonzero(stratum == label)
        counts[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return counts


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray, points: int) -> tuple[float, float, float, float]:
    """Weighted least squares of y on x: slope, level at x = 0, standard error of the slope, share of the variance explained."""
    slope, level = (float(v[0]) for v in _slopes(x, y[None], weight[None]))
    weight = weight / weight.sum()
    left = weight @ (y - level - slope * x) ** 2
    spread_x, spread_y = (weight @ (v - weight @ v) ** 2 for v in (x, y))
    error = float(np.sqrt(left / spread_x / (points - 2))) if points > 2 else NAN
    return slope, level, error, float(1 - left / spread_y) if spread_y > 0 else NAN


def _slopes(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and level at x = 0 of each row of y (n_draws, n_points); points of weight 0 may hold anything finite."""
    total = weight.sum(axis=1)
    mean_x, mean_y = (weight * x).sum(axis=1) / total, (weight * y).sum(axis=1) / total
    away = x - mean_x[:, None]
    slope = (weight * away * y).sum(axis=1) / (weight * away**2).sum(axis=1)
    return slope, mean_y - slope * mean_x


def _draw_lines(found: OptimaDraws) -> np.ndarray:
    """a, log k_N, b, log k_D of the draws that keep at least three different optima."""
    log_n, log_d = np.log(found.params), np.log(found.tokens)
    enough = np.array([len(np.unique(row[np.isfinite(row)])) >= LEAST_OPTIMA for row in log_n], dtype=bool)
    log_n, log_d = log_n[enough], log_d[enough]
    weight = np.isfinite(log_n).astype(np.float64)
    x = np.log(found.flops)
    return np.column_stack([*_slopes(x, np.nan_to_num(log_n), weight), *_slopes(x, np.nan_to_num(log_d), weight)])


def _need_optima(optima: Frame, approach: str) -> None:
    if not optima["bracketed"].any():
        common = optima["reason"].value_counts()
        raise UserError(f"{approach}: none of {len(optima)} budgets gives an optimum ({common.index[0]}: {common.iloc[0]} of them)")
    winners = optima["params_opt"].nunique()
    if approach == "envelope" and winners < LEAST_OPTIMA:
        raise UserError(f"envelope: {winners} models win anywhere between others; the slope of a staircase needs at least {LEAST_OPTIMA}")
