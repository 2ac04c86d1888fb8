"""Sections of the report page that are written once: laws, forecasts, plots, provenance, cost."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.errors import UserError
from analysis.page_tables import cell, facts, text
from analysis.plot_style import si
from analysis.powers import power_sum
from analysis.report_text import MOST_FORECASTS, forecast_lines, merged_warnings, rivals, summary_lines

if TYPE_CHECKING:
    from analysis.fitting import Fit
    from analysis.laws import Law
    from analysis.tables import Analysis

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ"}
PLOTS = {
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
    "frontiers": "Held-out loss against compute in both sweeps, with the compute-optimal frontier of each",
    "domains": "Held-out loss by domain of the text",
    "repetition": "Held-out loss against epochs where different tokens vary, with the law",
}


def alarms(analysis: Analysis) -> str:
    """What a reader must know before trusting a number: the approaches' alarm, warnings, laws that could not be fitted."""
    parts = [f'<li class="alarm">The approaches disagree: {text(analysis.alarm)}</li>'] if analysis.alarm else []
    parts += [f'<li class="warn">{text(warning)}</li>' for warning in merged_warnings(analysis)]
    parts += [f'<li class="warn">not fitted: {text(note)}</li>' for note in dict.fromkeys(analysis.notes)]
    return f'<ul class="alarms">{"".join(parts)}</ul>' if parts else ""


def terminal(analysis: Analysis) -> str:
    """The summary as the terminal prints it, one paragraph a line, so that it wraps at any width."""
    kinds = {"- ALARM": "alarm", "warning": "warn", "- ": "item", "  ": "item"}
    parts = []
    for line in summary_lines(analysis):
        if line.startswith("tables: "):  # where they lie is known to whoever ran it, and to nobody else
            continue
        kind = next((name for start, name in kinds.items() if line.startswith(start)), "" if line else "gap")
        parts.append(f'<p class="{kind}">{text(line.strip())}</p>' if kind else f"<p>{text(line)}</p>")
    return f'<details><summary>The same, as the terminal prints it</summary><div class="result">{"".join(parts)}</div></details>'


def laws(analysis: Analysis) -> str:
    """Each law with its parameters; and the rivals among them."""
    order = sorted(analysis.fits, key=lambda fit: -len(fit.law.variables))
    found = rivals(analysis.fits)
    ranks = {fit.fit_id: place for place, fit in enumerate(found, start=1)}
    return f'<div class="laws">{"".join(_law(fit, ranks.get(fit.fit_id), len(found)) for fit in order)}</div>'


def formula(law: Law) -> str:
    """Write a formula as HTML: as in print where sums, fractions and powers are all there is, others as code."""
    as_code = power_sum(law.expression) is None and re.search(r"[*;]|\w\(|\^\(", law.formula)
    return f"<code>{text(law.formula)}</code>" if as_code else f'<span class="formula">L = {printed(law.formula)}</span>'


def printed(words: str) -> str:
    """Write words with powers as HTML: exponents raised, Greek letters as such."""
    words = text(words)
    for name, letter in GREEK.items():
        words = re.sub(rf"\b{name}\b", letter, words)
    return re.sub(r"(?:\*\*|\^)(-?\w+)", r"<sup>\1</sup>", words)


def _law(fit: Fit, rank: int | None, rivals: int) -> str:
    rows = "".join(
        f'<tr><th scope="row">{text(GREEK.get(row["parameter"], row["parameter"]))}</th><td class="n">{row["estimate"]:.4g}</td>'
        f'<td class="n">{_band(row["ci_low"], row["ci_high"])}</td></tr>'
        for row in fit.parameter_table().to_dict("records")
    )
    error = f"within {100 * fit.cv_error:.2f} % (mean)" if math.isfinite(fit.cv_error) else "with an unknown error (too few runs for folds)"
    name = "formula" if fit.law.name == fit.law.formula else fit.law.name
    state = "" if fit.status == "converged" else f' <span class="alarm">{text(fit.status)}</span>'
    place = f", number {rank} of {rivals} laws in N and D" if rank else ""
    return (
        f"<article><h3>{text(name)}{state}</h3><p>{formula(fit.law)}</p>"
        f'<table><thead><tr><th scope="col">parameter</th><th scope="col" class="n">estimate</th>'
        f'<th scope="col" class="n">{100 * fit.ci_level:g} % interval</th></tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="note">On {fit.n_runs} runs of {fit.n_trunks} trunks ({text(fit.subset)}). Residual {100 * fit.rmse_log:.2f} % rms.'
        f" Dearer runs predicted from cheaper ones {error}{place}. {text(fit.law.source)}.</p></article>"
    )


def forecasts(analysis: Analysis) -> str:
    """Forecasts and hold-outs: predicted, observed, inside which interval; the first few in words."""
    rows = analysis.tables["predictions"]
    if not (rows["kind"] != "cv").any():
        return '<p class="note">No forecast was registered, and no run was held out.</p>'
    parts, items = [], []
    for line in [*forecast_lines(rows), ""]:
        if line.startswith("- "):
            items.append(f"<li>{text(line[2:])}</li>")
            continue
        if items:
            parts.append(f"<ul>{''.join(items)}</ul>")
            items = []
        parts.append(f"<p>{text(line)}</p>" if line else "")
    many = (rows["kind"] != "cv").sum() > MOST_FORECASTS
    return "".join(parts) + ('<p class="note">All of them stand in the table below.</p>' if many else "")


def plots(paths: Sequence[Path]) -> str:
    """Every plot: PNG files embedded, others named.

    Raises
    ------
    UserError
        When a file cannot be read.
    """
    figures: list[str] = []
    for path in paths:
        about = PLOTS.get(path.stem, path.stem)
        if path.suffix != ".png":
            figures.append(f'<p class="note">{text(about)}: {text(path.name)}</p>')
            continue
        try:
            data = base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError as error:
            raise UserError(f"report: cannot read the plot {path} ({error.strerror}); run `scaling plot` first") from error
        figures.append(f'<figure><img alt="{text(about)}" src="data:image/png;base64,{data}"></figure>')
    return f'<div class="plots">{"".join(figures)}</div>' if figures else '<p class="note">none were drawn</p>'


def provenance(analysis: Analysis, folder: Path) -> str:
    """Where the runs come from: the table and its hash, what the sweep recorded of itself, the sweep file."""
    source = analysis.runs.source
    found = [("runs", f"{source.name}, SHA-256 {hashlib.sha256(source.read_bytes()).hexdigest()}")] if source.is_file() else []
    found += [(fit.law.name, f"fit {fit.fit_id}: {fit.method}") for fit in analysis.fits]
    recorded = _flat(_record(folder))
    parts = [facts(found)]
    if recorded:
        parts.append(f"<details><summary>As the sweep recorded it (provenance.json)</summary>{facts(recorded)}</details>")
    sweep = folder / "sweep.toml"
    if sweep.is_file():
        content = sweep.read_text(encoding="utf-8", errors="replace").rstrip()
        parts.append(f"<details><summary>sweep.toml</summary><pre>{text(content)}</pre></details>")
    return "".join(parts)


def cost(analysis: Analysis, folder: Path) -> str:
    """What the runs cost: FLOPs, tokens and seconds by role, and where the workers' time went."""
    rows = analysis.runs.all_rows
    columns = {
        "flops_spent": "FLOPs spent",
        "tokens": "tokens seen at the end of runs",
        "train_seconds": "training, s",
        "eval_seconds": "evaluation, s",
    }
    kept = {name: words for name, words in columns.items() if name in rows and pd.api.types.is_numeric_dtype(rows[name])}
    head = "".join(f'<th scope="col" class="n">{text(words)}</th>' for words in ("runs", *kept.values()))
    body = "".join(
        f'<tr><th scope="row">{text(role)}</th><td class="n">{len(group)}</td>'
        + "".join(f'<td class="n">{_amount(float(group[name].sum()), name)}</td>' for name in kept)
        + "</tr>"
        for role, group in [*rows.groupby(rows["role"].astype(str)), ("all", rows)]
    )
    record = _record(folder)
    pairs = [("wall time of training", f"{cell(record['training_wall_seconds'])} s")] if "training_wall_seconds" in record else []
    seconds = record.get("worker_seconds")
    if isinstance(seconds, dict):
        pairs.append(("workers' time", ", ".join(f"{name} {cell(value)} s" for name, value in seconds.items())))
    table = f'<div class="table"><table><thead><tr><th scope="col">role</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return table + (facts(pairs) if pairs else "")


def _amount(value: float, name: str) -> str:
    return f"{value:.3g}" if name == "flops_spent" else si(value, 3) if name == "tokens" else cell(round(value, 1))


def _record(folder: Path) -> dict[str, Any]:
    """provenance.json; empty where there is none or it cannot be read."""
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flat(record: dict[str, Any], head: str = "") -> list[tuple[str, str]]:
    """Nested records as pairs of a dotted name and a text."""
    pairs: list[tuple[str, str]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{head}{name}.")
        else:
            pairs.append((f"{head}{name}", ", ".join(map(str, value)) if isinstance(value, list) else cell(value)))
    return pairs


def _band(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}" if math.isfinite(low) and math.isfinite(high) else "none"
