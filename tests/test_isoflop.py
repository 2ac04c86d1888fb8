"""Approach 2 against closed forms, Czech et al. 2026, SciPy and NumPy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import Akima1DInterpolator
from scipy.optimize import minimize_scalar

from analysis.errors import UserError
from analysis.isoflop import FAULTS, METHODS, bias_warnings, find_budgets, isoflop_optima

CHINCHILLA = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
ASYMMETRIC = CHINCHILLA | {"alpha": 0.465, "beta": 0.155}
SYMMETRIC = CHINCHILLA | {"alpha": 0.31, "beta": 0.31}
BUDGETS = (1e17, 1e18, 1e19, 1e20, 1e21)


def best_n(law, flops):
    """Closed form of Hoffmann et al. 2022: N* = G (C/6)^(beta / (alpha + beta))."""
    total = law["alpha"] + law["beta"]
    g = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / total)
    return g * (flops / 6) ** (law["beta"] / total)


def isoflop_runs(law, *, budgets=BUDGETS, points=15, factor=4.0, shift=0.0, drift=0.0, per_pair=6.0, noise=0.0, seed=0):
    """Noiseless runs on log-spaced N, `factor` each way about 10^(shift + drift) N*; drift grows from the first budget to the last."""
    rows = []
    for flops in budgets:
        share = np.log(flops / budgets[0]) / np.log(budgets[-1] / budgets[0]) if len(budgets) > 1 else 0
        n = best_n(law, 6 * flops / per_pair) * 10 ** (shift + drift * share) * np.geomspace(1 / factor, factor, points)
        rows.append(pd.DataFrame({"N": n, "D": flops / (per_pair * n), "C": flops}))
    frame = pd.concat(rows, ignore_index=True)
    frame["loss"] = law["E"] + law["A"] / frame["N"] ** law["alpha"] + law["B"] / frame["D"] ** law["beta"]
    frame["loss"] *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(frame)))
    return frame


def tokens_at_1e24(optima):
    b, level = np.polyfit(np.log(optima["flops"]), np.log(optima["tokens_opt"]), 1)
    return np.exp(level + b * np.log(1e24))


@pytest.mark.parametrize("law", [CHINCHILLA, ASYMMETRIC, SYMMETRIC])
@pytest.mark.parametrize(("factor", "tolerance"), [(2.0, 0.001), (4.0, 0.002), (16.0, 0.01)])
def test_interpolated_minimum_is_the_closed_form(law, factor, tolerance):
    optima = isoflop_optima(isoflop_runs(law, factor=factor, shift=0.1), method="interpolated")
    truth = best_n(law, optima["flops"])
    assert optima["bracketed"].all() and set(optima["reason"]) == {""}
    np.testing.assert_allclose(optima["params_opt"], truth, rtol=tolerance)
    np.testing.assert_allclose(optima["tokens_opt"], optima["flops"] / 6 / truth, rtol=tolerance)
    floor = law["E"] + law["A"] / truth ** law["alpha"] + law["B"] / (optima["flops"] / 6 / truth) ** law["beta"]
    np.testing.assert_allclose(optima["loss"], floor, rtol=tolerance / 100)
    np.testing.assert_allclose(optima["width"], 2 * np.log10(factor), rtol=1e-9)
    np.testing.assert_allclose(optima["centre_offset"], -0.1, atol=tolerance)


@pytest.mark.parametrize(
    ("law", "factor", "shift", "drift", "percent"),
    [
        (CHINCHILLA, 2, 0, 0, -0.326937803732719),
        (CHINCHILLA, 4, 0, 0, -1.301125043704300),
        (CHINCHILLA, 8, 0, 0, -2.902904738135434),
        (CHINCHILLA, 16, 0, 0, -5.100244551712022),
        (ASYMMETRIC, 2, 0, 0, -1.674747716507073),
        (ASYMMETRIC, 4, 0, 0, -6.497778742083532),
        (ASYMMETRIC, 8, 0, 0, -13.910418584294648),
        (ASYMMETRIC, 16, 0, 0, -23.116308048545221),
        (SYMMETRIC, 16, 0, 0, 0.0),
        (SYMMETRIC, 16, -np.log10(3), 0, 1.509792259842919),
        (ASYMMETRIC, 16, -np.log10(3), 0, -2.424573190039884),
        (SYMMETRIC, 16, 0, -np.log10(3), 1.689066535602950),
        (ASYMMETRIC, 16, 0, -np.log10(3), 13.996976521128124),
    ],
)
def test_parabola_has_the_bias_that_czech_2026_published(law, factor, shift, drift, percent):
    """Error of D* at 1e24 from 15 points at 1e17 to 1e21 FLOPs; tables of arXiv:2603.22339 (their offsets: towards smaller N)."""
    optima = isoflop_optima(isoflop_runs(law, factor=factor, shift=shift, drift=drift), method="parabola")
    truth = 1e24 / 6 / best_n(law, 1e24)
    assert 100 * (tokens_at_1e24(optima) / truth - 1) == pytest.approx(percent, abs=1e-6)


def test_freer_curves_have_less_bias():
    runs = isoflop_runs(ASYMMETRIC, factor=8)
    truth = 1e24 / 6 / best_n(ASYMMETRIC, 1e24)
    errors = {method: abs(tokens_at_1e24(isoflop_optima(runs, method=method)) / truth - 1) for method in METHODS}
    assert errors["parabola"] > 0.13 and errors["cubic"] < 0.01 and errors["interpolated"] < 0.01


@pytest.mark.parametrize("per_pair", [6.0, 8.5])
def test_tokens_follow_the_runs_own_count_of_compute(per_pair):
    """A budget counted as 8.5 N D: the optimum in N D is that of the law at 6/8.5 of it."""
    optima = isoflop_optima(isoflop_runs(CHINCHILLA, per_pair=per_pair), method="interpolated")
    np.testing.assert_allclose(optima["params_opt"], best_n(CHINCHILLA, 6 * optima["flops"] / per_pair), rtol=0.002)
    np.testing.assert_allclose(optima["params_opt"] * optima["tokens_opt"] * per_pair, optima["flops"], rtol=1e-9)


def test_curves_are_those_of_numpy_and_scipy():
    runs = isoflop_runs(CHINCHILLA, budgets=(3e18,), points=9, noise=0.004)
    x, y = np.log(runs["N"]), runs["loss"]
    found = {method: isoflop_optima(runs, method=method)["params_opt"][0] for method in METHODS}
    for method, degree in (("parabola", 2), ("cubic", 3)):
        curve = np.polynomial.Polynomial.fit(x, y, degree)
        minima = [r.real for r in curve.deriv().roots() if abs(r.imag) < 1e-12 and curve.deriv(2)(r.real) > 0]
        assert np.log(found[method]) == pytest.approx(minima[0], abs=1e-9)
    akima = Akima1DInterpolator(x.to_numpy(), np.log(y.to_numpy()))
    grid = np.linspace(x.min(), x.max(), 4001)
    start = grid[akima(grid).argmin()]
    exact = minimize_scalar(akima, bounds=(start - 0.01, start + 0.01), method="bounded", options={"xatol": 1e-10}).x
    assert np.log(found["interpolated"]) == pytest.approx(exact, abs=2e-3)


def test_repeats_weigh_as_runs():
    once = isoflop_runs(CHINCHILLA, budgets=(1e19,), points=7, noise=0.003)
    again = once.assign(loss=once["loss"] * np.exp(0.003 * np.random.default_rng(1).standard_normal(len(once)))).iloc[:4]
    both = pd.concat([once, again], ignore_index=True)
    curve = np.polynomial.Polynomial.fit(np.log(both["N"]), both["loss"], 2)
    assert np.log(isoflop_optima(both)["params_opt"][0]) == pytest.approx(curve.deriv().roots()[0], abs=1e-9)
    assert isoflop_optima(both)["n_runs"][0] == 11


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shift", "reason"), [(-1.0, FAULTS[4]), (1.0, FAULTS[3])])
def test_minimum_outside_the_grid_is_refused(method, shift, reason):
    optima = isoflop_optima(isoflop_runs(CHINCHILLA, shift=shift, factor=3), method=method)
    assert not optima["bracketed"].any() and set(optima["reason"]) == {reason}
    assert optima[["params_opt", "tokens_opt", "loss", "centre_offset"]].isna().all(axis=None)


def test_polynomial_minimum_between_the_outer_two_sizes_is_refused():
    """Vertex at x = 0.5 of sizes at 0, 1, 2, 3: bracketed by the grid, not by its inner points."""
    x = np.arange(4.0)
    runs = pd.DataFrame({"N": 1e7 * 2**x, "D": 1e18 / 6 / (1e7 * 2**x), "C": 1e18, "loss": 3 + 0.1 * (x - 0.5) ** 2})
    assert isoflop_optima(runs)["reason"][0] == FAULTS[3]
    shifted = runs.assign(loss=3 + 0.1 * (x - 1.2) ** 2)
    assert isoflop_optima(shifted)["params_opt"][0] == pytest.approx(1e7 * 2**1.2)


def test_curve_that_opens_downward_is_refused():
    x = np.linspace(-1, 1, 7)
    runs = pd.DataFrame({"N": 1e8 * np.exp(x), "D": 1e18 / (6e8 * np.exp(x)), "C": 1e18, "loss": 3 - 0.2 * x**2})
    row = isoflop_optima(runs, method="parabola").iloc[0]
    assert not row["bracketed"] and row["reason"]


def test_budgets_by_compute():
    near = isoflop_runs(CHINCHILLA, budgets=(1e18, 4e18), points=6)
    near["C"] *= np.tile([0.93, 1.05, 1.0, 0.98, 1.06, 1.01], 2)
    assert [len(b.rows) for b in find_budgets(near)] == [6, 6] and not any(b.reason for b in find_budgets(near))
    spread = isoflop_runs(CHINCHILLA, budgets=(1e18,), points=10)
    spread["C"] *= np.geomspace(1, 1.9, 10)
    (chain,) = find_budgets(spread)
    assert "spreads over x1.90" in chain.reason
    few = isoflop_runs(CHINCHILLA, budgets=(1e18,), points=3)
    row = isoflop_optima(few).iloc[0]
    assert not row["bracketed"] and row["reason"] == "3 different N; at least 4 are needed"


def test_budgets_by_column():
    runs = isoflop_runs(CHINCHILLA, budgets=(1e18, 4e18))
    named = runs.assign(isoflop_budget=runs["C"], C=runs["C"] * 1.02)
    named.loc[0, "isoflop_budget"] = np.nan
    assert [(b.flops, len(b.rows)) for b in find_budgets(named)] == [(1e18, 14), (4e18, 15)]
    own = runs.assign(mine=np.where(runs["C"] == 1e18, 1e18, np.nan))
    assert [b.flops for b in find_budgets(own, budget_column="mine")] == [1e18]
    with pytest.raises(UserError, match="no column"):
        find_budgets(runs, budget_column="absent")
    with pytest.raises(UserError, match="no number above 0"):
        find_budgets(runs.assign(mine=np.nan), budget_column="mine")
    with pytest.raises(UserError, match="allowed: parabola, cubic, interpolated"):
        isoflop_optima(runs, method="quartic")


def test_one_model_written_twice_with_other_digits_is_one_size():
    runs = isoflop_runs(CHINCHILLA, budgets=(1e18,), points=8)
    twin = runs.iloc[[3]].assign(N=lambda f: f["N"] * 1.00002, loss=lambda f: f["loss"] * 1.0005)
    optima = isoflop_optima(pd.concat([runs, twin], ignore_index=True), method="interpolated")
    assert optima["params_opt"][0] == pytest.approx(best_n(CHINCHILLA, 1e18), rel=0.03)


def test_bias_warnings_speak_when_they_should():
    def told(**how):
        runs = isoflop_runs(**how)
        return bias_warnings(isoflop_optima(runs), isoflop_optima(runs, method="interpolated"))

    assert told(law=SYMMETRIC, factor=3) == ()
    wide = told(law=ASYMMETRIC, factor=16)
    assert any("spans more than 1.2 decades at 5 of 5" in text for text in wide) and any("median of 5 budgets" in text for text in wide)
    off = told(law=CHINCHILLA, factor=3.9, shift=-0.4)
    assert any("from the middle of the grid at 5 of 5" in text for text in off)
    assert any("drifts by x" in text for text in told(law=CHINCHILLA, factor=3.9, drift=-0.45))
