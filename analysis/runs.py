"""Runs from a results folder, or from anyone's CSV, as one tidy and checked table."""

from __future__ import annotations

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
from analysis.reading import is_blank, read_table

# A bare `params` is the N of a publication: our own tables have none, so where one is filled it says what its authors meant.
N_COLUMNS = ("params", "params_non_embedding", "params_total", "n_params", "N")
D_COLUMNS = ("tokens", "D", "n_tokens")
LOSS_COLUMNS = ("loss", "L", "final_loss", "val_loss")
U_COLUMNS = ("tokens_unique", "unique_tokens")
LEAST_ROWS = 4
LARGEST = 1e30  # of N, D, FLOPs and loss, and the least is 1 / LARGEST: powers of them stay numbers
DECADES = 15  # between the least and the largest of a column: beyond, one row is in another unit, and no fit is well conditioned
CURVE_ROWS = 300_000  # points of curves that a picture shows
HOLDOUT_REASON = "holdout: scored, never fitted"
COPY_REASON = "copy"
JOINT = r"\s+{}\s+(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)"  # the word outside quotes
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
        D (tokens), C (training FLOPs), loss (nats per token), U (unique tokens; only where the table has them), and every original column.
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

    Rows without N, D or loss, exact copies of a row with a run_id, and excluded rows are listed in `Runs.excluded` with the reason.

    Parameters
    ----------
    path : path
        A folder that holds runs.csv, or a CSV file (see `analysis.reading.read_table`).
    n_column, d_column, loss_column : str, optional
        Columns for N, D and the loss; when not given, the first of the usual names that the table has.
    exclude : str or list of str, optional
        Rows to leave out: ``COLUMN OP VALUE`` joined by ``and`` and ``or`` (``and`` binds tighter); OP is one of < <= > >= == !=.

    Raises
    ------
    UserError
        When the file is missing, binary, empty or has no rows; a column is missing, or empty in so many rows that fewer than 4
        remain; a folder holds runs of several texts; N, D, FLOPs or the loss of a finished run is text, zero, negative or infinite; or the
        expression is not understood.
    """
    source = Path(path)
    folder = source if source.is_dir() else None
    if folder is not None:
        source = folder / "runs.csv"
        if not source.is_file():
            raise UserError(f"{folder}: holds no runs.csv; give a results folder, or a CSV of runs")
    table = read_table(source)
    names = {
        "N": _find_column(table, n_column, N_COLUMNS, "--n-column", source),
        "D": _find_column(table, d_column, D_COLUMNS, "--d-column", source),
        "loss": _find_column(table, loss_column, LOSS_COLUMNS, "--loss-column", source),
    }
    rows = pd.DataFrame({name: _as_numbers(table[name], name) for name in table.columns})
    if "run_id" not in rows:
        rows.insert(0, "run_id", [f"row-{i + 1}" for i in range(len(rows))])
    rows["trunk_id"] = table["trunk_id"].where(~is_blank(table["trunk_id"]), rows["run_id"]) if "trunk_id" in table else rows["run_id"]
    rows["seed_data"] = table["seed_data"].astype(str) if "seed_data" in table else ""
    rows["role"] = table["role"].where(table["role"] != "", "fit") if "role" in table else "fit"
    reasons = _reasons(table, rows, names, exclude)
    _refuse_gaps(table, names, reasons, source)
    usable = np.array([not reason for reason in reasons], dtype=bool)
    held = np.array([reason == HOLDOUT_REASON for reason in reasons], dtype=bool)
    if folder is not None and "group" in rows and len(texts := set(rows["group"][usable | held])) > 1:
        raise UserError(
            f"{folder}: holds runs of {len(texts)} texts (column group), and no law is common to them; `scaling fit {folder}` fits each, "
            f"then use the folder of one: {folder / 'groups'}/NAME"
        )
    values = {name: _measured(table, column, usable | held, source) for name, column in names.items()}
    unique = next((name for name in U_COLUMNS if name in table and not is_blank(table[name]).all()), None)
    if unique is not None:
        values["U"] = _measured(table, unique, usable | held, source)
    tidy = rows.drop(columns=[c for c in ("N", "D", "C", "U", "loss") if c in rows]).assign(**values)
    tidy["C"], c_column = _compute(table, tidy, usable | held, source)
    excluded = pd.DataFrame({"run_id": rows["run_id"], "reason": reasons}).loc[~usable].reset_index(drop=True)
    return Runs(
        frame=tidy.loc[usable].reset_index(drop=True),
        holdouts=tidy.loc[held].reset_index(drop=True),
        excluded=excluded,
        all_rows=rows,
        n_column=names["N"],
        d_column=names["D"],
        loss_column=names["loss"],
        c_column=c_column,
        source=source,
        folder=folder,
    )


def read_curves(folder: str | Path, *, about: int | None = None) -> Frame:
    """Read curves.parquet of a results folder; an empty table when there is none.

    Parameters
    ----------
    about : int, optional
        Rows that are enough (for a picture): of a longer table every k-th row is read, and each run's last.

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
            (rows,) = connection.execute("SELECT count(*) FROM read_parquet(?)", [str(path)]).fetchall()[0]
            step = 1 if about is None else max(1, math.ceil(rows / about))
            every = "SELECT * EXCLUDE (file_row_number) FROM read_parquet(?, file_row_number = true)"
            return connection.execute(f"{every} WHERE file_row_number % ? = 0 OR loss IS NOT NULL", [str(path), step]).df()
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read as Parquet ({first}); `scaling run` rebuilds it") from error


def _find_column(table: Frame, given: str | None, usual: Sequence[str], flag: str, source: Path) -> str:
    found = ", ".join(table.columns[:40])
    if given is not None:
        if given not in table:
            raise UserError(f"{source}: {flag} {given!r} is no column; found: {found}")
        return given
    present = [name for name in usual if name in table]
    filled = [name for name in present if not is_blank(table[name]).all()]
    if present:
        return (filled or present)[0]
    raise UserError(f"{source}: none of the columns {', '.join(usual)}; found: {found}; name one with {flag}")


def _as_numbers(column: Column, name: str) -> Column:
    """Numbers where the whole column is numbers or missing, else the text as it stands (always for identities)."""
    if name in ("run_id", "trunk_id", "status", "role", "reason") or name.endswith("_hash"):
        return column.astype(object)
    blank = is_blank(column)
    numbers: Column = pd.to_numeric(column.where(~blank), errors="coerce")
    return column if (numbers.isna() & ~blank).any() or blank.all() else numbers.astype(np.float64)


def _reasons(table: Frame, rows: Frame, names: dict[str, str], exclude: str | Sequence[str] | None) -> list[str]:
    """One reason a row why it is not fitted; empty for those that are."""
    expressions = [exclude] if isinstance(exclude, str) else list(exclude or [])
    known = rows.assign(**{name: rows[column] for name, column in names.items() if name not in rows})
    left_out = [(expression, _matches(known, expression)) for expression in expressions]
    empty = [(column, is_blank(table[column]).to_numpy()) for column in (names["loss"], names["N"], names["D"])]
    copies = _copies(table)
    reasons = []
    for i in range(len(table)):
        status = str(table["status"].iloc[i]) if "status" in table else "done"
        told = str(table["reason"].iloc[i]) if "reason" in table else ""
        role = rows["role"].iloc[i]
        missing = next((f"{column} is empty or NaN" for column, blank in empty if blank[i]), "")
        if status not in ("done", ""):
            reason = f"{status}: {told}" if told else status
        elif missing:
            reason = missing
        elif i in copies:
            reason = f"{COPY_REASON} of row {copies[i] + 1}: the same in every column"
        elif role == "holdout":
            reason = HOLDOUT_REASON
        elif role == "tune":
            reason = "tune: used to choose settings, never fitted"
        else:
            reason = next((f"excluded by: {expression}" for expression, match in left_out if match[i]), "")
        reasons.append(reason)
    return reasons


def _copies(table: Frame) -> dict[int, int]:
    """Rows that repeat an earlier one in every cell, run_id included, and which. Without a run_id two equal rows may be two runs."""
    if "run_id" not in table:
        return {}
    first: dict[tuple, int] = {}
    return {i: at for i, row in enumerate(table.itertuples(index=False, name=None)) if (at := first.setdefault(row, i)) != i}


def _refuse_gaps(table: Frame, names: dict[str, str], reasons: list[str], source: Path) -> None:
    """Refuse a table that lacks N, D or losses in so many rows that nothing can be fitted."""
    usable = sum(not reason or reason == HOLDOUT_REASON for reason in reasons)
    # In a sweep under way a finished run may be the first: no losses yet are no mistake there.
    under_way = "status" in table and not table["status"].isin(["done", ""]).all()
    needed = [name for name in names if name != "loss" or not under_way]
    gaps = {name: [i for i, reason in enumerate(reasons) if reason == f"{names[name]} is empty or NaN"] for name in needed}
    if usable >= LEAST_ROWS or not any(gaps.values()):
        return
    name = max(gaps, key=lambda name: len(gaps[name]))
    column, flag = names[name], {"N": "--n-column", "D": "--d-column", "loss": "--loss-column"}[name]
    if not is_blank(table[column]).all():
        where = f"row {gaps[name][0] + 1}, column {column}: {table[column].iloc[gaps[name][0]]!r} is empty"
        raise UserError(f"{source}: {where}, and only {usable} rows have N, D and loss; fill it, or name another column with {flag}")
    remedy = {
        "N": "name another column with --n-column",
        "D": "name another column with --d-column, or compute one: scaling import columns FILE --map tokens='steps * 524288'",
        "loss": "name another column with --loss-column; sizes and tokens alone give exponents of allocation only (docs/foreign.md)",
    }[name]
    raise UserError(f"{source}: column {column} is empty in every row; {remedy}")


def _measured(table: Frame, column: str, chosen: np.ndarray, source: Path) -> np.ndarray:
    """Numbers of a column in the chosen rows, finite and above 0; NaN where the cell is empty or the row not chosen."""
    blank = is_blank(table[column]).to_numpy()
    cells = enumerate(table[column])
    found = np.array([_positive(text, i + 1, column, source) if chosen[i] and not blank[i] else math.nan for i, text in cells])
    known = found[np.isfinite(found)]
    if len(known) and known.max() > 10.0**DECADES * known.min():
        raise UserError(
            f"{source}: column {column} goes from {known.min():g} to {known.max():g}; at most {DECADES} decades are allowed: is a row in "
            f"another unit? correct it, or leave it out (--exclude '{column} > ...')"
        )
    return found


def _positive(text: str, row: int, column: str, source: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{source}: row {row}, column {column}: {text!r} is no number; exclude the row or correct it") from None
    if not math.isfinite(value) or value <= 0:
        raise UserError(f"{source}: row {row}, column {column}: {text} is not allowed; it must be finite and above 0")
    if not 1 / LARGEST <= value <= LARGEST:
        raise UserError(f"{source}: row {row}, column {column}: {text} is not allowed; it must lie between {1 / LARGEST:g} and {LARGEST:g}")
    return value


def _compute(table: Frame, tidy: Frame, chosen: np.ndarray, source: Path) -> tuple[np.ndarray, str]:
    """Training FLOPs and their convention: the column `flops` where every row has one, else 6 N D."""
    found = {name: _measured(table, name, chosen, source) for name in ("flops", "flops_6nd") if name in table}
    if "flops" in found and chosen.any() and np.isfinite(found["flops"][chosen]).all():
        return found["flops"], "flops"
    return 6.0 * tidy["N"].to_numpy() * tidy["D"].to_numpy(), "flops_6nd"


def _matches(rows: Frame, expression: str) -> np.ndarray:
    """Rows for which ``COLUMN OP VALUE [and ...] [or ...]`` holds. Nothing is evaluated as code."""
    either = [re.split(JOINT.format("and"), part) for part in re.split(JOINT.format("or"), expression.strip())]
    return np.any([np.all([_compare(rows, part, expression) for part in parts], axis=0) for parts in either], axis=0)


def _compare(rows: Frame, part: str, expression: str) -> np.ndarray:
    """Rows for which one comparison holds."""
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
        return np.asarray(OPERATORS[sign](values.to_numpy(dtype=np.float64), number), dtype=bool)
    if sign not in ("==", "!="):
        raise UserError(f"--exclude {expression!r}: {column} holds text; only == and != compare text")
    return np.asarray(OPERATORS[sign](values.astype(str).to_numpy(dtype=object), text), dtype=bool)


def _number(text: str) -> float | None:
    found = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([kKMBGT]?)", text)
    return float(found.group(1)) * SUFFIXES[found.group(2)] if found else None
