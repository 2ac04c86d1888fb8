"""Critical points: where one more doubling stops to pay, where N and D pay the same, and how much of the loss is left to win."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.budget import log_slopes, power_terms
from analysis.errors import UserError
from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.laws import Law
from analysis.returns import NAN, Axis, axes_of, band, loss_along, power_along, sample
from analysis.roots import falling_root

Array = np.ndarray
TAU = 0.01  # share of the loss that one doubling must buy
FARTHEST = 1e60  # beyond it a critical point is called never reached
BELOW, ABOVE, STRIDE = 20, 60, 4  # the search, in doublings: below the cheapest run, above the dearest, and between its points
KNEE = "equal-marginal knee: a doubling of N buys what a doubling of D buys"
DEAREST = "reducible loss left at the dearest run"
COLUMNS = "fit_id law axis name share value ci_low ci_high ci_level loss reducible_left beyond_data held draws_without".split()


@dataclass(frozen=True)
class CriticalPoint:
    """A place on an axis of a law that a planner should know.

    Attributes
    ----------
    axis : {"N", "D", "C"}
    value : float
        Parameters, tokens or FLOPs; NaN where the law never gets there, or is beyond it from the start.
    ci_low, ci_high : float
        Interval, conditional on the law; NaN without draws, or when a fifth of them or more have no such point.
    loss : float
        Predicted there, nats per token.
    share : float
        Share of the loss that one more doubling buys there; NaN for points of another kind.
    reducible_left : float
        ``(L - E) / L`` there; NaN for laws without a floor.
    beyond_data : bool
        Whether `value` is above or below that of every fitted run.
    held : str
        What is held fixed along the axis.
    draws_without : float
        Share of the draws that have no such point; NaN without draws.
    """

    axis: str
    value: float
    ci_low: float
    ci_high: float
    loss: float
    share: float
    reducible_left: float
    beyond_data: bool
    held: str
    draws_without: float
    name: str


def critical_points(fit: Fit, *, share: float = TAU, unique_tokens: float | None = None) -> list[CriticalPoint]:
    """Find where diminishing returns set in: on compute, on N at the longest D, on D at the largest N.

    On each axis the point from which one more doubling buys less than `share` of the loss; and, when there are repeats, less than the
    noise between seeds. Then the knee ``dL/dlog N = dL/dlog D`` at the longest D, and the share of reducible loss left at the dearest run.

    Parameters
    ----------
    share : float
        Least share of the loss that a doubling must buy.
    unique_tokens : float, optional
        U of a data-constrained law; D (one epoch) when not given.

    Returns
    -------
    list of CriticalPoint
        Empty for laws without variables or in columns of the runs.

    Raises
    ------
    UserError
        When `share` is not between 0 and 1.

    Notes
    -----
    Where the loss along the axis is ``E + K x^-g`` (along a frontier of sums of powers, too), with ``q = 1 - 2^-g`` the point is
    ``x = (K (q - share) / (share E))^(1/g)``. Otherwise the root of ``L(x) - L(2x) - share L(x)`` is searched from the cheapest run up (or
    down, where returns are already smaller there).
    """
    params, axes = sample(fit), axes_of(fit, unique_tokens)
    found = [point for axis in axes for point in _thresholds(fit, params, axis, share, unique_tokens)]
    for axis in axes:
        if axis.name == "N" and axis.fixed:
            found.append(_point(fit, axis, KNEE, NAN, _knee(fit, params, axis, unique_tokens), unique_tokens))
    return [*found, *(_dearest(fit, axis) for axis in axes[:1])]


def critical_compute(fit: Fit, *, share: float = TAU, unique_tokens: float | None = None) -> list[CriticalPoint]:
    """Those of `critical_points` that lie on the axis of compute: where a doubling buys less than `share`, or than the noise."""
    params = sample(fit)
    compute = [axis for axis in axes_of(fit, unique_tokens) if axis.name == "C"]
    return [point for axis in compute for point in _thresholds(fit, params, axis, share, unique_tokens)]


def critical_table(fits: Sequence[Fit], *, share: float = TAU) -> Frame:
    """Critical points of every fit, as critical.csv."""
    rows = []
    for fit in fits:
        head = {"fit_id": fit.fit_id, "law": fit.law.name, "ci_level": fit.ci_level}
        rows += [{**head, **vars(point)} for point in critical_points(fit, share=share)]
    return pd.DataFrame(rows, columns=COLUMNS)


def floor_of(law: Law, params: Mapping[str, Any]) -> Any:
    """Loss that no N, D or C takes away: the parameters that stand alone in the formula's sum; NaN where none does."""
    parts, alone = [law.expression.body[-1][1]], []
    while parts:
        node = parts.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            parts += [node.left, node.right]
        elif isinstance(node, ast.Name) and node.id in law.parameters:
            alone.append(node.id)
    return sum(params[name] for name in alone) if alone else NAN


def break_supported(fits: Sequence[Fit]) -> str:
    """Say whether held-out error supports a break in a power law (BNSL, Caballero et al. 2022), and where it is.

    A break is supported where the broken law predicts dearer runs from cheaper ones better than the power law of the same variable does.

    Returns
    -------
    str
        One sentence a broken law among the fits; empty when there is none.
    """
    known = {fit.law.name: fit for fit in fits}
    return "; ".join(_break(broken, known.get(f"power-{name[5:]}")) for name, broken in known.items() if name.startswith("bnsl-"))


def _break(broken: Fit, power: Fit | None) -> str:
    (variable,) = broken.law.variables
    if power is None:
        return f"{broken.law.name}: fit power-{variable.lower()} too, to see whether the break helps to predict"
    errors = f"held-out error {100 * broken.cv_error:.2g} % against {power.law.name}'s {100 * power.cv_error:.2g} %"
    if not broken.cv_error < power.cv_error:
        return f"{broken.law.name}: no break is supported ({errors})"
    where, runs = broken.params["d1"], broken.frame[variable]
    text = f"{broken.law.name}: a break at {variable} = {where:.3g}"
    if broken.draws is not None:
        draws = broken.draws["d1"].to_numpy()
        low, high = band(draws, broken.ci_level)
        inside = ((draws >= runs.min()) & (draws <= runs.max())).mean()
        text += f" [{low:.3g}, {high:.3g}], inside the data in {100 * inside:.0f} % of the draws"
    return f"{text} is supported ({errors})"


def _thresholds(fit: Fit, params: dict[str, Array], axis: Axis, share: float, unique_tokens: float | None) -> list[CriticalPoint]:
    """Points of one axis from which a doubling buys less than `share`, and less than the noise between seeds."""
    if not 0 < share < 1:
        raise UserError(f"share = {share:g} is not allowed; it must be between 0 and 1, such as .01 for 1 % of the loss a doubling")
    shares = [(f"gain below {100 * share:g} % of the loss", share)]
    if fit.noise.repeats:
        noise = float(np.median(fit.frame["noise_sd"]))
        shares.append((f"gain below the noise between seeds ({100 * noise:.2g} %)", noise))
    power = power_along(fit.law, params, axis, unique_tokens)
    if power is not None:
        solve: Callable[[float], Array] = partial(_closed_form, *(np.asarray(v)[:, 0] for v in np.broadcast_arrays(*power)))
    else:
        solve = _search(lambda x: loss_along(fit.law, params, axis, x, unique_tokens), axis)
    return [_point(fit, axis, name, tau, solve(tau), unique_tokens) for name, tau in shares]


def _closed_form(floor: Array, coefficient: Array, exponent: Array, share: float) -> Array:
    """Where the gain per doubling of ``floor + coefficient x^-exponent`` is `share` of it."""
    q = 1 - 2.0**-exponent
    with np.errstate(all="ignore"):
        value = np.exp((np.log(coefficient) + np.log(q - share) - np.log(share * floor)) / exponent)
    return np.where((q > share) & (value < FARTHEST), value, np.nan)


def _search(loss: Callable[[Array], Array], axis: Axis) -> Callable[[float], Array]:
    """Return the same for any loss along an axis, (1, g) or (b, 1) -> (b, g), by a search over doublings and then a root."""
    low, high = float(np.log(axis.runs.min())), float(np.log(axis.runs.max()))
    step = STRIDE * math.log(2)
    grid = low + step * np.arange(-BELOW // STRIDE, math.ceil((high - low) / step) + ABOVE // STRIDE + 1)
    here, there = loss(np.exp(grid)[None]), loss(2 * np.exp(grid)[None])

    def solve(share: float) -> Array:
        with np.errstate(invalid="ignore"):
            values = (1 - share) * here - there
        excess = lambda log_x: (1 - share) * loss(np.exp(log_x)) - loss(2 * np.exp(log_x))  # noqa: E731
        return np.exp(falling_root(excess, grid, values, BELOW // STRIDE))

    return solve


def _knee(fit: Fit, params: dict[str, Array], axis: Axis, unique_tokens: float | None) -> Array:
    """N at which a doubling of N and one of D buy the same, at the axis' D: ``(alpha A D^beta / (beta B))^(1/alpha)`` for Chinchilla."""
    d = axis.fixed["D"]
    terms = power_terms(fit.law, params)
    if terms is not None:
        (a, alpha), (b, beta) = (terms[1][name] for name in ("N", "D"))
        with np.errstate(all="ignore"):
            return np.exp((np.log(alpha * a) - np.log(beta * b) + beta * np.log(d)) / alpha)[:, 0]

    def excess(log_n: Array) -> Array:
        n, _ = np.broadcast_arrays(np.exp(log_n), next(iter(params.values())))
        by_n, by_d = log_slopes(fit.law, params, n, np.full(n.shape, d), unique_tokens)
        return by_d - by_n

    low, high = float(np.log(axis.runs.min())), float(np.log(axis.runs.max()))
    grid = low + math.log(2) * np.arange(-BELOW, math.ceil((high - low) / math.log(2)) + ABOVE + 1)
    return np.exp(falling_root(excess, grid, excess(grid[None]), BELOW))


def _point(fit: Fit, axis: Axis, name: str, share: float, values: Array, unique_tokens: float | None) -> CriticalPoint:
    """Sum up a point from its value in the fit and in each draw: (1 + draws,)."""
    value, draws = float(values[0]), values[1:]
    low, high = band(draws, fit.ci_level)
    loss = float(loss_along(fit.law, fit.params, axis, value, unique_tokens)) if math.isfinite(value) else NAN
    return CriticalPoint(
        axis=axis.name, value=value, ci_low=low, ci_high=high, loss=loss, share=share, reducible_left=_left(fit, loss),
        beyond_data=bool(value < axis.runs.min() or value > axis.runs.max()), held=axis.held, name=name,
        draws_without=float((~np.isfinite(draws)).mean()) if len(draws) else NAN,
    )  # fmt: skip


def _dearest(fit: Fit, axis: Axis) -> CriticalPoint:
    """Share of reducible loss left at the run that lies farthest along the axis (by the law, at that run's own N and D)."""
    row = fit.frame.iloc[int(np.argmax(axis.runs))]
    loss = float(fit.law.predict(fit.params, **{name: float(row[name]) for name in fit.law.variables}))
    return CriticalPoint(
        axis=axis.name, value=float(axis.runs.max()), ci_low=NAN, ci_high=NAN, loss=loss, share=NAN, reducible_left=_left(fit, loss),
        beyond_data=False, held=f"run {row['run_id']}", draws_without=NAN, name=DEAREST,
    )  # fmt: skip


def _left(fit: Fit, loss: float) -> float:
    return float((loss - floor_of(fit.law, fit.params)) / loss)
