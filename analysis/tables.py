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

from analysis.approaches import conventions
from analysis.critical import CriticalPoint, break_supported, critical_points, critical_table
from analysis.errors import UserError
from analysis.files import write_table
from analysis.fitting import Fit, fit, main_fit
from analysis.forecast import read_forecasts, score
from analysis.frames import Frame
from analysis.guards import check_runs
from analysis.laws import get_law
from analysis.optimal import extrapolation, frontier, model_interval
from analysis.repeats import NOISE_COLUMNS, noise_table
from analysis.returns import returns
from analysis.runs import Runs, read_runs
from analysis.side_by_side import approach_rows, side_by_side
from analysis.tuning import CELL, TUNING_COLUMNS, rate_law, tuning_table
from analysis.tuning import LAW_COLUMNS as RATE_COLUMNS
from analysis.uncertainty import bootstrap as add_draws
from analysis.windows import WINDOW_COLUMNS, windows

DEFAULT_LAWS = ("power-n", "power-d", "power-c", "chinchilla")
TABLES = (
    "laws", "fits", "windows", "noise", "exclusions", "frontier", "returns", "critical", "approaches", "conventions", "predictions",
    "tuning", "rate_law",
)  # fmt: skip
LAW_COLUMNS = "fit_id law approach n_column parameter estimate std_error ci_low ci_high ci_level method".split()
PREDICTION_COLUMNS = (
    "kind run_id law n_column params tokens predicted pi_low pi_high predicted_model pi_model_low pi_model_high observed relative_error"
    " extrapolation fit_id forecast_id inside_interval inside_model_interval threshold verdict notes fold"
).split()


@dataclass(frozen=True)
class Analysis:
    """Everything that one call found.

    Attributes
    ----------
    tables : dict of str to DataFrame
        laws, fits, windows, noise, exclusions, frontier, returns, critical, approaches, conventions, predictions, tuning, rate_law: as
        the CSVs.
    folder : Path or None
        Where they were written.
    notes : tuple of str
        Laws that were asked for and could not be fitted, with the reason.
    warnings : tuple of str
        What a reader must know before trusting a number.
    alarm : str
        How the three approaches to the compute-optimal model disagree; empty when they agree.
    """

    runs: Runs
    fits: list[Fit]
    tables: dict[str, Frame]
    folder: Path | None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    critical: list[CriticalPoint] = field(default_factory=list)
    alarm: str = ""


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
    """Fit laws to runs and write the tables (`TABLES`, as CSV) and draws/FIT_ID.csv.

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
    runs = read_runs(path, n_column=n_column, d_column=d_column, loss_column=loss_column, exclude=exclude)
    forms = [get_law(name, runs.frame.columns) for name in names]
    beside = runs.source.with_name(re.sub(r"\.csv(\.gz)?$", "", runs.source.name, flags=re.IGNORECASE))
    folder = Path(out) if out is not None else runs.folder or beside
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
    main = main_fit(fits) or fits[0]
    compared, alarm, biases, rows = side_by_side(runs, main, draws=min(bootstrap, 200), seed=seed)
    both = {"N", "D"} <= set(main.law.variables)
    tuning = tuning_of(runs)
    law_of_rates = rate_law(tuning)
    tables = {
        "windows": windows(runs, main, draws=min(bootstrap, 200), seed=seed) if both else pd.DataFrame(columns=WINDOW_COLUMNS),
        "noise": noise_table(main) if both else pd.DataFrame(columns=NOISE_COLUMNS),
        "tuning": tuning,
        "rate_law": pd.DataFrame(columns=RATE_COLUMNS) if law_of_rates is None else law_of_rates.table,
        "laws": _stack([_laws_table(fits), approach_rows(compared, runs.n_column)]),
        "fits": _fits_table(fits),
        "exclusions": runs.excluded,
        "frontier": _stack([*(frontier(f) for f in fits), *rows]),
        "returns": _stack([returns(f) for f in fits]),
        "critical": critical_table(fits),
        "approaches": compared,
        "conventions": conventions(runs.frame),
        "predictions": _predictions_table(runs, fits, registered, main, scores=runs.folder if folder == runs.folder else None),
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
        runs=runs, fits=fits, tables=tables, folder=folder, notes=tuple(notes), warnings=(*_warnings(runs, fits), *biases),
        forecasts=registered, critical=critical_points(main), alarm=alarm,
    )  # fmt: skip


def tuning_of(runs: Runs) -> Frame:
    """tuning.csv of a folder's tuning runs; no rows where there are none."""
    rows = runs.all_rows
    known = {"schedule", "status", "d_model", "learning_rate", *CELL} <= set(rows.columns)
    tried = rows[rows["role"] == "tune"] if known else rows[:0]
    return tuning_table(tried) if len(tried) else pd.DataFrame(columns=TUNING_COLUMNS)


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


def _predictions_table(runs: Runs, fits: list[Fit], registered: list[dict[str, Any]], main: Fit, *, scores: Path | None) -> Frame:
    """List registered forecasts with what came out, hold-outs that had none, and the rolling folds inside the fitted runs."""
    observed = {str(row["run_id"]): row for row in runs.holdouts.to_dict("records")}
    rows: list[dict[str, Any]] = []
    for forecast in registered:
        target = forecast["target"]
        found = observed.get(str(target.get("run_id")))
        judged = {"verdict": "not scored yet", "notes": forecast.get("notes", "")}
        if found:
            judged = score(forecast, float(found["loss"]), folder=scores)
        rows.append(
            {"kind": "forecast", "run_id": target.get("run_id"), "law": forecast.get("law"), "n_column": forecast.get("n_column"),
             "params": target.get(forecast.get("n_column")), "tokens": target.get("tokens"), "predicted": forecast["predicted"],
             "pi_low": forecast["pi_low"], "pi_high": forecast["pi_high"], "predicted_model": _number(forecast.get("predicted_model")),
             "pi_model_low": _number(forecast.get("pi_model_low")), "pi_model_high": _number(forecast.get("pi_model_high")),
             "observed": float(found["loss"]) if found else math.nan, "extrapolation": forecast.get("extrapolation", ""),
             "fit_id": forecast.get("fit_id"), "forecast_id": forecast["forecast_id"], "threshold": forecast["threshold_relative_error"],
             **judged}
        )  # fmt: skip
    foreseen = {str(f["target"].get("run_id")) for f in registered}
    for run_id, row in observed.items():
        if run_id not in foreseen:
            known = predict_point(main, n=float(row["N"]), d=float(row["D"]), c=float(row["C"]))
            rows.append({"kind": "holdout, no forecast registered", "run_id": run_id, "observed": row["loss"], **known})
    for f in fits:
        for row in f.cv.to_dict("records"):
            rows.append(
                {"kind": "cv", "run_id": row["run_id"], "law": f.law.name, "n_column": f.n_column, "params": row["N"], "tokens": row["D"],
                 "predicted": row["predicted"], "observed": row["loss"], "extrapolation": "beyond the fold's data", "fit_id": f.fit_id,
                 "fold": row["fold"]}
            )  # fmt: skip
    for row in rows:
        row["relative_error"] = row["predicted"] / row["observed"] - 1
        for name, low, high in (("inside_interval", "pi_low", "pi_high"), ("inside_model_interval", "pi_model_low", "pi_model_high")):
            known = all(math.isfinite(row.get(key, math.nan)) for key in (low, high, "observed"))
            row[name] = bool(row[low] <= row["observed"] <= row[high]) if known else None
    return pd.DataFrame([{"forecast_id": "", "verdict": "", "notes": "", "fold": "", **row} for row in rows], columns=PREDICTION_COLUMNS)


def predict_point(fit: Fit, *, n: float, d: float, c: float) -> dict[str, Any]:
    """Return what a fit says of one run, in the columns of predictions.csv: law, interval if the law is true, and if it is only a law."""
    values = {"N": n, "D": d, "C": c}
    low, high = (float(v) for v in fit.interval(noise=True, **values)) if fit.draws is not None else (math.nan, math.nan)
    return {
        "law": fit.law.name, "n_column": fit.n_column, "params": n, "tokens": d, "predicted": float(fit.predict(**values)),
        "pi_low": low, "pi_high": high, **model_interval(fit, n=n, d=d), "fit_id": fit.fit_id,
        "extrapolation": extrapolation(fit, params=n, tokens=d),
    }  # fmt: skip


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _stack(frames: list[Frame]) -> Frame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _warnings(runs: Runs, fits: list[Fit]) -> tuple[str, ...]:
    found = [str(finding) for finding in check_runs(runs)]
    found += [f"{f.law.name}: {text}" for f in fits for text in f.warnings]
    if runs.n_column not in ("params_non_embedding", "params_total"):
        found.append(f"N is column {runs.n_column!r}; whether embeddings are counted is not recorded, and exponents depend on it")
    supported = break_supported(fits)
    return (*found, supported) if supported else tuple(found)
