"""How far a law's parameters move when the ends of the grid are left out: the stability table."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.fitting import Fit, fit
from analysis.frames import Frame
from analysis.runs import Runs
from analysis.uncertainty import bootstrap

WINDOW_COLUMNS = (
    "fit_id law n_column window parameter estimate std_error ci_low ci_high ci_level change change_sd inside n_runs rmse_log"
    " left_out_mean left_out_max"
).split()
WINDOWS = ("all", "without the smallest N", "without the largest N", "without the smallest D", "without the largest D")


def windows(runs: Runs, whole: Fit, *, draws: int = 200, seed: int = 0) -> Frame:
    """windows.csv: the law fitted again without the smallest and the largest N and D, one row a window and parameter.

    Parameters
    ----------
    runs : Runs
        What the fit was made on.
    whole : Fit
        A law in N and D, with draws.
    draws : int
        For the windows' own intervals; 0 for sandwich intervals.

    Returns
    -------
    DataFrame
        change is the estimate less that of all runs, change_sd its sd if the law is true (the window's runs are part of all runs, so
        its variance is the difference of both: Hausman 1978); inside, whether the estimate lies in their interval; left_out_mean and
        left_out_max are the
        relative errors (mean of the absolute ones, and the largest) of the runs left out, as the window predicts their cells' means.
    """
    reference = whole.parameter_table().set_index("parameter")
    rows = _rows(whole, "all", whole, reference, None)
    frame = runs.frame
    for window, kept in (
        (WINDOWS[1], frame["N"] > frame["N"].min()),
        (WINDOWS[2], frame["N"] < frame["N"].max()),
        (WINDOWS[3], frame["D"] > frame["D"].min()),
        (WINDOWS[4], frame["D"] < frame["D"].max()),
    ):
        part = frame[kept.to_numpy()]
        if part["N"].nunique() < 2 or part["D"].nunique() < 2:
            continue
        try:
            found = fit(whole.law, _with(runs, part), loss=whole.loss, link=whole.link)
        except UserError:  # too few runs are left
            continue
        rows += _rows(whole, window, bootstrap(found, draws=draws, seed=seed), reference, frame[~kept.to_numpy()])
    return pd.DataFrame(rows, columns=WINDOW_COLUMNS)


def _with(runs: Runs, frame: Frame) -> Runs:
    return Runs(**{**runs.__dict__, "frame": frame.reset_index(drop=True)})


def _rows(whole: Fit, window: str, found: Fit, reference: Frame, left_out: Frame | None) -> list[dict]:
    mean, largest = math.nan, math.nan
    if left_out is not None:
        variables = list(found.law.variables)
        cells = left_out.assign(log_loss=np.log(left_out["loss"])).groupby(variables, as_index=False)["log_loss"].mean()
        predicted = found.predict(**{name: cells[name].to_numpy() for name in variables})
        error = np.expm1(np.log(predicted) - cells["log_loss"].to_numpy())
        mean, largest = float(np.abs(error).mean()), float(error[np.abs(error).argmax()])
    rows = []
    for row in found.parameter_table().to_dict("records"):
        all_runs = reference.loc[row["parameter"]]
        change_sd = math.sqrt(max(row["std_error"] ** 2 - float(all_runs["std_error"]) ** 2, 0.0))
        rows.append(
            {"fit_id": whole.fit_id, "law": whole.law.name, "n_column": whole.n_column, "window": window, "parameter": row["parameter"],
             "estimate": row["estimate"], "std_error": row["std_error"], "ci_low": row["ci_low"], "ci_high": row["ci_high"],
             "ci_level": found.ci_level,
             "change": row["estimate"] - float(all_runs["estimate"]),
             "change_sd": change_sd, "inside": bool(all_runs["ci_low"] <= row["estimate"] <= all_runs["ci_high"]),
             "n_runs": found.n_runs, "rmse_log": found.rmse_log, "left_out_mean": mean, "left_out_max": largest}
        )  # fmt: skip
    return rows
