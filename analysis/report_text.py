"""The plain report at the end of a fit: law, intervals, forecast, warnings, each where its number is printed."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from analysis.critical import DEAREST

if TYPE_CHECKING:
    from analysis.fitting import Fit
    from analysis.tables import Analysis

WIDTH = 100


def summary(analysis: Analysis) -> str:
    """Return the terminal report of an analysis: plain text, no colours, lines of at most 100 characters where words allow."""
    runs = analysis.runs
    lines = [
        f"{len(runs.frame)} runs fitted, {len(runs.excluded)} not (exclusions.csv has each reason); N is {runs.n_column},"
        f" D is {runs.d_column}, loss is {runs.loss_column}",
    ]
    for fit in sorted(analysis.fits, key=lambda f: len(f.law.variables)):
        lines += ["", *_law(fit)]
    lines += _critical(analysis)
    lines += _forecasts(analysis)
    if analysis.notes or analysis.warnings:
        lines.append("")
    lines += [f"not fitted: {note}" for note in analysis.notes]
    lines += [f"warning: {text}" for text in analysis.warnings]
    if analysis.folder is not None:
        lines += ["", f"tables: {analysis.folder}/  laws.csv fits.csv frontier.csv returns.csv predictions.csv exclusions.csv"]
    wrapped = [
        textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False) or [""] for line in lines
    ]
    return "\n".join(part for parts in wrapped for part in parts)


def _law(fit: Fit) -> list[str]:
    level = f"{100 * fit.ci_level:g} % interval"
    lines = [f"{fit.law.name}: L = {fit.law.formula}   on {fit.n_runs} runs of {fit.n_trunks} trunks ({fit.subset})"]
    for row in fit.parameter_table().to_dict("records"):
        band = f"   {level} [{row['ci_low']:.4g}, {row['ci_high']:.4g}]" if math.isfinite(row["ci_low"]) else "   no interval (no draws)"
        lines.append(f"- {row['parameter']:5} = {row['estimate']:.4g}{band}")
    if fit.draws is not None:
        lines.append("- intervals are conditional on the law, and do not hold if it is wrong")
    cv = f"{100 * fit.cv_error:.2f} %" if math.isfinite(fit.cv_error) else "unknown (too few runs for folds)"
    lines.append(
        f"- residual {100 * fit.rmse_log:.2f} % rms;"
        f" noise between seeds {100 * float(fit.frame['noise_sd'].median()):.2f} % ({fit.noise.source});"
        f" dearer runs predicted from cheaper ones within {cv} (mean)"
    )
    lines.append(f"- status {fit.status}; {100 * fit.starts_agree:.0f} % of {fit.starts} starts agree; condition {fit.condition:.1e}")
    return lines


def _critical(analysis: Analysis) -> list[str]:
    """One line a critical point."""
    lines = [""] if analysis.critical else []
    for point in analysis.critical:
        left = f"(L - E)/L = {100 * point.reducible_left:.2g} %" if math.isfinite(point.reducible_left) else "no floor in this law"
        quantity = {"N": "N = {:.2e}", "D": "D = {:.2e} tokens", "C": "C = {:.2e} FLOPs"}[point.axis].format(point.value)
        band = f" [{point.ci_low:.2g}, {point.ci_high:.2g}]" if math.isfinite(point.ci_low) else ""
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


def _forecasts(analysis: Analysis) -> list[str]:
    table, lines = analysis.tables["predictions"], []
    for row in table[table["kind"] != "cv"].to_dict("records"):
        band = f" [{row['pi_low']:.4f}, {row['pi_high']:.4f}]" if math.isfinite(row["pi_low"]) else ""
        lines += ["", f"{row['kind']} {row['run_id']}: predicted {row['predicted']:.4f}{band} nats/token ({row['extrapolation']})"]
        if not math.isfinite(row["observed"]):
            lines.append("- observed: not yet trained")
            continue
        inside = {True: "inside its interval", False: "outside its interval"}.get(row["inside_interval"], "no interval")
        text = f"- observed {row['observed']:.4f}: error {100 * row['relative_error']:+.2f} %, {inside}"
        if math.isfinite(row["threshold"]):
            met = abs(row["relative_error"]) <= row["threshold"]
            text += f"; {'met' if met else 'missed'} the threshold of {100 * row['threshold']:g} % that was fixed beforehand"
        lines.append(text)
    return lines
