"""The solver of every fit: variable-projection starts and a batched, damped, exact Newton method in float64.

A law ``E + sum_k A_k / v_k^alpha_k`` is fitted in ``theta = (log E, log A'_k..., alpha_k...)`` with centred ``x_k = log v_k - mean``;
centring takes the Hessian's condition number on the Chinchilla points from 1e7 to 1e4. Many problems (starts, or bootstrap draws) are
solved at once.
Robust losses follow Huber 1964; variable projection Golub & Pereyra 1973 (for scaling laws: Czech 2026).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

EXPONENTS = (0.01, 4.0)
FLOOR_SPAN = 9.0  # log E may lie this far below the smallest log loss: E is then 0 for every purpose
COEFFICIENT_SPAN = 12.0
CHUNK = 400_000  # problems x points worked on at once: bounds the memory


@dataclass(frozen=True)
class Problem:
    """Points of one fit.

    Attributes
    ----------
    x : (n, k) centred log variables.
    y : (n,) or (problems, n) log losses.
    scale : (n,) factor of each residual (1 / noise sd), inside the robust loss.
    linear : bool
        Residuals are ``loss_hat - loss`` instead of ``log loss_hat - log loss``.
    """

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    linear: bool = False

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Box of theta, wide enough that only a parameter that runs away meets it."""
        k, low, high = self.x.shape[1], float(self.y.min()), float(self.y.max())
        lower = [low - FLOOR_SPAN, *[low - COEFFICIENT_SPAN] * k, *[EXPONENTS[0]] * k]
        upper = [high + 0.5, *[high + 6] * k, *[EXPONENTS[1]] * k]
        return np.array(lower), np.array(upper)


@dataclass(frozen=True)
class Solution:
    """The optimum in the solver's own coordinates, kept for warm starts.

    Attributes
    ----------
    theta : (p,) log E, centred log coefficients, exponents.
    stages : tuple of float
        Huber deltas of a warm re-fit, the last one is the objective's.
    """

    problem: Problem
    center: np.ndarray
    theta: np.ndarray
    stages: tuple[float, ...]


def predict_log(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Log loss at the points: (problems, p), (n, k) -> (problems, n)."""
    k = x.shape[1]
    z = np.concatenate(
        [np.broadcast_to(theta[:, None, :1], (len(theta), len(x), 1)), theta[:, None, 1 : 1 + k] - theta[:, None, 1 + k :] * x], axis=2
    )
    top = z.max(axis=2)
    return top + np.log(np.exp(z - top[:, :, None]).sum(axis=2))


def residuals(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Scaled residuals, predicted minus observed: (problems, n)."""
    f = predict_log(theta, problem.x)
    return ((np.exp(f) - np.exp(problem.y)) if problem.linear else (f - problem.y)) * problem.scale


def huber(r: np.ndarray, delta: float) -> np.ndarray:
    """``r^2 / 2`` up to `delta`, then ``delta (|r| - delta / 2)``."""
    a = np.abs(r)
    return np.where(a <= delta, 0.5 * r * r, delta * (a - 0.5 * delta) if np.isfinite(delta) else 0.0)


def _value(problem: Problem, theta: np.ndarray, delta: float, weights: np.ndarray | None) -> np.ndarray:
    h = huber(residuals(problem, theta), delta)
    return (h if weights is None else h * weights).sum(axis=1)


def derivatives(
    problem: Problem, theta: np.ndarray, delta: float, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Objective, gradient, exact Hessian and its positive (reweighted Gauss-Newton) part, one a problem."""
    x, s = problem.x, problem.scale
    n, k = x.shape
    z = np.concatenate(
        [np.broadcast_to(theta[:, None, :1], (len(theta), n, 1)), theta[:, None, 1 : 1 + k] - theta[:, None, 1 + k :] * x], axis=2
    )
    top = z.max(axis=2, keepdims=True)
    share = np.exp(z - top)
    total = share.sum(axis=2, keepdims=True)
    share /= total
    f = (top + np.log(total))[:, :, 0]
    jac = np.concatenate([share, -share[:, :, 1:] * x], axis=2)  # of log loss
    slope = np.exp(f) if problem.linear else np.ones_like(f)
    r = ((slope - np.exp(problem.y)) if problem.linear else (f - problem.y)) * s
    a = np.abs(r)
    inside = a <= delta
    w = 1.0 if weights is None else weights
    first = w * np.where(inside, r, np.sign(r) * (delta if np.isfinite(delta) else 0.0)) * s * slope
    gain = (s * slope) ** 2 * w
    second = gain * inside
    soft = gain * np.where(inside, 1.0, (delta if np.isfinite(delta) else 1.0) / np.maximum(a, 1e-300))
    value = (w * huber(r, delta)).sum(axis=1)
    gradient = np.einsum("bn,bnp->bp", first, jac)
    left = np.swapaxes(jac, 1, 2)
    gauss = (left * soft[:, None, :]) @ jac
    hessian = (left * (second if problem.linear else second - first)[:, None, :]) @ jac
    # Second derivatives of the log-sum-exp: sum_k share_k z'_k z'_k^T (its other half, - J J^T, is in the line above).
    curve = first[:, :, None] * share
    hessian[:, 0, 0] += curve[:, :, 0].sum(axis=1)
    for j in range(k):
        moments = [(curve[:, :, 1 + j] * x[:, j] ** power).sum(axis=1) for power in range(3)]
        hessian[:, 1 + j, 1 + j] += moments[0]
        hessian[:, 1 + j, 1 + k + j] -= moments[1]
        hessian[:, 1 + k + j, 1 + j] -= moments[1]
        hessian[:, 1 + k + j, 1 + k + j] += moments[2]
    return value, gradient, hessian, gauss


def minimise(
    problem: Problem, start: np.ndarray, *, delta: float, weights: np.ndarray | None = None, iterations: int = 60, tolerance: float = 1e-13
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the Huber objective from each row of `start`.

    Saddle-free Newton (absolute eigenvalues) with Levenberg damping in the metric of the Gauss-Newton diagonal; parameters at a bound whose
    gradient points outward are held.

    Parameters
    ----------
    start : (problems, p)
    delta : float
        Huber's; infinity for least squares.
    weights : (problems, n), optional
        Multiplicities (a pairs bootstrap).
    tolerance : float
        A problem is done when two steps in a row promise less than this share of its objective.

    Returns
    -------
    (problems, p), (problems,)
        Minima and objectives.
    """
    step = max(1, CHUNK // len(problem.x))
    if len(start) > step:
        parts = []
        for i in range(0, len(start), step):
            y = problem.y[i : i + step] if problem.y.ndim == 2 else problem.y
            part = Problem(problem.x, y, problem.scale, problem.linear)
            w = None if weights is None else weights[i : i + step]
            parts.append(_newton(part, start[i : i + step], delta, w, iterations, tolerance, problem.bounds))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    return _newton(problem, start, delta, weights, iterations, tolerance, problem.bounds)


def _newton(
    problem: Problem,
    start: np.ndarray,
    delta: float,
    weights: np.ndarray | None,
    iterations: int,
    tolerance: float,
    bounds: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = bounds
    out = np.clip(start, lower, upper)
    best = np.full(len(start), np.inf)
    ids, theta, p = np.arange(len(start)), out.copy(), start.shape[1]
    damping, calm = np.full(len(start), 1e-3), np.zeros(len(start), dtype=int)

    def at(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        y = problem.y[ids] if problem.y.ndim == 2 else problem.y
        part = Problem(problem.x, y, problem.scale, problem.linear)
        return derivatives(part, points, delta, None if weights is None else weights[ids])

    value, gradient, hessian, gauss = at(theta)
    for count in range(iterations):
        held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        free = ~held
        metric = np.sqrt(np.maximum(np.einsum("bii->bi", gauss), 1e-12 * np.einsum("bii->b", gauss)[:, None] + 1e-300))
        both = free[:, :, None] & free[:, None, :]
        matrix = np.where(both, (gauss if tolerance > 1e-8 else hessian) / (metric[:, :, None] * metric[:, None, :]), np.eye(p))
        g = np.where(free, gradient / metric, 0.0)
        eigenvalue, vector = np.linalg.eigh(matrix)
        c = np.einsum("bij,bi->bj", vector, g)
        size = np.maximum(np.abs(eigenvalue), 1e-12)
        move = np.einsum("bij,bj->bi", vector, -c / (size + damping[:, None])) / metric
        move *= np.minimum(1.0, 2.0 / np.maximum(np.abs(move).max(axis=1), 1e-300))[:, None]
        trial = np.clip(theta + move, lower, upper)
        new = at(trial)
        fall = value - new[0]
        promised = 0.5 * (c * c / (size + damping[:, None])).sum(axis=1)
        ok = np.isfinite(new[0]) & (fall >= -4e-16 * np.abs(value))
        good = ok & (fall > 0.5 * promised)
        damping = np.clip(np.where(good, damping * 0.1, np.where(ok, damping * 0.7, damping * 6)), 1e-12, 1e12)
        small = (promised <= tolerance * np.abs(value)) | (np.abs(trial - theta).max(axis=1) < 1e-11)
        calm = np.where(small, calm + 1, 0)
        theta = np.where(ok[:, None], trial, theta)
        value, gradient = np.where(ok, new[0], value), np.where(ok[:, None], new[1], gradient)
        hessian, gauss = np.where(ok[:, None, None], new[2], hessian), np.where(ok[:, None, None], new[3], gauss)
        done = (calm >= 2) | (damping >= 1e12) | (count == iterations - 1)
        if done.any():
            out[ids[done]], best[ids[done]] = theta[done], value[done]
            left = ~done
            ids, theta, value, gradient = ids[left], theta[left], value[left], gradient[left]
            hessian, gauss, damping, calm = hessian[left], gauss[left], damping[left], calm[left]
            if not len(ids):
                break
    return out, best


def projection_starts(problem: Problem, *, count: int) -> np.ndarray:
    """Return starts from a variable-projection grid over the exponents.

    At fixed exponents the law is linear in E and the coefficients; the best non-negative ones come from every subset of columns.
    These are the local minima of the relative squared error over the grid, best first, and a few cells spread over it.

    Returns
    -------
    (starts, p) float64
    """
    k = problem.x.shape[1]
    grid = np.geomspace(0.03, 2.5, 20 if k == 2 else 48)
    exponents = np.stack([g.ravel() for g in np.meshgrid(*[grid] * k, indexing="ij")], axis=1)
    loss = np.exp(problem.y)
    weight = (problem.scale / (1.0 if problem.linear else loss)) ** 2
    powers = [np.exp(-np.outer(grid, problem.x[:, j])) for j in range(k)]
    gram = np.empty((len(exponents), k + 1, k + 1))
    right = np.empty((len(exponents), k + 1))
    gram[:, 0, 0], right[:, 0] = weight.sum(), (weight * loss).sum()
    for j in range(k):
        index = np.searchsorted(grid, exponents[:, j])
        gram[:, 0, 1 + j] = gram[:, 1 + j, 0] = (powers[j] @ weight)[index]
        gram[:, 1 + j, 1 + j] = ((powers[j] ** 2) @ weight)[index]
        right[:, 1 + j] = (powers[j] @ (weight * loss))[index]
    if k == 2:
        gram[:, 1, 2] = gram[:, 2, 1] = ((powers[0] * weight) @ powers[1].T).ravel()
    squares = float((weight * loss**2).sum())
    error, coefficients = np.full(len(exponents), np.inf), np.zeros((len(exponents), k + 1))
    for size in range(1, k + 2):
        for subset in combinations(range(k + 1), size):
            chosen = np.ix_(range(len(exponents)), subset, subset)
            ridge = 1e-13 * np.einsum("bii->bi", gram[chosen])[:, :, None] * np.eye(size)
            solved = np.linalg.solve(gram[chosen] + ridge, right[:, list(subset), None])[:, :, 0]
            rest = squares - (solved * right[:, list(subset)]).sum(axis=1)
            better = (solved >= 0).all(axis=1) & (rest < error * (1 - 1e-12))
            error = np.where(better, rest, error)
            filled = np.zeros_like(coefficients)
            filled[:, list(subset)] = solved
            coefficients = np.where(better[:, None], filled, coefficients)
    shape = (len(grid),) * k
    table = np.pad(error.reshape(shape), 1, constant_values=np.inf)
    centre = table[(slice(1, -1),) * k]
    minimum = np.isfinite(centre)
    for offset in np.ndindex(*(3,) * k):
        minimum &= centre <= table[tuple(slice(o, o + len(grid)) for o in offset)]
    found = np.flatnonzero(minimum.ravel())
    found = found[np.argsort(error[found], kind="stable")][: max(1, count // 2)]
    spread = np.linspace(2, len(grid) - 3, 3 if k == 2 else 6).astype(int)
    others = np.ravel_multi_index(np.meshgrid(*[spread] * k, indexing="ij"), shape).ravel()
    others = others[np.argsort(error[others], kind="stable")]
    cells = list(dict.fromkeys([*found, *others]))[:count]
    chosen_coefficients = coefficients[cells]
    floor = 0.1 * chosen_coefficients.max(axis=1, keepdims=True)
    return np.concatenate([np.log(np.maximum(chosen_coefficients, floor)), exponents[cells]], axis=1)
