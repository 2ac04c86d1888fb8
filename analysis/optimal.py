"""Using a law: predictions, compute-optimal sizes, what a doubling buys, and where that stops to pay.

Compute is ``C = 6 N D`` here (training), ``+ 2 N`` a token served; the convention of N is that of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.fitting import Fit
from analysis.frames import Column, Frame
from analysis.presets import Preset

TAU = 0.01  # share of the loss that one doubling of compute must buy
NAN = float("nan")


@dataclass(frozen=True)
class Optimum:
    """What to train with a budget. Intervals (NaN without draws) are conditional on the law; loss in nats per token."""

    source: str
    law: str
    n_column: str
    flops: float
    params_opt: float
    tokens_opt: float
    tokens_per_param: float
    loss: float
    params_low: float
    params_high: float
    tokens_low: float
    tokens_high: float
    loss_low: float
    loss_high: float
    ci_level: float
    inference_tokens: float
    extrapolation: str


@dataclass(frozen=True)
class Prediction:
    """Predicted loss (nats per token): `low`-`high` is the law's interval, `pi_low`-`pi_high` that of one new run; NaN without draws."""

    source: str
    law: str
    n_column: str
    params: float
    tokens: float
    flops: float
    loss: float
    low: float
    high: float
    pi_low: float
    pi_high: float
    ci_level: float
    extrapolation: str


@dataclass(frozen=True)
class CriticalPoint:
    """The compute (6ND) from which one more doubling buys less than `share` of the loss; NaN where that never or always holds."""

    name: str
    share: float
    flops: float
    ci_low: float
    ci_high: float
    loss: float
    beyond_data: bool
    draws_without: float


def predict(source: Fit | Preset, *, params: float, tokens: float) -> Prediction:
    """Predict the loss of a model with `params` parameters (in the law's convention) trained on `tokens` tokens.

    Raises
    ------
    UserError
        When a number is not finite and above 0.
    """
    _check(params=params, tokens=tokens)
    values: dict[str, Any] = {"N": params, "D": tokens, "C": 6.0 * params * tokens}
    loss = float(source.predict(**values))
    low = high = pi_low = pi_high = NAN
    if isinstance(source, Fit) and source.draws is not None:
        low, high = (float(v) for v in source.interval(**values))
        pi_low, pi_high = (float(v) for v in source.interval(noise=True, **values))
    return Prediction(
        source=_name(source), law=source.law.name, n_column=source.n_column, params=params, tokens=tokens, flops=values["C"], loss=loss,
        low=low, high=high, pi_low=pi_low, pi_high=pi_high, ci_level=getattr(source, "ci_level", 0.95),
        extrapolation=extrapolation(source, params=params, tokens=tokens),
    )  # fmt: skip


def compute_optimal(source: Fit | Preset, flops: float, *, inference_tokens: float | None = None) -> Optimum:
    """Model size and tokens of least loss for `flops` in all.

    Without inference: the closed form of Hoffmann et al. 2022, ``N = G (C/6)^(beta/(alpha+beta))``. With it (Sardana et al. 2023):
    the best N under ``6 N D + 2 N inference_tokens = flops``.

    Raises
    ------
    UserError
        When the law is not in N and D, or a number is not finite and above 0.
    """
    _check(flops=flops, **({} if inference_tokens is None else {"inference_tokens": inference_tokens}))
    _need_chinchilla(source)
    served = inference_tokens or 0.0
    n, d = _allocate(source.params, flops, served)
    loss = source.law.predict(source.params, N=n, D=d)
    bands = [(NAN, NAN)] * 3
    if isinstance(source, Fit) and source.draws is not None:
        draws = {name: source.draws[name].to_numpy() for name in source.law.parameters}
        n_draws, d_draws = _allocate(draws, flops, served)
        bands = [_band(v, source.ci_level) for v in (n_draws, d_draws, source.law.predict(draws, N=n_draws, D=d_draws))]
    return Optimum(
        source=_name(source), law=source.law.name, n_column=source.n_column, flops=flops, params_opt=float(n), tokens_opt=float(d),
        tokens_per_param=float(d / n), loss=float(loss), params_low=bands[0][0], params_high=bands[0][1], tokens_low=bands[1][0],
        tokens_high=bands[1][1], loss_low=bands[2][0], loss_high=bands[2][1], ci_level=getattr(source, "ci_level", 0.95),
        inference_tokens=served, extrapolation=extrapolation(source, params=float(n), tokens=float(d)),
    )  # fmt: skip


def extrapolation(source: Fit | Preset, *, params: float, tokens: float) -> str:
    """Say how far outside the fitted runs a point lies, as factors of N, D and C = 6ND."""
    if not isinstance(source, Fit):
        return "published coefficients; the range of their runs is not recorded here"
    frame, above, below = source.frame, [], []
    for name, value, column in (
        ("N", params, frame["N"]), ("D", tokens, frame["D"]), ("C", 6 * params * tokens, 6 * frame["N"] * frame["D"])
    ):  # fmt: skip
        if value > column.max() * 1.001:
            above.append(f"{name} x{value / column.max():.3g}")
        elif value < column.min() / 1.001:
            below.append(f"{name} x{column.min() / value:.3g}")
    parts = [f"{', '.join(factors)} {word} the data" for factors, word in ((above, "beyond"), (below, "below")) if factors]
    return "; ".join(parts) or "inside the data"


def frontier(fit: Fit, *, per_decade: int = 8) -> Frame:
    """Compute-optimal frontier from the cheapest fitted run to one decade beyond the dearest, and the critical points on it.

    Returns
    -------
    DataFrame
        As frontier.csv; empty for laws that are not in N and D. `point` is "grid" or the name of a critical point.
    """
    columns = (
        "approach fit_id law n_column c_column flops params_opt tokens_opt tokens_per_param loss params_ci_low params_ci_high tokens_ci_low"
        " tokens_ci_high loss_ci_low loss_ci_high ci_level gain_per_doubling gain_share beyond_data point"
    ).split()
    if {"N", "D"} - set(fit.law.variables):
        return pd.DataFrame(columns=columns)
    compute = 6 * fit.frame["N"] * fit.frame["D"]
    low, high = float(compute.min()), float(compute.max())
    points = [(flops, "grid") for flops in np.geomspace(low, 10 * high, max(2, math.ceil(per_decade * math.log10(10 * high / low)) + 1))]
    points += [(point.flops, point.name) for point in critical_points(fit) if math.isfinite(point.flops)]
    k, gamma = _frontier_law(fit.params)
    rows = []
    for flops, name in points:
        best = compute_optimal(fit, float(flops))
        gain = float(k * flops**-gamma * (1 - 2**-gamma))
        rows.append(
            ["parametric", fit.fit_id, fit.law.name, fit.n_column, "6ND", float(flops), best.params_opt, best.tokens_opt,
             best.tokens_per_param, best.loss, best.params_low, best.params_high, best.tokens_low, best.tokens_high,
             best.loss_low, best.loss_high, best.ci_level, gain, gain / best.loss, bool(flops > high * 1.001), name]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def critical_points(fit: Fit, *, share: float = TAU) -> list[CriticalPoint]:
    """Where the frontier's gain per doubling, ``(L - E)(1 - 2^-gamma)``, falls below a share of the loss.

    The share is `share`, and, when there are repeats, the noise between seeds. On the frontier ``L = E + K C^-gamma``, so with
    ``q = 1 - 2^-gamma`` the point is ``C = (K (q - share) / (share E))^(1/gamma)``.
    """
    if {"N", "D"} - set(fit.law.variables):
        return []
    shares = [(f"gain below {100 * share:g} % of the loss", share)]
    if fit.noise.repeats:
        noise = float(np.median(fit.frame["noise_sd"]))
        shares.append((f"gain below the noise between seeds ({100 * noise:.2g} %)", noise))
    top = float((6 * fit.frame["N"] * fit.frame["D"]).max())
    found = []
    for name, tau in shares:
        flops = float(_critical(fit.params, tau))
        low = high = without = NAN
        if fit.draws is not None:
            values = _critical({p: fit.draws[p].to_numpy() for p in fit.law.parameters}, tau)
            without = float((~np.isfinite(values)).mean())
            if without < 0.2:
                low, high = _band(values[np.isfinite(values)], fit.ci_level)
        k, gamma = _frontier_law(fit.params)
        loss = float(fit.params["E"] + k * flops**-gamma) if math.isfinite(flops) else NAN
        found.append(CriticalPoint(name, tau, flops, low, high, loss, bool(flops > top), without))
    return found


def returns(fit: Fit) -> Frame:
    """Tell what each doubling of N, of D and of compute buys, across the data and one decade beyond.

    N is doubled at the longest D, D at the largest N, C along the law's compute-optimal frontier (a law in C: along itself).

    Returns
    -------
    DataFrame
        As returns.csv; `beyond_data` marks doublings that end outside the data.
    """
    frame = fit.frame
    n_top, d_top = float(frame["N"].max()), float(frame["D"].max())
    draws = None if fit.draws is None else {p: fit.draws[p].to_numpy() for p in fit.law.parameters}
    axes: dict[str, Column] = {name: frame[name] for name in ("N", "D") if name in fit.law.variables}
    if "C" in fit.law.variables:
        axes["C"] = frame["C"]
    elif {"N", "D"} <= set(fit.law.variables):
        axes["C"] = 6 * frame["N"] * frame["D"]
    rows = []
    for axis, column in axes.items():
        low, high = float(column.min()), float(column.max())
        held = {"N": f"D = {d_top:.6g}", "D": f"N = {n_top:.6g}", "C": "N and D compute-optimal, C = 6ND"}[axis]
        if len(fit.law.variables) == 1:
            held = fit.subset
        # Doublings are counted down from the largest value in the data, so that none straddles its edge.
        first = high / 2.0 ** math.ceil(math.log2(high / low) - 1e-9)
        count = round(math.log2(high / first)) + math.ceil(math.log2(10))
        for start in first * 2.0 ** np.arange(count):
            ends = [_along(fit, fit.params, axis, value, n_top, d_top) for value in (start, 2 * start)]
            gain = float(ends[0] - ends[1])
            band = (NAN, NAN)
            if draws is not None:
                band = _band(
                    _along(fit, draws, axis, start, n_top, d_top) - _along(fit, draws, axis, 2 * start, n_top, d_top), fit.ci_level
                )
            rows.append(
                [fit.fit_id, fit.law.name, fit.n_column, axis, float(start), float(2 * start), float(ends[0]), float(ends[1]), gain, gain,
                 band[0], band[1], gain / float(ends[0]), fit.ci_level, bool(2 * start > high * 1.001), held]
            )  # fmt: skip
    columns = "fit_id law n_column axis from to loss_from loss_to gain gain_per_doubling gain_per_doubling_ci_low gain_per_doubling_ci_high"
    return pd.DataFrame(rows, columns=[*columns.split(), "gain_share", "ci_level", "beyond_data", "held"])


def _along(fit: Fit, params: Mapping[str, Any], axis: str, value: float, n_top: float, d_top: float) -> np.ndarray:
    if axis == "C" and "C" not in fit.law.variables:
        n, d = _allocate(params, value, 0.0)
        return fit.law.predict(params, N=n, D=d)
    return fit.law.predict(params, **{"N": n_top, "D": d_top, axis: value})


def _allocate(params: Mapping[str, Any], flops: float, served: float) -> tuple[np.ndarray, np.ndarray]:
    """N and D of least loss under 6ND + 2N served = flops; works on draws."""
    a, b, alpha, beta = (np.asarray(params[name], dtype=np.float64) for name in ("A", "B", "alpha", "beta"))
    log_n = (np.log(alpha * a) - np.log(beta * b) + beta * np.log(flops / 6)) / (alpha + beta)
    if served == 0:
        return np.exp(log_n), flops / 6 / np.exp(log_n)
    # In log N the loss is convex under the budget; bisect its derivative between 0 and the N that serving alone would use up.
    top = np.log(flops / (2 * served)) + np.zeros_like(log_n)
    low, high = np.minimum(log_n, top) - 60.0, top - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        n = np.exp(middle)
        d = np.maximum((flops - 2 * n * served) / (6 * n), 1e-300)
        slope = -alpha * a * n**-alpha + beta * b * np.exp(-(beta + 1) * np.log(d)) * flops / (6 * n)
        low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
    n = np.exp((low + high) / 2)
    return n, (flops - 2 * n * served) / (6 * n)


def _frontier_law(params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """K and gamma of ``L = E + K C^-gamma`` on the frontier."""
    a, b, alpha, beta = (np.asarray(params[name], dtype=np.float64) for name in ("A", "B", "alpha", "beta"))
    n, d = _allocate(params, 6.0, 0.0)
    gamma = alpha * beta / (alpha + beta)
    return (a * n**-alpha + b * d**-beta) * 6.0**gamma, gamma


def _critical(params: Mapping[str, Any], tau: float) -> np.ndarray:
    k, gamma = _frontier_law(params)
    q, e = 1 - 2.0**-gamma, np.asarray(params["E"], dtype=np.float64)
    with np.errstate(all="ignore"):
        value = np.exp((np.log(k) + np.log(q - tau) - np.log(tau * e)) / gamma)
    return np.where((q > tau) & (value < 1e60), value, np.nan)


def _band(values: np.ndarray, level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _name(source: Fit | Preset) -> str:
    return source.fit_id if isinstance(source, Fit) else source.name


def _need_chinchilla(source: Fit | Preset) -> None:
    if {"N", "D"} - set(source.law.variables):
        raise UserError(f"optimal: law {source.law.name} is not in N and D; fit chinchilla")


def _check(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} = {value:g} is not allowed; it must be finite and above 0")
