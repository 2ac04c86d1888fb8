"""The commands that read tables: what they print, where, and that a mistake is one line and exit code 2."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import TRUTH, true_loss, write_results

from scaling.cli.main import main

BOOTSTRAP = ["--bootstrap", "50"]
QUICK = [*BOOTSTRAP, "--no-plots"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_results(tmp_path_factory.mktemp("cli") / "results")
    assert main(["fit", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    size, data = 10 ** rng.uniform(4, 6, 60), 10 ** rng.uniform(5, 8, 60)
    loss = true_loss(size, data) * np.exp(rng.normal(0, 0.003, 60))
    pd.DataFrame({"weights": size, "seen": data, "nll": loss}).to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def mistake(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail: exit code 2 and one line on stderr, nothing on stdout."""
    capsys.readouterr()
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_fit_writes_the_tables_and_prints_the_law(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(fitted), *QUICK]) == 0
    captured = capsys.readouterr()
    assert "alpha" in captured.out and "conditional on the law" in captured.out
    assert "tables, checklist.md; open" in captured.err
    assert (fitted / "checklist.md").is_file() and (fitted / "report.html").is_file() and not (fitted / "plots").exists()
    for name in ("laws", "fits", "exclusions", "frontier", "returns", "predictions"):
        with (fitted / f"{name}.csv").open(newline="") as file:
            assert next(csv.reader(file))
    laws = pd.read_csv(fitted / "laws.csv")
    assert set(laws.law) == {"power-n", "power-d", "power-c", "chinchilla"}
    found = laws[laws.law == "chinchilla"].set_index("parameter")
    for name in ("E", "alpha", "beta"):
        assert found.ci_low[name] < TRUTH[name] < found.ci_high[name]


def test_fit_repeats_to_the_byte(fitted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(fitted, copy)
    before = {path.name: path.read_bytes() for path in copy.glob("*.csv")}
    assert main(["fit", str(copy), *QUICK]) == 0
    assert {path.name: path.read_bytes() for path in copy.glob("*.csv")} == before


def test_fit_alone_gives_tables_plots_and_checklist(foreign: Path) -> None:
    columns = ["--n-column", "weights", "--d-column", "seen", "--loss-column", "nll"]
    assert main(["fit", str(foreign), *columns, "--law", "E + A*N**-alpha + B*D**-beta | 0 < alpha < 2", *BOOTSTRAP]) == 0
    out = foreign.with_suffix("")
    assert {path.name for path in out.iterdir()} >= {"laws.csv", "critical.csv", "checklist.md", "report.html", "plots"}
    assert (out / "plots" / "loss_vs_params.png").read_bytes()[:4] == b"\x89PNG"


def test_fit_takes_any_table(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["--n-column", "weights", "--d-column", "seen", "--loss-column", "nll"]
    argv = ["fit", str(foreign), *columns, "--law", "chinchilla", "--exclude", "weights < 2e4 and seen > 1M", *QUICK]
    assert main(argv) == 0
    out = foreign.with_suffix("")  # beside it, its name without .csv
    laws = pd.read_csv(out / "laws.csv").set_index("parameter")
    assert laws.estimate["alpha"] == pytest.approx(TRUTH["alpha"], abs=0.05)
    assert laws.n_column.unique().tolist() == ["weights"]
    excluded = pd.read_csv(out / "exclusions.csv")
    source = pd.read_csv(foreign)
    assert (out / "checklist.md").is_file()
    assert len(excluded) == ((source.weights < 2e4) & (source.seen > 1e6)).sum() > 0


def test_report_and_plot(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["report", str(fitted), "--out", str(tmp_path), "--law", "chinchilla", *BOOTSTRAP]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "checklist.md").is_file()
    assert main(["plot", str(fitted), "--out", str(tmp_path), "--format", "svg", "--law", "chinchilla", *BOOTSTRAP]) == 0
    printed = capsys.readouterr().out.split()
    assert {Path(path).stem for path in printed} == {
        "loss_curves", "loss_vs_params", "loss_vs_tokens", "loss_vs_flops", "approaches", "diminishing_returns", "residuals",
        "windows", "noise",
    }  # fmt: skip
    assert all(Path(path).is_file() for path in printed)


def test_query_formats(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT law, parameter, estimate FROM laws WHERE law = 'chinchilla' ORDER BY parameter"
    capsys.readouterr()
    assert main(["query", str(fitted), sql, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(["query", str(fitted), sql, "--format", "json"]) == 0
    assert [row["estimate"] for row in json.loads(capsys.readouterr().out)] == [float(row["estimate"]) for row in rows]
    assert main(["query", str(fitted), sql]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 5


def test_laws_lists_forms_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["laws", "--format", "json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) >= {"power-n", "power-d", "power-c", "chinchilla", "hoffmann2022", "besiroglu2024"}
    assert rows["chinchilla"]["formula"] == "E + A/N^alpha + B/D^beta"
    assert rows["besiroglu2024"]["n_column"] == "params_total"


def test_predict(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["predict", str(fitted), "--params", "200k", "--tokens", "8M", "--format", "json", *BOOTSTRAP]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["loss"] == pytest.approx(true_loss(2e5, 8e6), rel=0.01)
    assert row["loss_ci_low"] < row["loss"] < row["loss_ci_high"]
    assert row["n_column"] == "params_non_embedding"
    assert row["extrapolation"].endswith("the data") and "N x2.03" in row["extrapolation"]
    assert main(["predict", "hoffmann2022", "--params", "70B", "--tokens", "1.4T", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    # By hand: 1.69337 + 406.46/4768 + 410.7/2888
    assert row["loss"] == pytest.approx(1.9208, abs=2e-4)


def test_optimal(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["optimal", "besiroglu2024", "--flops", "1e21", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert 6 * row["params_opt"] * row["tokens_opt"] == pytest.approx(1e21, rel=1e-6)
    around = [1.81686 + 482.006 / n**0.34781 + 2085.434 / (1e21 / 6 / n) ** 0.36585 for n in row["params_opt"] * np.array([0.97, 1, 1.03])]
    assert around[1] == min(around)
    assert main(["optimal", "besiroglu2024", "--flops", "1e21", "--inference-tokens", "1e12", "--format", "json"]) == 0
    (served,) = json.loads(capsys.readouterr().out)
    assert served["params_opt"] < row["params_opt"] and served["tokens_opt"] > row["tokens_opt"]
    assert main(["optimal", str(fitted), "--flops", "1e13", "--format", "json", *BOOTSTRAP]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["params_ci_low"] < row["params_opt"] < row["params_ci_high"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "{tmp}/nothing"], "nothing"),
        (["fit", "{tmp}/nothing.csv"], "no such file"),
        (["fit", "{tmp}"], "runs.csv"),
        (["fit", "{fitted}", "--law", "chincilla"], "chinchilla"),
        (["fit", "{fitted}", "--loss", "l1"], "huber:auto"),
        (["fit", "{fitted}", "--link", "cubic"], "log"),
        (["fit", "{fitted}", "--n-column", "weights"], "weights"),
        (["fit", "{fitted}", "--n-column", "host"], "host"),
        (["fit", "{fitted}", "--exclude", "import os"], "OP"),
        (["fit", "{fitted}", "--exclude", "tokens > 0"], "usable"),
        (["fit", "{fitted}", "--bootstrap", "many"], "--bootstrap"),
        (["fit", "{fitted}", "--bootstrap", "-5"], "--bootstrap"),
        (["fit", "{fitted}", "--seed", "x"], "--seed"),
        (["fit", "{fitted}", "--out", "{fitted}/runs.csv"], "is a file"),
        (["fit", "{tmp}/text.csv"], "'many'"),
        (["fit", "{tmp}/zero.csv"], "above 0"),
        (["fit", "{tmp}/negative.csv"], "above 0"),
        (["fit", "{tmp}/infinite.csv"], "finite"),
        (["fit", "{tmp}/empty.csv"], "empty"),
        (["fit", "{tmp}/header.csv"], "no rows"),
        (["fit", "{tmp}/columns.csv"], "tokens"),
        (["fit", "{tmp}/binary.csv"], "binary.csv"),
        (["fit", "{tmp}/few.csv"], "usable"),
        (["plot", "{fitted}", "--format", "gif"], "png, svg, pdf"),
        (["report", "{tmp}/nothing"], "nothing"),
        (["query", "{fitted}", "DROP TABLE runs"], "only reading"),
        (["query", "{fitted}", "SELECT * FROM nowhere"], "nowhere"),
        (["query", "{fitted}", "SELECT 1", "--format", "xml"], "table, csv, json"),
        (["query", "{tmp}/nothing", "SELECT 1"], "nothing"),
        (["laws", "--format", "xml"], "table, csv, json"),
        (["predict", "chinchilla2022", "--params", "1B", "--tokens", "1B"], "besiroglu2024"),
        (["predict", "besiroglu2024", "--params", "lots", "--tokens", "1B"], "lots"),
        (["predict", "besiroglu2024", "--params", "0", "--tokens", "1B"], "0"),
        (["predict", "{fitted}", "--params", "1M", "--tokens", "-1"], "-1"),
        (["predict", "besiroglu2024", "--params", "1M", "--tokens", "1M", "--law", "power-n"], "preset"),
        (["optimal", "besiroglu2024", "--flops", "inf"], "inf"),
        (["optimal", "besiroglu2024", "--flops", "1e21", "--inference-tokens", "no"], "no"),
        (["optimal", "{fitted}", "--flops", "1e12", "--law", "power-n"], "power-n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_mistakes(fitted: Path, tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    head = "params,tokens,loss\n"
    good = "".join(f"{n},{d},{true_loss(n, d)}\n" for n in (1e6, 2e6, 4e6) for d in (1e8, 2e8, 4e8))
    files = {
        "text": head + good + "many,1e8,2\n",
        "zero": head + good + "0,1e8,2\n",
        "negative": head + good + "1e6,1e8,-2\n",
        "infinite": head + good + "1e6,inf,2\n",
        "empty": "",
        "header": head,
        "columns": "params,loss\n1,2\n",
        "few": head + "".join(good.splitlines(True)[:4]),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.csv").write_text(content, encoding="utf-8")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    before = sorted(path.name for path in tmp_path.iterdir())
    line = mistake([part.format(tmp=tmp_path, fitted=fitted) for part in arguments], capsys)
    assert says in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # nothing was written


@pytest.mark.parametrize("command", ["fit", "plot", "report", "query", "laws", "predict", "optimal"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example: scaling {command}" in capsys.readouterr().out
