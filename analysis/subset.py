"""Which runs a law is fitted on: all of them, or for laws in one variable the slice on which the other does not move."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.frames import Frame
from analysis.laws import Law
from analysis.runs import Runs
from analysis.sampling import low_discrepancy

FRAME_COLUMNS = ("run_id", "trunk_id", "seed_data", "N", "D", "C", "loss")
ROUNDING = 1e-6  # of log loss: cells so near the hull are on it (on an exact power law all are, and digits decide)


def select(law: Law, runs: Runs) -> Frame:
    """Return the rows that a law is fitted on: run_id, trunk_id, seed_data, N, D, C, loss, U where known, the law's columns.

    Raises
    ------
    UserError
        When a variable of the law is no column of numbers, or is empty in a row.
    """
    frame = runs.frame
    for name in law.variables:
        if name not in frame or not pd.api.types.is_numeric_dtype(frame[name]):
            remedy = "a column tokens_unique" if name == "U" else f"a column {name!r} of numbers"
            raise UserError(f"{runs.source}: law {law.name} needs {remedy}")
        empty = ~np.isfinite(frame[name].to_numpy(dtype=np.float64))
        if empty.any():
            raise UserError(
                f"{runs.source}: law {law.name} needs {name}, which is empty for {int(empty.sum())} runs"
                f" (first {frame['run_id'].to_numpy()[empty][0]}); leave them out with --exclude"
            )
    if law.variables == ("N",):
        frame = frame[frame["D"] >= 0.98 * frame["D"].max()]
    elif law.variables == ("D",):
        frame = frame[frame["N"] >= 0.98 * frame["N"].max()]
    elif law.variables == ("C",) and len(frame):
        frame = _frontier(frame, law)
    extra = [name for name in ("U", *law.variables) if name in frame and name not in FRAME_COLUMNS]
    return frame.loc[:, [*FRAME_COLUMNS, *dict.fromkeys(extra)]].reset_index(drop=True)


def _frontier(frame: Frame, law: Law) -> Frame:
    """Runs of the cells that no cheaper one beats in mean loss; of these, for laws convex in log-log, those on the lower hull.

    The hull leaves out cells that lie above the frontier only because the grid is coarse. A law that may bend down needs them all, and so
    does one whose hull holds fewer runs than parameters + 2.
    """
    cells = frame.groupby(["N", "D"], sort=False).agg(C=("C", "mean"), loss=("loss", "mean")).sort_values(["C", "loss"], kind="stable")
    best = cells[cells["loss"] < cells["loss"].cummin().shift(fill_value=np.inf)]
    index = pd.MultiIndex.from_frame(frame[["N", "D"]])
    x, y = np.log(best["C"].to_numpy()), np.log(best["loss"].to_numpy())
    if _convex(law, x):
        corners = _lower_hull(x, y)
        hull = frame[index.isin(best.index[y <= np.interp(x, x[corners], y[corners]) + ROUNDING])]
        if len(hull) >= len(law.parameters) + 2:
            return hull
    return frame[index.isin(best.index)]


def _convex(law: Law, log_compute: np.ndarray) -> bool:
    """Whether log loss is convex in log C at parameters from all over the law's start ranges (a floor and falling powers are)."""
    grid = np.linspace(log_compute[0] - 1, log_compute[-1] + 1, 33)
    params = {}
    for parameter, share in zip(law.free, low_discrepancy(128, len(law.free)).T, strict=True):
        low, high = np.exp(log_compute[[0, -1]]) if isinstance(parameter.start, str) else parameter.start
        params[parameter.name] = (low * (high / low) ** share if low > 0 else low + (high - low) * share)[:, None]
    with np.errstate(all="ignore"):
        bend = np.diff(np.log(law.predict(params, C=np.exp(grid))), n=2, axis=1)
    return not (bend < -1e-6).any()


def _lower_hull(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Return the positions of the lower convex hull of points sorted by x (Andrew's chain): a law with a floor is convex in log-log."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            (a, b), slope = hull[-2:], y[i] - y[hull[-1]]
            if (y[b] - y[a]) * (x[i] - x[b]) < slope * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return hull
