"""Chinchilla's approach 2: at each budget of compute, the model size of least loss.

Runs of (nearly) equal compute form a budget. Along it the loss against log N is a valley; its floor is the compute-optimal size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.frames import Frame

METHODS = ("parabola", "cubic", "interpolated")
BUDGET_COLUMNS = ("isoflop_budget", "flops_budget")
LEAST_SIZES = 4
#: Runs belong to one budget when sorted neighbours differ by at most 10 %, and all lie within 10 % of their middle.
BUDGET_STEP, BUDGET_SPAN = 1.10, 1.10 / 0.90
#: Sizes closer than 1 % are one size: digitised tables give the same model slightly different N.
SIZE_STEP = 1.01
POINTS_PER_GAP = 25
#: A centred grid of 1.2 decades (x4 each way) moved D* at 1e24 by -1.3 % (Chinchilla's surface) to -6.5 % (alpha = 3 beta); a grid off by
#: x3 moved it by 3.5 to 14 %; one that drifts to x3 by 5 to 30 % (Czech et al. 2026, arXiv:2603.22339, noiseless).
WIDE_DECADES, OFF_CENTRE_DECADES, MATERIAL_SHARE = 1.2, 0.3, 0.02
FAULTS = (
    "",
    f"fewer than {LEAST_SIZES} different N",
    "the curve has no minimum",
    "the minimum lies at the small end of the grid or beyond: train smaller models at this budget",
    "the minimum lies at the large end of the grid or beyond: train larger models at this budget",
)
FEW, NO_MINIMUM, LOW_EDGE, HIGH_EDGE = 1, 2, 3, 4
COLUMNS = "flops params_opt tokens_opt loss n_runs width centre_offset bracketed reason".split()


@dataclass(frozen=True)
class Budget:
    """Runs of one budget: FLOPs, their positions in the frame, and why they cannot be used ("" when they can)."""

    flops: float
    rows: np.ndarray
    reason: str


@dataclass(frozen=True)
class OptimaDraws:
    """Optima of resampled runs: `flops` (n_points,), the others (n_draws, n_points), NaN where no minimum is bracketed.

    `faults` holds the position in FAULTS of the reason why.
    """

    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    faults: np.ndarray


def isoflop_optima(frame: Frame, *, budget_column: str | None = None, method: str = "parabola") -> Frame:
    """Find the compute-optimal size at each budget of compute.

    Parameters
    ----------
    frame : DataFrame
        N, D, C (FLOPs), loss (nats per token); one row a run.
    budget_column : str, optional
        Column that holds the budget; by default isoflop_budget or flops_budget where filled in (runs without one are left out), else
        runs are gathered by C.
    method : {"parabola", "cubic", "interpolated"}
        parabola: least squares of the loss on log N (Hoffmann et al. 2022). cubic: the same with a third power. interpolated: Akima
        interpolation of log loss on log N at 25 points a gap, its minimum refined between three points (Porian et al. 2024).

    Returns
    -------
    DataFrame
        One row a budget: flops, params_opt, tokens_opt, loss (of the curve at its minimum), n_runs, width (decades of N),
        centre_offset (decades from the middle of the N grid to the minimum), bracketed, reason. A minimum at the edge of the grid (for
        the polynomials: outside the inner points) is not used: its numbers are NaN, its reason says why. Tokens follow from C / (N D)
        of the runs, interpolated in log N, because C need not be 6 N D.

    Raises
    ------
    UserError
        When the method or the column is unknown.
    """
    budgets = find_budgets(frame, budget_column=budget_column)
    found = isoflop_draws(frame, np.ones((1, len(frame))), budgets=budgets, method=method)
    rows = []
    for i, budget in enumerate(budgets):
        log_n = np.log10(frame["N"].to_numpy()[budget.rows])
        offset = float(np.log10(found.params[0, i]) - (log_n.min() + log_n.max()) / 2)
        reason = budget.reason or FAULTS[found.faults[0, i]]
        rows.append(
            [budget.flops, found.params[0, i], found.tokens[0, i], found.loss[0, i], len(budget.rows), float(np.ptp(log_n)), offset,
             not reason, reason]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def isoflop_draws(frame: Frame, counts: np.ndarray, *, budgets: Sequence[Budget], method: str) -> OptimaDraws:
    """Find the optima of resampled runs.

    Parameters
    ----------
    frame : DataFrame
        N, D, C, loss.
    counts : (n_draws, n_runs) float64
        How often each draw takes each run.
    budgets : sequence of Budget
        As `find_budgets` returns them.
    method : str
        See `isoflop_optima`.

    Raises
    ------
    UserError
        When the method is unknown.
    """
    if method not in METHODS:
        raise UserError(f"isoflop: method {method!r} is unknown; allowed: {', '.join(METHODS)}")
    shape = (len(counts), len(budgets))
    params, tokens, loss = (np.full(shape, np.nan) for _ in range(3))
    faults = np.zeros(shape, dtype=np.int64)
    n, d, c, losses = (frame[name].to_numpy(dtype=np.float64) for name in ("N", "D", "C", "loss"))
    values = np.log(losses) if method == "interpolated" else losses
    for i, budget in enumerate(budgets):
        if budget.reason:
            faults[:, i] = FEW
            continue
        rows = budget.rows
        size = chained_groups(n[rows], SIZE_STEP)
        log_n, log_work = (group_means(v[rows], size) for v in (np.log(n), np.log(c / (n * d))))
        weight, mean = weighted_means(values[rows], counts[:, rows], size)
        find = _interpolated_minimum if method == "interpolated" else _polynomial_minimum
        at, floor, faults[:, i] = find(log_n, mean, weight, 4 if method == "cubic" else 3)
        params[:, i] = np.exp(at)
        tokens[:, i] = budget.flops / np.exp(at + np.interp(at, log_n, log_work))
        loss[:, i] = np.exp(floor) if method == "interpolated" else floor
    return OptimaDraws(np.array([b.flops for b in budgets]), params, tokens, loss, faults)


def find_budgets(frame: Frame, *, budget_column: str | None = None) -> list[Budget]:
    """Gather runs into budgets, cheapest first; see `isoflop_optima`.

    Raises
    ------
    UserError
        When the column is not there or holds no number above 0.
    """
    if budget_column is not None and budget_column not in frame:
        raise UserError(f"isoflop: budget column {budget_column!r} is no column; found: {', '.join(map(str, frame.columns[:40]))}")
    for name in [budget_column] if budget_column else BUDGET_COLUMNS:
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64) if name in frame else np.array([])
        if (values > 0).any():
            groups = [(float(v), np.flatnonzero(values == v)) for v in np.unique(values[values > 0])]
            break
    else:
        if budget_column is not None:
            raise UserError(f"isoflop: budget column {budget_column!r} holds no number above 0; leave it out to gather runs by their FLOPs")
        c = frame["C"].to_numpy(dtype=np.float64)
        labels = chained_groups(c, BUDGET_STEP)
        groups = [(float(np.median(c[labels == k])), np.flatnonzero(labels == k)) for k in np.unique(labels)]
    return [Budget(flops, rows, _refusal(frame, rows)) for flops, rows in groups]


def bias_warnings(parabola: Frame, reference: Frame) -> tuple[str, ...]:
    """Say in plain words where the parabola's optimum must not be trusted, after Czech et al. 2026.

    Parameters
    ----------
    parabola, reference : DataFrame
        `isoflop_optima` of the same runs by "parabola" and by "interpolated" or "cubic".

    Returns
    -------
    tuple of str
        Empty when the grids are narrow and centred and both methods agree within 2 %.
    """
    used = parabola[parabola["bracketed"]]
    if used.empty:
        return ()
    found = []
    wide = used[used["width"] > WIDE_DECADES]
    if len(wide):
        found.append(
            f"parabola: the grid of N spans more than {WIDE_DECADES:g} decades at {len(wide)} of {len(used)} budgets (widest"
            f" {wide['width'].max():.2f}); on a curve that is no parabola this alone moves the optimum, 1 to 7 % without any noise"
        )
    off = used[used["centre_offset"].abs() > OFF_CENTRE_DECADES]
    if len(off):
        worst = off.loc[off["centre_offset"].abs().idxmax()]
        found.append(
            f"parabola: the minimum lies more than x{10**OFF_CENTRE_DECADES:.1f} from the middle of the grid at {len(off)} of {len(used)}"
            f" budgets (worst x{10 ** abs(worst['centre_offset']):.1f} at {worst['flops']:.3g} FLOPs); centre the grid there"
        )
    drift = float(used["centre_offset"].iloc[-1] - used["centre_offset"].iloc[0])
    if abs(drift) > OFF_CENTRE_DECADES:
        found.append(
            f"parabola: from the cheapest to the dearest budget the minimum drifts by x{10 ** abs(drift):.1f} against the middle of the"
            " grid; that bends the exponent itself"
        )
    both = used.merge(reference[reference["bracketed"]], on="flops", suffixes=("", "_reference"))
    share = both["params_opt"] / both["params_opt_reference"] - 1
    if len(both) and abs(share.median()) > MATERIAL_SHARE:
        worst = both.loc[share.abs().idxmax()]
        found.append(
            f"parabola: its optimal N differs from the freer curve's by {100 * share.median():+.1f} % (median of {len(both)} budgets; worst"
            f" {100 * share[worst.name]:+.1f} % at {worst['flops']:.3g} FLOPs): a parabola is stiff, an interpolation follows noise;"
            " look at the curves"
        )
    return tuple(found)


def chained_groups(values: np.ndarray, ratio: float) -> np.ndarray:
    """Label values so that sorted neighbours within a factor `ratio` share a label; labels ascend with the values."""
    order = np.argsort(values, kind="stable")
    labels = np.zeros(len(values), dtype=np.int64)
    labels[order[1:]] = np.cumsum(np.diff(np.log(values[order])) > np.log(ratio))
    return labels


def group_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean of the values of each label."""
    return np.bincount(labels, values) / np.bincount(labels)


def weighted_means(values: np.ndarray, counts: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Total count and mean value of each label in each draw, both (n_draws, n_labels); the mean is 0 where the count is."""
    member = np.eye(labels.max() + 1)[labels]
    weight = counts @ member
    return weight, (counts * values) @ member / np.where(weight > 0, weight, 1.0)


def draw_patterns(present: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Gather draws, rows of a boolean matrix, that hold the same columns; yield their rows and those columns."""
    patterns, which = np.unique(present, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        yield np.flatnonzero(which.reshape(-1) == number), np.flatnonzero(pattern)


def _refusal(frame: Frame, rows: np.ndarray) -> str:
    sizes = int(chained_groups(frame["N"].to_numpy(dtype=np.float64)[rows], SIZE_STEP).max()) + 1
    c = frame["C"].to_numpy(dtype=np.float64)[rows]
    if c.max() / c.min() > BUDGET_SPAN * (1 + 1e-9):
        return f"its runs' compute spreads over x{c.max() / c.min():.2f}: not one budget"
    return f"{sizes} different N; at least {LEAST_SIZES} are needed" if sizes < LEAST_SIZES else ""


def _polynomial_minimum(x: np.ndarray, y: np.ndarray, weight: np.ndarray, terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Local minimum of the least-squares polynomial of each draw: place (in x), value, fault."""
    present = weight > 0
    few = present.sum(axis=1) < LEAST_SIZES
    middle, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2
    powers = ((x - middle) / half)[:, None] ** np.arange(terms)
    normal = np.einsum("dk,ki,kj->dij", weight, powers, powers)
    normal[few] = np.eye(terms)
    right = np.einsum("dk,ki->di", weight * y, powers)
    c = np.zeros((len(y), 4))
    c[:, :terms] = np.linalg.solve(normal, right[..., None])[..., 0]
    with np.errstate(all="ignore"):
        # The root of c1 + 2 c2 t + 3 c3 t^2 with positive curvature, in the form that also holds for c3 = 0.
        t = -c[:, 1] / (c[:, 2] + np.sqrt(c[:, 2] ** 2 - 3 * c[:, 1] * c[:, 3]))
    place = middle + half * np.where(np.isfinite(t), t, np.nan)
    sorted_x = np.sort(np.where(present, x, np.inf), axis=1)
    inner_low = sorted_x[:, 1]
    inner_high = np.take_along_axis(sorted_x, np.maximum(present.sum(axis=1) - 2, 0)[:, None], axis=1)[:, 0]
    fault = np.select([few, ~np.isfinite(place), place < inner_low, place > inner_high], [FEW, NO_MINIMUM, LOW_EDGE, HIGH_EDGE], default=0)
    place = np.where(fault == 0, place, np.nan)
    value = (c * ((place[:, None] - middle) / half) ** np.arange(4)).sum(axis=1)
    return place, value, fault


def _interpolated_minimum(x: np.ndarray, y: np.ndarray, weight: np.ndarray, terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimum of the Akima interpolant of each draw: place (in x), value, fault."""
    from scipy.interpolate import Akima1DInterpolator  # slow to import, and only needed here

    place, value = np.full(len(y), np.nan), np.full(len(y), np.nan)
    fault = np.zeros(len(y), dtype=np.int64)
    for rows, columns in draw_patterns(weight > 0):
        if len(columns) < LEAST_SIZES:
            fault[rows] = FEW
            continue
        nodes = x[columns]
        grid = np.linspace(nodes[0], nodes[-1], POINTS_PER_GAP * (len(nodes) - 1))
        curve = Akima1DInterpolator(nodes, y[np.ix_(rows, columns)].T)(grid)
        least = curve.argmin(axis=0)
        fault[rows] = np.select([least == 0, least == len(grid) - 1], [LOW_EDGE, HIGH_EDGE], default=0)
        inside = np.flatnonzero(fault[rows] == 0)
        left, floor, right = (curve[least[inside] + k, inside] for k in (-1, 0, 1))
        bend = left - 2 * floor + right
        shift = 0.5 * (left - right) / np.where(bend > 0, bend, np.inf)
        place[rows[inside]] = grid[least[inside]] + shift * (grid[1] - grid[0])
        value[rows[inside]] = floor - 0.25 * (left - right) * shift
    return place, value, fault
