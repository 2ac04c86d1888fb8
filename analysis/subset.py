"""Which runs a law is fitted on: all of them, or for laws in one variable the slice on which the other does not move."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.frames import Frame
from analysis.laws import Law
from analysis.runs import Runs

FRAME_COLUMNS = ("run_id", "trunk_id", "seed_data", "N", "D", "C", "loss")


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
    elif law.variables == ("C",):
        frame = _frontier(frame, len(law.parameters) + 2)
    extra = [name for name in ("U", *law.variables) if name in frame and name not in FRAME_COLUMNS]
    return frame.loc[:, [*FRAME_COLUMNS, *dict.fromkeys(extra)]].reset_index(drop=True)


def _frontier(frame: Frame, least: int) -> Frame:
    """Runs of the cells on the lower hull of mean loss over compute; of all cells that no cheaper one beats where the hull is too thin."""
    cells = frame.groupby(["N", "D"], sort=False).agg(C=("C", "mean"), loss=("loss", "mean")).sort_values(["C", "loss"], kind="stable")
    best = cells[cells["loss"] < cells["loss"].cummin().shift(fill_value=np.inf)]
    index = pd.MultiIndex.from_frame(frame[["N", "D"]])
    hull = frame[index.isin(best.index[_lower_hull(np.log(best["C"].to_numpy()), np.log(best["loss"].to_numpy()))])]
    return hull if len(hull) >= least else frame[index.isin(best.index)]


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
