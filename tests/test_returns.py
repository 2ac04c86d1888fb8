"""Diminishing returns: closed forms, Brent's root, percentiles of draws, hand arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from test_uncertainty import as_runs, simulated

from analysis.critical import DEAREST, CriticalPoint, break_supported, critical_points, critical_table, floor_of
from analysis.errors import UserError
from analysis.fitting import Fit, fit
from analysis.laws import LAWS, get_law
from analysis.optimal import compute_optimal
from analysis.returns import returns
from analysis.roots import falling_root, ridders
from analysis.uncertainty import bootstrap


def fitted_with(law: str, draws: int) -> Fit:
    return bootstrap(fit(law, as_runs(simulated(0))), draws=draws)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fitted_with("chinchilla", 100)


@pytest.fixture(scope="module")
def skaling() -> Fit:
    return fitted_with("skaling", 30)


def thresholds(points: list[CriticalPoint]) -> list[CriticalPoint]:
    return [point for point in points if np.isfinite(point.share)]


def loss_at(fit: Fit, axis: str, value: float) -> float:
    if axis == "C":
        return compute_optimal(replace(fit, draws=None), value).loss
    top = {name: float(fit.frame[name].max()) for name in ("N", "D")}
    return float(fit.predict(**{**top, axis: value}))


def test_critical_point_by_search(fitted: Fit) -> None:
    """At the critical compute one more doubling along the frontier buys exactly 1 % of the loss."""
    points = [point for point in thresholds(critical_points(fitted)) if point.axis == "C"]
    assert len(points) == 2
    for point in points:
        now, then = compute_optimal(fitted, point.value).loss, compute_optimal(fitted, 2 * point.value).loss
        assert (now - then) / now == pytest.approx(point.share, rel=1e-6)
        assert point.ci_low < point.value < point.ci_high
        assert point.loss == pytest.approx(now) and point.draws_without == 0
    assert points[0].beyond_data


def test_critical_points_of_any_law_are_brents_roots(fitted: Fit, skaling: Fit) -> None:
    for fit_ in (fitted, skaling):
        points = thresholds(critical_points(fit_, share=0.02))
        assert [point.axis for point in points] == ["C", "C", "N", "N", "D", "D"]
        for point in points[::2]:

            def excess(log_x: float, axis: str = point.axis, fit_: Fit = fit_) -> float:
                here, there = (loss_at(fit_, axis, factor * np.exp(log_x)) for factor in (1, 2))
                return here - there - 0.02 * here

            root = brentq(excess, np.log(1e2), np.log(1e30), xtol=1e-12)
            assert point.share == 0.02
            assert np.log(point.value) == pytest.approx(root, abs=1e-7)


def test_critical_points_in_closed_form(fitted: Fit) -> None:
    """On N at the longest D: ``A N^-alpha (q - tau) = tau (E + B D^-beta)`` with ``q = 1 - 2^-alpha``; the knee by hand."""
    p, top = fitted.params, float(fitted.frame["D"].max())
    points = critical_points(fitted)
    on_n = next(point for point in points if point.axis == "N" and point.share == 0.01)
    q, floor = 1 - 2 ** -p["alpha"], p["E"] + p["B"] * top ** -p["beta"]
    assert on_n.value == pytest.approx((p["A"] * (q - 0.01) / (0.01 * floor)) ** (1 / p["alpha"]), rel=1e-10)
    assert on_n.held == "D = 4e+06" and on_n.beyond_data
    assert on_n.reducible_left == pytest.approx(1 - p["E"] / float(fitted.predict(N=on_n.value, D=top)))
    knee = next(point for point in points if "knee" in point.name)
    assert p["alpha"] * p["A"] / knee.value ** p["alpha"] == pytest.approx(p["beta"] * p["B"] / top ** p["beta"], rel=1e-10)
    assert knee.ci_low < knee.value < knee.ci_high
    dearest = next(point for point in points if point.name == DEAREST)
    loss = float(fitted.predict(N=fitted.frame["N"].max(), D=top))
    assert (dearest.loss, dearest.reducible_left) == pytest.approx((loss, (loss - p["E"]) / loss))
    assert dearest.value == float((6 * fitted.frame["N"] * fitted.frame["D"]).max())


def test_a_point_below_every_run_is_an_extrapolation_too(fitted: Fit) -> None:
    point = next(point for point in critical_points(fitted, share=0.1) if point.axis == "N")
    assert point.share == 0.1 and point.value < fitted.frame["N"].min() and point.beyond_data


def test_knee_of_any_law_has_equal_slopes(skaling: Fit) -> None:
    knee = next(point for point in critical_points(skaling) if "knee" in point.name)
    n, d, h = knee.value, float(skaling.frame["D"].max()), 1e-5
    by_n, by_d = (
        float(skaling.predict(N=n * np.exp(i * h), D=d * np.exp(j * h)) - skaling.predict(N=n * np.exp(-i * h), D=d * np.exp(-j * h)))
        for i, j in ((1, 0), (0, 1))
    )
    assert by_n == pytest.approx(by_d, rel=1e-5) and by_n < 0


def test_interval_is_that_of_the_draws(fitted: Fit, skaling: Fit) -> None:
    for fit_ in (fitted, skaling):
        assert fit_.draws is not None
        rows = fit_.draws.head(10).to_dict("records")
        short = replace(fit_, draws=pd.DataFrame(rows))
        points = thresholds(critical_points(short))[::2]
        each = [thresholds(critical_points(replace(fit_, params=row, draws=None)))[::2] for row in rows]
        for i, point in enumerate(points):
            values = np.array([one[i].value for one in each])
            assert np.isfinite(values).all()
            assert np.percentile(values, [2.5, 97.5], method="weibull") == pytest.approx([point.ci_low, point.ci_high], rel=1e-6)


def test_draws_without_a_point_are_counted(fitted: Fit) -> None:
    """A draw whose alpha is so small that no doubling of N ever buys 1 % has no such point; a fifth of such draws take the interval."""
    assert fitted.draws is not None
    for share in (0.1, 0.3):
        draws = fitted.draws.copy()
        draws.loc[: share * len(draws) - 1, "alpha"] = 0.01
        on_n = next(p for p in critical_points(replace(fitted, draws=draws)) if p.axis == "N" and p.share == 0.01)
        assert on_n.draws_without == pytest.approx(share)
        assert np.isfinite(on_n.ci_low) == (share < 0.2)


def test_laws_without_a_floor_never_stop_paying() -> None:
    fit_ = fit("kaplan-c", as_runs(simulated(0)))
    gain = 1 - 2 ** -fit_.params["alpha_C"]
    assert np.isnan([point.value for point in thresholds(critical_points(fit_, share=0.5 * gain))]).all()
    (dearest,) = (point for point in critical_points(fit_) if point.name == DEAREST)
    assert np.isnan(dearest.reducible_left)


def test_floor_is_what_stands_alone_in_the_sum() -> None:
    params = {"E": 1.5, "A": 2.0, "alpha": 0.3, "F": 0.25}
    for text in ("chinchilla", "skaling", "muennighoff", "farseer", "kaplan-nd", "bnsl-n", "m4-d"):
        expected = np.nan if text in ("farseer", "kaplan-nd") else 1.5
        assert floor_of(LAWS[text], {**params, "B": 1, "beta": 1}) == pytest.approx(expected, nan_ok=True)
    assert floor_of(get_law("F + A*N**-alpha + E"), params) == 1.75
    assert np.isnan(floor_of(get_law("A*N**-alpha"), params))


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


def test_returns_of_any_law(skaling: Fit) -> None:
    for row in returns(skaling).to_dict("records"):
        expected = loss_at(skaling, row["axis"], row["from"]) - loss_at(skaling, row["axis"], row["to"])
        assert row["gain"] == pytest.approx(expected, rel=1e-8)
    frame = as_runs(simulated(0))
    assert set(returns(fit("kaplan-d", frame))["axis"]) == {"D"}
    assert set(returns(fit("log-linear", frame))["axis"]) == {"N", "D"}  # no best split, hence no frontier
    assert not len(returns(fit("constant", frame)))
    repeated = as_runs(simulated(0).assign(U=1e6))
    fit_ = fit("muennighoff", repeated, starts=1)
    one_epoch, repeats = (returns(fit_, unique_tokens=u).set_index(["axis", "from"])["loss_to"] for u in (None, 1e6))
    assert (repeats["D"].iloc[-3:] > one_epoch["D"].iloc[-3:]).all()


def test_a_broken_power_law_must_predict_better() -> None:
    """A law that grows steeper at a break is supported, and the break found; on a plain power law the verdict follows the errors."""
    sizes, verdicts = np.geomspace(1e4, 1e8, 32), []
    for loss in (1 + 3 * (sizes / 1e5) ** -0.1 * (1 + (sizes / 1e5) ** 10) ** -0.03, 1 + 50 * sizes**-0.4):
        noisy = loss * np.exp(0.001 * np.random.default_rng(3).standard_normal(len(sizes)))
        frame = pd.DataFrame({"N": sizes, "D": 1e9, "C": 6e9 * sizes, "loss": noisy})
        frame = frame.assign(run_id=[f"r{i}" for i in range(len(sizes))], trunk_id=range(len(sizes)), seed_data="0", role="fit")
        fits = [fit(law, as_runs(frame)) for law in ("power-n", "bnsl-n")]
        text, better = break_supported(fits), fits[1].cv_error < fits[0].cv_error
        assert ("is supported" in text and "a break at N" in text) == better == ("no break is supported" not in text)
        verdicts.append((better, fits[1].params["d1"]))
    assert verdicts[0][0] and verdicts[0][1] == pytest.approx(1e5, rel=0.2)
    assert break_supported(fits[:1]) == "" and "power-n" in break_supported(fits[1:])


def test_table_of_critical_points(fitted: Fit) -> None:
    table = critical_table([fitted, fit("power-n", as_runs(simulated(0)))])
    assert list(table.columns) == (
        "fit_id law axis name share value ci_low ci_high ci_level loss reducible_left beyond_data held draws_without".split()
    )
    assert table.groupby("law").size().to_dict() == {"chinchilla": 8, "power-n": 3}
    assert (table.loc[table.law == "power-n", "axis"] == "N").all()
    for share in (0.0, 1.0):
        with pytest.raises(UserError, match="between 0 and 1"):
            critical_points(fitted, share=share)


def test_roots() -> None:
    """Cube roots; no root without a change of sign; the fall nearest above the anchor, or below it where the function is negative."""
    numbers = np.array([2.0, 27.0, 1e6, -1.0])
    found = ridders(lambda x: numbers - x**3, np.zeros(4), np.full(4, 200.0))
    assert found[:3] == pytest.approx(np.cbrt(numbers[:3]), rel=1e-9)
    assert np.isnan(found[3])
    grid = np.linspace(-4, 10, 57) + 0.01
    phase = np.array([[0.0], [np.pi]])
    wave = lambda x: np.sin(x + phase)  # noqa: E731
    anchor = int(np.abs(grid - 1).argmin())
    assert falling_root(wave, grid, wave(grid[None]), anchor) == pytest.approx([np.pi, 0], abs=1e-9)
