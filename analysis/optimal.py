"""Using a law: the loss of a model, what to train with a budget, and the compute-optimal frontier.

Compute is ``C = 6 N D`` here (training), ``+ 2 N`` a token served; the convention of N is that of the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.budget import need_no_column, point, split_budget
from analysis.critical import critical_compute
from analysis.errors import UserError
from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.laws import Law
from analysis.model_error import extrapolation_interval
from analysis.presets import AllocationPreset, Preset
from analysis.returns import NAN, band, sample

Source = Fit | Preset | AllocationPreset
FRONTIER_COLUMNS = (
    "approach fit_id law n_column c_column flops params_opt tokens_opt tokens_per_param loss params_ci_low params_ci_high tokens_ci_low"
    " tokens_ci_high loss_ci_low loss_ci_high ci_level gain_per_doubling gain_share beyond_data point"
).split()


@dataclass(frozen=True)
class Optimum:
    """What to train with a budget. Intervals (NaN without draws) are conditional on the law; loss in nats per token.

    Attributes
    ----------
    inference_tokens : float
        Tokens served that `flops` pays for besides training; 0 for none.
    unique_tokens : float
        U of a data-constrained law; NaN for others.
    extrapolation : str
        How far outside the fitted runs the optimum lies.
    """

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
    tokens_per_param_low: float
    tokens_per_param_high: float
    loss_low: float
    loss_high: float
    ci_level: float
    inference_tokens: float
    unique_tokens: float
    extrapolation: str


@dataclass(frozen=True)
class Prediction:
    """Predicted loss (nats per token): `low`-`high` is the law's interval, `pi_low`-`pi_high` that of one new run; NaN without draws.

    `pi_model_low`-`pi_model_high`, about `predicted_model`, is the interval of one new run if the law is only a law
    (`analysis.model_error`); NaN where the runs are too few. `unique_tokens` is NaN for laws without U.
    """

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
    predicted_model: float
    pi_model_low: float
    pi_model_high: float
    ci_level: float
    unique_tokens: float
    extrapolation: str


@dataclass(frozen=True)
class _Split:
    """Compute-optimal N, D, D/N and loss at budgets (k,), and their intervals (k, 2)."""

    n: np.ndarray
    d: np.ndarray
    ratio: np.ndarray
    loss: np.ndarray
    n_band: np.ndarray
    d_band: np.ndarray
    ratio_band: np.ndarray
    loss_band: np.ndarray


def predict(source: Source, *, params: float, tokens: float, unique_tokens: float | None = None) -> Prediction:
    """Predict the loss of a model with `params` parameters (in the law's convention) trained on `tokens` tokens.

    Parameters
    ----------
    unique_tokens : float, optional
        U of a data-constrained law (Muennighoff et al. 2023); `tokens`, which is one epoch, when not given.

    Raises
    ------
    UserError
        When a number is not finite and above 0, or the source has no law of the loss that N, D and U settle.
    """
    _check(params=params, tokens=tokens, unique_tokens=unique_tokens)
    if isinstance(source, AllocationPreset):
        raise UserError(f"{source.name} is a published allocation of compute, with no law of the loss; ask it for an optimum instead")
    unique = _unique(source.law, unique_tokens)
    need_no_column(source.law)
    values = point(params, tokens, unique)
    low = high = pi_low = pi_high = NAN
    model = dict.fromkeys(("predicted_model", "pi_model_low", "pi_model_high"), NAN)
    if isinstance(source, Fit):
        model = model_interval(source, n=params, d=tokens)
    if isinstance(source, Fit) and source.draws is not None:
        low, high = (float(v) for v in source.interval(**values))
        pi_low, pi_high = (float(v) for v in source.interval(noise=True, **values))
    return Prediction(
        source=_name(source), law=source.law.name, n_column=source.n_column, params=params, tokens=tokens, flops=float(values["C"]),
        loss=float(source.predict(**values)), low=low, high=high, pi_low=pi_low, pi_high=pi_high, **model, ci_level=_level(source),
        unique_tokens=_shown(source.law, unique, tokens), extrapolation=extrapolation(source, params=params, tokens=tokens),
    )  # fmt: skip


def model_interval(fit: Fit, *, n: float, d: float) -> dict[str, float]:
    """Return the interval of one new run if the law is only a law: predicted_model, pi_model_low, pi_model_high (NaN: too few runs)."""
    try:
        found = extrapolation_interval(fit.frame["N"], fit.frame["D"], fit.frame["loss"], n, d, level=fit.ci_level)
    except UserError:
        return dict.fromkeys(("predicted_model", "pi_model_low", "pi_model_high"), NAN)
    values = (found.predicted, found.low, found.high)
    return {name: float(np.ravel(v)[0]) for name, v in zip(("predicted_model", "pi_model_low", "pi_model_high"), values, strict=True)}


def compute_optimal(source: Source, flops: float, *, inference_tokens: float | None = None, unique_tokens: float | None = None) -> Optimum:
    """Model size and tokens of least loss for `flops` in all: ``6 N D``, and ``2 N inference_tokens`` for serving (Sardana et al. 2023).

    In closed form for sums of powers in N and D, by a search for every other law in N and D (see `analysis.budget.split_budget`). A
    published allocation answers N, D and their ratio, with no loss; its N and D need not give 6ND = C.

    Parameters
    ----------
    unique_tokens : float, optional
        U of a data-constrained law; the optimum's own D (one epoch) when not given.

    Raises
    ------
    UserError
        When the law is not in N and D, has no best split of this budget, or a number is not finite and above 0.
    """
    _check(flops=flops, inference_tokens=inference_tokens, unique_tokens=unique_tokens)
    if isinstance(source, AllocationPreset):
        return _published_allocation(source, flops, inference_tokens, unique_tokens)
    served = inference_tokens or 0.0
    unique = _unique(source.law, unique_tokens)
    best = _split(source, np.array([flops]), served, unique)
    n, d = float(best.n[0]), float(best.d[0])
    if not math.isfinite(n):
        raise UserError(
            f"law {source.law.name} has no best split of C = {flops:g}: its loss falls all the way to a model without data or data without"
            " a model, or does not depend on the split; choose another law, such as chinchilla"
        )
    bands = {"params": best.n_band[0], "tokens": best.d_band[0], "tokens_per_param": best.ratio_band[0], "loss": best.loss_band[0]}
    return Optimum(
        source=_name(source), law=source.law.name, n_column=source.n_column, flops=flops, params_opt=n, tokens_opt=d,
        tokens_per_param=d / n, loss=float(best.loss[0]), ci_level=_level(source), inference_tokens=served,
        unique_tokens=_shown(source.law, unique, d), extrapolation=extrapolation(source, params=n, tokens=d),
        **{f"{name}_{end}": float(bands[name][i]) for name in bands for i, end in enumerate(("low", "high"))},
    )  # fmt: skip


def extrapolation(source: Source, *, params: float, tokens: float) -> str:
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


def frontier(fit: Fit, *, per_decade: int = 8, unique_tokens: float | None = None) -> Frame:
    """Compute-optimal frontier from the cheapest fitted run to one decade beyond the dearest, and the critical points on it.

    Parameters
    ----------
    unique_tokens : float, optional
        U of a data-constrained law; D (one epoch) when not given.

    Returns
    -------
    DataFrame
        As frontier.csv; empty for laws that are not in N and D alone (and U). `point` is "grid" or the name of a critical point. Budgets
        that the law cannot split (see `split_budget`) are left out.
    """
    if not {"N", "D"} <= set(fit.law.variables) <= {"N", "D", "C", "U"}:
        return pd.DataFrame(columns=FRONTIER_COLUMNS)
    compute = 6 * fit.frame["N"] * fit.frame["D"]
    low, high = float(compute.min()), float(compute.max())
    flops = list(np.geomspace(low, 10 * high, max(2, math.ceil(per_decade * math.log10(10 * high / low)) + 1)))
    names = ["grid"] * len(flops)
    for critical in critical_compute(fit, unique_tokens=unique_tokens):
        if math.isfinite(critical.value):
            flops.append(critical.value)
            names.append(critical.name)
    budgets = np.array(flops)
    best = _split(fit, budgets, 0.0, unique_tokens)
    n, d = split_budget(fit.law, fit.params, 2 * budgets, unique_tokens=unique_tokens)
    gain = best.loss - fit.law.predict(fit.params, **point(n, d, unique_tokens))
    rows = [
        ["parametric", fit.fit_id, fit.law.name, fit.n_column, "6ND", float(budgets[i]), float(best.n[i]), float(best.d[i]),
         float(best.ratio[i]), float(best.loss[i]), *best.n_band[i].tolist(), *best.d_band[i].tolist(), *best.loss_band[i].tolist(),
         fit.ci_level, float(gain[i]), float(gain[i] / best.loss[i]), bool(budgets[i] > high * 1.001), names[i]]
        for i in np.flatnonzero(np.isfinite(best.n))
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=FRONTIER_COLUMNS)


def _split(source: Fit | Preset, flops: np.ndarray, served: float, unique_tokens: float | None) -> _Split:
    """Split budgets (k,) by the law, with intervals from the draws of a fit."""
    law = source.law
    params = sample(source) if isinstance(source, Fit) else {name: np.array([[value]]) for name, value in source.params.items()}
    n, d = split_budget(law, params, flops, served=served, unique_tokens=unique_tokens)
    with np.errstate(over="ignore"):  # a split that runs away is infinite, and shown as such
        found = (n, d, d / n, law.predict(params, **point(n, d, unique_tokens)))
    bands = (np.array([band(column, _level(source)) for column in values[1:].T]) for values in found)
    return _Split(*(values[0] for values in found), *bands)


def _published_allocation(source: AllocationPreset, flops: float, inference_tokens: float | None, unique_tokens: float | None) -> Optimum:
    if inference_tokens is not None or unique_tokens is not None:
        raise UserError(f"{source.name} is a published allocation of training compute; leave inference and unique tokens out")
    n = source.params_at * (flops / source.flops) ** source.a
    d = source.tokens_at * (flops / source.flops) ** source.b
    return Optimum(
        source=source.name, law="allocation", n_column=source.n_column, flops=flops, params_opt=n, tokens_opt=d, tokens_per_param=d / n,
        loss=NAN, params_low=NAN, params_high=NAN, tokens_low=NAN, tokens_high=NAN, tokens_per_param_low=NAN, tokens_per_param_high=NAN,
        loss_low=NAN, loss_high=NAN, ci_level=NAN, inference_tokens=0.0, unique_tokens=NAN,
        extrapolation=f"published optimum at {source.flops:.3g} FLOPs, C x{flops / source.flops:.3g} of it; no law of the loss",
    )  # fmt: skip


def _unique(law: Law, unique_tokens: float | None) -> float | None:
    if unique_tokens is not None and "U" not in law.variables:
        raise UserError(f"law {law.name} has no U; unique tokens only matter to a data-constrained law, such as muennighoff")
    return unique_tokens


def _shown(law: Law, unique_tokens: float | None, tokens: float) -> float:
    return NAN if "U" not in law.variables else tokens if unique_tokens is None else unique_tokens


def _name(source: Fit | Preset) -> str:
    return source.fit_id if isinstance(source, Fit) else source.name


def _level(source: Fit | Preset) -> float:
    return source.ci_level if isinstance(source, Fit) else 0.95


def _check(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} = {value:g} is not allowed; it must be finite and above 0")
