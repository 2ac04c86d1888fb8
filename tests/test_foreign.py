"""Other people's tables: every layout on a small hand-made file, and on the published one against its independent tidy copy."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.errors import UserError
from analysis.files import write_table
from analysis.foreign import LAYOUTS, import_runs
from analysis.runs import read_runs
from scaling.cli.main import main

PUBLISHED = Path(__file__).parents[2] / "shared" / "published"

GADRE = [
    {
        "name": f"rpj-{size}-1", "dataset_name": "rpj",
        "hyperparameters": {"tokens": 20 * size, "params": size, "params_no_embed": size // 2, "lr": 0.003, "warmup": 100, "fsdp_flags": ["--a"]},
        "results": [
            {"val_data": ["x/openlm/shard.tar"], "loss": 9.0, "loss_sequences_lower_95": 8.9, "loss_sequences_upper_95": 9.1},
            {"val_data": ["x/c4_val/shard.tar"], "loss": 4.0, "loss_sequences_lower_95": 3.902, "loss_sequences_upper_95": 4.098},
        ],
    }
    for size in (1000, 2000)
]  # fmt: skip
LOSSES = {"2b84b2b": 3.5, "2b84b84b8": 3.4, "7m12b400mdedup": 5.0, "1b155b1b5c4seed2": 2.9, "1b112b100m": 0}
MODELS = {"2b8": 2.8e9, "7m": 7e6, "1b1": 1.1e9}

# One small file a layout, with invented numbers, and what its first rows must become.
SAMPLES: dict[str, tuple[str, list[dict]]] = {
    "epoch": (
        "x,y,color,Model Size,Training FLOP,hex_color,loss\n1,2,#aaa,1000000,6e14,#aaa,3.5\n"
        + "".join(f"1,2,#aaa,2000000,{k}e15,#aaa,{3 - k / 10}\n" for k in range(1, 6)),
        [{"params": 1e6, "flops": 6e14, "tokens": 1e8, "loss": 3.5, "in_fit": 0}],
    ),
    "chinchilla": ("C,N,D,loss\n6e15,1000000,1000000000,3.1\n", [{"params": 1e6, "tokens": 1e9, "flops": 6e15, "loss": 3.1}]),
    "gadre": (
        json.dumps(GADRE),
        [
            {"run_id": "rpj-1000-1", "group": "rpj", "params": 1000, "params_non_embedding": 500, "tokens": 20000, "flops": 1.2e8, "loss": 4.0,
             "loss_se": 0.05, "learning_rate": 0.003, "loss_openlm": 9.0},
        ],
    ),
    "olmo": (
        "run_id,params,tokens,group,size,length,rerun,step,lr,ce_c4_en\na,100,1000,m,1B,1xC,0,1,.1,4.0\na,100,2000,m,1B,1xC,0,2,.1,3.0\n"
        "b,100,2000,m-decay,1B,2xC,0,2,.1,2.9\nc,100,4000,m-const,1B,2xC,0,4,.1,3.3\n",
        [
            {"run_id": "a", "tokens": 2000, "loss": 3.0, "trunk_id": "a", "steps": 2},
            {"run_id": "b", "trunk_id": "const-1B"}, {"run_id": "c", "trunk_id": "const-1B"},
        ],
    ),
    "datablations": (
        json.dumps({"NAMES_TO_VAL_LOSSES": LOSSES, "TOKENS_MAP": {"1b5": 1.5, "400m": 0.4}, "PARAMS_MAP": MODELS}),
        [
            {"params": 2.8e9, "tokens": 4e9, "tokens_unique": 2e9, "epochs": 2, "flops": 6 * 2.8e9 * 4e9, "loss": 3.5, "group": "c4"},
            {"params": 2.8e9, "tokens": 4.8e9, "tokens_unique": 4.8e9},
            {"params": 7e6, "tokens": 12e9, "tokens_unique": 4e8, "group": "c4-dedup"},
            {"params": 1.1e9, "tokens": 55e9, "tokens_unique": 1.5e9, "seed_init": 2},
            {"status": "missing", "loss": None},
        ],
    ),
    "sldbench": (
        "id,params,unique_tokens,tokens,loss\na,10,400,100,3\nb,10,800,100,2.9\nc,10,100,100,3.2\n",
        [{"run_id": "a", "tokens": 400, "tokens_unique": 100, "flops": 24000}, {"tokens": 800}, {"tokens": 100}],
    ),
    "porian": (
        "run_id,params,params_non_embedding,tokens,flops,loss,group,n_as_counted,param_count,loss_kind,width,depth\n"
        "a,50,30,100,9000,3,g,30,kaplan,train,8,2\na,50,30,200,18000,2.9,g,30,kaplan,train,8,2\nb,60,40,100,9000,3,g,40,kaplan,train,8,2\n",
        [{"run_id": "a#1", "trunk_id": "a", "params": 30, "params_with_head": 50, "d_model": 8, "n_layers": 2},
         {"run_id": "a#2", "trunk_id": "a"}, {"run_id": "b", "trunk_id": "b"}],
    ),
    "steplaw": (
        "h,ffnh,numh,numl,lr,bs,ti,loss,smooth loss,exp_name,D,N,D/N\n64,128,4,2,.001,8,50,2.5,2.4,e1,1000000,5000,200\n"
        ",,,,.001,8,,,2.1,,10000000000000,5000,\n",
        [
            {"run_id": "e1", "params": 5000, "tokens": 1e6, "flops": 3e10, "loss": 2.4, "loss_raw": 2.5, "batch_tokens": 16384, "d_model": 64,
             "learning_rate": 0.001, "steps": 50, "status": "done"},
            {"run_id": "row-2", "status": "suspect"},
        ],
    ),
    "clark": (
        "hyper_id,step,loss_validation,router_type,dense_parameter_count,total_parameter_count,flops_per_step,seed,num_blocks\n"
        "7,0,9,Dense,100.0,100.0,1e3,42,3\n7,10,3,Dense,100.0,100.0,1e3,42,3\n8,10,2.5,Hash,100.0,400.0,1e3,42,3\n",
        [{"run_id": 7, "group": "Dense", "params": 100, "params_total": 100, "tokens": 10 * 256 * 2048, "flops": 3e4, "loss": 3, "seed_init": 42,
          "n_layers": 3}, {"params_total": 400}],
    ),
    "mpl": (
        "run_id,model,params,schedule,split,step,lr,loss\na,25M,25000000,wsd,train,10,.1,4\na,25M,25000000,wsd,train,20,.1,3.5\n",
        [{"run_id": "a", "group": "25M", "params": 25e6, "steps": 20, "loss": 3.5}],
    ),
    "nanochat": (
        "param_counting,flops_as_printed,flops_inferred,params_opt,tokens_opt,val_bpb_opt\nkaplan,2e+18,2.1e18,100,200,0.9\n",
        [{"group": "kaplan", "flops": 2.1e18, "params": 100, "tokens": 200, "bits_per_byte": 0.9}],
    ),
    "hoffmann": ("approach,params,tokens,flops_6nd\n1,10,200,12000\n", [{"params_opt": 10, "tokens_opt": 200, "flops": 12000, "group": 1}]),
    "tidy": (
        "run_id,params,params_non_embedding,tokens,flops,loss,group,unique_tokens,lr,suspect\na,10,,100,6000,3,g,50,.1,0\nb,10,,,,2,g,,.1,1\n",
        [{"run_id": "a", "params": 10, "tokens_unique": 50, "learning_rate": 0.1, "status": "done"}, {"status": "suspect"}],
    ),
}  # fmt: skip


def published(*parts: str) -> Path:
    path = PUBLISHED.joinpath(*parts)
    if not path.is_file():
        pytest.skip("the published data sets (../shared/published) are not here")
    return path


def imported(folder: Path, layout: str, path: Path, **options) -> pd.DataFrame:
    return pd.read_csv(write_table(folder / "out.csv", import_runs(layout, path, **options).table))


def mistake(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def theirs(folder: Path, text: str = "Model Size,val,D/1e9,name\n7,3.5,1.5,a\n8,3.25,2,b\n") -> Path:
    (folder / "theirs.csv").write_text(text)
    return folder / "theirs.csv"


@pytest.mark.parametrize("layout", SAMPLES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_small_file_of_each_layout(tmp_path: Path, layout: str, packed: bool) -> None:
    text, expected = SAMPLES[layout]
    path = tmp_path / "sample.txt"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert import_runs("auto", path).layout == layout
    found = imported(tmp_path, layout, path)
    for row, wanted in zip(found.to_dict("records"), expected, strict=False):
        for name, value in wanted.items():
            if value is None:
                assert pd.isna(row[name]), name
            else:
                assert row[name] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), name
    assert found.columns[0] == "run_id" and found["run_id"].is_unique


def test_every_layout_has_a_sample() -> None:
    assert set(SAMPLES) == set(LAYOUTS) - {"columns"}


@pytest.mark.parametrize(
    ("layout", "file", "columns"),
    [
        ("epoch", "besiroglu2024/svg_extracted_data.csv", "params tokens flops loss in_fit"),
        ("chinchilla", "takano_chinchilla/df.csv", "params tokens flops loss"),
        ("gadre", "gadre2024/models.json", "run_id group params params_non_embedding tokens flops loss"),
        ("olmo", "olmo_ladder2024/loss_curves.csv.gz", "run_id params params_non_embedding tokens flops loss group"),
        ("clark", "clark2022_routing/curves.csv.gz", "params params_non_embedding tokens flops loss group"),
        ("mpl", "mpl2025/loss_curves.csv", "run_id params loss group"),
        ("nanochat", "nanochat2026/isoflop_optima.csv", "params tokens flops group"),
        ("steplaw", "steplaw2025/dense_lr_bs_loss.csv", "params tokens flops loss d_model batch_tokens"),
    ],
)
def test_published_files_agree_with_their_tidy_copies(tmp_path: Path, layout: str, file: str, columns: str) -> None:
    path = published(file)
    found, truth = imported(tmp_path, layout, path), pd.read_csv(path.parent / "tidy.csv")
    if layout == "steplaw":  # 117 rows whose D is a data error
        assert (found["status"] == "suspect").tolist() == (truth["suspect"] == 1).tolist()
        found, truth = found[found["status"] == "done"], truth[truth["suspect"] == 0]
    if layout in ("gadre", "olmo", "mpl"):
        found, truth = found.sort_values("run_id"), truth.sort_values("run_id")
    if layout == "clark":
        found, truth = found.sort_values("run_id"), truth.sort_values("run_id", key=lambda ids: ids.str[6:].astype(int))
    assert len(found) == len(truth)
    for name in columns.split():
        expected = truth[name].tolist()
        assert found[name].tolist() == (
            expected if truth[name].dtype.kind not in "fi" else pytest.approx(expected, rel=2e-9 if layout != "olmo" else 1e-6)
        ), name


def test_muennighoff_s_runs_in_both_copies(tmp_path: Path) -> None:
    truth = pd.read_csv(published("datablations2023", "tidy.csv"))
    truth = truth.assign(run_id=truth["run_id"].str[3:]).set_index("run_id")
    found = imported(tmp_path, "datablations", published("datablations2023", "val_losses.json")).set_index("run_id")
    assert (len(found), (found["status"] == "missing").sum()) == (315, 9)
    both = truth.merge(found, left_index=True, right_index=True, suffixes=("_truth", ""))
    assert len(both) == 306
    for name, other in (("params", "params_truth"), ("tokens", "tokens_truth"), ("tokens_unique", "unique_tokens"), ("loss", "loss_truth")):
        assert both[name].tolist() == pytest.approx(both[other].tolist(), rel=1e-9)
    # The other copy has tokens and unique_tokens swapped.
    answer = import_runs("sldbench", published("datablations2023", "sldbench_182.csv"))
    assert any("swapped" in note for note in answer.notes)
    found = imported(tmp_path, "sldbench", published("datablations2023", "sldbench_182.csv")).set_index("run_id")
    both = truth[truth["in_sld182"] == 1].merge(found, left_index=True, right_index=True, suffixes=("_truth", ""))
    assert len(found) == 182 and len(both) > 150
    assert both["tokens"].tolist() == pytest.approx(both["tokens_truth"].tolist(), rel=1e-9)
    assert both["tokens_unique"].tolist() == pytest.approx(both["unique_tokens"].tolist(), rel=1e-9)


def test_the_best_of_each_cell_of_step_law(tmp_path: Path) -> None:
    path = published("steplaw2025", "dense_lr_bs_loss.csv")
    write_table(tmp_path / "runs.csv", import_runs("steplaw", path, best=True).table)
    runs = read_runs(tmp_path / "runs.csv")
    truth = pd.read_csv(path.parent / "tidy.csv").query("suspect == 0").groupby(["params", "tokens"])["loss"].min()
    assert len(truth) == 17
    assert sorted(runs.frame["loss"]) == pytest.approx(sorted(truth))
    reasons = runs.excluded["reason"].str.split(":").str[0].value_counts()
    assert reasons.to_dict() == {"tune": 1911 - 17, "suspect": 117}


def test_porian_s_points_keep_their_runs_together(tmp_path: Path) -> None:
    write_table(tmp_path / "runs.csv", import_runs("porian", published("porian2024", "tidy.csv")).table)
    runs = read_runs(tmp_path / "runs.csv")
    truth = pd.read_csv(published("porian2024", "tidy.csv"))
    assert len(runs.frame) == 1745 and runs.frame["run_id"].is_unique
    assert runs.frame["trunk_id"].nunique() == truth["run_id"].nunique()
    assert runs.frame["N"].tolist() == truth["n_as_counted"].tolist()


def test_a_column_map(tmp_path: Path) -> None:
    rules = {
        "params": "Model Size",
        "tokens": "D/1e9",
        "loss": "val",
        "flops": "6 * params * `D/1e9` * 1e15",
        "double": "-`Model Size` ** 2 / 4",
    }
    found = imported(tmp_path, "columns", theirs(tmp_path), columns=rules, units={"params": 1e6, "tokens": 1e9})
    assert found["params"].tolist() == [7e6, 8e6]
    assert found["tokens"].tolist() == [1.5e9, 2e9]
    assert found["flops"].tolist() == pytest.approx([6 * 7e6 * 1.5e15, 6 * 8e6 * 2e15])
    assert found["double"].tolist() == pytest.approx([-12.25, -16])
    assert found["name"].tolist() == ["a", "b"]  # what is not renamed stays
    assert "val" not in found


def test_a_unit_of_a_column_that_has_our_name(tmp_path: Path) -> None:
    path = theirs(tmp_path, "params,tokens,loss\n7e6,1.5,3\n8e6,,2.9\n")
    found = imported(tmp_path, "columns", path, units={"tokens": 1e9})
    assert found["tokens"].tolist()[0] == 1.5e9 and pd.isna(found["tokens"][1])
    assert found["flops_6nd"][0] == pytest.approx(6 * 7e6 * 1.5e9)


def test_an_empty_column_is_not_taken_for_n(tmp_path: Path) -> None:
    path = theirs(tmp_path, "run_id,params,params_non_embedding,tokens,loss\na,,7,10,3\nb,,7,10,2\n")
    found = imported(tmp_path, "tidy", path, best=True)
    assert found["flops_6nd"].tolist() == [420, 420] and found["role"].tolist() == ["tune", "fit"]


def test_two_columns_can_change_places(tmp_path: Path) -> None:
    path = theirs(tmp_path, "params,tokens,tokens_unique,loss\n7,1,5,3\n")
    found = imported(tmp_path, "columns", path, columns={"tokens": "tokens_unique", "tokens_unique": "tokens"})
    assert found[["tokens", "tokens_unique"]].to_numpy().tolist() == [[5, 1]]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"params": "__import__('os').system('true')"}, "not allowed"),
        ({"params": "val if val else 1"}, "not allowed"),
        ({"params": "`Model Size`.real"}, "not allowed"),
        ({"params": "size"}, "no column 'size'; found: Model Size"),
        ({"params": "val +"}, "not understood"),
        ({"params": "name * 2"}, "row 1, column name: 'a' is no number"),
        ({"params": "val / (`Model Size` - 8)"}, "row 2: params = val / (`Model Size` - 8) is inf"),
        ({"params": "9 ** 9 ** 9 * val"}, "is inf"),
    ],
)
def test_mistakes_in_a_map(tmp_path: Path, rules: dict[str, str], words: str) -> None:
    assert words in mistake(import_runs, "columns", theirs(tmp_path), columns=rules)


def test_mistakes_in_a_file(tmp_path: Path) -> None:
    path = theirs(tmp_path)
    assert "lacks C, N, D, loss" in mistake(import_runs, "chinchilla", path)
    assert "import format 'none' is unknown; allowed: auto, epoch" in mistake(import_runs, "none", path)
    assert "of no known layout" in mistake(import_runs, "auto", path)
    assert "is no JSON" in mistake(import_runs, "gadre", path)
    assert "--unit size: no such column" in mistake(import_runs, "columns", path, units={"size": 2})
    assert "--best needs" in mistake(import_runs, "columns", path, best=True)
    path.write_text('[{"name": "a"}]')
    assert "no models.json" in mistake(import_runs, "gadre", path)
    path.write_bytes(gzip.compress(b"a,b\n1,2\n")[:-6])
    assert "damaged gzip" in mistake(import_runs, "columns", path)


def test_from_their_file_to_a_law_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{n},{d},{1.5 + 20 / n**0.3 + 100 / d**0.35:.6f}" for n in (1e5, 1e6, 1e7) for d in (1e8, 1e9, 1e10)]
    Path("theirs.csv").write_text("Model Size,seen,val\n" + "\n".join(rows) + "\n")
    maps = ["--map", "params=Model Size", "--map", "tokens=seen", "--map", "loss=val"]
    assert main(["import", "columns", "theirs.csv", *maps]) == 0
    captured = capsys.readouterr()
    assert captured.out == "runs.csv\n"
    assert "9 of 9 rows can be fitted, N is params; next: scaling fit runs.csv" in captured.err
    assert main(["fit", "runs.csv", "--law", "chinchilla", "--bootstrap", "0"]) == 0
    laws = pd.read_csv("runs/laws.csv").set_index("parameter")["estimate"]
    assert laws["alpha"] == pytest.approx(0.3, rel=0.01) and laws["beta"] == pytest.approx(0.35, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["columns"], "name the file"),
        (["columns", "theirs.csv", "--map", "params"], "is not COLUMN=EXPR"),
        (["columns", "theirs.csv", "--unit", "params=many"], "the factor is a number above 0"),
        (["columns", "theirs.csv", "--out", "theirs.csv"], "is the file that is read"),
        (["columns", "theirs.csv", "--out", "runs.parquet"], "does not end in .csv"),
        (["columns", "theirs.csv", "--out", "sweep/runs.csv"], "table of a sweep of yours"),
        (["columns", "theirs.csv"], "runs.csv exists"),
        (["columns", "none.csv", "--out", "a.csv"], "no such file"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path)
    Path("runs.csv").write_text("mine")
    Path("sweep").mkdir()
    Path("sweep/sweep.resolved.json").write_text("{}")
    assert main(["import", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1 and words in captured.err
    assert Path("runs.csv").read_text() == "mine"


def test_the_list_and_a_table_that_cannot_be_fitted_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in LAYOUTS)
    path = tmp_path / "mpl.csv"
    path.write_text(SAMPLES["mpl"][0])
    assert main(["import", "mpl", str(path), "--out", str(tmp_path / "runs.csv")]) == 0
    assert "not ready for `scaling fit`" in capsys.readouterr().err
    # With the tokens of a step, which are not published, it is.
    assert main(["import", "mpl", str(path), "--out", str(tmp_path / "runs.csv"), "--map", "tokens=step * 1000"]) == 0
    assert read_runs(tmp_path / "runs.csv").frame["D"].tolist() == [20000]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in PUBLISHED.glob("*/tidy.csv")) or ["none"])
def test_published_tidy_tables_are_read_as_they_are(name: str) -> None:
    path = published(name, "tidy.csv")
    truth = pd.read_csv(path)
    if name in ("hoffmann2022_tables", "mpl2025"):
        assert "is empty in every row" in mistake(read_runs, path)
        return
    runs = read_runs(path)
    known = truth[truth[["params", "tokens", "loss"]].notna().all(axis=1)]
    assert runs.n_column == "params"
    assert len(runs.frame) == len(known) and len(runs.excluded) == len(truth) - len(known)
    assert runs.frame["N"].tolist() == known["params"].tolist()
    assert ("U" in runs.frame) == ("unique_tokens" in truth)


def test_help_starts_without_the_heavy_modules() -> None:
    command = "import sys; from scaling.cli.main import parser; parser(); assert not {'pandas', 'numpy', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parent.parent)


def test_nothing_of_the_source_is_changed(tmp_path: Path) -> None:
    path = theirs(tmp_path, SAMPLES["steplaw"][0])
    copy = shutil.copy(path, tmp_path / "copy.csv")
    import_runs("steplaw", path, best=True)
    assert path.read_bytes() == Path(copy).read_bytes()
