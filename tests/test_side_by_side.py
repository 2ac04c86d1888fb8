"""The three approaches on a surface whose optimum is known: they agree, and the tables say so; on runs that bend, the alarm sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.fitting import fit
from analysis.runs import Runs
from analysis.side_by_side import approach_rows, side_by_side
from analysis.uncertainty import bootstrap

TRUTH = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.30}


def isoflop_runs(bend: float = 0.0) -> Runs:
    """Seven budgets of eleven sizes about the optimum; `bend` tilts the loss along N, more so the dearer the run."""
    rng = np.random.default_rng(0)
    rows = []
    for c in 10.0 ** np.arange(18, 21.1, 0.5):
        middle = (TRUTH["alpha"] * TRUTH["A"] / TRUTH["beta"] / TRUTH["B"]) ** (1 / 0.64) * (c / 6) ** (0.30 / 0.64)
        for n in middle * np.geomspace(0.25, 4, 11):
            d = c / 6 / n
            loss = TRUTH["E"] + TRUTH["A"] / n**0.34 + TRUTH["B"] / d**0.30
            loss *= np.exp(0.0005 * rng.standard_normal() + bend * np.log(n / middle) * np.log(c / 1e18))
            rows.append({"run_id": f"r{len(rows)}", "N": n, "D": d, "C": c, "loss": loss})
    frame = pd.DataFrame(rows).assign(seed_data="", role="fit")
    frame["trunk_id"] = frame["run_id"]
    nothing = pd.DataFrame(columns=["run_id", "reason"])
    return Runs(frame, frame.iloc[:0], nothing, frame, "params", "tokens", "loss", "flops", Path("made"), None)


def test_approaches_agree_where_the_law_is_true() -> None:
    runs = isoflop_runs()
    compared, alarm, _, rows = side_by_side(runs, bootstrap(fit("chinchilla", runs), draws=100), draws=60)
    table = compared.set_index("approach")
    assert table.a["parametric"] == pytest.approx(0.30 / 0.64, abs=0.01)
    assert table.a["isoflop-cubic"] == pytest.approx(0.30 / 0.64, abs=0.03)
    assert table.a_low["parametric"] < 0.30 / 0.64 < table.a_high["parametric"]
    assert alarm == ""
    laws = approach_rows(compared, "params")
    assert set(laws["parameter"]) == {"a", "b"} and "parametric" not in set(laws["approach"])
    assert {frame["approach"].iloc[0] for frame in rows if len(frame)} >= {"isoflop-parabola", "isoflop-interpolated"}


def test_the_alarm_sounds_where_the_law_is_wrong() -> None:
    """A tilt that grows with compute moves the optimum of every budget; the law of two separate powers cannot follow it."""
    runs = isoflop_runs(bend=0.01)
    _, alarm, _, _ = side_by_side(runs, bootstrap(fit("chinchilla", runs), draws=100), draws=60)
    assert "parametric" in alarm and "isoflop" in alarm


def test_the_parametric_optimum_is_asked_in_the_runs_own_compute() -> None:
    """Where C is counted as 8ND, a budget of the runs buys less than C / 6ND says."""
    runs = isoflop_runs()
    dearer = Runs(**{**runs.__dict__, "frame": runs.frame.assign(C=8 * runs.frame["N"] * runs.frame["D"])})
    found = fit("chinchilla", runs)
    plain, more = (side_by_side(r, found, draws=0)[0].set_index("approach").loc["parametric"] for r in (runs, dearer))
    assert more.params_opt == pytest.approx(plain.params_opt, rel=1e-6)
    assert more.flops == pytest.approx(8 / 6 * plain.flops)
