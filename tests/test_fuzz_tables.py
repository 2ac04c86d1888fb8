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

from analysis import bootstrap, fit
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
CELLS = st.one_of(
    NUMBERS.map(str),
    WORDS,
    st.sampled_from(["", "nan", "None", "1e5", "-1", "diverged", "holdout", "tune", "inf", "1_000", "0x1p3", "1,5"]),
)
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
    csv.writer(
        text, delimiter=draw(st.sampled_from([",", ",", ",", ";", "\t"])), lineterminator=draw(st.sampled_from(["\n", "\r\n"]))
    ).writerows(rows)
    return text.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace")


CONDITIONS = st.one_of(
    st.none(),
    st.sampled_from(
        ["loss > 3", "status == 'done' and params < 1M", "note != 'x' or tokens >= 1e8", "N < 1e6", "loss", "a b c", "loss > 'x'", "((("]
    ),
    st.text(max_size=12),
)


def analyse(path: Path, condition: str | None, law: str) -> None:
    """Read, check and fit; the numbers that come out are numbers."""
    runs = read_runs(path, exclude=condition)
    assert all("\n" not in str(finding) for finding in check_runs(runs))
    found = fit(get_law(law), runs)
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


@inputs(quick=10, full=3_000)
@given(data=tables(), law=st.sampled_from(["chinchilla", "skaling", "bounded", "E + A*N**-a + B*D**-b | E > 0"]))
def test_intervals_of_tables_with_changed_cells(path: Path, data: bytes, law: str) -> None:
    path.write_bytes(data)
    with well_behaved(UserError):
        found = bootstrap(fit(get_law(law), read_runs(path)), draws=20)
        assert found.draws is not None and np.isfinite(found.draws.to_numpy()).all()


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
    with well_behaved():
        code = main(["fit", str(path), "--law", "chinchilla", "--bootstrap", "0", "--no-plots", "--out", str(out)])
    assert code in (0, 2)
    assert not [name for name in os.listdir(out if out.is_dir() else path.parent) if name.endswith(".tmp")]


# ---------------------------------------------------------------- formulas

LEAVES = st.sampled_from(["N", "D", "C", "U", "E", "A", "B", "alpha", "beta", "x", "0", "1", "2.5", "1e-3", "1e300", "1e999", "10**10", "-1", "loss", "note", "None", "True", "1j", "'s'", "...", "_", "λ", "K", "import", "lambda", "[]", "{}", "()", "N.real", "N[0]", "f(N)"])  # fmt: skip


def _combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    sign = st.sampled_from(
        ["+", "-", "*", "/", "^", "**", "//", "%", "@", "<", " if ", ",", "=", ":=", ";", "|", "&"] + ["+", "*", "/", "^"] * 4
    )
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
        assert law.predict(dict.fromkeys(law.parameters, 0.5), **{name: values[name] for name in law.variables}).dtype == np.float64


@inputs(quick=15, full=1_500)
@given(text=st.tuples(FORMULAS, BOUNDS).map(" ".join))
def test_formulas_that_are_fitted(path: Path, text: str) -> None:
    path.write_text("\n".join(",".join(row) for row in WHOLE))
    with well_behaved(UserError):
        found = fit(get_law(text, columns=["note"]), read_runs(path))
        assert all(math.isfinite(value) for value in found.params.values())


def test_found_by_fuzzing(path: Path) -> None:
    path.write_text("\n".join(",".join(row) for row in WHOLE))
    with pytest.raises(UserError, match="nowhere above 0"):
        fit(get_law("-1/E"), read_runs(path))
    assert math.isnan(parse("m4root(log(x), 2)").value({"x": -1.0}))
    path.write_text("\n".join(",".join(row) for row in [*WHOLE, ["a", "done", "fit", "1e300", "1e7", "3", "0", "x"]]))
    with pytest.raises(UserError, match="between 1e-30 and 1e"):
        read_runs(path)
    path.write_text("\n".join(",".join(row) for row in [*WHOLE, ["a", "done", "fit", "1e30", "1e7", "3", "0", "x"]]))
    with pytest.raises(UserError, match="at most 15 decades are allowed"):
        read_runs(path)


@pytest.mark.parametrize("law", ["chinchilla", "skaling", "bounded"])
@pytest.mark.parametrize("params", ["1e12", "1e19"])
def test_one_run_in_another_unit(path: Path, law: str, params: str) -> None:
    """Found by fuzzing: the noise of such runs spans as many powers of ten, and a Gram matrix of them is not positive definite in rounding."""
    path.write_text("\n".join(",".join([*row[:3], params, *row[4:]] if i == 1 else row) for i, row in enumerate(WHOLE)))
    found = bootstrap(fit(get_law(law), read_runs(path)), draws=20)
    assert found.draws is not None and np.isfinite(found.draws.to_numpy()).all()


# ---------------------------------------------------------------- SQL

TABLES = st.sampled_from(["runs", "curves", "runs r", "exclusions", '"runs"', "nowhere", "read_text('/etc/passwd')", "'/etc/passwd'", "range(1000000000000)", "range(9)", "glob('/*')", "duckdb_settings()", "query('FROM runs')", "(FROM runs)", "pragma_version()"])  # fmt: skip
TERMS = st.sampled_from(["*", "loss", "d_model", "run_id", "1", "1/0", "'x'", "NULL", "count(*)", "avg(loss)", "1e308*10", "repeat('x', 1000000000)", "getenv('HOME')", "[1, 2]", "{'a': 1}", "loss::VARCHAR", "DATE '2020-01-01'", "INTERVAL 1 DAY", "random()", "row_number() OVER ()", "'\x1b[2J'", "uuid()", "'abc'::BLOB", "1::HUGEINT", "now()", "map {'a': 1}", "'nan'::DOUBLE", "range(100000000)", "regexp_matches(run_id, '(a+)+$')", "list_sum(range(1000))", "TIME '00:00'", "sqrt(-1)", "'5'::DECIMAL(30, 5)", "TIMESTAMP '9999-01-01'", "'infinity'::DATE", "bit_count(1)", "'x' COLLATE nocase", "struct_pack(a := 1)", "unnest([1, 2])"])  # fmt: skip
TAILS = st.sampled_from(["", " WHERE loss > 1", " GROUP BY ALL", " ORDER BY 1", " LIMIT 3", " LIMIT -1", " UNION ALL SELECT 1", " QUALIFY 1", " WHERE", ", runs b, runs c, runs d", " USING SAMPLE 3", ";", "; SELECT 1", " -- x", " PIVOT", " FOR UPDATE", " INTO x"])  # fmt: skip
STATEMENTS = st.one_of(
    st.builds(lambda terms, table, tail: f"SELECT {', '.join(terms)} FROM {table}{tail}", st.lists(TERMS, min_size=1, max_size=3), TABLES, TAILS),
    st.builds(lambda table, tail: f"FROM {table}{tail}", TABLES, TAILS),
    st.builds(lambda word, table: f"{word} {table}", st.sampled_from(["DESCRIBE", "SHOW", "SUMMARIZE", "EXPLAIN FROM", "COPY", "PRAGMA", "CALL", "ATTACH", "SET", "INSTALL", "DROP TABLE", "WITH RECURSIVE a AS (SELECT 1 UNION ALL SELECT * FROM a) FROM", "PIVOT", "EXECUTE", "VACUUM", "CHECKPOINT", "LOAD"]), TABLES),
    st.text(alphabet="SELECTFROM*()'\"[]{};,.:$?@#%&|!~<>=+-/\\0123456789 runsloe\n\t\0é", max_size=30),
    damaged(b"WITH a AS (SELECT d_model, avg(loss) AS loss FROM runs GROUP BY 1) SELECT * FROM a JOIN runs USING (d_model) WHERE a.loss < 3 ORDER BY 1").map(lambda data: data.decode("utf-8", "replace")),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_results(tmp_path_factory.mktemp("sql"), widths=(16, 24), seeds=1, holdout=None)
    (made / "exclusions.csv").write_text('run_id,reason\nx,"a ""b"", \x1b[2J"\n', encoding="utf-8")
    return made


@inputs(quick=60, full=20_000)
@given(sql=STATEMENTS)
def test_statements(folder: Path, sql: str) -> None:
    before, began = _state(folder), time.monotonic()
    with well_behaved(UserError):
        found = query(folder, sql, time_limit=0.5, max_rows=5000)
        for format in ("table", "csv", "json"):
            text = render(found, format)
            assert format != "table" or all(line.isprintable() for line in text.split("\n"))
            assert "root:" not in text
    assert time.monotonic() - began < 10
    assert _state(folder) == before


def _state(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
