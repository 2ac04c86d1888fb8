"""The Skaling law, ``L = E + (A N^-alpha + B D^-beta)^k``, fitted with weights toward the dearest runs and weak priors.

Fits of the cheapest so many runs, for several sizes, run as one batch: rolling origins cost little more than one fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FRONTIER, LEAST_SPAN = 0.35, 0.3  # run weights fall by 1/e over this share of the span of log compute, itself at least so long
PRIOR_RUNS = 20  # the priors weigh as they would with this many runs
HUBER, MAD = 1.345, 1.4826
FIRST_SD, SD_FLOOR = 0.03, 5e-4  # of log residuals: before any is known, and at least
LONGEST_STEP = 2.0
#: Priors (centre, sd) of ln A, ln B, ln E - least ln loss, ln alpha, ln beta, ln k, runs centred; the first two are as good as flat.
PRIOR = np.array([[-1.5, 10.0], [-1.5, 10.0], [np.log(0.65), 0.4], [np.log(0.45), 0.35], [np.log(0.5), 0.35], [0.0, 0.5]])
PARAMETERS = len(PRIOR)


@dataclass(frozen=True)
class Points:
    """Runs in logs, each (n,): parameters, tokens, compute, and loss (NaN for runs to be forecast)."""

    x: np.ndarray
    y: np.ndarray
    c: np.ndarray
    loss: np.ndarray

    def __getitem__(self, rows: Any) -> Points:
        return Points(self.x[rows], self.y[rows], self.c[rows], self.loss[rows])


@dataclass(frozen=True)
class SkalingFit:
    """A fitted law: `theta` (see `skaling`) of ln N, ln D, ln L counted from `center`; sd of a run; covariance of theta."""

    theta: np.ndarray
    center: np.ndarray
    sd: float
    covariance: np.ndarray

    def predict(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log loss at ln N, ln D, and its sd from the parameters: each (m,)."""
        value, slope = skaling(self.theta[None], x - self.center[0], y - self.center[1])
        variance = np.einsum("pm,pq,qm->m", slope[0], self.covariance, slope[0])
        return value[0] + self.center[2], np.sqrt(np.maximum(variance, 0.0))

    def params(self) -> dict[str, float]:
        """E (nats per token), A, B, alpha, beta, k of the plain law."""
        a, b, e = self.theta[:3]
        alpha, beta, k = np.exp(self.theta[3:])
        shift = self.center[2] / k
        logs = {"E": e + self.center[2], "A": a + alpha * self.center[0] + shift, "B": b + beta * self.center[1] + shift}
        return {name: float(np.exp(value)) for name, value in logs.items()} | {"alpha": float(alpha), "beta": float(beta), "k": float(k)}


@dataclass(frozen=True)
class Batch:
    """Fits of the cheapest `sizes` runs, side by side: centred x, y, loss and root weights (f, n), prior centres (f, 6), centres (f, 3)."""

    sizes: np.ndarray
    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    prior: np.ndarray
    center: np.ndarray


def skaling(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of the Skaling law and its Jacobian.

    Parameters
    ----------
    theta : (b, 6)
        ln A, ln B, ln E, ln alpha, ln beta, ln k.
    x, y : (n,) or (b, n)
        ln N, ln D.

    Returns
    -------
    (b, n) log loss and (b, 6, n) derivatives by theta.
    """
    a, b, e = theta.T[:3, :, None]
    alpha, beta, k = np.exp(theta.T[3:, :, None])
    by_n, by_d = a - alpha * x, b - beta * y
    inner = np.logaddexp(by_n, by_d)
    value = np.logaddexp(k * inner, e)
    reducible = k * np.exp(k * inner - value)
    to_n = reducible * np.exp(by_n - inner)
    to_d = reducible - to_n
    slope = np.stack([to_n, to_d, np.exp(e - value), -alpha * x * to_n, -beta * y * to_d, reducible * inner], axis=1)
    return value, slope


def fit_prefixes(runs: Points, sizes: Sequence[int]) -> list[SkalingFit]:
    """Fit the law to the cheapest so many of the runs (sorted by compute), for each size, in one batch.

    Huber's loss of the log residuals at 1.345 robust sd, by reweighting; run weights ``exp(-(c_max - c) / (.35 span of c))``; priors as
    strong as beside 20 runs.
    """
    batch = _batch(runs, sizes)
    theta = np.array([_starts(lowest) for lowest in batch.prior[:, 2] - PRIOR[2, 0]])
    tight = _tightness(np.full(len(sizes), FIRST_SD), np.full(len(sizes), PRIOR_RUNS))
    theta = _search(theta, batch, batch.weight, tight, 25)[:, :2]
    for _ in range(4):
        left = skaling(theta[:, 0], batch.x, batch.y)[0] - batch.loss
        sd = np.array([_robust_sd(row[:size]) for row, size in zip(left, sizes, strict=True)])
        robust = batch.weight * np.sqrt(np.minimum(1.0, HUBER * sd[:, None] / np.maximum(np.abs(left), 1e-12)))
        tight = _tightness(sd, batch.sizes)
        theta = _search(theta, batch, robust, tight, 15)
    theta = theta[:, 0]
    left = skaling(theta, batch.x, batch.y)[0] - batch.loss
    clipped = np.minimum(np.abs(left), 3 * sd[:, None]) * batch.weight
    final = np.maximum(np.sqrt((clipped**2).sum(axis=1) / np.maximum(batch.sizes - PARAMETERS, 1)), SD_FLOOR)
    normal = _evaluate(theta, np.arange(len(sizes)), batch, robust, tight)[1]
    covariance = np.linalg.inv(normal) * final[:, None, None] ** 2
    return [SkalingFit(theta[i], batch.center[i], float(final[i]), covariance[i]) for i in range(len(sizes))]


def _batch(runs: Points, sizes: Sequence[int]) -> Batch:
    rows = [runs[:size] for size in sizes]
    center = np.array([(row.x.mean(), row.y.mean(), row.loss.mean()) for row in rows])
    weight = np.zeros((len(sizes), len(runs.x)))
    for share, row in zip(weight, rows, strict=True):
        raw = np.exp((row.c - row.c.max()) / (FRONTIER * max(np.ptp(row.c), LEAST_SPAN)))
        share[: len(raw)] = np.sqrt(raw * len(raw) / raw.sum())
    prior = np.tile(PRIOR[:, 0], (len(sizes), 1))
    prior[:, 2] += [row.loss.min() for row in rows] - center[:, 2]
    x, y, loss = (values - center[:, [i]] for i, values in enumerate((runs.x, runs.y, runs.loss)))
    return Batch(np.asarray(sizes), x, y, loss, weight, prior, center)


def _starts(lowest: float) -> list[tuple[float, ...]]:
    """Four starts (4, 6) for centred runs of this least log loss: two pairs of exponents, k = .5 and 1."""
    exponents = ((0.35, 0.35), (0.25, 0.6))
    level = {k: -0.6 / k - 0.7 for k in (0.5, 1.0)}
    return [(level[k], level[k], lowest - 0.5, np.log(p / k), np.log(q / k), np.log(k)) for k in level for p, q in exponents]


def _tightness(sd: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Root precision of the priors in units of the residuals: (f, 6)."""
    return (sd * np.sqrt(np.maximum(sizes / PRIOR_RUNS, 1.0)))[:, None] / PRIOR[:, 1]


def _robust_sd(left: np.ndarray) -> float:
    spread = MAD * float(np.median(np.abs(left - np.median(left))))
    return max(spread * np.sqrt(len(left) / max(len(left) - PARAMETERS, 1)), SD_FLOOR)


def _search(theta: np.ndarray, batch: Batch, weight: np.ndarray, tight: np.ndarray, steps: int) -> np.ndarray:
    """Levenberg-Marquardt from every start (f, s, 6) of every fit together; returned with each fit's best start first."""
    shape, theta = theta.shape, theta.reshape(-1, PARAMETERS)
    fit = np.repeat(np.arange(shape[0]), shape[1])
    cost, normal, gradient = _evaluate(theta, fit, batch, weight, tight)
    damping, active = np.full(len(theta), 1e-2), np.arange(len(theta))
    for _ in range(steps):
        scale = np.sqrt(np.maximum(np.diagonal(normal[active], axis1=1, axis2=2), 1e-14))
        system = normal[active] / (scale[:, :, None] * scale[:, None, :]) + damping[active, None, None] * np.eye(PARAMETERS)
        step = -np.linalg.solve(system, (gradient[active] / scale)[..., None])[..., 0] / scale
        step *= np.minimum(1.0, LONGEST_STEP / np.maximum(np.abs(step).max(axis=1), 1e-12))[:, None]
        trial = theta[active] + step
        found = _evaluate(trial, fit[active], batch, weight, tight)
        better = found[0] <= cost[active]
        done = better & (cost[active] - found[0] <= 1e-9 * cost[active])
        moved = active[better]
        theta[moved], cost[moved], normal[moved], gradient[moved] = trial[better], *(part[better] for part in found)
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 6.0), 1e-9, 1e8)
        active = active[~done]
        if len(active) == 0:
            break
    order = np.argsort(cost.reshape(shape[:2]), axis=1)
    return np.take_along_axis(theta.reshape(shape), order[..., None], axis=1)


def _evaluate(
    theta: np.ndarray, fit: np.ndarray, batch: Batch, weight: np.ndarray, tight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cost (b,), normal matrix (b, 6, 6) and gradient (b, 6) of the starts `theta` (b, 6) of the fits `fit` (b,)."""
    value, slope = skaling(theta, batch.x[fit], batch.y[fit])
    left = (value - batch.loss[fit]) * weight[fit]
    slope *= weight[fit][:, None]
    prior = (theta - batch.prior[fit]) * tight[fit]
    normal = slope @ slope.transpose(0, 2, 1) + np.eye(PARAMETERS) * tight[fit][:, :, None] ** 2
    gradient = (slope @ left[..., None])[..., 0] + tight[fit] * prior
    return (left**2).sum(axis=1) + (prior**2).sum(axis=1), normal, gradient
