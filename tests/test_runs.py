"""Reading runs: what is taken, what is left out and why, and that every mistake is one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from analysis.errors import UserError
from analysis.runs import read_curves, read_runs


def write(folder: Path, text: str | bytes, name: str = "runs.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_results_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        "run_id,trunk_id,status,role,seed_data,params_non_embedding,params_total,tokens,flops,loss,reason\n"
        "a,t1,done,fit,7,10,20,100,9000,1.5,\n"
        "b,t1,diverged,fit,7,10,20,200,,,loss is NaN at step 3\n"
        "c,t2,done,fit,8,10,20,200,18000,nan,\n"
        "d,t3,done,holdout,7,40,50,400,99000,1.1,\n"
        "e,t4,missing,holdout,7,40,50,400,,,waits\n"
        "f,t5,done,tune,7,40,50,400,99000,1.1,\n",
    )
    runs = read_runs(tmp_path)
    assert (runs.n_column, runs.d_column, runs.loss_column, runs.c_column) == ("params_non_embedding", "tokens", "loss", "flops")
    assert runs.frame[["run_id", "trunk_id", "seed_data", "N", "D", "C", "loss"]].to_numpy().tolist() == [
        ["a", "t1", "7", 10, 100, 9000, 1.5]
    ]
    assert runs.holdouts["run_id"].tolist() == ["d"]
    assert dict(runs.excluded.to_numpy().tolist()) == {
        "b": "diverged: loss is NaN at step 3",
        "c": "loss is empty or NaN",
        "d": "holdout: scored, never fitted",
        "e": "missing: waits",
        "f": "tune: used to choose settings, never fitted",
    }
    assert len(runs.all_rows) == 6
    assert runs.folder == tmp_path


def test_a_foreign_csv_with_its_own_names(tmp_path: Path) -> None:
    path = write(tmp_path, "size,seen,nll\n1e6,2e9,3.5\n2e6,2e9,3.1\n", "theirs.csv")
    runs = read_runs(path, n_column="size", d_column="seen", loss_column="nll")
    assert runs.frame["C"].tolist() == [6 * 1e6 * 2e9, 6 * 2e6 * 2e9]
    assert runs.c_column == "flops_6nd"
    assert runs.frame["trunk_id"].tolist() == runs.frame["run_id"].tolist() == ["row-1", "row-2"]
    assert runs.folder is None


@pytest.mark.parametrize("header", ["n_params,n_tokens,val_loss", "N,D,L", "params,tokens,final_loss", "params_total,tokens,loss"])
def test_usual_names_are_found(tmp_path: Path, header: str) -> None:
    runs = read_runs(write(tmp_path, f"{header}\n10,20,3\n"))
    assert runs.frame[["N", "D", "loss"]].to_numpy().tolist() == [[10, 20, 3]]


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        ("tokens < 2k", ["b", "c"]), ("tokens >= 2000 and params == 1M", ["a", "c"]),
        ("group == 'x y'", ["b", "c"]),
        ("group != z", ["b", "c"]),
        ("params > 5e5", ["c"]), ("loss > 0", []),
        ("tokens < 2k or loss < 2.3", ["b"]), ("tokens < 2k or params == 1M and loss < 2.8", ["c"]), ("group == 'x and y' or D < 2k", ["b", "c"]),
        ("N > 5e5", ["c"]),
    ],
)  # fmt: skip
def test_exclude(tmp_path: Path, expression: str, left: list[str]) -> None:
    path = write(tmp_path, "run_id,params,tokens,loss,group\na,1e6,1000,3,x y\nb,1e6,2000,2.5,z\nc,1e5,4000,2.2,z\n")
    runs = read_runs(path, exclude=expression)
    assert runs.frame["run_id"].tolist() == left
    assert set(runs.excluded["reason"]) <= {f"excluded by: {expression}"}


GOOD = "params,tokens,loss\n10,20,3\n"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "empty"),
        ("params,tokens,loss\n", {}, "no rows"),
        (b"\x00\x01\x02", {}, "binary"),
        (b"\xff\xfe\x80", {}, "UTF-8"),
        (b"\xef\xbb\xbf", {}, "empty"),
        (",,\n", {}, "empty"),
        (b"\x1f\x8b\x08\x00", {}, "damaged gzip"),
        ("params,loss\n1,2\n", {}, "tokens, D, n_tokens"),
        ("params,params,tokens,loss\n1,2,3,4\n", {}, "twice"),
        ("params,tokens,loss\n1,2\n", {}, "row 1 has 2 cells"),
        ("params,tokens,loss\nbig,20,3\n", {}, "row 1, column params: 'big'"),
        ("params,tokens,loss\n10,20,3\n10,0,3\n", {}, "row 2, column tokens: 0"),
        ("params,tokens,loss\n10,20,-3\n", {}, "column loss: -3"),
        ("params,tokens,loss\n10,20,inf\n", {}, "column loss: inf"),
        ("params,tokens,loss\n10,,3\n", {}, "column tokens is empty in every row"),
        ("params,tokens,loss\n10,20,3\n10,,3\n", {}, "row 2, column tokens: ''"),
        ("params,tokens,loss\n10,20,bad\n", {}, "column loss: 'bad'"),
        (GOOD, {"n_column": "width"}, "--n-column 'width'"),
        (GOOD, {"exclude": "tokens"}, "COLUMN OP VALUE"),
        (GOOD, {"exclude": "width > 3"}, "no column 'width'"),
        (GOOD, {"exclude": "tokens > many"}, "'many' is none"),
        (GOOD, {"exclude": "__import__('os') > 1"}, "no column"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, text: str | bytes, options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as error:
        read_runs(write(tmp_path, text), **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


ROWS = "".join(f"1e{n},1e9,{3 - n / 10}\n" for n in range(5, 10))


def test_rows_without_a_number_are_left_out_with_the_reason(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path, f"params,tokens,loss\n,1e9,3\n1e6,nan,3\n1e6,1e9,\n{ROWS}"))
    assert runs.frame["N"].tolist() == [1e5, 1e6, 1e7, 1e8, 1e9]
    assert runs.excluded.to_numpy().tolist() == [
        ["row-1", "params is empty or NaN"], ["row-2", "tokens is empty or NaN"], ["row-3", "loss is empty or NaN"],
    ]  # fmt: skip


@pytest.mark.parametrize(("column", "flag"), [("params", "--n-column"), ("tokens", "--d-column"), ("loss", "--loss-column")])
def test_too_few_rows_left_or_none(tmp_path: Path, column: str, flag: str) -> None:
    table = [line.split(",") for line in f"params,tokens,loss\n{ROWS}".split()]
    at = table[0].index(column)
    for row in table[2:4]:
        row[at] = ""
    for end, words in ((2, f"row 2, column {column}: '' is empty, and only 3 rows have N, D and loss"), (5, "is empty in every row")):
        for row in table[1:] if end == 5 else []:
            row[at] = "NaN"
        with pytest.raises(UserError, match=words) as error:
            read_runs(write(tmp_path, "\n".join(",".join(row) for row in table)))
        assert flag in str(error.value)


def test_a_sweep_under_way_has_no_losses_yet(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path, "run_id,status,params,tokens,loss\na,done,1e6,1e9,\nb,running,1e6,2e9,\n"))
    assert len(runs.frame) == 0 and runs.excluded["reason"].tolist() == ["loss is empty or NaN", "running"]


@pytest.mark.parametrize("name", ["tokens_unique", "unique_tokens"])
def test_unique_tokens(tmp_path: Path, name: str) -> None:
    runs = read_runs(write(tmp_path, f"params,tokens,loss,{name}\n1e6,4e9,3,1e9\n1e6,1e9,3.1,\n"))
    assert runs.frame["U"].tolist()[0] == 1e9 and np.isnan(runs.frame["U"][1])
    assert "U" not in read_runs(write(tmp_path, f"params,tokens,loss,{name},U\n1e6,4e9,3,,7\n")).frame
    with pytest.raises(UserError, match=f"row 1, column {name}: -1 is not allowed"):
        read_runs(write(tmp_path, f"params,tokens,loss,{name}\n1e6,4e9,3,-1\n"))


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_separators_and_compression(tmp_path: Path, separator: str) -> None:
    text = "params,tokens,loss\n1e6,4e9,3\n".replace(",", separator)
    for data in (text, gzip.compress(text.encode())):
        assert read_runs(write(tmp_path, data, "runs.csv.gz")).frame[["N", "D", "loss"]].to_numpy().tolist() == [[1e6, 4e9, 3]]


def test_the_n_of_a_publication_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path, "params_non_embedding,params,tokens,loss\n1e6,2e6,4e9,3\n")
    assert read_runs(path).n_column == "params"
    assert read_runs(path, n_column="params_non_embedding").frame["N"].tolist() == [1e6]


def test_a_run_without_a_trunk_is_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, "run_id,trunk_id,params,tokens,loss\na,t,1e6,4e9,3\nb,,1e6,5e9,3\n")
    assert read_runs(path).frame["trunk_id"].tolist() == ["t", "b"]


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="results folder"):
            read_runs(path)


def test_curves(tmp_path: Path) -> None:
    assert list(read_curves(tmp_path).columns)[:3] == ["run_id", "trunk_id", "phase"]
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT 'r' AS run_id, 5 AS step, 2.5 AS loss) TO '{tmp_path}/curves.parquet' (FORMAT parquet)")
    assert np.asarray(read_curves(tmp_path)).tolist()[0][:2] == ["r", 5]
    (tmp_path / "curves.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="Parquet"):
        read_curves(tmp_path)


def test_an_empty_column_is_not_taken_for_n(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("params_non_embedding,params,tokens,loss\n" + "".join(f",{n}e6,1e9,{3 - n / 10}\n" for n in range(1, 9)))
    assert read_runs(path).n_column == "params"
