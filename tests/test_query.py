"""SQL over the tables: reads every table, and nothing but the tables."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path

import pandas as pd
import pytest
from synthetic import write_results

from analysis.errors import UserError
from analysis.query import query, render


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_results(tmp_path_factory.mktemp("sql") / "a [odd] *name")
    (path / "exclusions.csv").write_text("run_id,reason\n", encoding="utf-8")
    (path / "secret.txt").write_text("hidden\n", encoding="utf-8")
    return path


def test_selects_from_csv_and_parquet(folder: Path) -> None:
    result = query(
        folder,
        "SELECT d_model, count(*) AS runs FROM runs WHERE role = 'fit' AND status = 'done' GROUP BY 1 ORDER BY 1",
    )
    assert result.d_model.tolist() == [24, 32, 48, 64]
    assert result.runs.tolist() == [8, 8, 8, 8]
    joined = query(folder, "SELECT count(DISTINCT c.run_id) AS n FROM curves c JOIN runs r USING (run_id)")
    assert joined.n.tolist() == [33]
    assert query(folder, "SELECT * FROM exclusions").empty


def test_values_are_those_of_the_file(folder: Path) -> None:
    direct = pd.read_csv(folder / "runs.csv")
    result = query(folder, "SELECT run_id, loss FROM runs")
    assert result.run_id.tolist() == direct.run_id.tolist()
    pd.testing.assert_series_equal(result.loss, direct.loss)


@pytest.mark.parametrize(
    "sql",
    [
        "DESCRIBE runs",
        "SHOW TABLES",
        "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
        "FROM runs LIMIT 1",
        "SUMMARIZE runs",
    ],
)
def test_reading_statements_are_allowed(folder: Path, sql: str) -> None:
    assert len(query(folder, sql))


def test_identifiers_stay_text(tmp_path: Path) -> None:
    (tmp_path / "fits.csv").write_text("fit_id,loss\n001234567890,1.5\n", encoding="utf-8")
    assert query(tmp_path, "SELECT fit_id FROM fits").fit_id.tolist() == ["001234567890"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM '{folder}/runs.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM parquet_metadata('{folder}/curves.parquet')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM query_table('/etc/passwd')",
        "SELECT * FROM read_json('https://example.com/x.json')",
        "COPY runs TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "EXPORT DATABASE '{folder}/out'",
        "ATTACH '{folder}/out.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET threads = 4",
        "RESET threads",
        "PRAGMA enable_profiling",
        "CALL enable_logging()",
        "SELECT * FROM enable_logging()",
        "SELECT * FROM enable_profiling()",
        "SELECT * FROM query('COPY runs TO ''{folder}/out.csv''')",
        "CREATE TABLE t (a INT)",
        "CREATE MACRO f() AS 1",
        "INSERT INTO runs SELECT * FROM runs",
        "WITH a AS (SELECT 1) DELETE FROM runs",
        "DELETE FROM runs RETURNING *",
        "UPDATE runs SET loss = 0",
        "DROP TABLE runs",
        "EXPLAIN ANALYZE DELETE FROM runs",
        "PREPARE v AS SELECT 1",
        "BEGIN",
        "USE main",
        "SELECT 1; COPY runs TO '{folder}/out.csv'",
        "SELECT 1; SELECT 2",
        "",
        "-- nothing",
        "SELEC 1",
        "SELECT * FROM nowhere",
        "SELECT nothing FROM runs",
        "SELECT * FROM folder",
        "SELECT * FROM frame",
        "SELECT * FROM duckdb_secrets()",
        "SELECT getenv('HOME')",
    ],
)
def test_anything_else_is_one_line(folder: Path, sql: str) -> None:
    before = sorted(os.listdir(folder))
    with pytest.raises(UserError) as caught:
        query(folder, sql.format(folder=folder, secret=folder / "secret.txt"))
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert sorted(os.listdir(folder)) == before
    assert not Path("/tmp/out.csv").exists()


def test_errors_name_the_tables(folder: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*tables: curves, exclusions, runs"):
        query(folder, "SELECT * FROM nowhere")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(10000000000) a, range(10000000000) b WHERE a.range + b.range = 3",
        "WITH RECURSIVE t AS (SELECT 1 AS x UNION ALL SELECT 1 - x FROM t) SELECT count(*) FROM t",
        "SELECT levenshtein(repeat('ab', 20000), repeat('ba', 20000))",
    ],
)
def test_time_limit(folder: Path, sql: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"longer than 0\.5 s|more than 1GB"):
        query(folder, sql, time_limit=0.5)
    assert time.monotonic() - start < 8


def test_row_limit(folder: Path) -> None:
    assert len(query(folder, "SELECT * FROM range(100)", max_rows=100)) == 100
    with pytest.raises(UserError, match="more than 100 rows"):
        query(folder, "SELECT * FROM range(101)", max_rows=100)
    with pytest.raises(UserError, match="more than 1000 rows"):
        query(folder, "SELECT * FROM range(100000000000)", max_rows=1000)


def test_memory_limit(folder: Path) -> None:
    with pytest.raises(UserError, match=r"more than 1GB|longer than"):
        query(folder, "SELECT list(a.range) FROM range(100000) a, range(100000) b", time_limit=20)


def test_folders_without_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        query(tmp_path / "missing", "SELECT 1")
    with pytest.raises(UserError, match="no tables"):
        query(tmp_path, "SELECT 1")


@pytest.mark.parametrize(
    ("name", "content"),
    [("runs.csv", b""), ("runs.csv", b"\xff\xfe\x00\x01,\x00\n\x81"), ("curves.parquet", b"not parquet")],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        query(tmp_path, "SELECT 1")
    assert "\n" not in str(caught.value)


def test_render_formats(folder: Path) -> None:
    frame = query(folder, "SELECT d_model, params_total, loss, CAST(NULL AS DOUBLE) AS nothing, 'a|b\n' AS word FROM runs LIMIT 3")
    read = pd.read_csv(io.StringIO(render(frame, "csv")))
    assert read.loss.tolist() == frame.loss.tolist()
    rows = json.loads(render(frame, "json"))
    assert rows[0]["loss"] == frame.loss[0]
    assert rows[0]["nothing"] is None
    lines = render(frame, "table").splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["d_model", "params_total", "loss", "nothing", "word"]
    with pytest.raises(UserError, match="table, csv, json"):
        render(frame, "xml")


def test_render_keeps_repeated_columns(folder: Path) -> None:
    frame = query(folder, "SELECT a.d_model, b.d_model FROM runs a, runs b LIMIT 1")
    assert len(json.loads(render(frame, "json"))[0]) == 2


def test_table_says_when_it_is_cut(folder: Path) -> None:
    assert "200 of 300 rows" in render(query(folder, "SELECT * FROM range(300)"), "table")
    assert "(no rows)" in render(query(folder, "SELECT * FROM exclusions"), "table")


def test_memory_that_duckdb_does_not_count_is_limited(folder: Path) -> None:
    with pytest.raises(UserError):
        query(folder, "SELECT repeat('x', 1000000000) FROM runs", time_limit=2)


def test_names_of_columns_cannot_steer_the_terminal(folder: Path) -> None:
    assert "\x1b" not in render(query(folder, "SELECT 1 AS \"\x1b[2J\", '\x1b[2J' AS b"), "table")
