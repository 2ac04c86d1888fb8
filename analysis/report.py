"""The report of a results folder: one HTML page that needs nothing else, and the checklist beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import page_sections as sections
from analysis.checklist import UNKNOWN, checklist_items, checklist_markdown, question
from analysis.files import write_text
from analysis.page_data import page_data, page_json
from analysis.page_tables import HEADINGS, facts, folded, table, text
from analysis.report_text import answer

if TYPE_CHECKING:
    from analysis.tables import Analysis

#: The page's scripts, in the order in which they need each other.
SCRIPTS = ("format.js", "law.js", "chart.js", "runs.js", "explorer.js", "tables.js", "main.js")
OWN_SECTION = ("runs", "exclusions", "predictions", "folds")
UNFOLDED = ("approaches", "critical", "fits")
NO_SCRIPT = '<p class="note needs-script">This part needs JavaScript, which is off; the plots and tables below show the same numbers.</p>'


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
    write_text(folder / "checklist.md", checklist_markdown(analysis, folder))
    return write_text(folder / "report.html", page)


def page_script() -> str:
    """Return the page's JavaScript: one function around all files of `SCRIPTS`."""
    files = resources.files("analysis").joinpath("page")
    parts = [files.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def _page(analysis: Analysis, folder: Path, plots: Sequence[Path]) -> str:
    name = text(folder.resolve().name)
    asked = question(folder)
    script = page_script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    # Nothing that came with the data can load or run anything: only this one script may run, and nothing may be fetched.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = resources.files("analysis").joinpath("page", "style.css").read_text(encoding="utf-8")
    body = _sections(analysis, folder, plots)
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for key, (heading, _) in body.items())
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{name}: scaling laws</title><style>{style}</style></head><body>",
        '<a class="skip" href="#answer">Skip to the answer</a>',
        f'<header><div class="top"><h1>{name}</h1><span id="theme"></span></div>',
        f'<p class="question">{text(asked)}</p>' if asked != UNKNOWN else "",
        f'<p class="note">{len(analysis.runs.frame)} runs fitted, {len(analysis.runs.excluded)} not fitted. '
        f"N is the column <code>{text(analysis.runs.n_column)}</code>. Intervals are conditional on the law.</p></header>",
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>',
        *(f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{heading}</h2>{content}</section>'
          for key, (heading, content) in body.items()),
        f'</main><script type="application/json" id="data">{page_json(page_data(analysis))}</script>',
        f"<script>{script}</script></body></html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _sections(analysis: Analysis, folder: Path, plots: Sequence[Path]) -> dict[str, tuple[str, str]]:
    """Return the page's sections in their order: heading and content by key."""
    predictions, laws = analysis.tables["predictions"], analysis.tables["laws"]
    folds = predictions["kind"] == "cv"
    tables = dict(analysis.tables) | {
        "laws": laws[laws["fit_id"] != ""],  # the approaches have a table of their own
        "predictions": predictions[~folds],
        "folds": predictions[folds],
        "exclusions": analysis.runs.excluded,
        "runs": analysis.runs.all_rows,
    }
    shown = [key for key in HEADINGS if key in tables and key not in OWN_SECTION]
    checks = "".join(
        f"<details><summary>{text(group)}</summary>{facts(items)}</details>" for group, items in checklist_items(analysis, folder).items()
    )
    said = sections.printed(answer(analysis))
    return {
        "answer": ("Answer", f'<p class="answer">{said}</p>{sections.alarms(analysis)}{sections.terminal(analysis)}'),
        "laws": ("Laws", sections.laws(analysis)),
        "plot": ("Every run", f'<div id="runs-plot">{NO_SCRIPT}</div>'),
        "explorer": ("Explorer", f'<div id="law-explorer">{NO_SCRIPT}</div>'),
        "forecasts": (
            "Forecasts",
            sections.forecasts(analysis) + "".join(folded(key, tables[key]) for key in ("predictions", "folds") if len(tables[key])),
        ),
        "plots": ("Plots", sections.plots(plots)),
        "runs": ("Runs", table("runs", tables["runs"])),
        "exclusions": ("Not fitted", table("exclusions", tables["exclusions"])),
        "tables": (
            "Tables",
            "".join(f"<h3>{text(HEADINGS[key])}</h3>{table(key, tables[key])}" for key in shown if key in UNFOLDED)
            + "".join(folded(key, tables[key]) for key in shown if key not in UNFOLDED and len(tables[key])),
        ),
        "checklist": ("Checklist", checks),
        "provenance": ("Provenance", sections.provenance(analysis, folder)),
        "cost": ("Cost", sections.cost(analysis, folder)),
    }  # fmt: skip
