"""The report of a results folder: one HTML page that needs nothing else, and the checklist beside it."""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.checklist import checklist_items, checklist_markdown
from analysis.errors import UserError
from analysis.report_text import summary_lines

if TYPE_CHECKING:
    from analysis.tables import Analysis

# Column selections keep the page readable; the CSV files hold every column at full precision.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "laws": ("law", "parameter", "estimate", "ci_low", "ci_high", "std_error"),
    "approaches": ("approach", "reason", "a", "a_low", "a_high", "b", "b_low", "b_high", "params_opt", "params_low", "params_high",
                   "tokens_opt", "params_opt_10x", "tokens_opt_10x", "n_points"),
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
    "tuning": ("params_non_embedding", "tokens", "batch_tokens", "n_rates", "n_runs", "rate_low", "rate_high", "rate_best", "ci_low",
               "ci_high", "cost_of_factor_2", "bracketed", "chosen", "rate_used", "penalty", "reason"),
    "rate_law": ("parameter", "estimate", "ci_low", "ci_high", "params", "tokens", "batch_tokens", "n_cells", "method"),
    "frontier": ("approach", "law", "flops", "params_opt", "tokens_opt", "loss", "loss_ci_low", "loss_ci_high"),
    "returns": ("law", "axis", "from", "to", "loss_from", "loss_to", "gain_per_doubling",
                "gain_per_doubling_ci_low", "gain_per_doubling_ci_high", "beyond_data"),
    "exclusions": ("run_id", "reason"),
    "runs": ("run_id", "status", "role", "params_non_embedding", "params_total", "tokens", "flops", "loss", "loss_se",
             "bits_per_byte", "epochs", "reason"),
}  # fmt: skip
_HEADINGS = {
    "laws": "Parameters of each law",
    "windows": "Parameters without the ends of the grid",
    "noise": "Noise between seeds",
    "tuning": "Rates tried, by cell",
    "rate_law": "Law of the best rate",
    "approaches": "Compute-optimal model by each approach",
    "critical": "Where returns diminish",
    "conventions": "Exponents by the count of N and C",
    "predictions": "Forecasts and hold-outs",
    "folds": "Dearest fitted runs, predicted from the cheaper ones",
    "fits": "Fits",
    "frontier": "Compute-optimal frontier",
    "returns": "Diminishing returns",
    "exclusions": "Runs not fitted, with reasons",
    "runs": "Runs",
}
_OPEN = ("laws", "approaches", "critical", "predictions", "fits")
_PLOTS = {
    "loss_curves": "Train loss over tokens for every trunk and cooldown, held-out loss where runs end",
    "loss_vs_params": "Held-out loss against parameters at each data size, with the law and its interval",
    "loss_vs_tokens": "Held-out loss against training tokens at each model size, with the law and its interval",
    "loss_vs_flops": "Held-out loss against training compute, with the compute-optimal frontier",
    "isoflop": "Held-out loss against parameters at each budget of compute, with the best size by parabola and by interpolation",
    "approaches": "Compute-optimal parameters and data against compute, by each approach",
    "diminishing_returns": "What one more doubling of parameters, data and compute takes off the loss",
    "residuals": "Residuals of the law against parameters, data, and tokens per parameter",
    "windows": "Exponents of the law without the smallest and the largest N and D",
    "noise": "Spread between seeds of each cell, and the model of it that weights the fit",
    "tuning": "Loss over the learning rate at each tuning cell, and the best rate against model size",
}
_MAX_ROWS = 200
_LONG_TEXT = 70  # characters of a cell that need not wrap
_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --faint: #6b6b70; --line: #dcdce0; --soft: #f5f5f7; --page: #fff;
  --alarm: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --faint: #a0a0a8; --line: #3a3a40; --soft: #232327; --page: #161618;
  --alarm: #ff8a80; --warn: #e8b15a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p.note { color: var(--faint); margin: .3rem 0; }
.result { background: var(--soft); border-radius: .5rem; padding: .8rem; font: .8rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
.result p { margin: 0; padding-left: 2ch; text-indent: -2ch; white-space: pre-wrap; } .result .gap { height: .7rem; }
.result .item { padding-left: 4ch; } .result .alarm { padding-left: 4ch; color: var(--alarm); font-weight: 600; }
.result .warn { color: var(--warn); }
pre { background: var(--soft); border-radius: .5rem; padding: .8rem; white-space: pre-wrap; font-size: .8rem; line-height: 1.45; }
figure { margin: 1rem 0; } figure img { width: 100%; height: auto; display: block; border-radius: .5rem; background: #fff; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem; align-items: start; }
.plots figure { margin: 0; }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--soft); font-weight: 600; }
td.long { white-space: normal; min-width: 22rem; } td.n, th.n { text-align: right; } tr:last-child td { border-bottom: 0; }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
dl { margin: .3rem 0; } dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0; color: var(--faint); }
"""


def write_report(analysis: Analysis, folder: str | Path, plots: Sequence[str | Path] = ()) -> Path:
    """Write report.html and checklist.md.

    Parameters
    ----------
    analysis : Analysis
        Runs, fits and tables.
    folder : str or Path
        Where both files go.
    plots : sequence of paths
        PNG files to embed, in this order; other formats are named, not embedded.

    Returns
    -------
    Path
        The path of report.html. The same input gives the same bytes.

    Raises
    ------
    UserError
        When the folder cannot be written or a plot cannot be read.
    """
    folder = Path(folder)
    page = _page(analysis, folder, [Path(plot) for plot in plots])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "checklist.md", checklist_markdown(analysis, folder))
        return _write(folder / "report.html", page)
    except OSError as error:
        raise UserError(f"report: cannot write to {folder} ({error.strerror}); choose a folder that can be written") from error


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _page(analysis: Analysis, folder: Path, plots: Sequence[Path]) -> str:
    name = folder.resolve().name
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing that came with the data can load or run anything.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{_text(name)}: scaling laws</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(name)}: scaling laws</h1>",
        f'<p class="note">{len(analysis.runs.frame)} runs fitted, {len(analysis.runs.excluded)} not fitted. '
        f"N is the column <code>{_text(analysis.runs.n_column)}</code>. Intervals are conditional on the law.</p>",
        f'<h2>Result</h2><div class="result">{_result(analysis)}</div>',
        _plots(plots),
    ]
    predictions = analysis.tables["predictions"]
    folds = predictions["kind"] == "cv"
    laws = analysis.tables["laws"]
    tables = dict(analysis.tables) | {
        "laws": laws[laws["fit_id"] != ""],  # the approaches have a table of their own
        "predictions": predictions[~folds],
        "folds": predictions[folds],
        "exclusions": analysis.runs.excluded,
        "runs": analysis.runs.all_rows,
    }
    parts += [_table(key, tables[key]) for key in _HEADINGS if key in tables]
    parts.append("<h2>Reproducibility checklist</h2>")
    for group, items in checklist_items(analysis, folder).items():
        rows = "".join(f"<dt>{_text(question)}</dt><dd>{_text(answer)}</dd>" for question, answer in items)
        parts.append(f"<details><summary>{_text(group)}</summary><dl>{rows}</dl></details>")
    sweep = folder / "sweep.toml"
    if sweep.is_file():
        content = sweep.read_text(encoding="utf-8", errors="replace").rstrip()
        parts.append(f"<h2>Sweep file</h2><details><summary>sweep.toml</summary><pre>{_text(content)}</pre></details>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _result(analysis: Analysis) -> str:
    """The summary, one paragraph a line, so that it wraps at any width."""
    kinds = {"- ALARM": "alarm", "warning": "warn", "- ": "item", "  ": "item"}
    parts = []
    for line in summary_lines(analysis):
        kind = next((name for start, name in kinds.items() if line.startswith(start)), "" if line else "gap")
        parts.append(f'<p class="{kind}">{_text(line.strip())}</p>' if kind else f"<p>{_text(line)}</p>")
    return "".join(parts)


def _plots(plots: Sequence[Path]) -> str:
    figures: list[str] = []
    for path in plots:
        about = _PLOTS.get(path.stem, path.stem)
        if path.suffix != ".png":
            figures.append(f'<p class="note">{_text(about)}: {_text(path.name)}</p>')
            continue
        try:
            data = base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError as error:
            raise UserError(f"report: cannot read the plot {path} ({error.strerror}); run `scaling plot` first") from error
        figures.append(f'<figure><img alt="{_text(about)}" src="data:image/png;base64,{data}"></figure>')
    return f'<h2>Plots</h2><div class="plots">{"".join(figures)}</div>' if figures else ""


def _table(key: str, frame: Any) -> str:
    """One table: open or folded, its columns chosen, at most 200 rows."""
    heading = f"{_HEADINGS[key]} ({len(frame)})"
    if not len(frame):
        return f'<h2>{_text(_HEADINGS[key])}</h2><p class="note">none</p>'
    columns = [name for name in _COLUMNS[key] if name in frame]
    shown = frame[columns or list(frame.columns)].head(_MAX_ROWS)
    # A column of texts is set to the left, numbers to the right; empty columns are left out.
    kept = [name for name in shown if not shown[name].isna().all() and not (shown[name].astype(str) == "").all()]
    numeric = {name: pd.api.types.is_numeric_dtype(shown[name]) and shown[name].dtype != bool for name in kept}
    head = "".join(f"<th{_side(numeric[name])}>{_text(name)}</th>" for name in kept)
    rows = "".join(
        "<tr>"
        + "".join(f"<td{_side(numeric[name], value)}>{_text(_cell(value))}</td>" for name, value in zip(kept, row, strict=True))
        + "</tr>"
        for row in shown[kept].itertuples(index=False, name=None)
    )
    note = f'<p class="note">The first {_MAX_ROWS} rows.</p>' if len(frame) > _MAX_ROWS else ""
    body = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'
    if key in _OPEN:
        return f"<h2>{_text(_HEADINGS[key])}</h2>{body}"
    return f"<details><summary>{_text(heading)}</summary>{body}</details>"


def _side(numeric: bool, value: Any = "") -> str:
    """Numbers to the right; long texts wrap."""
    return ' class="n"' if numeric else ' class="long"' if len(str(value)) > _LONG_TEXT else ""


def _text(value: Any) -> str:
    """Escape for HTML, in text and in attributes."""
    return html.escape(str(value), quote=True)


def _cell(value: Any) -> str:
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
