"""Using a law: closed forms, brute force, published optima, hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from test_uncertainty import as_runs, simulated, true_loss

from analysis.errors import UserError
from analysis.fitting import Fit, fit
from analysis.laws import PRESETS
from analysis.optimal import compute_optimal, critical_points, frontier, predict, returns
from analysis.uncertainty import bootstrap

PRESET = PRESETS["besiroglu2024"]


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return bootstrap(fit("chinchilla", as_runs(simulated(0))), draws=100)


@pytest.mark.parametrize("flops", [1e18, 5.76e23])
@pytest.mark.parametrize("served", [None, 1e12])
def test_optimum_is_that_of_brute_force(flops: float, served: float | None) -> None:
    def loss(log_n):
        n = np.exp(log_n)
        d = (flops - 2 * n * (served or 0)) / (6 * n)
        return float(PRESET.predict(N=n, D=d)) if d > 0 else 1e9

    top = np.log(flops / (2 * served)) if served else np.log(flops / 6)
    brute = minimize_scalar(loss, bounds=(min(10.0, top - 10), top), method="bounded", options={"xatol": 1e-9})
    found = compute_optimal(PRESET, flops, inference_tokens=served)
    assert found.loss == pytest.approx(brute.fun, rel=1e-10)
    assert found.params_opt == pytest.approx(np.exp(brute.x), rel=1e-3)
    assert 6 * found.params_opt * found.tokens_opt + 2 * found.params_opt * (served or 0) == pytest.approx(flops)


def test_published_optimum_of_chinchilla_budget() -> None:
    """Besiroglu et al. 2024: about 20 tokens a parameter at Chinchilla's 5.76e23 FLOPs; Hoffmann's own coefficients give far more."""
    assert compute_optimal(PRESET, 5.76e23).tokens_per_param == pytest.approx(20, rel=0.15)
    assert compute_optimal(PRESETS["hoffmann2022"], 5.76e23).tokens_per_param > 50


def test_serving_many_tokens_asks_for_a_smaller_model() -> None:
    """Sardana et al. 2023."""
    sizes = [compute_optimal(PRESET, 1e22, inference_tokens=t).params_opt for t in (1e9, 1e11, 1e13)]
    assert sizes == sorted(sizes, reverse=True)
    assert compute_optimal(PRESET, 1e22, inference_tokens=1.0).params_opt == pytest.approx(
        compute_optimal(PRESET, 1e22).params_opt, rel=1e-6
    )


def test_prediction_and_extrapolation(fitted: Fit) -> None:
    inside = predict(fitted, params=float(fitted.frame["N"][0]), tokens=1e6)
    assert inside.extrapolation == "inside the data"
    assert inside.pi_low < inside.low < inside.loss < inside.high < inside.pi_high
    assert inside.loss == pytest.approx(true_loss(float(fitted.frame["N"][0]), 1e6), rel=0.01)
    beyond = predict(fitted, params=4 * float(fitted.frame["N"].max()), tokens=4e6)
    assert beyond.extrapolation == "N x4, C x4 beyond the data"
    preset = predict(PRESET, params=1e9, tokens=20e9)
    assert preset.loss == pytest.approx(1.81686 + 482.006 / 1e9**0.34781 + 2085.434 / 20e9**0.36585)
    assert np.isnan(preset.low)


def test_critical_point_by_search(fitted: Fit) -> None:
    """At the critical compute one more doubling along the frontier buys exactly 1 % of the loss."""
    points = critical_points(fitted)
    assert len(points) == 2
    for point in points:
        now, then = compute_optimal(fitted, point.flops).loss, compute_optimal(fitted, 2 * point.flops).loss
        assert (now - then) / now == pytest.approx(point.share, rel=1e-6)
        assert point.ci_low < point.flops < point.ci_high
    assert points[0].beyond_data


def test_returns_are_differences_of_the_law(fitted: Fit) -> None:
    table = returns(fitted)
    assert set(table["axis"]) == {"N", "D", "C"}
    p, top = fitted.params, float(fitted.frame["D"].max())
    row = table[table["axis"] == "N"].iloc[1]
    assert row["gain"] == pytest.approx(p["A"] * row["from"] ** -p["alpha"] * (1 - 2 ** -p["alpha"]))
    assert row["loss_from"] == pytest.approx(float(fitted.predict(N=row["from"], D=top)))
    for _, rows in table.groupby("axis"):
        assert (rows["gain_per_doubling_ci_low"] < rows["gain_per_doubling"]).all()
        assert rows["beyond_data"].any() and not rows["beyond_data"].all()
        assert rows["to"].max() >= 10 * rows["to"][~rows["beyond_data"]].max() * 0.999
        assert (np.diff(rows["gain_per_doubling"]) < 0).all()


def test_frontier_is_below_every_law_value_at_its_compute(fitted: Fit) -> None:
    table = frontier(fitted)
    for row in table[table["point"] == "grid"].to_dict("records"):
        assert 6 * row["params_opt"] * row["tokens_opt"] == pytest.approx(row["flops"])
        sizes = row["params_opt"] * np.array([0.8, 1.25])
        assert (fitted.predict(N=sizes, D=row["flops"] / 6 / sizes) > row["loss"]).all()
    assert table["flops"].max() >= 9.99 * float((6 * fitted.frame["N"] * fitted.frame["D"]).max())


def test_mistakes() -> None:
    for call in (
        lambda: compute_optimal(PRESET, -1), lambda: compute_optimal(PRESET, 1e20, inference_tokens=0),
        lambda: predict(PRESET, params=float("nan"), tokens=1),
        lambda: compute_optimal(fit("power-n", as_runs(simulated(0))), 1e20),
    ):  # fmt: skip
        with pytest.raises(UserError):
            call()


def test_public_names_stay_functions_whatever_was_imported_before():
    import analysis

    for _ in range(2):
        assert callable(analysis.compute_optimal) and callable(analysis.predict) and callable(analysis.fit)
