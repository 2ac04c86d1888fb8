"""The multi-power law against a plain double loop, hand arithmetic, and recovery of known parameters."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.curve_law import PARAMETERS, Curve, curve_errors, fit_multi_power, multi_power_loss
from analysis.errors import UserError

TRUTH = {"L0": 2.6, "A": 0.6, "alpha": 0.45, "B": 440.0, "C": 2.1, "beta": 0.6, "gamma": 0.65}


def schedule(kind: str, length: int = 300, warmup: int = 20) -> np.ndarray:
    share = np.linspace(0, 1, length - warmup)
    falling = {"constant": np.ones_like(share), "cosine": 0.55 + 0.45 * np.cos(np.pi * share), "step": np.where(share < 0.5, 1.0, 0.3)}
    return 3e-4 * np.concatenate([np.linspace(0, 1, warmup), falling[kind]])


def slow_loss(p: dict[str, float], rates: np.ndarray, t: int) -> float:
    """The law as its authors write it, one term after the other."""
    total = p["L0"] + p["A"] * sum(rates[: t + 1]) ** -p["alpha"]
    for k in range(1, t + 1):
        if rates[k] > 0:
            past = sum(rates[k : t + 1])
            total += p["B"] * (rates[k] - rates[k - 1]) * (1 - (1 + p["C"] * rates[k] ** -p["gamma"] * past) ** -p["beta"])
    return total


@pytest.mark.parametrize("kind", ["constant", "cosine", "step"])
def test_loss_is_the_double_sum(kind: str) -> None:
    rates, steps = schedule(kind), [20, 21, 160, 161, 299]
    assert multi_power_loss(TRUTH, rates, steps=steps) == pytest.approx([slow_loss(TRUTH, rates, t) for t in steps], rel=1e-12)


def test_a_constant_rate_without_warmup_is_a_power_law_by_hand() -> None:
    """Rates of .01 from the start: L = L0 + A (.01 (t + 1))^-alpha."""
    loss = multi_power_loss({**TRUTH, "A": 2.0, "alpha": 0.5}, np.full(400, 0.01))
    assert loss.shape == (400,)
    assert loss[[3, 99, 399]] == pytest.approx([2.6 + 10.0, 2.6 + 2.0, 2.6 + 1.0])


def test_one_fall_by_hand() -> None:
    """Rates 1, 1, .25, .25 with C = gamma = beta = 1: after the fall of .75, L falls by B .75 (1 - 1 / (1 + 4 S))."""
    p = {"L0": 1.0, "A": 1.0, "alpha": 1.0, "B": 0.1, "C": 1.0, "beta": 1.0, "gamma": 1.0}
    expected = [2, 1.5, 1 + 1 / 2.25 - 0.075 * (1 - 1 / 2), 1 + 1 / 2.5 - 0.075 * (1 - 1 / 3)]
    assert multi_power_loss(p, np.array([1, 1, 0.25, 0.25])) == pytest.approx(expected)


def test_errors_by_hand() -> None:
    found = curve_errors(np.array([2.1, 4.0, 4.8]), np.array([2.0, 4.0, 5.0]))
    assert (found.mae, found.mean_relative, found.worst_relative) == pytest.approx((0.1, 0.03, 0.05))
    assert found.rmse == pytest.approx(np.sqrt(0.05 / 3))
    assert found.r2 == pytest.approx(1 - 0.05 / (42 / 9))


def test_noiseless_curves_give_their_parameters_back() -> None:
    rates = [schedule(kind, length) for kind, length in (("constant", 300), ("cosine", 300), ("step", 300), ("cosine", 600))]
    steps = [np.arange(25, len(r), 8) for r in rates]
    curves = [Curve(r, s, multi_power_loss(TRUTH, r, steps=s)) for r, s in zip(rates, steps, strict=True)]
    found = fit_multi_power(curves, prior=0.0)
    assert list(found) == list(PARAMETERS)
    assert [found[name] for name in PARAMETERS] == pytest.approx([TRUTH[name] for name in PARAMETERS], rel=1e-3)


def test_a_few_wild_points_do_not_move_the_fit() -> None:
    """Fitted to three schedules with 2 % of the points far off, a fourth schedule is predicted within .1 %."""
    rng = np.random.default_rng(0)
    curves = []
    for kind in ("constant", "cosine", "step"):
        rates, steps = schedule(kind), np.arange(25, 300, 5)
        losses = multi_power_loss(TRUTH, rates, steps=steps) * np.exp(1e-4 * rng.standard_normal(len(steps)))
        losses[7] *= 1.2
        curves.append(Curve(rates, steps, losses))
    unseen = schedule("cosine", 450)
    errors = curve_errors(multi_power_loss(fit_multi_power(curves), unseen)[30:], multi_power_loss(TRUTH, unseen)[30:])
    assert errors.worst_relative < 1e-3


def test_bad_schedules_and_steps_are_one_line() -> None:
    for rates, steps in ((np.array([0.1, -0.1]), [1]), (np.zeros(3), [1]), (np.array([0.1, np.nan]), [0]), (np.ones((2, 2)), [0])):
        with pytest.raises(UserError, match="learning rates"):
            multi_power_loss(TRUTH, rates, steps=steps)
    for steps in ([3], [-1], [0.5], []):
        with pytest.raises(UserError, match="whole numbers from 0 to 2"):
            multi_power_loss(TRUTH, np.ones(3), steps=steps)
    with pytest.raises(UserError, match="3 points"):
        fit_multi_power([Curve(np.ones(9), np.array([1, 4, 8]), np.array([4.0, 3.0, 2.0]))])
