"""`evaluation.csv`: one row a model, task, part of it, and metric."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scaling.evaluation.metrics import Score
from scaling.evaluation.tasks import TaskScore
from scaling.record import folder_lock, write_atomic

COLUMNS = "model,source,task,domain,language,metric,value,std_error,n,strategy,seed".split(",")
HELD_OUT = "held_out"
HELD_OUT_METRICS = ("loss", "perplexity", "bits_per_byte", "accuracy")


def held_out_rows(model: str, source: str, domain: str, scores: dict[str, Score], metrics: Sequence[str] | None) -> list[dict[str, Any]]:
    """Rows of `scaling.evaluation.held_out`."""
    return [
        _row(model, source, TaskScore(HELD_OUT, domain, "all", metric, score), "", "")
        for metric, score in scores.items()
        if metrics is None or metric in metrics
    ]


def task_rows(model: str, source: str, found: Iterable[TaskScore], *, strategy: str, seed: int) -> list[dict[str, Any]]:
    """Rows of `scaling.evaluation.tasks`."""
    return [_row(model, source, one, strategy, seed) for one in found]


def _row(model: str, source: str, one: TaskScore, strategy: str, seed: int | str) -> dict[str, Any]:
    values = (
        model,
        source,
        one.task,
        one.domain,
        one.language,
        one.metric,
        one.score.value,
        one.score.std_error,
        one.score.n,
        strategy,
        seed,
    )
    return dict(zip(COLUMNS, values, strict=True))


def merge_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to the table; those of the same model, task and metric take the place of older ones."""
    with folder_lock(path.parent, "tables"):
        old: list[dict[str, Any]] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                old = list(csv.DictReader(file))
        new = {(row["model"], row["task"], row["metric"]) for row in rows}
        kept = [row for row in old if (row["model"], row["task"], row["metric"]) not in new]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([row[column] for column in COLUMNS] for row in [*kept, *rows])
        write_atomic(path, text.getvalue().encode())
