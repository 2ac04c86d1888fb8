"""What the scripts of the report page work on: runs, their curves and configurations, and laws under every count of N."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.fitting import Fit, fit, main_fit
from analysis.page_laws import law_record, plain
from analysis.runs import CURVE_ROWS, read_curves
from analysis.runs import N_COLUMNS as USUAL_N
from analysis.uncertainty import bootstrap

if TYPE_CHECKING:
    from analysis.frames import Frame
    from analysis.tables import Analysis

#: What is shown of a run besides N, D, loss: those that the table has.
CONFIG = (
    "d_model n_layers n_heads d_ff sequence_length batch_tokens steps warmup_steps cooldown_steps schedule optimizer learning_rate corpus"
    " tokenizer seed_init seed_data epochs flops train_loss bits_per_byte train_seconds"
).split()
N_COLUMNS = ("params_non_embedding", "params_total")  # other counts of N under which the main law is fitted again
CURVE_POINTS, CURVE_DIGITS = 40, 4
MOST_RUNS = 2000  # on the interactive plot; more are thinned evenly
OTHER_DRAWS = 200  # for the bands under other counts of N


def page_data(analysis: Analysis) -> dict[str, Any]:
    """Return everything that the page's scripts read, as plain numbers and texts.

    Returns
    -------
    dict
        laws (as `law_record`), runs (one list a column), config (which of these columns are configuration), curves (tokens and train loss
        of each run, thinned), forecasts (rows of predictions.csv without folds), and what N, D and C are called.
    """
    main = main_fit(analysis.fits)
    rows = pd.concat([_thinned(analysis.runs.frame), _thinned(analysis.runs.holdouts)], ignore_index=True)
    config = [name for name in CONFIG if name in rows and rows[name].notna().any() and (rows[name].astype(str) != "").any()]
    counts = [name for name in dict.fromkeys((analysis.runs.n_column, *N_COLUMNS)) if name in rows and _is_count(rows[name])]
    names = list(dict.fromkeys(["run_id", "role", "N", "D", "C", "loss", *config, *counts]))
    fits = [*analysis.fits, *(other_counts(analysis, main) if main is not None else ())]
    records = [record | {"flags": flags(f, analysis)} for f in fits if (record := law_record(f)) is not None]
    forecasts = analysis.tables["predictions"]
    return {
        "laws": records,
        "main": None if main is None else f"{main.law.name}|{main.n_column}",
        "source": shlex.quote(
            analysis.runs.source.name if analysis.runs.folder is None else f"results/{analysis.runs.folder.resolve().name}"
        ),
        "runs": {name: [plain(value) for value in rows[name]] for name in names if name in rows},
        "config": config,
        "counts": [name for name in counts if any(record["n_column"] == name for record in records)] or [analysis.runs.n_column],
        "n_column": analysis.runs.n_column,
        "c_column": analysis.runs.c_column,
        "fitted": min(len(analysis.runs.frame), MOST_RUNS),
        "all": len(analysis.runs.frame),
        "curves": _curves(analysis, rows),
        "forecasts": [
            {name: plain(value) for name, value in row.items()} for row in forecasts[forecasts["kind"] != "cv"].to_dict("records")
        ],
    }


def flags(fit: Fit, analysis: Analysis) -> str:
    """Return the flags with which `scaling predict | optimal` gives this fit's numbers; "" where the defaults do."""
    rows = analysis.runs.all_rows
    usual = next((name for name in USUAL_N if name in rows and rows[name].notna().any()), None)
    draws = 0 if fit.draws is None else len(fit.draws)
    reasons = analysis.runs.excluded["reason"].astype(str)
    excluded = reasons[reasons.str.startswith("excluded by: ")].str.removeprefix("excluded by: ").unique()
    given = {
        "law": None if fit.law.name == "chinchilla" else fit.law.name,
        "loss": None if fit.loss == "huber:auto" else fit.loss,
        "link": None if fit.link == "log" else fit.link,
        "n-column": None if fit.n_column == usual else fit.n_column,
        "exclude": " or ".join(excluded) or None,
        "bootstrap": None if draws == 1000 else str(draws),
    }
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in given.items() if value is not None)


def _thinned(rows: Frame) -> Frame:
    return rows if len(rows) <= MOST_RUNS else rows.iloc[np.linspace(0, len(rows) - 1, MOST_RUNS).astype(int)]


def page_json(data: dict[str, Any]) -> str:
    """Write data for a script element: nothing in it can end the element or begin another."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def other_counts(analysis: Analysis, main: Fit) -> list[Fit]:
    """Fit the main law again with N counted otherwise, where the runs know other counts that differ; with fewer draws."""
    found = []
    for column in N_COLUMNS:
        frame = analysis.runs.frame
        if "N" not in main.law.variables or column == main.n_column or column not in frame or not _is_count(frame[column]):
            continue
        values = frame[column].astype(float)
        if np.allclose(values, frame["N"], rtol=1e-9):
            continue
        runs = dataclasses.replace(analysis.runs, frame=frame.assign(N=values), n_column=column)
        try:
            again = fit(main.law, runs, loss=main.loss, link=main.link)
            found.append(again if main.draws is None else bootstrap(again, draws=min(len(main.draws), OTHER_DRAWS)))
        except UserError:  # a count that this law cannot be fitted with is not offered
            continue
    return found


def _is_count(values: Any) -> bool:
    numbers = pd.to_numeric(values, errors="coerce")
    return bool((np.isfinite(numbers) & (numbers > 0)).all())


def _curves(analysis: Analysis, rows: Frame) -> dict[str, Any]:
    """Tokens and train loss of each run, at most `CURVE_POINTS` of them; empty where no curves were recorded."""
    if analysis.runs.folder is None:
        return {}
    curves = read_curves(analysis.runs.folder, about=CURVE_ROWS)
    curves = curves[curves["run_id"].isin(rows["run_id"].astype(str)) & (curves["train_loss"] > 0)]
    curves = curves.sort_values(["run_id", "step"])
    names, columns = curves["run_id"].to_numpy(), [curves[name].to_numpy() for name in ("tokens", "train_loss")]
    found = {}
    for own in np.split(np.arange(len(names)), np.flatnonzero(names[1:] != names[:-1]) + 1):
        if len(own):
            kept = own[np.unique(np.linspace(0, len(own) - 1, CURVE_POINTS).astype(int))]
            found[str(names[own[0]])] = [[float(f"{v:.{CURVE_DIGITS}g}") for v in column[kept].tolist()] for column in columns]
    return found
