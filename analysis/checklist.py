"""The reproducibility checklist of Li et al. 2025, "(Mis)Fitting", filled from the records; what they do not say is called unknown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.errors import printable
from analysis.report_text import refused_approaches, rivals
from analysis.sandwich import parameter_intervals
from analysis.tuning import tuning_verdict

if TYPE_CHECKING:
    from analysis.fitting import Fit
    from analysis.tables import Analysis

UNKNOWN = "unknown: not recorded"
COVERAGE = (
    "simulated sweeps with a known law, in docs/coverage.md (if the law is true); published runs, cheap predicting dear, in"
    " docs/model_error.md (if the law is only a law)"
)
Item = tuple[str, str]


def checklist_items(analysis: Analysis, folder: str | Path) -> dict[str, list[Item]]:
    """Answer the checklist's questions from the tables, the fits and the forecasts.

    Parameters
    ----------
    analysis : Analysis
        Runs, fits and tables.
    folder : str or Path
        The results folder: its sweep.toml (question) and forecasts are read where present.

    Returns
    -------
    dict
        The four groups (form and hypothesis, training, data, fit), each a list of (question, answer); answers are plain one-line text that
        may hold words of the data, unescaped.
    """
    folder = Path(folder)
    return {
        "Form and hypothesis": _form(analysis, folder),
        "Training": _training(analysis, folder),
        "Data": _data(analysis, folder),
        "Fit": _fit(analysis, folder),
    }


def checklist_markdown(analysis: Analysis, folder: str | Path) -> str:
    """Write the checklist as Markdown."""
    lines = [
        "# Reproducibility checklist",
        "",
        'After Li et al. 2025, "(Mis)Fitting: a survey of scaling laws". Filled from the records of this folder; '
        "what they do not say is marked unknown.",
    ]
    for group, items in checklist_items(analysis, folder).items():
        lines += ["", f"## {group}", ""]
        lines += [f"- **{_markdown(question)}**: {_markdown(answer)}" for question, answer in items]
    return "\n".join(lines) + "\n"


def _form(analysis: Analysis, folder: Path) -> list[Item]:
    laws = [f"{_named(fit)}{fit.law.formula} ({fit.law.source})" for fit in analysis.fits]
    free = [f"{fit.law.name}: {len(fit.law.parameters)} ({', '.join(fit.law.parameters)})" for fit in analysis.fits]
    variables = [f"{fit.law.name}: {', '.join(fit.law.variables)}" for fit in analysis.fits]
    subsets = [f"{fit.law.name}: {fit.subset}" for fit in analysis.fits if str(fit.subset).strip()]
    compute = sorted({str(fit.c_column) for fit in analysis.fits})
    return [
        ("Question", question(folder)),
        ("Law fitted", _join(laws)),
        ("Variables", _join(variables)),
        ("Free parameters", _join(free)),
        ("Runs each law is fitted on", _join(subsets)),
        ("N", f"column {analysis.runs.n_column}"),
        ("D", f"column {analysis.runs.d_column}"),
        ("C", f"column {', '.join(compute)}; the law's frontier counts C = 6ND" if compute else UNKNOWN),
        ("Loss", f"column {analysis.runs.loss_column}"),
        ("Counts of N and C", _conventions(analysis)),
        ("Approaches compared", _approaches(analysis)),
        ("Rival laws", _rivals(analysis)),
    ]


def _approaches(analysis: Analysis) -> str:
    """Say what each approach to the compute-optimal model found, and whether they agree."""
    table = analysis.tables["approaches"]
    parts = []
    for row in table[np.isfinite(table["a"].astype(float))].to_dict("records"):
        band = f" [{row['a_low']:.3f}, {row['a_high']:.3f}]" if np.isfinite(row["a_low"]) else ""
        parts.append(f"{row['approach']}: N* ~ C^{row['a']:.3f}{band}")
    verdict = f"they disagree: {analysis.alarm}" if analysis.alarm else "no disagreement found"
    judged = [verdict] if len(parts) > 1 else ["fewer than two to compare"]
    return _join([*parts, *(f"{', '.join(names)}: none, {reason}" for reason, names in refused_approaches(table).items()), *judged])


def _named(fit: Fit) -> str:
    """Name of a law and a colon; nothing where the formula is the name."""
    return "" if fit.law.name == fit.law.formula else f"{fit.law.name}: "


def _conventions(analysis: Analysis) -> str:
    """Say which counts were tried, and what they do to the exponent of N*."""
    table = analysis.tables["conventions"]
    tried = f"{', '.join(table['n_column'].unique())} as N; C {' and '.join(table['c_column'].unique())}" if len(table) else ""
    known = table[np.isfinite(table["a"].astype(float))]
    if not len(known):
        return f"tried: {tried}; no exponent without a law" if tried else UNKNOWN
    return f"tried: {tried}; N* ~ C^a with a from {known['a'].min():.3f} to {known['a'].max():.3f} (conventions.csv)"


def _rivals(analysis: Analysis) -> str:
    found = [f"{fit.law.name} {100 * fit.cv_error:.3g} %" for fit in rivals(analysis.fits) if np.isfinite(fit.cv_error)]
    return f"error on dearer runs, lowest first: {', '.join(found)}" if found else "none: at most one law in N and D was fitted"


def _training(analysis: Analysis, folder: Path) -> list[Item]:
    frame = analysis.runs.frame
    cells: list[int] = frame.groupby(["N", "D"]).size().tolist()
    repeats = f"{len(cells)} cells (N, D), {min(cells)} to {max(cells)} runs in each"
    return [
        ("Models trained", f"{len(frame)} runs of {frame.trunk_id.nunique()} trunks, {frame.N.nunique()} sizes"),
        ("Sizes", _levels(frame.N)),
        ("Data per model", f"{_levels(frame.D)} tokens; tokens per parameter {_range(frame.D / frame.N)}"),
        ("Repeats", repeats),
        ("Seeds", _facts(frame, "seed_init", "seed_data")),
        ("Shapes", _facts(frame, "d_model", "n_layers", "n_heads", "d_ff", "sequence_length")),
        ("Learning rate", _facts(frame, "learning_rate", "lr", "peak_lr")),
        ("Batch", _facts(frame, "batch_tokens", "batch_seqs", "batch_size", "bs")),
        ("Schedule", _facts(frame, "schedule", "warmup_steps", "cooldown_steps", "warmup", "decay")),
        ("Tuned", _tuned(analysis)),
        ("Optimiser", _optimizer(folder)),
        ("Numerics", _facts(frame, "numerics_id")),
        ("Machines", _facts(frame, "host")),
        ("Compute spent, FLOPs", f"{frame.flops_spent.astype(float).sum():.4g}" if "flops_spent" in frame else UNKNOWN),
    ]


def _tuned(analysis: Analysis) -> str:
    """Say whether settings were tuned, by the roles of the runs and by settings that vary between runs of the same N and D."""
    rows = analysis.runs.all_rows
    if verdict := tuning_verdict(rows, analysis.tables["tuning"]):
        return verdict
    if "recipe_version" in rows:
        count = _count(rows, "role", "tune")
        return f"{count} tuning runs in this folder, none of them fitted" if count else "no tuning run in this folder; elsewhere: unknown"
    findings = [text for text in analysis.warnings if "untuned" in text]
    return f"not known to be, and the runs speak against it: {findings[0]}" if findings else UNKNOWN


def _data(analysis: Analysis, folder: Path) -> list[Item]:
    runs = analysis.runs
    reasons = runs.excluded.reason.astype(str).value_counts() if len(runs.excluded) else pd.Series(dtype=int)
    excluded = _join([f"{count} x {reason}" for reason, count in sorted(reasons.items(), key=str)]) if len(reasons) else "none"
    released = [name for name in ("runs.csv", "curves.parquet") if (folder / name).is_file()] or [runs.source.name]
    trunks = "schedule" in runs.frame
    return [
        ("Text", _facts(runs.frame, "corpus", "corpus_hash", "dataset", "group")),
        ("Held-out text", _held_out(folder)),
        ("Tokenizer", _facts(runs.frame, "tokenizer", "vocab_size")),
        ("Repetition", _facts(runs.frame, "epochs")),
        ("Runs used", f"{len(runs.frame)} of {len(runs.all_rows)} rows of {runs.source.name}"),
        ("Checkpoints used", "the end of each run, after its cooldown" if trunks else UNKNOWN),
        ("Smoothing", "none: held-out loss at the end of a run" if trunks else UNKNOWN),
        ("Exclusions", excluded),
        ("Raw points", f"in this folder: {', '.join(released)}"),
    ]


def _fit(analysis: Analysis, folder: Path) -> list[Item]:
    items: list[Item] = []
    for fit in analysis.fits:
        name = fit.law.name
        items += [
            (f"{name}: objective", _objective(fit)),
            (f"{name}: optimiser", str(fit.method) or UNKNOWN),
            (f"{name}: how the optimum was checked", _optimum(fit)),
            (f"{name}: verdict", f"{fit.status}; condition {fit.condition:.3g}; RMSE of log loss {fit.rmse_log:.3g}"),
            (
                f"{name}: error out of sample",
                f"{100 * fit.cv_error:.3g} % (rolling folds)" if np.isfinite(fit.cv_error) else UNKNOWN,
            ),
            (f"{name}: intervals", _intervals(fit)),
            (f"{name}: noise", str(fit.noise.source) if fit.noise is not None else UNKNOWN),
        ]
    items.append(("Coverage of the intervals", COVERAGE))
    items.append(("Acceptance fixed beforehand, and hold-outs", _forecasts(analysis)))
    return items


def _optimum(fit: Fit) -> str:
    """Say how wide the search was, what agreed, and what one more Newton step would gain."""
    solution = fit.solution
    gap = f"{solution.newton:.2g} of the objective" if np.isfinite(solution.newton) else "unknown"
    return (
        f"{fit.starts} grid cells or starts searched; {100 * fit.starts_agree:.0f} % of them end at the reported optimum;"
        f" one more Newton step promises {gap}"
    )


def _objective(fit: Fit) -> str:
    delta = f", delta {fit.delta:.4g}" if fit.delta is not None and np.isfinite(fit.delta) else ""
    return f"{fit.loss}{delta} on {fit.link} loss; value {fit.objective:.6g}"


def _intervals(fit: Fit) -> str:
    if fit.draws is None:
        return f"{100 * fit.ci_level:g} %, {parameter_intervals(fit)[1]} sandwich with Student's t, conditional on the law"
    return f"{100 * fit.ci_level:g} %, {len(fit.draws)} joint draws, conditional on the law"


def _forecasts(analysis: Analysis) -> str:
    table, parts = analysis.tables["predictions"], []
    for row in table[table["kind"] == "forecast"].to_dict("records"):
        told = f"{row['run_id']}: forecast {row['predicted']:.4f}, "
        if math.isfinite(row["observed"]):
            told += f"observed {row['observed']:.4f}, off by {100 * row['relative_error']:+.2f} %, threshold {100 * row['threshold']:g} %: "
            told += row["verdict"]
        else:
            told += f"accepted within {100 * row['threshold']:g} %, not scored yet"
        parts.append(told + (f" ({row['notes']})" if row["notes"] else ""))
    return _join(parts) if parts else "none: no forecast was registered"


def _resolved(folder: Path) -> dict[str, Any]:
    """Return the sweep as it was trained (sweep.resolved.json); empty where there is none or it cannot be read."""
    try:
        found = json.loads((folder / "sweep.resolved.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _optimizer(folder: Path) -> str:
    """List the settings of the optimizer over all runs of the sweep."""
    runs = _resolved(folder).get("runs", [])
    settings = [run["trunk"]["optimizer"] for run in runs if isinstance(run, dict) and isinstance(run.get("trunk"), dict)
                and isinstance(run["trunk"].get("optimizer"), dict)]  # fmt: skip
    settings = [
        {name: value if not isinstance(value, list) else ", ".join(f"{key} {what}" for key, what in value) for name, value in row.items()}
        for row in settings
    ]
    return _facts(pd.DataFrame(settings), *sorted({name for setting in settings for name in setting})) if settings else UNKNOWN


def _held_out(folder: Path) -> str:
    facts = _resolved(folder).get("corpus_facts", {})
    names = (
        "heldout_documents",
        "heldout_bytes",
        "train_documents",
        "train_bytes",
        "duplicate_documents",
        "duplicate_block_bytes",
        "licence",
    )
    return _join([f"{name} {facts[name]}" for name in names if name in facts])


def question(folder: Path) -> str:
    """Return the question of the sweep file's opening comment; `UNKNOWN` where there is none."""
    path = folder / "sweep.toml"
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("#"):
                break
            if "Question:" in line:
                return line.split("Question:", 1)[1].split("   ")[0].strip() or UNKNOWN
    return UNKNOWN


def _join(parts: list[str]) -> str:
    return "; ".join(parts) if parts else UNKNOWN


def _count(frame: Any, column: str, value: str) -> int:
    return int((frame[column].astype(str) == value).sum()) if column in frame else 0


def _facts(frame: Any, *columns: str) -> str:
    """Say the levels of the columns that exist and are filled."""
    known = [name for name in columns if name in frame and frame[name].notna().any() and (frame[name].astype(str) != "").any()]
    return _join([f"{name} {_levels(frame[name])}" for name in known])


def _levels(values: Any) -> str:
    """List the levels of a column, or their range when there are more than eight."""
    found = sorted(values.dropna().unique().tolist())
    if len(found) <= 8:
        return ", ".join(_number(value) for value in found)
    return f"{_number(found[0])} to {_number(found[-1])} ({len(found)} levels)"


def _range(values: Any) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"


def _number(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.6g}" if abs(value) < 1e15 and value != int(value) else f"{int(value)}" if abs(value) < 1e15 else f"{value:g}"
    return str(value)


def _markdown(text: str) -> str:
    """Keep foreign words from becoming markup or new lines."""
    clean = printable(text)
    for char in "\\`*[]":
        clean = clean.replace(char, "\\" + char)
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
