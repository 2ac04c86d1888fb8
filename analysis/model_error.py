"""Prediction intervals for extrapolation, "if the law is only a law": their width is learnt from forecasts inside the data.

A bootstrap asks how far the fit would move if the law were true. Here the law is a smooth guess: the Skaling form
``L = E + (A N^-alpha + B D^-beta)^k``, fitted with weights toward the dearest runs, a Gaussian process for what it leaves, and an interval
as wide as the errors that this recipe makes when it forecasts the dearer runs of the data from the cheaper ones (docs/model_error.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.special import ndtri

from analysis.errors import UserError
from analysis.frontier_fit import Points, SkalingFit, fit_prefixes

MIN_RUNS, MIN_CELLS = 8, 5
#: Rolling origins: compute quantiles of the runs, with at least so many runs in and out.
ORIGINS, ORIGIN_IN, ORIGIN_OUT = np.linspace(0.30, 0.92, 9), 8, 2
WIDTH = 1.5  # half-width of the 95 % interval in units of u, cross-fitted on published sets
IMPROVEMENT = 0.15  # relative sd of the predicted fall of the log loss below the best runs
ORIGIN_SHARE = 0.25  # of the mean squared error of the origins that adds to the variance at any gap
ERROR_CAP = 25.0  # largest squared error of an origin, in medians
#: Gaussian process: lengths along log compute, the one across it (sd of the runs), amplitudes and noise (variances of the residuals).
ALONG, ACROSS, AMPLITUDES, NOISES = (0.5, 1.0, 2.0), 1.2, (0.05, 0.2, 0.5, 1.0, 3.0), (0.4, 0.7, 1.0)
PROCESS_RUNS = 300  # the process sees the dearest runs, at most so many


@dataclass(frozen=True)
class ExtrapolationInterval:
    """Forecasts of the loss of m new runs with intervals that do not assume the law, and what makes their width.

    Attributes
    ----------
    predicted, low, high : (m,)
        Loss, nats per token: law and process, and the interval of one new run.
    half_width_log : (m,)
        Of the interval, in log loss.
    level : float
        Nominal level of each interval.
    residual_sd : float
        Of the runs about the law, weighted toward the dearest (log loss).
    parameter_sd : (m,)
        Of the law's value, from its parameters alone (log loss).
    gap : (m,)
        Log compute beyond the dearest run (0 inside the data).
    tau2 : float
        Variance of log loss that is added per unit of `gap`, learnt at the origins.
    improvement_sd : (m,)
        Part of the width that grows with the predicted fall below the best runs (log loss).
    origin_r2 : float
        Mean squared error of the forecasts at the origins (log loss).
    n_folds : int
        Rolling origins used.
    n_runs : int
        Runs fitted.
    params : dict
        E, A, B, alpha, beta, k of the law (without the process).
    warnings : tuple of str
        What weakens the interval, in words.
    """

    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray
    half_width_log: np.ndarray
    level: float
    residual_sd: float
    parameter_sd: np.ndarray
    gap: np.ndarray
    tau2: float
    improvement_sd: np.ndarray
    origin_r2: float
    n_folds: int
    n_runs: int
    params: dict[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Origins:
    """Errors of the forecasts at the rolling origins: variance per unit of gap, mean squared error, how many, widest gap tried."""

    tau2: float
    r2: float
    folds: int
    widest: float


@dataclass(frozen=True)
class Process:
    """Mean of the Gaussian process of what the law leaves over: runs at `at` (n, 2), their `weights` (n,), `length` along log compute.

    `scales` make the coordinates: ``(ln N + ln D) / scales[0]`` and ``(ln D - ln N) / scales[1]``.
    """

    at: np.ndarray
    weights: np.ndarray
    length: float
    scales: tuple[float, float]

    def mean(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Log loss to add to the law at ln N, ln D: (m,)."""
        return _kernel(_coordinates(x, y, self.scales), self.at, self.length) @ self.weights


@dataclass(frozen=True)
class Extrapolation:
    """What `extrapolation_interval` learns from runs, ready for any place."""

    law: SkalingFit
    runs: Points
    process: Process
    origins: Origins

    @property
    def compute_offset(self) -> float:
        """Log compute of a run less ln N + ln D: the runs' median."""
        return float(np.median(self.runs.c - self.runs.x - self.runs.y))

    @property
    def best(self) -> float:
        """Log loss of the best runs, below which a predicted fall widens the interval."""
        return float(np.quantile(self.runs.loss, 0.05))

    def interval(self, n_new: Any, d_new: Any, *, level: float = 0.95) -> ExtrapolationInterval:
        """Forecast new runs (see `extrapolation_interval`)."""
        try:
            x, y = np.broadcast_arrays(_logs(n_new, "n_new"), _logs(d_new, "d_new"))
        except ValueError:
            raise UserError("extrapolation_interval: n_new and d_new differ in length; give one of each a new run, or a scalar") from None
        law, runs, origins = self.law, self.runs, self.origins
        value, parameter_sd = law.predict(x, y)
        mean = value + self.process.mean(x, y)
        gap = np.maximum(x + y + self.compute_offset - runs.c.max(), 0.0)
        improvement_sd = IMPROVEMENT * np.abs(self.best - mean)
        variance = law.sd**2 + parameter_sd**2 + origins.tau2 * gap + improvement_sd**2 + ORIGIN_SHARE * origins.r2
        half = WIDTH * float(ndtri((1 + level) / 2) / ndtri(0.975)) * np.sqrt(variance)
        return ExtrapolationInterval(
            predicted=np.exp(mean), low=np.exp(mean - half), high=np.exp(mean + half), half_width_log=half, level=level, residual_sd=law.sd,
            parameter_sd=parameter_sd, gap=gap, tau2=origins.tau2, improvement_sd=improvement_sd, origin_r2=origins.r2,
            n_folds=origins.folds, n_runs=len(runs.x), params=law.params(), warnings=_warnings(runs, origins, gap),
        )  # fmt: skip


def extrapolation_interval(
    n: Any, d: Any, loss: Any, n_new: Any, d_new: Any, *, level: float = 0.95, compute: Any = None
) -> ExtrapolationInterval:
    """Forecast the loss of new runs, with an interval whose width is learnt from rolling origins in the runs.

    Parameters
    ----------
    n, d, loss : (n_runs,)
        Parameters, tokens and final loss (nats per token) of the runs; several seeds of one cell are rows of their own.
    n_new, d_new : scalars or (m,)
        Parameters and tokens of the runs to forecast (broadcast).
    level : float
        Nominal level of each interval, between 0 and 1; the width is calibrated at .95 and scaled by normal quantiles.
    compute : (n_runs,), optional
        Training FLOPs that say which runs are dear; default proportional to N D. A new run is counted at the runs' median ratio to N D.

    Raises
    ------
    UserError
        When arrays do not fit each other, a value is not finite and positive, the level is not inside (0, 1), or there are fewer than
        8 runs or 5 different (N, D).

    Notes
    -----
    ``half_width_log = 1.5 z / z_95 u`` with ``u^2 = s^2 + parameter variance + tau2 gap + (.15 fall)^2 + origin_r2 / 4``; `fall` is that of
    the log loss below the 5 % quantile of the runs. With fewer than two origins ``tau2 = s^2`` and ``origin_r2 = 4 s^2``.
    Coverage was measured on published sets (docs/model_error.md); it is per run, and the errors of neighbouring runs go together.
    """
    if not 0 < level < 1:
        raise UserError(f"level = {level} is not allowed; it must lie between 0 and 1, such as 0.95")
    return learn_extrapolation(n, d, loss, compute=compute).interval(n_new, d_new, level=level)


def learn_extrapolation(n: Any, d: Any, loss: Any, *, compute: Any = None) -> Extrapolation:
    """Fit law, process and width of `extrapolation_interval` once, for intervals at many places.

    Raises
    ------
    UserError
        As `extrapolation_interval` does for the runs.
    """
    runs = _read(n, d, loss, compute)
    sizes = _origin_sizes(runs.c)
    *folds, law = fit_prefixes(runs, [*sizes, len(runs.x)])
    return Extrapolation(law, runs, _process(law, runs), _origin_errors(runs, sizes, folds, law.sd))


def process_mean(at: np.ndarray, residuals: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Mean of a Gaussian process of the residuals at new points, its hyperparameters of greatest marginal likelihood on a small grid.

    Parameters
    ----------
    at, new : (n, 2), (m, 2)
        Standardised coordinates along and across log compute.
    residuals : (n,)
        Of the log loss.

    Returns
    -------
    (m,) mean of the process (Rasmussen & Williams 2006, eqs. 2.25 and 5.8).
    """
    weights, length = process_weights(at, residuals)
    return _kernel(new, at, length) @ weights


def process_weights(at: np.ndarray, residuals: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (n,) of the runs in the mean of the process, and its length along log compute (see `process_mean`)."""
    size = float(np.var(residuals)) + 1e-12
    least, weights, length = np.inf, np.zeros(len(residuals)), ALONG[0]
    for along in ALONG:
        values, vectors = np.linalg.eigh(_kernel(at, at, along))
        values, turned = np.maximum(values, 0.0), vectors.T @ residuals
        for amplitude, noise in product(AMPLITUDES, NOISES):
            spectrum = size * (amplitude * values + noise)
            minus_log_likelihood = 0.5 * float((turned**2 / spectrum + np.log(spectrum)).sum())
            if minus_log_likelihood < least:
                least, weights, length = minus_log_likelihood, amplitude * size * (vectors @ (turned / spectrum)), along
    return weights, length


def _kernel(left: np.ndarray, right: np.ndarray, along: float) -> np.ndarray:
    squared = (left[:, None] - right[None]) ** 2
    return np.exp(-0.5 * (squared[..., 0] / along**2 + squared[..., 1] / ACROSS**2))


def _process(law: SkalingFit, runs: Points) -> Process:
    """Learn what the law leaves over at the dearest runs."""
    near = runs[-PROCESS_RUNS:]
    left = np.clip(near.loss - law.predict(near.x, near.y)[0], -4 * law.sd, 4 * law.sd)
    scales = max(float(np.std(near.x + near.y)), 0.3), max(float(np.std(near.y - near.x)), 0.3)
    at = _coordinates(near.x, near.y, scales)
    return Process(at, *process_weights(at, left), scales)


def _coordinates(x: np.ndarray, y: np.ndarray, scales: tuple[float, float]) -> np.ndarray:
    return np.stack([(x + y) / scales[0], (y - x) / scales[1]], axis=1)


def _origin_sizes(c: np.ndarray) -> list[int]:
    """How many of the runs (sorted by compute) lie at or below each rolling origin."""
    edges = np.quantile(c, ORIGINS, method="lower") + 1e-9
    sizes = np.unique(np.searchsorted(c, edges, side="right"))
    return [int(size) for size in sizes if size >= ORIGIN_IN and len(c) - size >= ORIGIN_OUT]


def _origin_errors(runs: Points, sizes: list[int], folds: list[SkalingFit], sd: float) -> Origins:
    """Forecast every dearer run from each origin; origins weigh equally."""
    if len(sizes) < 2:
        return Origins(tau2=sd**2, r2=4 * sd**2, folds=len(sizes), widest=0.0)
    squared, excess, gaps, weights = [], [], [], []
    for size, law in zip(sizes, folds, strict=True):
        dear = runs[size:]
        error = dear.loss - law.predict(dear.x, dear.y)[0] - _process(law, runs[:size]).mean(dear.x, dear.y)
        squared.append(error**2)
        excess.append(np.full(len(error), law.sd**2))
        gaps.append(np.maximum(dear.c - runs.c[size - 1], 0.0))
        weights.append(np.full(len(error), 1 / len(error)))
    square, noise, gap, weight = (np.concatenate(part) for part in (squared, excess, gaps, weights))
    square = np.minimum(square, ERROR_CAP * np.median(square))
    tau2 = max(float((weight * (square - noise)).sum() / (weight * gap).sum()), 0.0)
    return Origins(tau2=tau2, r2=float(np.average(square, weights=weight)), folds=len(sizes), widest=float(gap.max()))


def _read(n: Any, d: Any, loss: Any, compute: Any) -> Points:
    """Return runs sorted by compute, in logs; refuse what the method cannot use."""
    logs = {"n": _logs(n, "n"), "d": _logs(d, "d"), "loss": _logs(loss, "loss")}
    logs["compute"] = logs["n"] + logs["d"] if compute is None and len(logs["n"]) == len(logs["d"]) else _logs(compute, "compute")
    counts = {name: len(values) for name, values in logs.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"extrapolation_interval: n, d, loss and compute have {list(counts.values())} values; give one of each a run")
    x, y, c = logs["n"], logs["d"], logs["compute"]
    cells = len(np.unique(np.stack([x, y], axis=1), axis=0))
    if len(x) < MIN_RUNS or cells < MIN_CELLS:
        raise UserError(
            f"extrapolation_interval: {len(x)} runs of {cells} different (N, D); at least {MIN_RUNS} runs of {MIN_CELLS} are needed;"
            " add runs, or use the bootstrap interval of a law with fewer parameters"
        )
    return Points(x, y, c, logs["loss"])[np.lexsort((logs["loss"], y, x, c))]


def _logs(values: Any, name: str) -> np.ndarray:
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1 or not (np.isfinite(array).all() and (array > 0).all()):
        raise UserError(f"extrapolation_interval: {name} must be one-dimensional, finite and above 0; exclude such runs")
    return np.log(array)


def _warnings(runs: Points, origins: Origins, gap: np.ndarray) -> tuple[str, ...]:
    told = []
    if origins.folds < 2:
        told.append(f"{len(runs.x)} runs: fewer than two rolling origins, so the width is a multiple of the residual sd, not learnt")
    elif gap.max(initial=0.0) > 1.5 * origins.widest:
        told.append(
            f"the farthest run is {np.exp(gap.max()):.3g} times dearer than the dearest run fitted; errors were seen up to"
            f" {np.exp(origins.widest):.3g} times"
        )
    spread = np.linalg.svd(np.stack([runs.x - runs.x.mean(), runs.y - runs.y.mean()]), compute_uv=False)
    if spread[1] < 0.02 * spread[0]:
        told.append("the runs vary along one line of (ln N, ln D) only: away from it the exponents are the prior's")
    return tuple(told)
