"""Tables of the report page: which columns are shown, under which heading, and how a cell reads."""

from __future__ import annotations

import html
import math
from typing import Any

import pandas as pd

# Column selections keep the page readable; the CSV files hold every column at full precision.
COLUMNS: dict[str, tuple[str, ...]] = {
    "laws": ("law", "parameter", "estimate", "ci_low", "ci_high", "std_error"),
    "approaches": ("approach", "a", "a_low", "a_high", "b", "b_low", "b_high", "params_opt", "params_low", "params_high",
                   "tokens_opt", "params_opt_10x", "tokens_opt_10x", "n_points", "reason"),
    "critical": ("law", "axis", "name", "value", "ci_low", "ci_high", "loss", "reducible_left", "beyond_data", "held"),
    "conventions": ("n_column", "c_column", "approach", "a", "b", "n_points", "reason"),
    "predictions": ("kind", "run_id", "law", "params", "tokens", "predicted", "pi_low", "pi_high", "pi_model_low",
                    "pi_model_high", "observed", "relative_error", "inside_interval", "inside_model_interval", "extrapolation"),
    "folds": ("law", "fold", "run_id", "params", "tokens", "predicted", "observed", "relative_error"),
    "fits": ("law", "status", "n_runs", "n_trunks", "n_excluded", "rmse_log", "cv_error", "aicc",
             "starts", "starts_agree", "condition", "loss", "subset"),
    "windows": ("window", "parameter", "estimate", "ci_low", "ci_high", "change", "change_sd", "inside", "n_runs", "rmse_log",
                "left_out_mean", "left_out_max"),
    "noise": ("params", "tokens", "n_runs", "sd", "sd_ci_low", "sd_ci_high", "noise_sd", "residual", "mean_sd"),
    "tuning": ("params_non_embedding", "tokens", "batch_tokens", "n_rates", "n_runs", "n_stopped", "rate_low", "rate_high", "rate_best",
               "ci_low", "ci_high", "cost_of_factor_2", "bracketed", "chosen", "rate_used", "penalty", "reason"),
    "rate_law": ("parameter", "estimate", "ci_low", "ci_high", "params", "tokens", "batch_tokens", "n_cells", "method"),
    "frontier": ("approach", "law", "flops", "params_opt", "tokens_opt", "loss", "loss_ci_low", "loss_ci_high"),
    "returns": ("law", "axis", "from", "to", "loss_from", "loss_to", "gain_per_doubling",
                "gain_per_doubling_ci_low", "gain_per_doubling_ci_high", "beyond_data"),
    "exclusions": ("run_id", "reason"),
    "runs": ("run_id", "status", "role", "params_non_embedding", "params_total", "params", "tokens", "loss", "loss_se",
             "bits_per_byte", "flops", "epochs", "d_model", "n_layers", "learning_rate", "batch_tokens", "seed_init", "seed_data",
             "train_seconds", "reason"),
    "shifts": ("quantity", "first", "second", "shift", "ci_low", "ci_high"),
    "multipliers": ("loss", "flops_first", "flops_second", "multiplier", "ci_low", "ci_high", "beyond_data"),
}  # fmt: skip
HEADINGS = {
    "approaches": "Compute-optimal model by each approach",
    "critical": "Where returns diminish",
    "fits": "Fits",
    "laws": "Parameters of each law",
    "windows": "Parameters without the ends of the grid",
    "noise": "Noise between seeds",
    "tuning": "Rates tried, by cell",
    "rate_law": "Law of the best rate",
    "conventions": "Exponents by the count of N and C",
    "predictions": "Forecasts and hold-outs",
    "folds": "Dearest fitted runs, predicted from the cheaper ones",
    "frontier": "Compute-optimal frontier",
    "returns": "Diminishing returns",
    "exclusions": "Runs not fitted, with reasons",
    "runs": "Runs",
    "shifts": "Shift of parameters and exponents",
    "multipliers": "Compute for the same loss",
}
MOST_ROWS = 2000
LONG_TEXT = 70  # characters of a cell that need not wrap


def table(key: str, frame: Any) -> str:
    """Write one table as HTML: the columns of `COLUMNS` that hold anything, at most `MOST_ROWS` rows."""
    if not len(frame):
        return '<p class="note">none</p>'
    shown = frame[[name for name in COLUMNS[key] if name in frame] or list(frame.columns)].head(MOST_ROWS)
    # A column of texts is set to the left, numbers to the right; empty columns are left out.
    kept = [name for name in shown if not shown[name].isna().all() and not (shown[name].astype(str) == "").all()]
    numeric = {name: pd.api.types.is_numeric_dtype(shown[name]) and shown[name].dtype != bool for name in kept}
    head = "".join(f'<th scope="col"{_side(numeric[name])}>{text(name)}</th>' for name in kept)
    rows = "".join(
        "<tr>"
        + "".join(f"<td{_side(numeric[name], value)}>{text(cell(value))}</td>" for name, value in zip(kept, row, strict=True))
        + "</tr>"
        for row in shown[kept].itertuples(index=False, name=None)
    )
    note = f'<p class="note">The first {MOST_ROWS} of {len(frame)} rows; all of them are in the CSV.</p>' if len(frame) > MOST_ROWS else ""
    label = text(HEADINGS[key])
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{label}"><table data-table="{key}">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def folded(key: str, frame: Any) -> str:
    """Write one table under a heading that opens it."""
    return f"<details><summary>{text(HEADINGS[key])} ({len(frame)})</summary>{table(key, frame)}</details>"


def facts(pairs: list[tuple[str, str]]) -> str:
    """Write pairs of a name and what is known as a list."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in pairs)}</dl>"


def text(value: Any) -> str:
    """Escape for HTML, in text and in attributes."""
    return html.escape(str(value), quote=True)


def cell(value: Any) -> str:
    """Write a value of a table for people: five digits, nothing where nothing is known."""
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "" if math.isnan(value) else str(value)
        return f"{value:,.0f}" if value == int(value) and 1000 <= abs(value) < 1e9 else f"{value:.5g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**9 else f"{value:.5g}"
    return str(value)


def _side(numeric: bool, value: Any = "") -> str:
    """Numbers to the right; long texts wrap."""
    return ' class="n"' if numeric else ' class="long"' if len(str(value)) > LONG_TEXT else ""
