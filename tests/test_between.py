"""Two sweeps of known laws: the multiplier of compute and the shift of exponents are those of the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import TRUTH

from analysis import UserError, bootstrap, fit, read_runs
from analysis.between import compare_sweeps, comparison_answer
from analysis.fitting import Fit
from scaling.cli.main import main


def write_sweep(path: Path, *, waste: float, alpha: float = TRUTH["alpha"], noise: float = 0.0, seed: int = 0) -> Path:
    """Runs of L(N, D) = E + A (N / s)^-alpha + B (D / s)^-beta: s = sqrt(waste) times N and D, so `waste` times the compute, for any loss."""
    rng = np.random.default_rng(seed)
    n, d = (np.repeat(v.ravel(), 2) for v in np.meshgrid(np.geomspace(1e5, 3e6, 5), np.geomspace(3e6, 1e8, 5)))
    s = np.sqrt(waste)
    loss = TRUTH["E"] + TRUTH["A"] * (n / s) ** -alpha + TRUTH["B"] * (d / s) ** -TRUTH["beta"]
    loss = loss * np.exp(rng.normal(0, noise, len(n))) if noise else loss
    pd.DataFrame({"params": n, "tokens": d, "loss": loss}).to_csv(path, index=False)
    return path


def fitted(path: Path, **options: int) -> Fit:
    return bootstrap(fit("chinchilla", read_runs(path)), draws=options.get("draws", 0), seed=options.get("seed", 0))


def test_the_multiplier_is_that_of_the_truth_at_every_loss(tmp_path: Path) -> None:
    found = compare_sweeps(fitted(write_sweep(tmp_path / "a.csv", waste=1.0)), fitted(write_sweep(tmp_path / "b.csv", waste=1.7)))
    assert len(found.multipliers) == 5
    assert found.multipliers["multiplier"].to_numpy() == pytest.approx(1.7, rel=1e-4)
    shifts = found.shifts.set_index("quantity")["shift"]
    assert shifts[["E", "alpha", "beta", "a", "b", "gamma"]].to_numpy() == pytest.approx(0, abs=1e-4)
    assert shifts["log K"] == pytest.approx(TRUTH["alpha"] * TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"]) * np.log(1.7), abs=1e-3)


def test_a_shift_of_an_exponent_is_found(tmp_path: Path) -> None:
    found = compare_sweeps(
        fitted(write_sweep(tmp_path / "a.csv", waste=1.0)), fitted(write_sweep(tmp_path / "b.csv", waste=1.0, alpha=0.45))
    )
    shifts = found.shifts.set_index("quantity")
    assert shifts.loc["alpha", "shift"] == pytest.approx(0.10, abs=1e-4)
    a = [0.4 / (0.4 + alpha) for alpha in (0.35, 0.45)]
    assert shifts.loc["a", ["first", "second"]].to_numpy(dtype=float) == pytest.approx(a, abs=1e-4)


def test_intervals_hold_the_truth(tmp_path: Path) -> None:
    inside = 0
    for seed in range(20):
        one = fitted(write_sweep(tmp_path / "a.csv", waste=1.0, noise=0.004, seed=2 * seed), draws=200)
        two = fitted(write_sweep(tmp_path / "b.csv", waste=1.7, noise=0.004, seed=2 * seed + 1), draws=200)
        row = compare_sweeps(one, two).multipliers.iloc[2]
        inside += bool(row["ci_low"] <= 1.7 <= row["ci_high"])
    assert inside >= 17, "95 % of 20 is 19; below 17 in 1 of 40 sets"


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    one = fitted(write_sweep(tmp_path / "a.csv", waste=1.0))
    runs = read_runs(tmp_path / "a.csv")
    with pytest.raises(UserError, match="one law"):
        compare_sweeps(one, fit("skaling", runs))
    with pytest.raises(UserError, match="sum of powers"):
        compare_sweeps(fit("skaling", runs), fit("skaling", runs))


def test_report_of_two_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_sweep(tmp_path / "a.csv", waste=1.0, noise=0.003), write_sweep(tmp_path / "b.csv", waste=2.0, noise=0.003, seed=5)
    assert main(["report", str(one), str(two), "--out", str(tmp_path / "both"), "--bootstrap", "100"]) == 0
    told = capsys.readouterr().out
    assert "b needs" in told and "times as many (95 % interval" in told and str(tmp_path / "both" / "comparison.html") in told
    table = pd.read_csv(tmp_path / "both" / "multipliers.csv")
    assert table["multiplier"].to_numpy() == pytest.approx(2.0, rel=0.2)
    page = (tmp_path / "both" / "comparison.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "default-src 'none'" in page and "<script" not in page
    answer = comparison_answer(compare_sweeps(fitted(one, draws=100), fitted(two, draws=100)), ("a", "b"))
    assert answer in told
    assert main(["report", str(one), str(tmp_path / "missing")]) == 2
