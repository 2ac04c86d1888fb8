"""Instant intervals against textbook regression: the log-linear law with squared errors is ordinary least squares in logarithms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import sqrtm
from scipy.stats import t as student

from analysis.fitting import fit
from analysis.runs import Runs
from analysis.uncertainty import bootstrap


def runs_of(trunks: int) -> Runs:
    """Heteroscedastic runs of a log-linear law; `trunks` runs share each trunk and its noise (1: independent)."""
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(10, 16, 24)), np.exp(rng.uniform(14, 18, 24))
    shared = np.repeat(rng.normal(0, 0.02, 24 // trunks), trunks)
    loss = 30 / (n**0.05 * d**0.07) * np.exp(rng.normal(0, 0.01 + 0.02 * (n > np.median(n)), 24) + shared)
    frame = pd.DataFrame(
        {"run_id": [f"r{i}" for i in range(24)], "N": n, "D": d, "C": 6 * n * d, "loss": loss, "seed_data": "", "role": "fit"}
    )
    frame["trunk_id"] = [f"t{i // trunks}" for i in range(24)]
    nothing = pd.DataFrame(columns=["run_id", "reason"])
    return Runs(frame, frame.iloc[:0], nothing, frame, "params", "tokens", "loss", "flops_6nd", Path("made"), None)


def regression(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    frame = runs.frame
    design = np.stack([np.ones(len(frame)), -np.log(frame["N"]), -np.log(frame["D"])], axis=1)
    y = np.log(frame["loss"].to_numpy())
    return design, y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


def test_independent_runs_get_hc3() -> None:
    """MacKinnon & White 1985: (X'X)^-1 X' diag(e^2 / (1 - h)^2) X (X'X)^-1."""
    runs = runs_of(1)
    design, residual = regression(runs)
    inverse = np.linalg.inv(design.T @ design)
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    covariance = inverse @ (design.T * (residual / (1 - leverage)) ** 2) @ design @ inverse
    table = fit("log-linear", runs, loss="mse").parameter_table().set_index("parameter")
    assert table.std_error["a"] == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-4)
    assert table.std_error["b"] == pytest.approx(np.sqrt(covariance[2, 2]), rel=1e-4)
    assert table.ci_high["a"] - table.estimate["a"] == pytest.approx(student.ppf(0.975, 21) * np.sqrt(covariance[1, 1]), rel=1e-3)


def test_runs_of_shared_trunks_get_cr2() -> None:
    """Bell & McCaffrey 2002: residuals of a cluster times (I - H_gg)^(-1/2)."""
    runs = runs_of(4)
    design, residual = regression(runs)
    inverse = np.linalg.inv(design.T @ design)
    meat = np.zeros((3, 3))
    for g in range(6):
        x, e = design[4 * g : 4 * g + 4], residual[4 * g : 4 * g + 4]
        score = x.T @ np.linalg.inv(np.real(sqrtm(np.eye(4) - x @ inverse @ x.T))) @ e
        meat += np.outer(score, score)
    covariance = inverse @ meat @ inverse
    found = fit("log-linear", runs, loss="mse")
    table = found.parameter_table().set_index("parameter")
    assert table.std_error["a"] == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-4)
    assert table.std_error["b"] == pytest.approx(np.sqrt(covariance[2, 2]), rel=1e-4)


def test_no_draws_means_instant_intervals_everywhere() -> None:
    found = bootstrap(fit("chinchilla", runs_of(1)), draws=0)
    table = found.parameter_table()
    assert found.draws is None
    assert (table["ci_low"] < table["estimate"]).all() and (table["estimate"] < table["ci_high"]).all()
