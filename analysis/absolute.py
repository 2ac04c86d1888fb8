"""The exact end of a fit by absolute errors: sequential linear programmes, Newton steps on the points that the law meets, a certificate.

Sums of absolute residuals have their minimum where the law meets some points exactly, which no smooth method reaches. There each such point
carries a multiplier between -1 and the weight of residuals above zero that balances the pull of all others: that is checked, not assumed
(Fletcher, Practical Methods of Optimization, ch. 14; the pair of steps is that of Byrd, Gould, Nocedal & Waltz 2004).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from analysis.newton import Array, Problem, residuals

RADIUS = 0.03  # first reach of a step, in logarithms and exponents
NOTHING = 1e-9  # mean relative error that is none for every purpose: a law that is met everywhere leaves rounding only
LENGTHS = (1.0, 0.3, 0.1, 0.03)  # of the curved steps that are tried
CHECKED = 1e-4  # reach within which the certificate looks for a fall


def polish(problem: Problem, theta: Array, *, iterations: int = 60) -> tuple[Array, float, float]:
    """Minimise the (asymmetric) absolute error from a point near a minimum.

    Parameters
    ----------
    theta : (p,)
    iterations : int
        At most so many linear programmes.

    Returns
    -------
    (p,), float, float
        The minimum, its objective, and the share of it that the linear programme still promises within `CHECKED` of it: 0 at a minimum.
    """
    value, radius = total_error(problem, theta), RADIUS
    with np.errstate(all="ignore"):
        for _ in range(iterations):
            if not np.isfinite(value) or radius < 1e-13:
                break
            step, promised, multiplier = _linear_step(problem, theta, radius)
            moves = [step, *_curved_steps(problem, theta, step, multiplier)]
            trials = [np.clip(theta + move, problem.model.lower, problem.model.upper) for move in moves]
            falls = [value - total_error(problem, trial) for trial in trials]
            falls = [fall if np.isfinite(fall) else -np.inf for fall in falls]
            best = int(np.argmax(falls))
            if promised <= 1e-15 * value and falls[best] <= 1e-15 * value:
                break
            radius *= 2.0 if falls[best] > 0.7 * promised else 1.0 if falls[best] > 0.2 * promised else 0.25
            if falls[best] > 0:
                theta, value = trials[best], value - falls[best]
        value = total_error(problem, theta)
        promised = _linear_step(problem, theta, CHECKED)[1] if np.isfinite(value) else np.inf
    return theta, value, float(promised / max(value, NOTHING * problem.scale.sum())) if np.isfinite(value) else np.inf


def total_error(problem: Problem, theta: Array) -> float:
    """Sum of absolute residuals at one theta (p,), those above zero times `problem.above`; infinite outside the law's domain."""
    r = residuals(problem, theta[None])[0]
    value = float((np.abs(r) * np.where(r > 0, problem.above, 1.0)).sum())
    return value if np.isfinite(value) else np.inf


def _slopes(problem: Problem, theta: Array) -> tuple[Array, Array, Array]:
    """Residuals (n,), their derivatives (n, p) and those in the log loss (n,)."""
    f = problem.model.log_loss(theta[None])[0]
    inner = problem.scale * (np.exp(f) if problem.linear else 1.0)
    r = (np.exp(f) - np.exp(problem.y) if problem.linear else f - problem.y) * problem.scale
    return r, problem.model.jacobian(theta) * inner[:, None], inner


def _linear_step(problem: Problem, theta: Array, radius: float) -> tuple[Array, float, Array]:
    """Best step of the linearised law within `radius` and the box, the fall it promises, and the points' multipliers (n,).

    The dual is solved: one bounded variable for each point that may change sign, one equation a parameter.
    """
    r, jac, _ = _slopes(problem, theta)
    reach = radius * (1.0 + problem.model.loose * np.abs(theta))
    low, high = (np.maximum(problem.model.lower - theta, -reach) / reach, np.minimum(problem.model.upper - theta, reach) / reach)
    jac = jac * reach
    multiplier = np.where(r > 0, problem.above, -1.0)
    near = np.abs(r) <= np.abs(jac).sum(axis=1)
    unit = max(float(np.abs(jac).max()), 1e-300)
    pull = jac[~near].T @ multiplier[~near] / unit
    if not np.isfinite(jac).all():
        return np.zeros(len(theta)), np.inf, multiplier
    p, count = len(theta), int(near.sum())
    costs = np.concatenate([-r[near] / unit, -low, high])
    equations = np.concatenate([jac[near].T / unit, -np.eye(p), np.eye(p)], axis=1)
    bounds = np.array([(-1.0, problem.above)] * count + [(0.0, np.inf)] * (2 * p))
    solved = linprog(costs, A_eq=equations, b_eq=-pull, bounds=bounds, method="highs-ds")
    if solved.status != 0:
        return np.zeros(p), 0.0, multiplier
    multiplier[near] = solved.x[:count]
    step = np.clip(solved.eqlin.marginals, low, high)
    moved = r + jac @ step
    now, then = (float((np.abs(v) * np.where(v > 0, problem.above, 1.0)).sum()) for v in (r, moved))
    return step * reach, now - then, multiplier


def _curved_steps(problem: Problem, theta: Array, step: Array, multiplier: Array) -> list[Array]:
    """Newton steps of several lengths that meet the points which the linear step meets, and minimise the curved rest.

    After each the met points are met again by a second-order correction: the valley between two kinks is curved.
    """
    r, jac, inner = _slopes(problem, theta)
    model = problem.model
    free = (theta + step > model.lower) & (theta + step < model.upper)
    met = (multiplier > -1 + 1e-9) & (multiplier < problem.above - 1e-9)
    slope = multiplier * inner
    state = model.evaluate(theta[None])[1]
    curve = slope if problem.linear else np.zeros_like(slope)
    gradient, hessian, _ = (part[0] for part in model.contract(state, theta[None], slope[None], curve[None], np.abs(slope)[None]))
    size = np.maximum(np.sqrt((jac[:, free] ** 2).sum(axis=0)), 1e-300)
    if not (np.isfinite(size).all() and np.isfinite(hessian).all() and np.isfinite(gradient).all()):
        return []
    left, values, right = np.linalg.svd(jac[np.ix_(met, free)] / size)
    rank = int((values > 1e-10 * values.max(initial=0.0)).sum())
    inverse, null = right[:rank].T @ (left[:, :rank] / values[:rank]).T, right[rank:].T
    towards = -inverse @ r[met]
    if null.shape[1]:
        inside = hessian[np.ix_(free, free)] / np.outer(size, size)
        if not np.isfinite(inside).all():
            return []
        slopes = null.T @ (gradient[free] / size + inside @ towards)
        curvature, vector = np.linalg.eigh(null.T @ inside @ null)
        towards = towards - null @ (vector @ ((vector.T @ slopes) / np.maximum(np.abs(curvature), 1e-12)))
    move = np.zeros(len(theta))
    move[free] = towards / size
    move /= max(float((np.abs(move) / (1.0 + model.loose * np.abs(theta))).max()), 1.0)
    found = []
    for share in LENGTHS if null.shape[1] else (1.0,):
        corrected = share * move
        for _ in range(2):
            missed = residuals(problem, np.clip(theta + corrected, model.lower, model.upper)[None])[0][met]
            corrected[free] -= inverse @ missed / size
        found += [share * move, corrected]
    return found
