"""Diminishing returns: the loss along N, along D and along the compute-optimal frontier, and what each doubling buys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.budget import frontier_power, point, power_terms, split_budget
from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.laws import VARIABLES, Law
from analysis.sampling import percentile_band

Array = np.ndarray
NAN = float("nan")
#: With a fifth of the draws or more without an answer, percentiles of the rest would describe chosen draws.
MOST_WITHOUT = 0.2
AXES = ("N", "D", "C")
RETURN_COLUMNS = (
    "fit_id law n_column axis from to loss_from loss_to gain gain_per_doubling gain_per_doubling_ci_low gain_per_doubling_ci_high"
    " gain_share ci_level beyond_data held"
).split()


@dataclass(frozen=True)
class Axis:
    """A line through the law along which one thing is doubled: N, D, or compute.

    Attributes
    ----------
    name : {"N", "D", "C"}
    runs : (n,) float64
        Where the fitted runs lie on it.
    fixed : dict of str to float
        N or D that does not move; empty for compute, and for laws in one variable.
    held : str
        What is held fixed, in words.
    along_frontier : bool
        Whether N and D move together, compute-optimal, C = 6ND.
    """

    name: str
    runs: Array
    fixed: Mapping[str, float]
    held: str
    along_frontier: bool = False


def axes_of(fit: Fit, unique_tokens: float | None = None) -> list[Axis]:
    """Axes of a fitted law, compute first: N at the longest D, D at the largest N, C compute-optimal; a law in one variable has that one.

    Empty for laws without variables, in columns of the runs, or in other combinations.
    """
    variables, frame = set(fit.law.variables) - {"U"}, fit.frame
    if variables - set(VARIABLES):
        return []
    epochs = "" if "U" not in fit.law.variables else ", U = D (one epoch)" if unique_tokens is None else f", U = {unique_tokens:.6g}"
    if {"N", "D"} <= variables:
        n, d = (frame[name].to_numpy(dtype=np.float64) for name in ("N", "D"))
        return [
            Axis("C", 6 * n * d, {}, f"N and D compute-optimal, C = 6ND{epochs}", along_frontier=True),
            Axis("N", n, {"D": float(d.max())}, f"D = {d.max():.6g}{epochs}"),
            Axis("D", d, {"N": float(n.max())}, f"N = {n.max():.6g}{epochs}"),
        ]
    if len(variables) != 1 or ("U" in fit.law.variables and variables != {"D"}):
        return []
    (name,) = variables
    return [Axis(name, frame[name].to_numpy(dtype=np.float64), {}, f"{fit.subset}{epochs}")]


def loss_along(law: Law, params: Mapping[str, Any], axis: Axis, value: Any, unique_tokens: float | None = None) -> Array:
    """Loss (nats per token) at places on an axis; parameters and places broadcast. NaN where the law has no compute-optimal split."""
    if axis.along_frontier:
        power = frontier_power(law, params, unique_tokens)
        if power is not None:
            floor, k, gamma = power
            return floor + k * np.asarray(value, dtype=np.float64) ** -gamma
        n, d = split_budget(law, params, value, unique_tokens=unique_tokens)
        return law.predict(params, **point(n, d, unique_tokens))
    values = {"N": NAN, "D": NAN, **axis.fixed, axis.name: value}
    variables = point(values["N"], values["D"], unique_tokens)
    if axis.name == "C":
        variables["C"] = value
    return law.predict(params, **{name: variables[name] for name in law.variables})


def power_along(law: Law, params: Mapping[str, Any], axis: Axis, unique_tokens: float | None = None) -> tuple[Array, Array, Array] | None:
    """Floor, coefficient and exponent of the loss along an axis, where it is ``floor + coefficient x^-exponent``; else None."""
    if axis.along_frontier:
        return frontier_power(law, params, unique_tokens)
    terms = power_terms(law, params)
    if terms is None or set(terms[1]) != {axis.name, *axis.fixed}:
        return None
    floor, (coefficient, exponent) = terms[0], terms[1][axis.name]
    for name, value in axis.fixed.items():
        floor = floor + terms[1][name][0] * value ** -terms[1][name][1]
    return floor, coefficient, exponent


def sample(fit: Fit) -> dict[str, Array]:
    """Parameters as columns: the fit's own in row 0, then its draws, (1 + draws, 1) each."""
    draws = {} if fit.draws is None else {name: fit.draws[name].to_numpy(dtype=np.float64) for name in fit.law.parameters}
    return {name: np.concatenate([[fit.params[name]], draws.get(name, [])])[:, None] for name in fit.law.parameters}


def band(draws: Array, level: float) -> tuple[float, float]:
    """Percentile interval; NaN without draws, or when a fifth of them or more have no value."""
    if len(draws) == 0 or (~np.isfinite(draws)).mean() >= MOST_WITHOUT:
        return NAN, NAN
    return percentile_band(draws, level)


def returns(fit: Fit, *, unique_tokens: float | None = None) -> Frame:
    """Tell what each doubling of N, of D and of compute buys, across the data and one decade beyond.

    N is doubled at the longest D, D at the largest N, C along the law's compute-optimal frontier (a law in one variable: along itself).

    Parameters
    ----------
    unique_tokens : float, optional
        U of a data-constrained law; D (one epoch) when not given.

    Returns
    -------
    DataFrame
        As returns.csv; `beyond_data` marks doublings that end outside the data. No rows for an axis that the law does not have, or along
        which it has no value (no compute-optimal split).
    """
    params, rows = sample(fit), []
    for axis in sorted(axes_of(fit, unique_tokens), key=lambda axis: AXES.index(axis.name)):
        low, high = float(axis.runs.min()), float(axis.runs.max())
        # Doublings are counted down from the largest value in the data, so that none straddles its edge.
        first = high / 2.0 ** math.ceil(math.log2(high / low) - 1e-9)
        ends = first * 2.0 ** np.arange(round(math.log2(high / first)) + math.ceil(math.log2(10)) + 1)
        loss = loss_along(fit.law, params, axis, ends, unique_tokens)
        with np.errstate(invalid="ignore"):
            gains = loss[:, :-1] - loss[:, 1:]
        for i, start in enumerate(ends[:-1]):
            gain, before, after = (float(v) for v in (gains[0, i], loss[0, i], loss[0, i + 1]))
            if not math.isfinite(gain):
                continue
            rows.append(
                [fit.fit_id, fit.law.name, fit.n_column, axis.name, float(start), float(2 * start), before, after, gain, gain,
                 *band(gains[1:, i], fit.ci_level), gain / before, fit.ci_level, bool(2 * start > high * 1.001), axis.held]
            )  # fmt: skip
    return pd.DataFrame(rows, columns=RETURN_COLUMNS)
