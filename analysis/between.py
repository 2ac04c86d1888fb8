"""Two sweeps side by side: how their exponents differ, and how much compute one needs for the loss that the other reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.budget import frontier_power, power_terms
from analysis.errors import UserError
from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.returns import band, sample

BUDGETS = 5  # at which compute is compared
SHIFT_COLUMNS = "quantity first second shift ci_low ci_high ci_level".split()
MULTIPLIER_COLUMNS = "loss flops_first flops_second multiplier ci_low ci_high ci_level beyond_data".split()


@dataclass(frozen=True)
class Comparison:
    """What differs between two sweeps under one law. Intervals are conditional on the law, and take the sweeps as independent.

    Attributes
    ----------
    shifts : DataFrame
        quantity (E, alpha, beta; a of N* ~ C^a, b of D* ~ C^b, gamma of L - E ~ C^-gamma), first, second, shift (second - first), ci_low,
        ci_high, ci_level.
    multipliers : DataFrame
        loss (nats per token), flops_first, flops_second (6ND, compute-optimal), multiplier = flops_second / flops_first, ci_low, ci_high,
        ci_level, beyond_data (one of the two lies outside its sweep's runs).
    """

    first: Fit
    second: Fit
    shifts: Frame
    multipliers: Frame


def compare_sweeps(first: Fit, second: Fit) -> Comparison:
    """Compare two fits of one law to two sweeps.

    Along the compute-optimal frontier ``L = E + K C^-gamma`` of each (Hoffmann et al. 2022, eq. 4), the second needs
    ``((L - E2) / K2)^(-1/gamma2)`` FLOPs for the loss L that the first reaches with C.

    Raises
    ------
    UserError
        When the laws differ or are no sums of powers in N and D, or N counts something else.
    """
    if first.law.formula != second.law.formula:
        raise UserError(f"two sweeps are compared under one law, not {first.law.name} and {second.law.name}")
    if first.n_column != second.n_column:
        raise UserError(f"N is {first.n_column} in one sweep and {second.n_column} in the other; name one with --n-column")
    pair = [_frontier(fit) for fit in (first, second)]
    level = first.ci_level
    shifts = []
    for name in pair[0]:
        one, two = pair[0][name], pair[1][name]
        low, high = band(_differences(two, one), level)
        shifts.append([name, float(one[0]), float(two[0]), float(two[0] - one[0]), low, high, level])
    runs = [6 * (fit.frame["N"] * fit.frame["D"]).to_numpy() for fit in (first, second)]
    rows = [_multiplier(pair, runs, flops, level) for flops in np.geomspace(runs[0].min(), runs[0].max(), BUDGETS)]
    return Comparison(
        first,
        second,
        pd.DataFrame(shifts, columns=SHIFT_COLUMNS),
        pd.DataFrame(rows, columns=MULTIPLIER_COLUMNS).dropna(subset=["multiplier"]),
    )


def comparison_answer(found: Comparison, names: tuple[str, str]) -> str:
    """Return the difference in one sentence: the compute multiplier at the dearest loss that both reach, and the shift of a."""
    rows, shift = found.multipliers, found.shifts.set_index("quantity").loc["a"]
    moved = f"the exponent a of N* ~ C^a shifts by {shift['shift']:+.3f}{_told(shift, '+.3f')}"
    if not len(rows):
        return f"{names[1]} never reaches the losses of {names[0]} on this law; {moved}."
    inside = rows[~rows["beyond_data"]]
    row = (inside if len(inside) else rows).iloc[-1]
    where = "" if len(inside) else ", an extrapolation"
    return (
        f"For the loss that {names[0]} reaches with {row['flops_first']:.3g} FLOPs ({row['loss']:.4g} nats per token), {names[1]} needs"
        f" {row['multiplier']:.3g} times as many{_told(row, '.3g')}{where}; {moved}."
    )


def _told(row: Any, style: str) -> str:
    if not math.isfinite(row["ci_low"]):
        return " (no interval)"
    return f" ({100 * row['ci_level']:g} % interval {row['ci_low']:{style}} to {row['ci_high']:{style}})"


def _frontier(fit: Fit) -> dict[str, np.ndarray]:
    """E, exponents and the frontier's numbers, the fit's own first and then its draws': (1 + draws,) each."""
    params = sample(fit)
    terms, frontier = power_terms(fit.law, params), frontier_power(fit.law, params)
    if terms is None or frontier is None:
        raise UserError(f"law {fit.law.name}: two sweeps are compared under a sum of powers in N and D, such as chinchilla")
    (_, alpha), (_, beta) = (terms[1][name] for name in ("N", "D"))
    floor, scale, gamma = frontier
    found = {
        "E": floor,
        "alpha": alpha,
        "beta": beta,
        "a": beta / (alpha + beta),
        "b": alpha / (alpha + beta),
        "gamma": gamma,
        "log K": np.log(scale),
    }
    return {name: np.broadcast_to(values, (len(next(iter(params.values()))), 1))[:, 0] for name, values in found.items()}


def _differences(two: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Draws of a difference: those of one sweep in another order, so that equal seeds of two bootstraps do not make them go together."""
    count = min(len(one), len(two)) - 1
    order = np.random.default_rng(20240103).permutation(count)
    return two[1 : 1 + count] - one[1:][order]


def _multiplier(pair: list[dict[str, np.ndarray]], runs: list[np.ndarray], flops: float, level: float) -> list[Any]:
    """Compute that the second sweep needs for the loss of the first at `flops`, as a row of `multipliers`."""
    one, two = pair
    count = min(len(one["E"]), len(two["E"])) - 1
    order = np.concatenate([[0], 1 + np.random.default_rng(20240103).permutation(count)])
    loss = (one["E"] + np.exp(one["log K"]) * flops ** -one["gamma"])[order]
    two = {name: values[: count + 1] for name, values in two.items()}
    with np.errstate(invalid="ignore"):
        needed = np.exp((two["log K"] - np.log(loss - two["E"])) / two["gamma"])
    low, high = band(needed[1:] / flops, level)
    beyond = not (runs[1].min() / 1.001 <= needed[0] <= runs[1].max() * 1.001)
    return [float(loss[0]), float(flops), float(needed[0]), float(needed[0] / flops), low, high, level, bool(beyond)]
