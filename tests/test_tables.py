"""All tables of a results folder, and forecasts: registered once, scored once, never changed."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from test_uncertainty import as_runs, simulated, true_loss

from analysis.errors import UserError
from analysis.files import write_text
from analysis.fitting import fit
from analysis.forecast import read_forecasts, register, score
from analysis.report_text import summary
from analysis.tables import TABLES, analyse
from analysis.uncertainty import bootstrap

COLUMNS = {
    "laws": "fit_id,law,approach,n_column,parameter,estimate,std_error,ci_low,ci_high,ci_level,method",
    "fits": "fit_id,law,n_column,n_runs,n_trunks,n_excluded,loss,objective,rmse_log,r2,aicc,bic,cv_error,starts,"
    "starts_agree,condition,status",
    "windows": "fit_id,law,n_column,window,parameter,estimate,std_error,ci_low,ci_high,ci_level,change,change_sd,inside,n_runs,rmse_log,"
    "left_out_mean,left_out_max",
    "noise": "params,tokens,n_runs,loss_mean,sd,sd_ci_low,sd_ci_high,ci_level,noise_sd,residual,mean_sd",
    "tuning": "params_non_embedding,d_model,tokens,batch_tokens,rate_best,ci_low,ci_high,bracketed,chosen,rate_used,penalty,reason",
    "rate_law": "parameter,estimate,ci_low,ci_high,params,tokens,batch_tokens,n_cells,method",
    "exclusions": "run_id,reason",
    "frontier": "approach,law,n_column,flops,params_opt,tokens_opt,loss",
    "returns": "axis,from,to,loss_from,loss_to,gain,gain_per_doubling",
    "critical": "fit_id,law,axis,name,value,ci_low,ci_high,loss,reducible_left,beyond_data,held",
    "approaches": "approach,a,a_low,a_high,b,b_low,b_high,flops,params_opt,tokens_opt,n_points,reason,n_column,c_column",
    "conventions": "n_column,c_column,approach,a,b,n_points,reason",
    "predictions": "kind,run_id,law,n_column,params,tokens,predicted,pi_low,pi_high,predicted_model,pi_model_low,pi_model_high,"
    "observed,relative_error,extrapolation,inside_interval,inside_model_interval",
}
HELD = {"run_id": "big", "trunk_id": "big", "params_non_embedding": 36 * 96**2, "tokens": 4_000_000}


def write_folder(folder: Path, *, seed: int = 0, observed: float | None = None) -> Path:
    frame = simulated(seed).rename(columns={"N": "params_non_embedding", "D": "tokens", "C": "flops"}).assign(status="done", reason="")
    held = {
        **HELD,
        "seed_data": "0",
        "role": "holdout",
        "flops": 1e12,
        "status": "done" if observed else "missing",
        "reason": "",
        "loss": observed,
    }
    folder.mkdir(exist_ok=True)
    pd.concat([frame, pd.DataFrame([held])]).to_csv(folder / "runs.csv", index=False)
    return folder


def test_the_whole_way(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sweep")
    before = analyse(folder, bootstrap=60)
    main = before.fits[-1]
    assert main.law.name == "chinchilla"
    path = register(main, HELD, folder=folder)
    content = path.read_bytes()
    observed = true_loss(HELD["params_non_embedding"], HELD["tokens"]) * 1.001
    after = analyse(write_folder(folder, observed=observed), bootstrap=60)
    assert register(main, HELD, folder=folder) == path and path.read_bytes() == content
    assert set(COLUMNS) == set(TABLES)
    for name, columns in COLUMNS.items():
        table = pd.read_csv(folder / f"{name}.csv")
        assert set(columns.split(",")) <= set(table.columns), name
    laws = pd.read_csv(folder / "laws.csv")
    assert set(laws["law"]) == {"power-n", "power-d", "power-c", "chinchilla"}
    assert laws["method"].str.contains("conditional on the law").all()
    forecast = after.tables["predictions"].query("kind == 'forecast'").iloc[0]
    assert forecast["observed"] == pytest.approx(observed)
    assert forecast["relative_error"] == pytest.approx(forecast["predicted"] / observed - 1)
    assert abs(forecast["relative_error"]) < 0.015
    assert after.tables["exclusions"].to_numpy().tolist() == [["big", "holdout: scored, never fitted"]]
    assert {f.stem for f in (folder / "draws").iterdir()} == {f.fit_id for f in after.fits}
    assert [f.fit_id for f in before.fits] == [f.fit_id for f in after.fits], "a hold-out must change no fit"
    text = summary(after)
    assert all(f"{name}.csv" in text for name in TABLES)
    for word in ("alpha", "params_non_embedding", "conditional on the law", "starts agree", "condition", "error", "threshold of 1.5 %"):
        assert word in text


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sweep", observed=1.3)
    written = []
    for _ in range(2):
        analyse(folder, laws=["chinchilla", "power-n"], bootstrap=40)
        written.append({p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.csv"))})
    assert written[0] == written[1]
    assert not list(folder.rglob("*.tmp"))


def test_numbers_survive_the_csv(tmp_path: Path) -> None:
    found = analyse(write_folder(tmp_path / "sweep"), laws=["chinchilla"], bootstrap=0)
    table = pd.read_csv(tmp_path / "sweep" / "laws.csv", dtype=str).set_index("parameter")
    assert {name: float(text) for name, text in table["estimate"].items()} == found.fits[0].params


def test_laws_that_cannot_be_fitted_are_noted(tmp_path: Path) -> None:
    frame = simulated(0, seeds=1)
    path = tmp_path / "theirs.csv"
    frame.loc[frame["N"] > frame["N"].min(), ["N", "D", "loss"]].to_csv(path, index=False)  # three sizes: power-n has three parameters
    found = analyse(path, bootstrap=0)
    assert [f.law.name for f in found.fits] == ["chinchilla"] or "power-c" in [f.law.name for f in found.fits]
    assert any("power-n" in note and "usable rows" in note for note in found.notes)
    assert "not fitted" in summary(found)
    assert found.folder == tmp_path / "theirs"
    with pytest.raises(UserError, match="usable rows"):
        analyse(path, laws=["power-n"], out=tmp_path / "new")
    assert not (tmp_path / "new").exists(), "nothing is written when the input is wrong"
    with pytest.raises(UserError, match="is a file"):
        analyse(path, out=path)


def test_a_holdout_without_forecast_is_scored_and_named_so(tmp_path: Path) -> None:
    found = analyse(write_folder(tmp_path / "sweep", observed=1.3), laws=["chinchilla"], bootstrap=40)
    row = found.tables["predictions"].query("run_id == 'big'").iloc[0]
    assert row["kind"] == "holdout, no forecast registered"
    assert row["extrapolation"].endswith("beyond the data")


def test_a_forecast_holds_what_is_needed_to_score_it(tmp_path: Path) -> None:
    found = fit("chinchilla", as_runs(simulated(0)))
    with pytest.raises(UserError, match="no draws"):
        register(found, HELD, folder=tmp_path)
    drawn = bootstrap(found, draws=300)
    with pytest.raises(UserError, match="tokens"):
        register(drawn, {"run_id": "x", "params_non_embedding": 5}, folder=tmp_path)
    path = register(drawn, HELD, folder=tmp_path, threshold=0.01)
    record = json.loads(path.read_text())
    assert record["forecast_id"] == path.stem and len(path.stem) == 12
    assert len(record["draws"]) == 200 and len(record["runs"]) == 32
    assert record["pi_low"] < record["predicted"] < record["pi_high"]
    assert read_forecasts(tmp_path) == [{**record, "notes": ""}]
    (tmp_path / "forecasts" / "zz.json").write_text("{")
    with pytest.raises(UserError, match="is no forecast"):
        read_forecasts(tmp_path)


def test_analysis_imports_neither_jax_nor_scaling() -> None:
    for path in (Path(__file__).parents[1] / "analysis").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {n.split(".")[0] for n in names} & {"jax", "jaxlib", "flax", "optax", "scaling"}, path.name


def test_a_forecast_is_scored_once_by_its_thresholds_and_what_is_irregular_is_told(tmp_path: Path) -> None:
    drawn = bootstrap(fit("chinchilla", as_runs(simulated(0))), draws=60)
    path = register(drawn, HELD, folder=tmp_path, threshold=0.01, inside="law")
    (forecast,) = read_forecasts(tmp_path)
    good, far = (float(forecast["predicted"] * factor) for factor in (1.0005, 1.02))
    assert score(forecast, good, folder=tmp_path) == {"verdict": "accepted", "notes": ""}
    assert score(forecast, far, folder=None)["verdict"] == "missed"
    kept = json.loads((tmp_path / "forecasts" / "scores" / path.name).read_text())
    assert kept["observed"] == good and kept["verdict"] == "accepted"
    assert "scored before against" in score(forecast, far, folder=tmp_path)["notes"]
    assert json.loads((tmp_path / "forecasts" / "scores" / path.name).read_text()) == kept
    narrow = {**forecast, "pi_low": good * 0.99, "pi_high": good * 0.995}
    assert score(narrow, good, folder=None)["verdict"] == "missed", "inside the tolerance, outside the interval"
    changed = {**json.loads(path.read_text()), "predicted": far}
    path.write_text(json.dumps(changed))
    (forecast,) = read_forecasts(tmp_path)
    assert forecast["notes"] == "changed after it was registered"
    path.with_name("000000000000.json").write_text(json.dumps(changed))
    (tmp_path / "runs" / "big").mkdir(parents=True)
    (tmp_path / "runs" / "big" / "config.json").write_text(json.dumps({"forecast": path.stem}))
    notes = {forecast["forecast_id"]: forecast["notes"] for forecast in read_forecasts(tmp_path)}
    assert "one of 2 forecasts of this run" in notes[path.stem]


def test_what_a_killed_writer_left_of_a_file_goes_when_it_is_written_again(tmp_path: Path) -> None:
    """As a plot's temporary file that stayed when the machine died: old ones of the same name go, young ones may be in use."""
    old, other, young = (tmp_path / name for name in (".a.csv.123.tmp", ".b.csv.123.tmp", ".a.csv.124.tmp"))
    for path in (old, other, young):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (0, 0))
    assert write_text(tmp_path / "a.csv", "whole").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.csv.124.tmp", ".b.csv.123.tmp", "a.csv"]
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "a.csv" / "b", "")


@pytest.mark.parametrize("name", ["runs.csv", "curves.parquet"])
def test_a_folder_in_the_place_of_a_table_is_named(tmp_path, name):
    from synthetic import write_records

    from scaling.config import UserError as Mistake
    from scaling.record import read_resolved
    from scaling.tables import write_tables

    root = write_records(tmp_path / "tiny")
    (root / name).unlink(missing_ok=True)
    (root / name).mkdir()
    with pytest.raises(Mistake, match=f"{name}: is a folder where a file is to be written"):
        write_tables(root, read_resolved(root))
    assert not [path for path in root.iterdir() if path.name.endswith(".tmp") or path.name.startswith(".curves-")]
