"""From runs to all tables: fit the laws, draw intervals, write the CSVs that users query."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.critical import CriticalPoint, critical_points
from analysis.errors import UserError
from analysis.files import write_table
from analysis.fitting import Fit, fit
from analysis.forecast import read_forecasts, score
from analysis.frames import Frame
from analysis.laws import get_law
from analysis.optimal import extrapolation, frontier
from analysis.returns import returns
from analysis.runs import Runs, read_runs
from analysis.uncertainty import bootstrap as add_draws

DEFAULT_LAWS = ("power-n", "power-d", "power-c", "chinchilla")
TABLES = ("laws", "fits", "exclusions", "frontier", "returns", "predictions")
LAW_COLUMNS = "fit_id law approach n_column parameter estimate std_error ci_low ci_high ci_level method".split()
PREDICTION_COLUMNS = (
    "kind run_id law n_column params tokens predicted pi_low pi_high observed relative_error extrapolation fit_id forecast_id"
    " inside_interval threshold fold"
).split()


@dataclass(frozen=True)
class Analysis:
    """Everything that one call found.

    Attributes
    ----------
    tables : dict of str to DataFrame
        laws, fits, exclusions, frontier, returns, predictions: as the CSVs.
    folder : Path or None
        Where they were written.
    notes : tuple of str
        Laws that were asked for and could not be fitted, with the reason.
    warnings : tuple of str
        What a reader must know before trusting a number.
    """

    runs: Runs
    fits: list[Fit]
    tables: dict[str, Frame]
    folder: Path | None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    critical: list[CriticalPoint] = field(default_factory=list)


def analyse(
    path: str | Path,
    *,
    laws: Sequence[str] = DEFAULT_LAWS,
    n_column: str | None = None,
    d_column: str | None = None,
    loss_column: str | None = None,
    exclude: str | Sequence[str] | None = None,
    loss: str = "huber:auto",
    link: str = "log",
    bootstrap: int = 1000,
    seed: int = 0,
    out: str | Path | None = None,
    forecasts: Sequence[Mapping[str, Any]] = (),
) -> Analysis:
    """Fit laws to runs and write laws.csv, fits.csv, exclusions.csv, frontier.csv, returns.csv, predictions.csv and draws/FIT_ID.csv.

    The same input gives the same bytes.

    Parameters
    ----------
    path : path
        A results folder or a CSV (see `read_runs`, also for the columns and `exclude`).
    laws : sequence of str
        Laws that too few runs allow are left out with a note, unless none can be fitted.
    loss, link : str
        See `fit`.
    bootstrap : int
        Draws; 0 for none.
    out : path, optional
        Where to write; by default the results folder, or a folder beside the CSV with its name.
    forecasts : sequence of dict
        Registered forecasts besides those in the folder.

    Raises
    ------
    UserError
        For everything that is wrong with the input, before anything is written.
    """
    names = list(dict.fromkeys([laws] if isinstance(laws, str) else laws))
    if not names:
        raise UserError(f"no law was asked for; allowed: {', '.join(DEFAULT_LAWS)}")
    forms = [get_law(name) for name in names]
    runs = read_runs(path, n_column=n_column, d_column=d_column, loss_column=loss_column, exclude=exclude)
    folder = Path(out) if out is not None else runs.folder or runs.source.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose a folder with --out")
    fits, notes = [], []
    for form in forms:
        try:
            fits.append(add_draws(fit(form, runs, loss=loss, link=link, seed=seed), draws=bootstrap, seed=seed))
        except UserError as error:
            if len(forms) == 1 or str(error).startswith("--"):
                raise
            notes.append(str(error))
    if not fits:
        raise UserError(notes[-1])
    registered = [*(read_forecasts(runs.folder) if runs.folder else []), *(dict(f) for f in forecasts)]
    main = next((f for f in fits if {"N", "D"} <= set(f.law.variables)), fits[0])
    tables = {
        "laws": _laws_table(fits),
        "fits": _fits_table(fits),
        "exclusions": runs.excluded,
        "frontier": _stack([frontier(f) for f in fits]),
        "returns": _stack([returns(f) for f in fits]),
        "predictions": _predictions_table(runs, fits, registered, main),
    }
    for name in TABLES:
        write_table(folder / f"{name}.csv", tables[name])
    drawn = {f.fit_id: f.draws for f in fits if f.draws is not None}
    for name, draws in drawn.items():
        write_table(folder / "draws" / f"{name}.csv", draws)
    for old in (folder / "draws").glob("*.csv"):
        if re.fullmatch(r"[0-9a-f]{12}", old.stem) and old.stem not in drawn:
            old.unlink(missing_ok=True)
    return Analysis(
        runs=runs, fits=fits, tables=tables, folder=folder, notes=tuple(notes), warnings=_warnings(runs, fits), forecasts=registered,
        critical=critical_points(main),
    )  # fmt: skip


def _laws_table(fits: list[Fit]) -> Frame:
    rows = []
    for f in fits:
        approach = "parametric" if len(f.law.variables) == 2 else "one variable"
        for row in f.parameter_table().to_dict("records"):
            method = f.method
            if row["parameter"] == "E" and f.loss_offset_sd > 0:
                method += f"; E's interval includes the held-out text's sampling error {100 * f.loss_offset_sd:.2g} %"
            head = {"fit_id": f.fit_id, "law": f.law.name, "approach": approach, "n_column": f.n_column}
            rows.append({**head, **row, "ci_level": f.ci_level, "method": method})
    return pd.DataFrame(rows, columns=LAW_COLUMNS)


def _fits_table(fits: list[Fit]) -> Frame:
    columns = (
        "fit_id n_column n_runs n_trunks n_excluded loss objective rmse_log r2 aicc bic cv_error starts starts_agree condition status link"
        " delta d_column c_column subset method"
    ).split()
    rows = []
    for f in fits:
        row: dict[str, Any] = {name: getattr(f, name) for name in columns}
        row |= {"law": f.law.name, "formula": f.law.formula, "noise_sd_median": float(np.median(f.frame["noise_sd"]))}
        row |= {"noise_source": f.noise.source, "misfit_sd": f.noise.misfit_sd, "warnings": "; ".join(f.warnings)}
        row |= dict(zip(("noise_share_trunk", "noise_share_data", "noise_share_branch"), f.noise.shares, strict=True))
        rows.append(row)
    order = ["fit_id", "law", *columns[1:]]
    return pd.DataFrame(rows, columns=[*order, *(name for name in rows[0] if name not in order)])


def _predictions_table(runs: Runs, fits: list[Fit], registered: list[dict[str, Any]], main: Fit) -> Frame:
    """List registered forecasts with what came out, hold-outs that had none, and the rolling folds inside the fitted runs."""
    observed = {str(row["run_id"]): row for row in runs.holdouts.to_dict("records")}
    rows: list[dict[str, Any]] = []
    for forecast in registered:
        target = forecast["target"]
        found = observed.get(str(target.get("run_id")))
        result = score(forecast, float(found["loss"])) if found else None
        rows.append(
            {"kind": "forecast", "run_id": target.get("run_id"), "law": forecast.get("law"), "n_column": forecast.get("n_column"),
             "params": target.get(forecast.get("n_column")), "tokens": target.get("tokens"), "predicted": forecast["predicted"],
             "pi_low": forecast["pi_low"], "pi_high": forecast["pi_high"], "observed": float(found["loss"]) if found else math.nan,
             "relative_error": result.relative_error if result else math.nan, "extrapolation": forecast.get("extrapolation", ""),
             "fit_id": forecast.get("fit_id"), "forecast_id": forecast["forecast_id"], "fold": "",
             "inside_interval": result.inside_interval if result else None, "threshold": forecast["threshold_relative_error"]}
        )  # fmt: skip
    foreseen = {str(f["target"].get("run_id")) for f in registered}
    for run_id, row in observed.items():
        if run_id in foreseen:
            continue
        values = {"N": float(row["N"]), "D": float(row["D"]), "C": float(row["C"])}
        predicted = float(main.predict(**values))
        low, high = (float(v) for v in main.interval(noise=True, **values)) if main.draws is not None else (math.nan, math.nan)
        rows.append(
            {"kind": "holdout, no forecast registered", "run_id": run_id, "law": main.law.name, "n_column": main.n_column,
             "params": row["N"], "tokens": row["D"], "predicted": predicted, "pi_low": low, "pi_high": high, "observed": row["loss"],
             "relative_error": predicted / row["loss"] - 1, "extrapolation": extrapolation(main, params=values["N"], tokens=values["D"]),
             "fit_id": main.fit_id, "forecast_id": "", "inside_interval": low <= row["loss"] <= high if main.draws is not None else None,
             "threshold": math.nan, "fold": ""}
        )  # fmt: skip
    for f in fits:
        for row in f.cv.to_dict("records"):
            rows.append(
                {"kind": "cv", "run_id": row["run_id"], "law": f.law.name, "n_column": f.n_column, "params": row["N"], "tokens": row["D"],
                 "predicted": row["predicted"], "pi_low": math.nan, "pi_high": math.nan, "observed": row["loss"],
                 "relative_error": row["relative_error"], "extrapolation": "beyond the fold's data", "fit_id": f.fit_id, "forecast_id": "",
                 "inside_interval": None, "threshold": math.nan, "fold": row["fold"]}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


def _stack(frames: list[Frame]) -> Frame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _warnings(runs: Runs, fits: list[Fit]) -> tuple[str, ...]:
    found = [f"{f.law.name}: {text}" for f in fits for text in f.warnings]
    if "numerics_id" in runs.frame and runs.frame["numerics_id"].nunique() > 1:
        found.append(
            f"runs mix {runs.frame['numerics_id'].nunique()} numerics_id (machines or flags): losses may differ by more than seeds"
        )
    if runs.n_column not in ("params_non_embedding", "params_total"):
        found.append(f"N is column {runs.n_column!r}; whether embeddings are counted is not recorded, and exponents depend on it")
    return tuple(found)
