"""The plain report at the end of a fit: laws, approaches, critical points, forecasts, each with the words its numbers need."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.critical import DEAREST
from analysis.expression import names_in_exponents
from analysis.fitting import main_fit
from analysis.tuning import tuning_verdict

if TYPE_CHECKING:
    from analysis.fitting import Fit
    from analysis.frames import Frame
    from analysis.tables import Analysis

WIDTH = 100
TRUE, ONLY = "if the law is true", "if the law is only a law"
#: Exponents under two ways of counting that differ by more are worth a line.
MATERIAL_CONVENTION = 0.02
MOST_FORECASTS, MOST_COUNTS = 8, 3


def summary(analysis: Analysis) -> str:
    """Return the terminal report of an analysis: plain text, no colours, lines of at most 100 characters where words allow."""
    wrapped = [
        textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False) or [""]
        for line in summary_lines(analysis)
    ]
    return "\n".join(part for parts in wrapped for part in parts)


def summary_lines(analysis: Analysis) -> list[str]:
    """Return the lines of the report before they are wrapped: an empty one between sections, "- " before what belongs to the line above."""
    runs = analysis.runs
    lines = [
        f"{len(runs.frame)} runs fitted, {len(runs.excluded)} not (exclusions.csv has each reason); N is {runs.n_column},"
        f" D is {runs.d_column}, loss is {runs.loss_column}",
        "intervals are conditional on the law: they do not hold if it is wrong",
    ]
    for fit in sorted(analysis.fits, key=lambda f: len(f.law.variables)):
        lines += ["", *_law(fit)]
    lines += _rivals(analysis.fits)
    lines += _approaches(analysis)
    lines += _critical(analysis)
    lines += _stability(analysis.tables["windows"])
    if verdict := tuning_verdict(runs.all_rows, analysis.tables["tuning"]):
        lines += ["", f"rates: {verdict}"]
    lines += forecast_lines(analysis.tables["predictions"])
    if analysis.notes or analysis.warnings:
        lines.append("")
    lines += [f"not fitted: {note}" for note in dict.fromkeys(analysis.notes)]
    lines += [f"warning: {text}" for text in merged_warnings(analysis)]
    if analysis.folder is not None:
        lines += ["", f"tables: {analysis.folder}/  {' '.join(f'{name}.csv' for name in analysis.tables)}"]
    return lines


def answer(analysis: Analysis) -> str:
    """Return what the main law says in one sentence: exponents with their interval, and how its forecasts fared."""
    fit = main_fit(analysis.fits)
    if fit is None:
        return "No law was fitted."
    table = analysis.tables["approaches"]
    row = next((row for row in table.to_dict("records") if row["approach"] == "parametric" and math.isfinite(row["a"])), None)
    level = f"{100 * fit.ci_level:g} % interval"
    if row is not None:
        found = " and ".join(
            f"{words} with {name} = {row[name]:.3g}{_told(row[f'{name}_low'], row[f'{name}_high'], level)}"
            for name, words in (("a", "N* ~ C^a parameters"), ("b", "D* ~ C^b tokens"))
        )
        said = f"compute C is best spent on {found}"
    else:
        exponents = names_in_exponents(fit.law.expression) & set(fit.law.parameters)
        rows = [row for row in fit.parameter_table().to_dict("records") if row["parameter"] in exponents or not exponents]
        said = ", ".join(f"{row['parameter']} = {row['estimate']:.3g}{_told(row['ci_low'], row['ci_high'], level)}" for row in rows)
    status = "" if fit.status == "converged" else f" (fit {fit.status})"
    return f"If L = {fit.law.formula}{status}, {said}{_scored(analysis.tables['predictions'])}."


def _told(low: float, high: float, level: str) -> str:
    return f" ({level} {low:.3g} to {high:.3g})" if math.isfinite(low) and math.isfinite(high) else " (no interval)"


def _scored(table: Frame) -> str:
    """How far the scored hold-outs lay from what was predicted, in a clause."""
    errors = 100 * table[table["kind"] != "cv"]["relative_error"].astype(float).dropna()
    if not len(errors):
        return ""
    if len(errors) == 1:
        error = float(errors.iloc[0])
        return f"; the forecast of the hold-out was {abs(error):.2f} % too {'high' if error > 0 else 'low'}"
    return f"; the forecasts of {len(errors)} hold-outs were {errors.abs().mean():.2f} % off (mean), {errors.abs().max():.2f} % at most"


def _stability(table: Frame) -> list[str]:
    """How far the exponents move when an end of the grid is left out."""
    lines = []
    for name in ("alpha", "beta"):
        rows = table[(table["parameter"] == name) & (table["window"] != "all")]
        if len(rows):
            worst = rows.loc[rows["change"].abs().idxmax()]
            outside = rows[~rows["inside"].astype(bool)]["window"].tolist()
            where = f"outside its interval {', '.join(outside)}" if outside else "inside its interval in every window"
            lines.append(f"- {name}: {worst['change']:+.3f} at most ({worst['window']}); {where}")
    return ["", "stability: the law fitted again without an end of the grid (windows.csv)", *lines] if lines else []


def merged_warnings(analysis: Analysis) -> list[str]:
    """Return each warning once; one that several laws share names them together."""
    by_text: dict[str, list[str]] = {}
    for warning in analysis.warnings:
        name = next((fit.law.name for fit in analysis.fits if warning.startswith(f"{fit.law.name}: ")), "")
        by_text.setdefault(warning.removeprefix(f"{name}: ") if name else warning, []).append(name)
    named = {text: ", ".join(dict.fromkeys(name for name in names if name)) for text, names in by_text.items()}
    return [f"{names}: {text}" if names else text for text, names in named.items()]


def rivals(fits: list[Fit]) -> list[Fit]:
    """Laws in N and D by their error on dearer runs, lowest first; empty when there are fewer than two."""
    found = [fit for fit in fits if {"N", "D"} <= set(fit.law.variables)]
    return sorted(found, key=lambda f: f.cv_error if math.isfinite(f.cv_error) else math.inf) if len(found) > 1 else []


def _law(fit: Fit) -> list[str]:
    name = "" if fit.law.name == fit.law.formula else f"{fit.law.name}: "
    lines = [f"{name}L = {fit.law.formula}   on {fit.n_runs} runs of {fit.n_trunks} trunks ({fit.subset})"]
    level = f"{100 * fit.ci_level:g} % interval"
    width = max((len(parameter) for parameter in fit.law.parameters), default=0)
    for row in fit.parameter_table().to_dict("records"):
        band = f"   {level} [{row['ci_low']:.4g}, {row['ci_high']:.4g}]" if math.isfinite(row["ci_low"]) else "   no interval"
        lines.append(f"- {row['parameter']:{width}} = {row['estimate']:.4g}{band}")
    if fit.draws is None:
        lines.append("- these intervals are instant ones (sandwich, Student's t); --bootstrap DRAWS gives joint draws")
    cv = f"{100 * fit.cv_error:.2f} %" if math.isfinite(fit.cv_error) else "unknown (too few runs for folds)"
    lines.append(
        f"- residual {100 * fit.rmse_log:.2f} % rms;"
        f" noise between seeds {100 * float(fit.frame['noise_sd'].median()):.2f} % ({fit.noise.source});"
        f" dearer runs predicted from cheaper ones within {cv} (mean)"
    )
    lines.append(f"- status {fit.status}; {100 * fit.starts_agree:.0f} % of {fit.starts} starts agree; condition {fit.condition:.1e}")
    return lines


def _rivals(fits: list[Fit]) -> list[str]:
    found = rivals(fits)
    if not found:
        return []
    lines = ["", "laws in N and D, by their error on dearer runs predicted from cheaper ones (lowest first)"]
    for fit in found:
        error = f"{100 * fit.cv_error:.2f} %" if math.isfinite(fit.cv_error) else "unknown"
        lines.append(f"- {fit.law.name}: {error}, {len(fit.law.parameters)} parameters, status {fit.status}")
    return lines


def _approaches(analysis: Analysis) -> list[str]:
    """One line an approach to the compute-optimal model, the alarm, and what the counts of N and C change."""
    table = analysis.tables["approaches"]
    if not len(table):
        return []
    lines = ["", f"compute-optimal model: N* ~ C^a, D* ~ C^b; N* at the largest compute, {table['flops'].iloc[0]:.3g} FLOPs"]
    lines += [_approach(row) for row in table.to_dict("records") if math.isfinite(row["a"])]
    lines += [f"- {', '.join(names)}: {reason}" for reason, names in refused_approaches(table).items()]
    if analysis.alarm:
        lines.append(
            f"- ALARM: the approaches disagree ({analysis.alarm}). At least one is biased here: see approaches.png and isoflop.png before"
            " you plan with any of them."
        )
    return lines + _conventions(analysis.tables["conventions"])


def refused_approaches(table: Frame) -> dict[str, list[str]]:
    """Why approaches of approaches.csv gave no exponent: reason -> the approaches that it holds for."""
    refused: dict[str, list[str]] = {}
    for row in table[~np.isfinite(table["a"].astype(float))].to_dict("records"):
        refused.setdefault(str(row["reason"]).removeprefix(f"{row['approach']}: "), []).append(row["approach"])
    return refused


def _approach(row: dict[str, Any]) -> str:
    a, n = _band(row["a_low"], row["a_high"], ".3f"), _band(row["params_low"], row["params_high"], ".2g")
    reason = f"; {row['reason']}" if row["reason"] else ""
    return f"- {row['approach']}: a = {row['a']:.3f}{a}, b = {row['b']:.3f}, N* = {row['params_opt']:.3g}{n}{reason}"


def _band(low: float, high: float, style: str) -> str:
    return f" [{low:{style}}, {high:{style}}]" if math.isfinite(low) and math.isfinite(high) else ""


def _conventions(table: Frame) -> list[str]:
    """What counting N and C otherwise does to a; nothing when one count gives one answer."""
    known = table[np.isfinite(table["a"].astype(float))]
    if not len(known) or (known["n_column"].nunique() == 1 and np.ptp(known["a"]) <= MATERIAL_CONVENTION):
        return []
    lines = [f"- the counts of N and C move a from {known['a'].min():.3f} to {known['a'].max():.3f}, same runs (conventions.csv)"]
    groups = list(known.groupby("n_column", sort=False))
    for name, rows in groups[: MOST_COUNTS - 1]:
        ways = [f"a = {row['a']:.3f} with C {row['c_column']} ({row['approach']})" for row in rows.to_dict("records")]
        lines.append(f"  N = {name}: {', '.join(ways)}")
    return lines


def _critical(analysis: Analysis) -> list[str]:
    """One line a critical point."""
    lines = [""] if analysis.critical else []
    for point in analysis.critical:
        left = f"(L - E)/L = {100 * point.reducible_left:.3g} %" if math.isfinite(point.reducible_left) else "no floor in this law"
        quantity = {"N": "N = {:.2e}", "D": "D = {:.2e} tokens", "C": "C = {:.2e} FLOPs"}[point.axis].format(point.value)
        band = _band(point.ci_low, point.ci_high, ".2g")
        where = "beyond the data: an extrapolation" if point.beyond_data else "inside the data"
        if point.name == DEAREST:
            lines.append(f"{point.name}: {left}")
        elif not math.isfinite(point.value):
            lines.append(f"{point.name}: along {point.axis} ({point.held}) not reached on this law, or passed from the start")
        elif math.isfinite(point.share):
            lines.append(f"{point.name} from {quantity}{band} on ({point.held}), {where}")
        else:
            lines.append(f"{point.name}: {quantity}{band} ({point.held}), {where}")
        if math.isfinite(point.draws_without) and point.draws_without > 0:
            lines[-1] += f"; {100 * point.draws_without:.2g} % of the draws have no such point"
    return lines


def forecast_lines(table: Frame) -> list[str]:
    """Forecasts and hold-outs with both intervals, the first few one by one, many in sum."""
    rows = table[table["kind"] != "cv"]
    lines: list[str] = []
    for row in rows.head(MOST_FORECASTS).to_dict("records"):
        lines += ["", *_forecast(row)]
    scored = rows[np.isfinite(rows["observed"].astype(float))]
    if len(rows) > MOST_FORECASTS:
        lines += ["", f"{len(rows) - MOST_FORECASTS} more in predictions.csv"]
    if len(scored) > 1:
        inside = [
            f"{int((column == True).sum())} of {int(column.notna().sum())} inside the interval {words}"  # noqa: E712
            for column, words in ((scored["inside_interval"], TRUE), (scored["inside_model_interval"], ONLY))
            if column.notna().any()
        ]
        error = 100 * scored["relative_error"].astype(float).abs()
        errors = f"{len(scored)} hold-outs scored: error {error.mean():.2f} % (mean), {error.max():.2f} % (largest)"
        lines += ["", "; ".join([errors, *inside])]
    return lines


def _forecast(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['kind']} {row['run_id']}: predicted {row['predicted']:.4f} nats/token ({row['extrapolation']})"]
    none = "none was registered" if row["kind"] == "forecast" else "none: no draws, or too few runs"
    true, only = _band(row["pi_low"], row["pi_high"], ".4f"), _band(row["pi_model_low"], row["pi_model_high"], ".4f")
    lines.append(f"- interval {TRUE}:{true or ' ' + none}")
    centre = f"{only} about {row['predicted_model']:.4f}" if only else f" {none}"
    lines.append(f"- interval {ONLY}:{centre}")
    if not math.isfinite(row["observed"]):
        return [*lines, "- observed: not yet trained" + (f" (records: {row['notes']})" if row["notes"] else "")]
    known = [(row["inside_interval"], TRUE), (row["inside_model_interval"], ONLY)]
    verdicts = [
        f"{'inside' if inside else 'outside'} the interval {words}" for inside, words in known if isinstance(inside, bool | np.bool_)
    ]
    text = "; ".join([f"- observed {row['observed']:.4f}: error {100 * row['relative_error']:+.2f} %", *(verdicts or ["no interval"])])
    if math.isfinite(row["threshold"]):
        met = abs(row["relative_error"]) <= row["threshold"]
        text += f"; {'met' if met else 'missed'} the threshold of {100 * row['threshold']:g} % that was fixed beforehand"
    lines.append(text)
    if row["kind"] == "forecast":
        lines.append(f"- verdict: {row['verdict']}" + (f" (records: {row['notes']})" if row["notes"] else ""))
    return lines
