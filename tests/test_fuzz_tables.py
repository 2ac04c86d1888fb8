"""Fuzz: any CSV of runs, formula or SQL statement gets an answer or one line, in time, and leaves no half-written file."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from fuzzing import NUMBERS, WORDS, damaged, inputs, only, well_behaved
from hypothesis import given
from hypothesis import strategies as st
from synthetic import true_loss, write_results

from analysis import fit
from analysis.errors import UserError
from analysis.expression import FUNCTIONS, parse
from analysis.guards import check_runs
from analysis.laws import LAWS, get_law
from analysis.query import query, render
from analysis.runs import read_runs

# ---------------------------------------------------------------- runs


def _whole() -> list[list[str]]:
    rows = [["run_id", "status", "role", "params", "tokens", "loss", "seed_data", "note"]]
    for n in (1e5, 3e5, 1e6):
        for d in (1e7, 3e7, 1e8):
            wobble = math.exp(0.003 * math.sin(n + d))
            rows.append([f"r{n:g}-{d:g}", "done", "fit", f"{n:.0f}", f"{d:.0f}", f"{true_loss(n, d) * wobble:.6f}", "0", "x"])
    return rows


WHOLE = _whole()
CELLS = st.one_of(NUMBERS.map(str), WORDS, st.sampled_from(["", "nan", "None", "1e5", "-1", "diverged", "holdout", "tune", "inf", "1_000", "0x1p3", "1,5"]))
HEADERS = st.one_of(st.sampled_from([*WHOLE[0], "N", "D", "L", "flops", "tokens_unique", "trunk_id", "C", "U", "group", "E", "A"]), WORDS)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A table of runs with cells, names of columns, rows or the separator changed."""
    rows = [list(row) for row in WHOLE]
    for _ in range(draw(st.sampled_from([1, 1, 2, 5]))):
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, 7))
        match draw(st.sampled_from(["cell", "cell", "cell", "header", "column", "drop row", "repeat row", "short row", "drop column"])):
            case "cell" if row and column < len(rows[row]):
                rows[row][column] = draw(CELLS)
            case "header" if column < len(rows[0]):
                rows[0][column] = draw(HEADERS)
            case "column":
                name, cells = draw(HEADERS), draw(st.lists(CELLS, min_size=len(rows), max_size=len(rows)))
                rows = [[*old, name if at == 0 else cells[at]] for at, old in enumerate(rows)]
            case "drop row" if len(rows) > 1:
                del rows[row]
            case "repeat row":
                rows.append(list(rows[row]))
            case "short row":
                rows[row] = rows[row][:column]
            case "drop column":
                rows = [line[:column] + line[column + 1 :] for line in rows]
    text = io.StringIO()
    csv.writer(text, delimiter=draw(st.sampled_from([",", ",", ",", ";", "\t"])), lineterminator=draw(st.sampled_from(["\n", "\r\n"]))).writerows(rows)
    return text.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace")


CONDITIONS = st.one_of(
    st.none(),
    st.sampled_from(["loss > 3", "status == 'done' and params < 1M", "note != 'x' or tokens >= 1e8", "N < 1e6", "loss", "a b c", "loss > 'x'", "((("]),
    st.text(max_size=12),
)


def analyse(path: Path, condition: str | None, law: str) -> None:
    """Read, check and fit; the numbers that come out are numbers."""
    runs = read_runs(path, exclude=condition)
    assert all("\n" not in finding for finding in check_runs(runs))
    found = fit(law, runs, bootstrap=0)
    assert all(math.isfinite(value) for value in found.params.values())
    assert np.isfinite(found.predict(N=1e6, D=1e8))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "runs.csv"


@inputs(quick=40, full=12_000)
@given(data=tables(), condition=CONDITIONS, law=st.sampled_from(["chinchilla", "power-n", "log-linear", "constant"]))
def test_tables_with_changed_cells(path: Path, data: bytes, condition: str | None, law: str) -> None:
    path.write_bytes(data)
    with well_behaved(UserError):
        analyse(path, condition, law)
    only(path.parent, path.name)


@inputs(quick=40, full=8_000)
@given(data=damaged("\n".join(",".join(row) for row in WHOLE).encode()) | st.binary(max_size=200))
def test_tables_that_are_damaged(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with well_behaved(UserError):
        analyse(path, None, "power-d")


@inputs(quick=4, full=300)
@given(data=tables())
def test_the_command_writes_whole_files_or_none(path: Path, data: bytes) -> None:
    from scaling.cli.main import main

    path.write_bytes(data)
    out = path.parent / "out"
    with well_behaved(), np.errstate(all="raise", under="ignore"):
        code = main(["fit", str(path), "--law", "chinchilla", "--bootstrap", "0", "--no-plots", "--out", str(out)])
    assert code in (0, 2)
    assert not [name for name in os.listdir(out if out.is_dir() else path.parent) if name.endswith(".tmp")]


# ---------------------------------------------------------------- formulas

LEAVES = st.sampled_from(["N", "D", "C", "U", "E", "A", "B", "alpha", "beta", "x", "0", "1", "2.5", "1e-3", "1e300", "1e999", "10**10", "-1", "loss", "note", "None", "True", "1j", "'s'", "...", "_", "λ", "K", "import", "lambda", "[]", "{}", "()", "N.real", "N[0]", "f(N)"])  # fmt: skip


def _combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    sign = st.sampled_from(["+", "-", "*", "/", "^", "**", "//", "%", "@", "<", " if ", ",", "=", ":=", ";", "|", "&"] + ["+", "*", "/", "^"] * 4)
    call = st.sampled_from([*FUNCTIONS, *FUNCTIONS, "abs", "eval", "open", "__import__", "pow"])
    return st.one_of(
        st.tuples(inner, sign, inner).map(lambda parts: f"({parts[0]}{parts[1]}{parts[2]})"),
        st.tuples(inner, sign, inner).map("".join),
        st.tuples(call, inner).map(lambda parts: f"{parts[0]}({parts[1]})"),
        st.tuples(call, inner, inner).map(lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"),
        inner.map(lambda text: f"-{text}"),
    )


FORMULAS = st.recursive(LEAVES, _combine, max_leaves=12)
BOUNDS = st.one_of(st.just(""), st.sampled_from(["| E > 0", "| 0 < alpha < 2", "| alpha < 1e400", "| E > 2, E < 1", "| x > -1", "|", "| |", "| 1e999 < E"]), st.text(max_size=10).map("|".__add__))  # fmt: skip
CHARACTERS = st.text(alphabet="NDEAB αx0123456789.+-*/^()|<>,;=_'\"[]{}:@\\\n\t\0eE", max_size=40)
FRAME = {"N": np.geomspace(1e5, 1e8, 9), "D": np.geomspace(1e7, 1e10, 9), "C": np.geomspace(1e12, 1e18, 9), "U": np.geomspace(1e7, 1e10, 9)}


@inputs(quick=150, full=24_000)
@given(text=st.tuples(FORMULAS, BOUNDS).map(" ".join) | CHARACTERS | st.sampled_from([law.formula for law in LAWS.values()]).flatmap(lambda whole: damaged(whole.encode()).map(lambda data: data.decode("utf-8", "replace"))))  # fmt: skip
def test_formulas(text: str) -> None:
    with well_behaved(UserError):
        law = get_law(text, columns=["loss", "note"])
        values = {name: np.full(9, 0.5) for name in law.parameters} | {name: FRAME.get(name, np.ones(9)) for name in law.variables}
        assert law.predict({name: 0.5 for name in law.parameters}, **{name: values[name] for name in law.variables}).dtype == np.float64


@inputs(quick=15, full=1_500)
@given(text=st.tuples(FORMULAS, BOUNDS).map(" ".join))
def test_formulas_that_are_fitted(path: Path, text: str) -> None:
    path.write_text("\n".join(",".join(row) for row in WHOLE))
    with well_behaved(UserError):
        found = fit(get_law(text, columns=["note"]), read_runs(path), bootstrap=0)
        assert all(math.isfinite(value) for value in found.params.values())


@inputs(quick=40, full=4_000)
@given(text=FORMULAS | CHARACTERS)
def test_formulas_give_what_plain_arithmetic_gives(text: str) -> None:
    """An opponent: Python's own arithmetic on the same numbers, where the formula is also Python and the result a number."""
    names = {"N": 3.0, "D": 5.0, "C": 7.0, "U": 2.0, "E": 1.5, "A": 0.5, "B": 4.0, "alpha": 0.25, "beta": 0.75, "x": 1.25}
    try:
        parsed = parse(text)
    except UserError:
        return
    if not set(parsed.names) <= set(names) or any(word in text for word in ("m4root", ";", "=")):
        return
    with well_behaved(UserError):
        ours = float(parsed.value(names))
    theirs = _arithmetic(text.replace("^", "**"), names)
    if theirs is not None and math.isfinite(theirs) and math.isfinite(ours):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-300)


def _arithmetic(text: str, names: dict[str, float]) -> float | None:
    """The same formula by SymPy-free rational means: DuckDB's DOUBLE arithmetic."""
    import duckdb

    words = ", ".join(f"{value}::DOUBLE AS {name}" for name, value in names.items())
    sql = text.replace("min(", "least(").replace("max(", "greatest(").replace("log(", "ln(")
    try:
        with duckdb.connect() as connection:
            row = connection.execute(f"SELECT ({sql})::DOUBLE FROM (SELECT {words})").fetchone()
    except duckdb.Error:
        return None
    return row[0] if row else None


# ---------------------------------------------------------------- SQL
