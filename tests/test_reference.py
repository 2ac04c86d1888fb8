"""The committed reference run: its tables follow from its runs with today's code, and the README quotes its numbers."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis.tables import analyse
from scaling.plan import resolve
from scaling.sweep_file import load_sweep

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference" / "quickstart"


def test_tables_follow_from_the_committed_runs(tmp_path):
    folder = tmp_path / "quickstart"
    shutil.copytree(REFERENCE, folder)
    for name in ("laws.csv", "fits.csv", "predictions.csv"):
        (folder / name).unlink()
    analyse(folder)
    for name in ("laws.csv", "fits.csv", "predictions.csv", "returns.csv", "frontier.csv", "exclusions.csv"):
        again, committed = pd.read_csv(folder / name), pd.read_csv(REFERENCE / name)
        pd.testing.assert_frame_equal(again, committed, rtol=1e-3, check_exact=False)


def test_runs_are_those_that_the_sweep_file_plans_today():
    runs = pd.read_csv(REFERENCE / "runs.csv")
    planned = resolve(load_sweep(ROOT / "sweeps" / "quickstart.toml"), corpus_hash=runs["corpus_hash"][0])
    assert [run.run_id for run in planned] == list(runs["run_id"]), "numbers or the sweep changed: renew with `make reference`"
    assert set(runs["status"]) == {"done"}


def test_loss_falls_with_parameters_and_with_tokens():
    runs = pd.read_csv(REFERENCE / "runs.csv").query("role == 'fit'")
    table = runs.pivot_table(index="d_model", columns="tokens", values="loss")
    assert (table.diff().iloc[1:] < 0).all(axis=None) and (table.diff(axis=1).iloc[:, 1:] < 0).all(axis=None)
    assert runs["flops_spent"].sum() < runs["flops"].sum()


def test_the_readme_quotes_the_tables():
    text = (ROOT / "README.md").read_text()
    laws = pd.read_csv(REFERENCE / "laws.csv").query("law == 'chinchilla'").set_index("parameter")
    for name in ("E", "alpha", "beta"):
        row = laws.loc[name]
        assert f"| {row.estimate:.3f} | {row.ci_low:.3f} to {row.ci_high:.3f} |" in text
    (forecast,) = pd.read_csv(REFERENCE / "predictions.csv").query("kind == 'forecast'").to_dict("records")
    assert f"| {forecast['predicted']:.3f} | {forecast['pi_low']:.3f} to {forecast['pi_high']:.3f} |" in text
    assert f"| {forecast['observed']:.3f} | the forecast was {100 * forecast['relative_error']:.2f} % too high |" in text
    assert abs(forecast["relative_error"]) <= forecast["threshold"] == pytest.approx(0.015)
