"""The three approaches of Hoffmann et al. 2022 on the runs at hand: envelope and IsoFLOP beside the fitted law, in rows of the tables."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.approaches import Parametric, compare_approaches, frontier_rows
from analysis.budget import split_budget
from analysis.errors import UserError
from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.runs import Runs
from analysis.sampling import percentile_band

TOLD = "resampling of whole trunks within each budget, percentiles"


def side_by_side(runs: Runs, main: Fit, *, draws: int, seed: int = 0) -> tuple[Frame, str, tuple[str, ...], list[Frame]]:
    """Compare the approaches on the fitted runs.

    Returns
    -------
    approaches.csv, the alarm ("" where they agree), warnings of biases, rows of frontier.csv
    """
    compared = compare_approaches(runs.frame, _parametric(runs, main), draws=draws, seed=seed)
    rows = [
        frontier_rows(optima, approach=approach, n_column=runs.n_column, c_column=runs.c_column, ci_level=main.ci_level)
        for approach, optima in compared.optima.items()
    ]
    return compared.table.assign(n_column=runs.n_column, c_column=runs.c_column), compared.alarm, compared.warnings, rows


def approach_rows(compared: Frame, n_column: str) -> Frame:
    """Exponents of the approaches that are no law of the loss, as rows of laws.csv: N* = params_coefficient C^a, D* ~ C^b."""
    rows = []
    for row in compared.to_dict("records"):
        if row["approach"] == "parametric" or not math.isfinite(row["a"]):
            continue
        for name in ("a", "b"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            rows.append(
                {"fit_id": "", "law": "", "approach": row["approach"], "n_column": n_column, "parameter": name, "estimate": row[name],
                 "std_error": math.nan, "ci_low": low, "ci_high": high, "ci_level": row["ci_level"],
                 "method": TOLD if math.isfinite(low) else str(row["reason"])}
            )  # fmt: skip
    return pd.DataFrame(rows)


def _parametric(runs: Runs, fit: Fit) -> Parametric | None:
    """The fitted law as an approach; its optimum is under C = 6ND, so compute is converted by the runs' own ratio to 6ND."""
    if {"N", "D"} - set(fit.law.variables) or fit.law.columns or fit.status in ("degenerate", "not identified"):
        return None
    to_6nd = _six_nd(runs.frame)
    top = float(runs.frame["C"].max())
    params = {name: fit.draws[name].to_numpy() for name in fit.law.parameters} if fit.draws is not None else None

    def optimum(flops: float) -> tuple[float, float]:
        n, d = split_budget(fit.law, fit.params, to_6nd(flops))
        return float(n), float(d)

    def interval(flops: float) -> tuple[float, float, float, float]:
        assert params is not None
        (n_low, n_high), (d_low, d_high) = (
            percentile_band(np.asarray(v), fit.ci_level) for v in split_budget(fit.law, params, to_6nd(flops))
        )
        return float(n_low), float(n_high), float(d_low), float(d_high)

    try:
        ends = np.array([optimum(top / 2), optimum(2 * top)])
    except UserError:
        return None
    if not np.isfinite(ends).all():
        return None
    a, b = np.diff(np.log(ends), axis=0)[0] / np.log(4)
    a_low = a_high = b_low = b_high = math.nan
    if params is not None:
        low, high = (np.array(split_budget(fit.law, params, to_6nd(f * top))) for f in (0.5, 2.0))
        slopes = np.log(high / low) / np.log(4)
        slopes = slopes[:, np.isfinite(slopes).all(axis=0)]
        if slopes.shape[1]:
            (a_low, b_low), (a_high, b_high) = (end.tolist() for end in percentile_band(slopes.T, fit.ci_level))
    return Parametric(
        optimum, float(a), float(b), a_low, a_high, b_low, b_high, interval=interval if params is not None else None,
        n_points=fit.n_runs, ci_level=fit.ci_level,
    )  # fmt: skip


def _six_nd(frame: Frame) -> Callable[[float], float]:
    """Compute as the frame counts it -> 6ND, by a power law through the runs."""
    c = np.log(frame["C"].to_numpy(dtype=np.float64))
    ratio = np.log(6 * frame["N"].to_numpy(dtype=np.float64) * frame["D"].to_numpy(dtype=np.float64)) - c
    slope, level = np.polyfit(c, ratio, 1) if np.ptp(c) > 0 else (0.0, float(ratio.mean()))
    return lambda flops: float(flops * np.exp(level + slope * np.log(flops)))
