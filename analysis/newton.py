"""The solver of every fit: a batched, damped, exact Newton method in float64 for robust losses.

Many problems (starts, or bootstrap draws) are solved at once. What is fitted is a *model* (`analysis.powers`, `analysis.formula`): it
predicts log loss at the points and contracts its derivatives. Robust losses follow Huber 1964; the asymmetric one weighs residuals above
zero (predicted > observed) by a factor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

Array = np.ndarray
CHUNK = 100_000  # problems x points worked on at once: large enough to keep two threads busy, small enough for the caches
FEW = 64  # problems: starts from afar, where a curved-down direction may descend and eigenvalues are looked at throughout
FLAT = 50  # steps over which the objective must fall by a billionth of itself: else the valley is flat, and whoever judges the fit says so
CORES = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Model(Protocol):
    """What the solver needs of a law bound to the variables of n points.

    Attributes
    ----------
    lower, upper : (p,) box of the solver's coordinates theta.
    loose : (p,) 1 where one step may be as long as the coordinate itself (those that are no logarithm), else 0.
    """

    @property
    def lower(self) -> Any:
        """See above."""
        ...

    @property
    def upper(self) -> Any:
        """See above."""
        ...

    @property
    def loose(self) -> Any:
        """See above."""
        ...

    def log_loss(self, theta: Array) -> Array:
        """(problems, p) -> (problems, n) log of the predicted loss; NaN outside the law's domain."""
        ...

    def evaluate(self, theta: Array) -> tuple[Array, Any]:
        """`log_loss`, and what `contract` needs of this evaluation."""
        ...

    def contract(self, state: Any, theta: Array, slope: Array, curve: Array, metric: Array | None) -> tuple[Array, Array, Array]:
        """Return ``sum slope J``, ``sum curve J J^T + slope d2f``, and the diagonal of ``sum metric J J^T`` (None: of ``curve``)."""
        ...

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of log loss at one theta (p,): (n, p)."""
        ...

    def starts(self, loss: Array, weight: Array, count: int, delta: float = np.inf) -> tuple[Array, Array]:
        """Points to start from (s, p), and how many points of the search each stands for (s,)."""
        ...

    def decode(self, theta: Array) -> dict[str, Any]:
        """Coordinates -> parameters as published; the last axis of `theta` is the parameter."""
        ...

    def encode(self, params: Mapping[str, float]) -> Array:
        """Parameters as published -> coordinates (p,)."""
        ...

    def nothing(self, theta: Array) -> list[str]:
        """Names of parameters that move no prediction at theta (p,)."""
        ...

    def ran_away(self, theta: Array) -> list[str]:
        """Names of parameters at the edge of the search."""
        ...


@dataclass(frozen=True)
class Problem:
    """Points of one fit.

    Attributes
    ----------
    model : Model
    y : (n,) or (problems, n) log losses.
    scale : (n,) factor of each residual (1 / noise sd), inside the robust loss.
    linear : bool
        Residuals are ``loss_hat - loss`` instead of ``log loss_hat - log loss``.
    above : float
        Weight of residuals above zero (asymmetric losses); 1 is symmetric.
    """

    model: Model
    y: Array
    scale: Array
    linear: bool = False
    above: float = 1.0

    def rows(self, ids: Array | slice) -> Problem:
        """Keep some problems of a batch."""
        return replace(self, y=self.y[ids]) if self.y.ndim == 2 else self


def residuals(problem: Problem, theta: Array) -> Array:
    """Scaled residuals, predicted minus observed: (problems, n)."""
    f = problem.model.log_loss(theta)
    return ((np.exp(f) - np.exp(problem.y)) if problem.linear else (f - problem.y)) * problem.scale


def robust(r: Array, delta: float, above: float = 1.0) -> Array:
    """``r^2 / 2`` up to `delta`, then ``delta (|r| - delta / 2)``; times `above` where r > 0."""
    if np.isfinite(delta):
        a = np.abs(r)
        quadratic = np.minimum(a, delta)
        h = quadratic * (a - 0.5 * quadratic)
    else:
        h = 0.5 * r * r
    return h if above == 1.0 else h * np.where(r > 0, above, 1.0)


def objective(problem: Problem, theta: Array, delta: float, weights: Array | None = None) -> Array:
    """Sum over the points of the robust loss: (problems,)."""
    h = robust(residuals(problem, theta), delta, problem.above)
    return (h if weights is None else h * weights).sum(axis=1)


def derivatives(
    problem: Problem, theta: Array, delta: float, weights: Array | None = None, *, exact: bool = True
) -> tuple[Array, Array, Array, Array]:
    """Objective, gradient, Hessian (exact, or reweighted Gauss-Newton) and the diagonal of the latter, one a problem."""
    f, state = problem.model.evaluate(theta)
    if problem.linear:
        loss = np.exp(f)
        r = (loss - np.exp(problem.y)) * problem.scale
        inner = loss * problem.scale
    else:
        r = (f - problem.y) * problem.scale
        inner = problem.scale
    bounded = np.isfinite(delta)
    a = np.abs(r)
    quadratic = np.minimum(a, delta) if bounded else a
    weight: Any = 1.0 if weights is None else weights
    if problem.above != 1.0:
        weight = weight * np.where(r > 0, problem.above, 1.0)
    value = (quadratic * (a - 0.5 * quadratic) * weight).sum(axis=1)
    slope = (np.clip(r, -delta, delta) if bounded else r) * weight * inner
    square = inner * inner * weight
    metric = square * (np.maximum(quadratic, 1e-300) / np.maximum(a, 1e-300)) if bounded else square + np.zeros_like(r)
    if exact:
        curve = square * (a <= delta) if bounded else square + np.zeros_like(r)
        if problem.linear:
            curve = curve + slope
        return value, *problem.model.contract(state, theta, slope, curve, metric)
    return value, *problem.model.contract(state, theta, np.where(np.isfinite(slope), slope, np.nan), metric, None)


def minimise(
    problem: Problem,
    start: Array,
    *,
    delta: float,
    weights: Array | None = None,
    iterations: int = 60,
    tolerance: float = 1e-13,
    exact: bool = True,
) -> tuple[Array, Array]:
    """Minimise the robust objective from each row of `start`.

    Newton with Levenberg damping in the metric of the Gauss-Newton diagonal; where its step does not descend, absolute eigenvalues are
    taken (saddle-free Newton). Parameters at a bound whose gradient points outward are held.

    Parameters
    ----------
    start : (problems, p)
    delta : float
        Huber's; infinity for least squares.
    weights : (problems, n), optional
        Multiplicities (a pairs bootstrap).
    tolerance : float
        A problem is done when a step promises less than this share of its objective.
    exact : bool
        Use the exact Hessian (else reweighted Gauss-Newton: safer far from the optimum, slower near it).

    Returns
    -------
    (problems, p), (problems,)
        Minima and objectives (infinite where the law is not defined at the start).
    """
    step = max(1, CHUNK // len(problem.scale))
    parts = [slice(i, i + step) for i in range(0, len(start), step)]

    def solve(part: slice) -> tuple[Array, Array]:
        w = None if weights is None else weights[part]
        return _newton(problem.rows(part), start[part], delta, w, iterations, tolerance, exact)

    solved: Sequence[tuple[Array, Array]]
    if len(parts) < 2 or CORES == 1:
        solved = [solve(part) for part in parts]
    else:
        with ThreadPoolExecutor(CORES) as pool:
            solved = list(pool.map(solve, parts))
    return np.concatenate([theta for theta, _ in solved]), np.concatenate([value for _, value in solved])


def _newton(
    problem: Problem, start: Array, delta: float, weights: Array | None, iterations: int, tolerance: float, exact: bool
) -> tuple[Array, Array]:
    lower, upper = problem.model.lower, problem.model.upper
    out = np.clip(start, lower, upper)
    best = np.full(len(start), np.inf)
    ids, theta = np.arange(len(start)), out.copy()
    damping, calm = np.full(len(start), 1e-3), np.zeros(len(start), dtype=int)
    part, w = problem, weights
    mark = np.full(len(start), np.inf)
    with np.errstate(all="ignore"):
        value, gradient, hessian, diagonal = derivatives(part, theta, delta, w, exact=exact)
        value = np.where(np.isfinite(value), value, np.inf)
        for count in range(iterations):
            move, promised = _steps(problem.model, theta, gradient, hessian, diagonal, damping)
            trial = np.clip(theta + move, lower, upper)
            new = derivatives(part, trial, delta, w, exact=exact)
            fall = value - new[0]
            # A step may be rounding alone: the objective then rises by no more than a few units in its last place.
            ok = np.isfinite(new[0]) & (fall >= -4e-16 * np.abs(value))
            ratio = fall / promised
            factor = np.where(ratio > 0.75, 0.1, np.where(ratio < 0.25, 2.0, 0.5))
            damping = np.minimum(np.maximum(damping * np.where(ok, factor, 6.0), 1e-12), 1e12)
            small = (promised <= tolerance * np.abs(value)) | (np.abs(trial - theta).max(axis=1) < 1e-11)
            calm = np.where(small, calm + 1, 0)
            if ok.all():
                theta, value, gradient, hessian, diagonal = trial, *new
            else:
                theta, value = np.where(ok[:, None], trial, theta), np.where(ok, new[0], value)
                gradient, hessian = np.where(ok[:, None], new[1], gradient), np.where(ok[:, None, None], new[2], hessian)
                diagonal = np.where(ok[:, None], new[3], diagonal)
            # A small promise under little damping is the optimum; under much damping it may be the damping's doing.
            done = (small & ok & (damping < 1e-2)) | (calm >= 2) | (damping >= 1e12) | ~np.isfinite(value) | (count == iterations - 1)
            if count % FLAT == FLAT - 1:
                done |= mark - value <= 1e-9 * np.abs(value)
                mark = value
            if not done.any():
                continue
            out[ids[done]], best[ids[done]] = theta[done], value[done]
            left = ~done
            if not left.any():
                break
            ids, theta, value, gradient, hessian = ids[left], theta[left], value[left], gradient[left], hessian[left]
            diagonal, damping, calm, mark, part = diagonal[left], damping[left], calm[left], mark[left], part.rows(left)
            w = None if w is None else w[left]
    return out, best


def _steps(model: Model, theta: Array, gradient: Array, hessian: Array, diagonal: Array, damping: Array) -> tuple[Array, Array]:
    """Damped Newton steps, and the fall of the objective that each promises."""
    held = ((theta <= model.lower) & (gradient > 0)) | ((theta >= model.upper) & (gradient < 0))
    eye = np.eye(theta.shape[1])
    metric = np.sqrt(np.maximum(diagonal, 1e-12 * diagonal.sum(axis=1, keepdims=True) + 1e-300))
    matrix = hessian / (metric[:, :, None] * metric[:, None, :])
    g = gradient / metric
    if held.any():
        free = ~held
        matrix = np.where(free[:, :, None] & free[:, None, :], matrix, eye)
        g = np.where(free, g, 0.0)
    usable = np.asarray(np.isfinite(g).all(axis=1) & np.isfinite(matrix).all(axis=(1, 2)))
    if not usable.all():
        matrix, g = np.where(usable[:, None, None], matrix, eye), np.where(usable[:, None], g, 0.0)
    few = len(theta) <= FEW
    move, promised, bad = np.zeros_like(g), np.zeros(len(g)), np.ones(len(g), dtype=bool)
    if not few:
        try:
            move = -np.linalg.solve(matrix + damping[:, None, None] * eye, g[:, :, None])[:, :, 0]
            fall = -(move * g).sum(axis=1)
            promised = 0.5 * (fall + damping * (move * move).sum(axis=1))
            bad = ~(fall > 0) & (np.abs(g).max(axis=1) > 0)
        except np.linalg.LinAlgError:
            pass
    if few or bad.any():
        eigenvalue, vector = np.linalg.eigh(matrix[bad])
        c = np.einsum("bij,bi->bj", vector, g[bad])
        size = np.maximum(np.abs(eigenvalue), 1e-12) + damping[bad, None]
        share = c / size
        move[bad] = -np.einsum("bij,bj->bi", vector, share)
        promised[bad] = 0.5 * (c * share + damping[bad, None] * share * share).sum(axis=1)
    move = move / metric
    share = (np.abs(move) / (2.0 + model.loose * np.abs(theta))).max(axis=1)
    return move / np.maximum(share, 1.0)[:, None], promised
