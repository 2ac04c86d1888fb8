"""docs/tables.md names every column of every table, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from synthetic import write_results

from analysis.groups import GROUP_COLUMNS
from analysis.tables import analyse
from analysis.task_laws import COLUMNS as TASK_COLUMNS
from scaling.canaries import Exposure
from scaling.cli.early import COLUMNS as EARLY_COLUMNS
from scaling.evaluation.table import COLUMNS as EVALUATION_COLUMNS
from scaling.tables import CURVE_COLUMNS, DOMAIN_COLUMNS, RUN_COLUMNS

DOCUMENT = Path(__file__).parent.parent / "docs" / "tables.md"


def documented() -> dict[str, list[str]]:
    """Columns of each section's table."""
    sections = re.split(r"^## ([a-z_]+)\.(?:csv|parquet).*$", DOCUMENT.read_text(encoding="utf-8"), flags=re.M)[1:]
    found = {}
    for name, text in zip(sections[::2], sections[1::2], strict=True):
        cells = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:]
        found[name] = [column.strip() for cell in cells for column in cell.split(",")]
    return found


def test_every_column_is_documented_once(tmp_path: Path) -> None:
    analysis = analyse(write_results(tmp_path / "results"), bootstrap=50)
    expected = {name: sorted(table.columns) for name, table in analysis.tables.items()}
    expected |= {
        "runs": sorted(RUN_COLUMNS),
        "curves": sorted(CURVE_COLUMNS),
        "domains": sorted(DOMAIN_COLUMNS),
        "groups": sorted(GROUP_COLUMNS),
        "evaluation": sorted(EVALUATION_COLUMNS),
        "task_laws": sorted(TASK_COLUMNS),
        "models": sorted(["model", "params_non_embedding", "params_total", "loss", "loss_se"]),
        "early": sorted(EARLY_COLUMNS),
        "canaries": sorted(["run_id", *Exposure.__struct_fields__]),
    }
    assert {name: sorted(columns) for name, columns in documented().items()} == expected


def test_columns_of_timings_and_hosts_are_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = re.search(r"Columns that hold timings.*?\n`runs.csv`: (.*?)\.", text, re.S)
    assert named is not None
    columns = re.findall(r"`([a-z_]+)`", named.group(1))
    assert set(columns) == {
        column for column in RUN_COLUMNS if column.endswith("_seconds") or column in ("attempts", "host", "finished_at")
    }
