"""Columns of a foreign table by rules: renamed, or computed by plain arithmetic on theirs. Nothing is evaluated as code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.expression import parse
from analysis.frames import Column, Frame
from analysis.reading import is_blank


def rename(theirs: Frame, rules: Mapping[str, str], units: Mapping[str, float], source: Path) -> Frame:
    """Our columns by the rules, then theirs that were not renamed.

    Parameters
    ----------
    rules : dict of str to str
        Our column -> one of theirs, or arithmetic on theirs and on our columns before it; names with blanks in backticks.
    units : dict of str to float
        Factor of a column: of ours where a rule makes it, else of theirs.

    Raises
    ------
    UserError
        When a column is missing, a cell is no number, or a rule is not understood or gives no finite number; the line names the row.
    """
    for name in units:
        if name not in rules and name not in theirs:
            raise UserError(f"--unit {name}: no such column; found: {', '.join(theirs.columns[:40])}")
    theirs = theirs.assign(**{name: numbers(theirs[name], name, source) * units[name] for name in units if name not in rules})
    ours: dict[str, Any] = {}
    for name, expression in rules.items():
        ours[name] = _evaluate(name, expression.strip(), theirs, ours, source)
        if name in units:
            ours[name] = numbers(pd.Series(ours[name], dtype=object), name, source) * units[name]
    renamed = {expression.strip() for expression in rules.values()}
    kept = [name for name in theirs if name not in ours and name not in renamed]
    return pd.DataFrame({**ours, **{name: theirs[name] for name in kept}}, index=theirs.index)


def _evaluate(name: str, expression: str, theirs: Frame, ours: Mapping[str, Any], source: Path) -> Any:
    """One column of ours: theirs as it stands, or arithmetic on columns."""
    if expression in theirs:
        return theirs[expression].to_numpy()
    quoted: list[str] = re.findall(r"`([^`]+)`", expression)
    text = re.sub(r"`[^`]+`", lambda found: f"quoted_{quoted.index(found.group()[1:-1])}", expression)
    meaning = {f"quoted_{at}": column for at, column in enumerate(quoted)}
    try:
        formula = parse(text)
        values = {}
        for word in formula.names:
            column = meaning.get(word, word)
            if column not in theirs and column not in ours:
                raise UserError(f"no column {column!r}; found: {', '.join(theirs.columns[:40])}")
            values[word] = numbers(theirs[column] if column in theirs else pd.Series(ours[column], dtype=object), column, source)
        result = np.broadcast_to(formula.value(values), (len(theirs),)).astype(np.float64)
    except OverflowError:
        raise UserError(f"--map {name}={expression}: a number is too large") from None
    except UserError as error:
        raise UserError(f"--map {name}={expression}: {error}") from None
    known = np.all([np.isfinite(value) for value in values.values()], axis=0) if values else np.ones(len(theirs), dtype=bool)
    wrong = known & ~np.isfinite(result)
    if wrong.any():
        raise UserError(f"{source}: row {int(wrong.argmax()) + 1}: {name} = {expression} is {result[wrong.argmax()]}; correct the row")
    return np.where(known, result, np.nan)


def numbers(column: Column, name: str, source: Path) -> np.ndarray:
    """Cells as numbers, NaN where empty."""
    text = column.map(lambda cell: cell if isinstance(cell, str) else repr(float(cell)))
    blank = is_blank(text)
    values = pd.to_numeric(text.where(~blank), errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.isnan(values) & ~blank.to_numpy()
    if wrong.any():
        raise UserError(f"{source}: row {int(wrong.argmax()) + 1}, column {name}: {text.iloc[int(wrong.argmax())]!r} is no number")
    return values


def cells(column: Column) -> Column:
    """Numbers as text that reads back as the same number, whole ones without a point; empty where unknown."""

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return value
        if not math.isfinite(value):
            return ""
        return str(int(value)) if float(value).is_integer() and abs(value) < 1e17 else repr(float(value))

    return column.map(cell).astype(object)
