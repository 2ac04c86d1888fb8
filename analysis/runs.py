"""Runs from a results folder, or from anyone's CSV, as one tidy and checked table."""

from __future__ import annotations

import csv
import io
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.frames import Column, Frame

N_COLUMNS = ("params_non_embedding", "params_total", "params", "n_params", "N")
D_COLUMNS = ("tokens", "D", "n_tokens")
LOSS_COLUMNS = ("loss", "L", "final_loss", "val_loss")
MISSING = ("", "nan", "na", "n/a", "none", "null")
HOLDOUT_REASON = "holdout: scored, never fitted"
OPERATORS: dict[str, Callable] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
SUFFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Runs:
    """Usable runs and what was left out.

    Attributes
    ----------
    frame : DataFrame
        Usable rows: run_id, trunk_id (the run's own id where the table has none), seed_data ("" where absent), role, N (parameters),
        D (tokens), C (training FLOPs), loss (nats per token), and every original column.
    holdouts : DataFrame
        The same columns for finished runs with role holdout; never fitted.
    excluded : DataFrame
        run_id, reason.
    all_rows : DataFrame
        Every row that was read.
    c_column : str
        "flops" where that column is filled in, else "flops_6nd": C = 6 N D.
    """

    frame: Frame
    holdouts: Frame
    excluded: Frame
    all_rows: Frame
    n_column: str
    d_column: str
    loss_column: str
    c_column: str
    source: Path
    folder: Path | None


def read_runs(
    path: str | Path,
    *,
    n_column: str | None = None,
    d_column: str | None = None,
    loss_column: str | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Runs:
    """Read runs from a results folder (its runs.csv) or from a CSV with parameter, tokens and loss columns.

    Parameters
    ----------
    path : path
        A folder that holds runs.csv, or a CSV file (UTF-8, comma-separated, with a header).
    n_column, d_column, loss_column : str, optional
        Columns for N, D and the loss; when not given, the first of the usual names that the table has.
    exclude : str or list of str, optional
        Rows to leave out: ``COLUMN OP VALUE`` joined by ``and``; OP is one of < <= > >= == !=.

    Raises
    ------
    UserError
        When the file is missing, binary, empty or has no rows; a column is missing; N, D or the loss of a finished run is text, zero,
        negative or infinite; or the expression is not understood.
    """
    source = Path(path)
    folder = source if source.is_dir() else None
    if folder is not None:
        source = folder / "runs.csv"
        if not source.is_file():
            raise UserError(f"{folder}: holds no runs.csv; give a results folder, or a CSV of runs")
    table = _read_table(source)
    n_name = _find_column(table, n_column, N_COLUMNS, "--n-column", source)
    d_name = _find_column(table, d_column, D_COLUMNS, "--d-column", source)
    loss_name = _find_column(table, loss_column, LOSS_COLUMNS, "--loss-column", source)
    rows = pd.DataFrame({name: _as_numbers(table[name], name) for name in table.columns})
    if "run_id" not in rows:
        rows.insert(0, "run_id", [f"row-{i + 1}" for i in range(len(rows))])
    if "trunk_id" not in rows:
        rows["trunk_id"] = rows["run_id"]
    rows["seed_data"] = table["seed_data"].astype(str) if "seed_data" in table else ""
    rows["role"] = table["role"].where(table["role"] != "", "fit") if "role" in table else "fit"
    reasons = _reasons(table, rows, loss_name, exclude)
    values = {name: np.full(len(table), np.nan) for name in ("N", "D", "loss")}
    held = [reason == HOLDOUT_REASON for reason in reasons]
    for i, reason in enumerate(reasons):
        if reason and not held[i]:
            continue
        for name, column in (("N", n_name), ("D", d_name), ("loss", loss_name)):
            values[name][i] = _positive(table[column].iloc[i], row=i + 1, column=column, source=source)
    tidy = rows.drop(columns=[c for c in ("N", "D", "C", "loss") if c in rows]).assign(**values)
    usable = np.array([not reason for reason in reasons], dtype=bool)
    tidy["C"], c_column = _compute(rows, tidy, usable)
    excluded = pd.DataFrame({"run_id": rows["run_id"], "reason": reasons}).loc[~usable].reset_index(drop=True)
    return Runs(
        frame=tidy.loc[usable].reset_index(drop=True),
        holdouts=tidy.loc[np.array(held, dtype=bool)].reset_index(drop=True),
        excluded=excluded,
        all_rows=rows,
        n_column=n_name,
        d_column=d_name,
        loss_column=loss_name,
        c_column=c_column,
        source=source,
        folder=folder,
    )


def read_curves(folder: str | Path) -> Frame:
    """Read curves.parquet of a results folder; an empty table when there is none.

    Returns
    -------
    DataFrame
        run_id, trunk_id, phase, step, tokens, flops, train_loss, loss, learning_rate, grad_norm (losses in nats per token).
    """
    import duckdb  # slow to import, and only needed here

    path = Path(folder) / "curves.parquet"
    if not path.is_file():
        names = "run_id trunk_id phase step tokens flops train_loss loss learning_rate grad_norm"
        return pd.DataFrame(columns=names.split())
    with duckdb.connect() as connection:
        try:
            return connection.execute("SELECT * FROM read_parquet(?)", [str(path)]).df()
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read as Parquet ({first}); `scaling run` rebuilds it") from error


def _read_table(source: Path) -> Frame:
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{source}: no such file; give a results folder or a CSV of runs") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); give a results folder or a CSV of runs") from None
    if not data.strip():
        raise UserError(f"{source}: is empty; a header and at least one row are needed")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: is no UTF-8 text (byte {error.start}); give a CSV of runs") from None
    if "\0" in text:
        raise UserError(f"{source}: is a binary file; give a CSV of runs")
    try:
        lines = [line for line in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise UserError(f"{source}: is no CSV ({error}); give a CSV of runs") from None
    header = [name.strip() for name in lines[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{source}: column {twice[0]!r} appears twice in the header; names must be unique")
    if len(lines) == 1:
        raise UserError(f"{source}: has a header but no rows; at least one run is needed")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise UserError(f"{source}: row {number} has {len(line)} cells, the header has {len(header)}; make them equal")
    return pd.DataFrame([[cell.strip() for cell in line] for line in lines[1:]], columns=header, dtype=object)


def _find_column(table: Frame, given: str | None, usual: Sequence[str], flag: str, source: Path) -> str:
    found = ", ".join(table.columns[:40])
    if given is not None:
        if given not in table:
            raise UserError(f"{source}: {flag} {given!r} is no column; found: {found}")
        return given
    present = [name for name in usual if name in table]
    filled = [name for name in present if not table[name].str.lower().isin(MISSING).all()]
    if present:
        return (filled or present)[0]
    raise UserError(f"{source}: none of the columns {', '.join(usual)}; found: {found}; name one with {flag}")


def _as_numbers(column: Column, name: str) -> Column:
    """Numbers where the whole column is numbers or missing, else the text as it stands (always for identities)."""
    if name in ("run_id", "trunk_id", "status", "role", "reason") or name.endswith("_hash"):
        return column.astype(object)
    blank = column.str.lower().isin(MISSING)
    numbers: Column = pd.to_numeric(column.where(~blank), errors="coerce")
    return column if (numbers.isna() & ~blank).any() or blank.all() else numbers.astype(np.float64)


def _reasons(table: Frame, rows: Frame, loss_name: str, exclude: str | Sequence[str] | None) -> list[str]:
    """One reason a row why it is not fitted; empty for those that are."""
    expressions = [exclude] if isinstance(exclude, str) else list(exclude or [])
    left_out = [(expression, _matches(rows, expression)) for expression in expressions]
    reasons = []
    for i in range(len(table)):
        status = str(table["status"].iloc[i]) if "status" in table else "done"
        told = str(table["reason"].iloc[i]) if "reason" in table else ""
        role = rows["role"].iloc[i]
        if status not in ("done", ""):
            reason = f"{status}: {told}" if told else status
        elif table[loss_name].iloc[i].lower() in MISSING:
            reason = "loss is empty or NaN"
        elif role == "holdout":
            reason = HOLDOUT_REASON
        elif role == "tune":
            reason = "tune: used to choose settings, never fitted"
        else:
            reason = next((f"excluded by: {expression}" for expression, match in left_out if match[i]), "")
        reasons.append(reason)
    return reasons


def _positive(text: str, *, row: int, column: str, source: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{source}: row {row}, column {column}: {text!r} is no number; exclude the row or correct it") from None
    if not math.isfinite(value) or value <= 0:
        raise UserError(f"{source}: row {row}, column {column}: {text} is not allowed; it must be finite and above 0")
    return value


def _compute(rows: Frame, tidy: Frame, usable: np.ndarray) -> tuple[np.ndarray, str]:
    """Training FLOPs and their convention."""
    if "flops" in rows and pd.api.types.is_numeric_dtype(rows["flops"]):
        flops = rows["flops"].to_numpy(dtype=np.float64)
        if usable.any() and np.isfinite(flops[usable]).all() and (flops[usable] > 0).all():
            return flops, "flops"
    return 6.0 * tidy["N"].to_numpy() * tidy["D"].to_numpy(), "flops_6nd"


def _matches(rows: Frame, expression: str) -> np.ndarray:
    """Rows for which every comparison of ``COLUMN OP VALUE [and ...]`` holds. Nothing is evaluated as code."""
    matched = np.ones(len(rows), dtype=bool)
    for part in re.split(r"\s+and\s+", expression.strip()):
        found = re.fullmatch(r"\s*([^<>=!\s]+)\s*(<=|>=|==|!=|<|>)\s*(\S.*?)\s*", part)
        if found is None:
            raise UserError(f"--exclude {expression!r}: {part!r} is not COLUMN OP VALUE; OP is one of {' '.join(OPERATORS)}")
        column, sign, text = found.groups()
        if column not in rows:
            raise UserError(f"--exclude {expression!r}: no column {column!r}; found: {', '.join(rows.columns[:40])}")
        text = text.strip("'\"")
        number = _number(text)
        values = rows[column]
        if pd.api.types.is_numeric_dtype(values):
            if number is None:
                raise UserError(f"--exclude {expression!r}: {column} holds numbers, {text!r} is none")
            matched &= np.asarray(OPERATORS[sign](values.to_numpy(dtype=np.float64), number), dtype=bool)
        elif sign in ("==", "!="):
            matched &= np.asarray(OPERATORS[sign](values.astype(str).to_numpy(dtype=object), text), dtype=bool)
        else:
            raise UserError(f"--exclude {expression!r}: {column} holds text; only == and != compare text")
    return matched


def _number(text: str) -> float | None:
    found = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([kKMBGT]?)", text)
    return float(found.group(1)) * SUFFIXES[found.group(2)] if found else None
