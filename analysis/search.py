"""From starts to a verified optimum: losses, continuation of Huber's delta, and which starts agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.absolute import polish
from analysis.errors import UserError
from analysis.frames import Frame
from analysis.laws import LAWS, Law
from analysis.newton import Array, Problem, derivatives, minimise, objective, residuals
from analysis.powers import PowerSum

MAD = 1.4826  # median absolute deviation -> sd at the normal
HUBER = 1.345  # 95 % efficiency at the normal (Huber 1981)
SETTLED = 0.02  # change of log delta below which the adaptive scale stands
STARTS = 12
ROUGH, MIDDLE, FINE = 15, 60, 400  # Newton steps of a stage, of the last one, and of the two best after it (valleys may be long)
LAD_STAGES = (0, -1)  # of Huber's delta over the residuals' scale, powers of ten: the exact end comes from linear programmes
LAD_ROUGH = 25  # linear programmes from every point, before the best goes on
KEEP = 6  # distinct points that are carried on after the first stage


@dataclass(frozen=True)
class Loss:
    """A robust loss of residuals.

    Attributes
    ----------
    kind : {"huber", "lad", "mse"}
    delta : float or None
        Huber's; None: 1.345 robust sd of the residuals.
    above : float
        Weight of residuals above zero (predicted > observed); 1 is symmetric.
    """

    text: str
    kind: str
    delta: float | None = None
    above: float = 1.0

    @property
    def adaptive(self) -> bool:
        """Whether the loss measures the scale of the residuals itself."""
        return self.kind == "huber" and self.delta is None


@dataclass(frozen=True)
class Solution:
    """An optimum in the solver's coordinates.

    Attributes
    ----------
    theta : (p,)
    stages : tuple of float
        Huber deltas of a warm re-fit; the last one is the objective's.
    value : float
        The solver's objective there.
    starts : int
        Points of the search: cells of the variable-projection grid, or starts of a formula.
    agree : float
        Share of them whose descent ended at this optimum (objective within 1e-6).
    newton : float
        Fall of the objective, as a share of it, that one more exact Newton step promises: 0 at an optimum.
    """

    problem: Problem
    theta: Array
    stages: tuple[float, ...]
    value: float
    starts: int
    agree: float
    newton: float


def parse_loss(text: str) -> Loss:
    """``huber:auto``, ``huber:DELTA``, ``lad``, ``mse``, ``asymmetric:WEIGHT`` -> Loss; UserError when it is none of these."""
    kind, _, value = text.partition(":")
    if kind in ("lad", "mse") and not value:
        return Loss(text, kind)
    if kind == "huber" and value in ("", "auto"):
        return Loss(text, "huber")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if 0 < number < float("inf"):
        if kind == "huber":
            return Loss(text, "huber", delta=number)
        if kind == "asymmetric":
            return Loss(text, "lad", above=number)
    raise UserError(
        f"--loss {text!r} is not understood; allowed: huber:auto, huber:DELTA with DELTA above 0 (huber:1e-3), lad, mse,"
        " asymmetric:WEIGHT (absolute errors, those above the loss times WEIGHT)"
    )


def make_problem(law: Law, frame: Frame, *, sd: Array, link: str, above: float = 1.0) -> Problem:
    """Bind a law to the rows of `frame`; residuals are divided by `sd` (n,)."""
    loss = frame["loss"].to_numpy(dtype=np.float64)
    # With plain differences, equal sd mean equal nats; measured noise is relative, so it is turned into nats.
    scale = 1 / (sd * loss) if link == "linear" and np.ptp(sd) > 0 else 1 / sd
    return Problem(law.bind(frame), np.log(loss), scale, link == "linear", above)


def find_starts(law: Law, frame: Frame, problem: Problem, count: int) -> tuple[Array, Array]:
    """Propose starts: seeds from a simpler law's optimum, and a search of the nonlinear parameters (variable projection).

    Returns
    -------
    (s, p) theta, (s,) how many points of the search each stands for
    """
    loss = frame["loss"].to_numpy(dtype=np.float64)
    weight = problem.scale**2 if problem.linear else (problem.scale / loss) ** 2
    theta, counts = problem.model.starts(loss, weight, count)
    if not len(theta) and law.seeds is None:
        raise UserError(f"law {law.name!r} is nowhere above 0 on these runs within its parameters' ranges, so it says nothing of a loss")
    if isinstance(problem.model, PowerSum):
        spread = robust_sd(problem, theta[0])
        robust, cells = problem.model.starts(loss, weight, count, HUBER * spread)
        theta, counts = np.concatenate([theta, robust]), np.concatenate([counts, cells])
    if law.seeds is None:
        return theta, counts
    base: dict[str, float] = {}
    if law.simpler:
        simple = replace(problem, model=LAWS[law.simpler].bind(frame))
        points, values = minimise(simple, simple.model.starts(loss, weight, 4)[0], delta=np.inf, tolerance=1e-8, exact=False)
        base = simple.model.decode(points[values.argmin()])
    seeds = np.array([problem.model.encode(seed) for seed in law.seeds(base, frame)])
    return np.concatenate([seeds, theta]), np.concatenate([np.ones(len(seeds)), counts])


def solve(problem: Problem, loss: Loss, starts: Array, counts: Array) -> Solution:
    """Global optimum over the starts (s, p), which stand for `counts` (s,) points of the search.

    Least squares from every start; then the distinct points are carried to the loss's own delta through falling ones, by Newton steps with
    the exact Hessian.
    """
    symmetric = replace(problem, above=1.0)
    everywhere = counts.sum()
    theta, values = minimise(symmetric, starts, delta=np.inf, iterations=ROUGH, tolerance=1e-4, exact=False)
    theta, values, counts = _distinct(theta, values, counts, 0.02)
    if not len(theta):
        raise UserError("the law is not defined at any start; check its formula and bounds")
    spread = robust_sd(problem, theta[0])
    stages, warm = _stages(problem, loss, theta[0], spread)
    for stage in stages if len(theta) > 1 or loss.kind == "lad" else stages[:-1]:
        theta, values = minimise(problem, theta, delta=stage, iterations=ROUGH, tolerance=1e-3)
        theta, values, counts = _distinct(theta, values, counts, 1e-2)
    if loss.kind == "lad":
        theta, values, gap = _polish_all(problem, theta)
    else:
        theta, values = minimise(problem, theta, delta=stages[-1], iterations=MIDDLE, tolerance=1e-15)
        theta, values, counts = _distinct(theta, values, counts, 1e-3)
        if (gap := _newton_gap(problem, theta[0], stages[-1])) > 1e-12:
            theta[:2], values[:2] = minimise(problem, theta[:2], delta=stages[-1], iterations=FINE, tolerance=1e-15)
            gap = None
    theta, values, counts = _distinct(theta, values, counts, 1e-3)
    for _ in range(5 if loss.adaptive else 0):
        # The scale was read where the search began; at another optimum it may be another.
        delta = HUBER * robust_sd(problem, theta[0])
        if abs(np.log(delta / stages[-1])) < SETTLED:
            break
        stages, warm, gap = (delta,), (delta,), None
        theta, values = minimise(problem, theta, delta=delta, iterations=FINE, tolerance=1e-15)
        theta, values, counts = _distinct(theta, values, counts, 1e-3)
    agree = counts[values <= values[0] * (1 + 1e-6) + 1e-14].sum() / everywhere
    gap = _newton_gap(problem, theta[0], stages[-1]) if gap is None else gap
    return Solution(problem, theta[0], warm, float(values[0]), int(everywhere), float(agree), gap)


def resolve(solution: Solution, problem: Problem, theta: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Solve again from `theta` (problems, p), near the optimum, with the loss's delta held: bootstrap draws and folds."""
    values = np.zeros(len(theta))
    for stage in solution.stages:
        theta, values = minimise(problem, theta, delta=stage, weights=weights, iterations=60, tolerance=1e-9)
    return theta, values


def _polish_all(problem: Problem, theta: Array) -> tuple[Array, Array, float]:
    """Exact minima of absolute errors: a few linear programmes from every point (s, p), many from the best; and its certificate."""
    ends = [polish(problem, point, iterations=LAD_ROUGH) for point in theta]
    best = min(range(len(ends)), key=lambda at: ends[at][1])
    if ends[best][2] > 1e-12:
        ends[best] = polish(problem, ends[best][0])
    points, values, gaps = zip(*ends, strict=True)
    return np.array(points), np.array(values), gaps[best]


def robust_sd(problem: Problem, theta: Array) -> float:
    """Scale of the residuals at one theta: 1.4826 times their median absolute value."""
    return max(MAD * float(np.median(np.abs(residuals(problem, theta[None])))), 1e-12)


def total(problem: Problem, loss: Loss, solution: Solution) -> float:
    """Objective as it is reported: sum of Huber's loss, or of |r| (lad, asymmetric), or of r^2 (mse)."""
    if loss.kind == "huber":
        return float(objective(problem, solution.theta[None], solution.stages[-1])[0])
    r = residuals(problem, solution.theta[None])[0]
    return float((r**2).sum()) if loss.kind == "mse" else float((np.abs(r) * np.where(r > 0, loss.above, 1.0)).sum())


def _stages(problem: Problem, loss: Loss, best: Array, spread: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Deltas of the continuation, and those of a warm re-fit."""
    if loss.kind == "mse":
        return (np.inf,), (np.inf,)
    if loss.kind == "lad":
        return tuple(spread * 10.0**power for power in LAD_STAGES), tuple(spread * 10.0**power for power in (-2, -3, -4))
    if loss.delta is not None:
        first = max(30 * loss.delta, 3 * spread)
        steps = max(1, int(np.ceil(np.log10(first / loss.delta))))
        return tuple(float(v) for v in np.geomspace(first, loss.delta, steps + 1)), (loss.delta,)
    last, theta = 1e9, best[None]
    for _ in range(20):
        if abs(np.log(spread / last)) < SETTLED:
            break
        last = spread
        theta, _ = minimise(problem, theta, delta=HUBER * spread, iterations=30, tolerance=1e-6)
        spread = robust_sd(problem, theta[0])
    return (HUBER * last,), (HUBER * last,)


def _distinct(theta: Array, values: Array, counts: Array, near: float) -> tuple[Array, Array, Array]:
    """Merge points that are the same, best first, and carry at most `KEEP`; `counts` says how many starts each stands for."""
    order = np.argsort(values, kind="stable")
    kept: list[int] = []
    total_of: list[float] = []
    for i in order[np.isfinite(values[order])]:
        same = next((at for at, j in enumerate(kept) if np.abs(theta[i] - theta[j]).max() < near * (1 + np.abs(theta[j]).max())), None)
        if same is not None:
            total_of[same] += float(counts[i])
        elif len(kept) < KEEP:
            kept.append(int(i))
            total_of.append(float(counts[i]))
    return theta[kept], values[kept], np.array(total_of)


def _newton_gap(problem: Problem, theta: Array, delta: float) -> float:
    """Relative fall that an exact Newton step promises at theta, in the directions that the box leaves free."""
    value, gradient, hessian, diagonal = (part[0] for part in derivatives(problem, theta[None], delta))
    model = problem.model
    free = ~(((theta <= model.lower + 1e-9) & (gradient > 0)) | ((theta >= model.upper - 1e-9) & (gradient < 0)))
    if not free.any():
        return 0.0
    metric = np.sqrt(np.maximum(diagonal[free], 1e-300))
    eigenvalue, vector = np.linalg.eigh(hessian[np.ix_(free, free)] / np.outer(metric, metric))
    slope = vector.T @ (gradient[free] / metric)
    return float(0.5 * (slope**2 / np.maximum(np.abs(eigenvalue), 1e-10)).sum() / max(value, 1e-18 * len(problem.scale)))
