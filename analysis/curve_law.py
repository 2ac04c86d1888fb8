"""The whole loss curve under any learning-rate schedule: the Multi-Power Law (Luo et al. 2025, arXiv:2503.12811).

``L(t) = L0 + A S(t)^-alpha + B sum_k (eta_k - eta_{k-1}) (1 - (1 + C eta_k^-gamma (S(t) - S(k-1)))^-beta)``, where ``eta_k`` is the rate of
step k and ``S(t)`` the sum of the rates of steps 0 to t. Both sums include the warm-up, whose rising rates add to the loss what the later
fall takes away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.optimize import least_squares

from analysis.errors import UserError

Array = np.ndarray
PARAMETERS = ("L0", "A", "alpha", "B", "C", "beta", "gamma")
# A weak prior in units of the lowest loss, with rates over their peak and sums over the longest: medians, and standard deviations of logs.
PRIOR = np.array([0.6, 0.25, 0.4, 0.1, 10.0, 0.5, 0.5])
PRIOR_SD = np.array([0.25, 0.7, 0.35, 1.0, 1.5, 0.5, 0.5])
LEVELS = np.array([1, 1, 0, 1, 0, 0, 0])  # which of them are losses


@dataclass(frozen=True)
class Curve:
    """A measured loss curve.

    Attributes
    ----------
    learning_rates : (n_steps,)
        Rate of every step from step 0 on, warm-up included.
    steps : (m,) int
        Steps at which the loss was measured.
    losses : (m,)
        Nats per token.
    """

    learning_rates: Array
    steps: Array
    losses: Array


@dataclass(frozen=True)
class CurveErrors:
    """How well a law follows a curve: R2, mean absolute and root mean square error (nats), mean and worst relative error."""

    r2: float
    mae: float
    rmse: float
    mean_relative: float
    worst_relative: float


def multi_power_loss(params: Mapping[str, float], learning_rates: Array, *, steps: Sequence[int] | Array | None = None) -> Array:
    """Loss along a schedule, nats per token.

    Parameters
    ----------
    params : mapping of str to float
        Each of `PARAMETERS`.
    learning_rates : (n_steps,)
        Rate of every step from step 0 on, warm-up included.
    steps : (m,) int, optional
        Where to evaluate; everywhere when not given. The law is meant for steps after the warm-up; where no rate has been above 0 yet, the
        loss is infinite.

    Returns
    -------
    (m,)

    Raises
    ------
    UserError
        When the rates are no numbers from 0 up, or a step lies outside the schedule.

    Notes
    -----
    Time is m times the number of steps at which the rate changes (a constant rate costs nothing); memory is one row of that.
    """
    return loss_and_slopes(params, Schedule.read(learning_rates, steps))[0]


def curve_errors(predicted: Array, losses: Array) -> CurveErrors:
    """Errors of predicted losses against measured ones, (m,) each; the relative ones are R2's companions PredE and WorstE of the paper."""
    error = np.asarray(predicted, dtype=np.float64) - np.asarray(losses, dtype=np.float64)
    relative = np.abs(error) / losses
    return CurveErrors(
        r2=float(1 - (error**2).sum() / ((losses - np.mean(losses)) ** 2).sum()), mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt((error**2).mean())), mean_relative=float(relative.mean()), worst_relative=float(relative.max()),
    )  # fmt: skip


def fit_multi_power(curves: Sequence[Curve], *, delta: float = 1e-3, prior: float = 1e-2) -> dict[str, float]:
    """Fit the law to curves of one model under different schedules: least Huber loss of the residuals of log loss, all parameters above 0.

    Parameters
    ----------
    curves : sequence of Curve
        Some with a constant and some with a falling rate, else B, C, beta and gamma are not identified.
    delta : float
        Huber's; the paper's by default.
    prior : float
        Standard deviation of a logged point, relative, against which `PRIOR` is weighed; 0 for none.

    Raises
    ------
    UserError
        When the measured points are fewer than twice the parameters.

    Notes
    -----
    Bounded least squares with an exact Jacobian from four starts; a minute for three curves of up to 24,000 steps. Without a prior the
    optimum on the published curves lies 2 to 13 times below the objective at the published parameters, and far from them: B, C, beta and
    gamma form a flat valley, and schedules that were not fitted are predicted worse than from a point on the way down
    (benchmarks/curve_law.py).
    """
    schedules = [Schedule.read(curve.learning_rates, curve.steps) for curve in curves]
    losses = np.concatenate([np.asarray(curve.losses, dtype=np.float64) for curve in curves])
    if len(losses) < 2 * len(PARAMETERS):
        raise UserError(f"curves: {len(losses)} points; the multi-power law needs at least {2 * len(PARAMETERS)}")
    # With rates over their peak and sums over the longest, every parameter is a number that does not depend on the units of the rate.
    peak, total = max(s.rates.max() for s in schedules), max(s.sums.max() for s in schedules)
    scaled = [replace(s, sums=s.sums / total, before=s.before / total, rates=s.rates / peak, falls=s.falls / peak) for s in schedules]

    def evaluate(theta: Array) -> tuple[Array, Array]:
        values = np.exp(theta)
        loss, slopes = zip(*(loss_and_slopes(dict(zip(PARAMETERS, values, strict=True)), schedule) for schedule in scaled), strict=True)
        predicted = np.concatenate(loss)
        left = np.concatenate([np.log(predicted / losses), prior * (theta - median) / PRIOR_SD])
        return left, np.concatenate([np.concatenate(slopes) * values / predicted[:, None], np.diag(prior / PRIOR_SD)])

    median = np.log(PRIOR * np.where(LEVELS, losses.min(), 1.0))
    drop = losses.max() - losses.min()
    low, high = np.log([1e-3, 1e-6, 0.01, 1e-6, 1e-3, 0.01, 0.01]), np.log([losses.min(), 1e3, 3.0, 1e6, 1e12, 3.0, 3.0])
    runs = [
        least_squares(
            lambda theta: evaluate(theta)[0], np.log([share * losses.min(), 0.2 * drop, 0.5, 0.2 * drop, stretch, 0.5, 0.5]),
            jac=lambda theta: evaluate(theta)[1], bounds=(low, high), loss="huber", f_scale=delta, x_scale="jac", max_nfev=200,
        )
        for share, stretch in product((0.6, 0.9), (10.0, 1e3))
    ]  # fmt: skip
    best = dict(zip(PARAMETERS, np.exp(min(runs, key=lambda run: run.cost).x).tolist(), strict=True))
    units = {"A": total ** best["alpha"], "B": 1 / peak, "C": peak ** best["gamma"] / total}
    return {name: float(value * units.get(name, 1.0)) for name, value in best.items()}


@dataclass(frozen=True)
class Schedule:
    """A schedule at the measured steps.

    Attributes
    ----------
    sums : (m,) sum of the rates up to and with each measured step.
    rates, falls, before : (k,) rate after each change, the change (below 0 where the rate falls), sum of the rates before that step.
    counts : (m,) how many changes have happened by each measured step.
    """

    sums: Array
    rates: Array
    falls: Array
    before: Array
    counts: Array

    @classmethod
    def read(cls, learning_rates: Array, steps: Sequence[int] | Array | None) -> Schedule:
        """Check a schedule, and look at it where the loss is wanted (everywhere when `steps` is None)."""
        rates = np.asarray(learning_rates, dtype=np.float64)
        if rates.ndim != 1 or not (np.isfinite(rates) & (rates >= 0)).all() or not rates.any():
            raise UserError("learning rates: one finite number from 0 up is needed for every step, not all 0")
        at = np.arange(len(rates)) if steps is None else np.asarray(steps)
        if not np.issubdtype(at.dtype, np.integer) or at.size == 0 or at.min() < 0 or at.max() >= len(rates):
            raise UserError(f"steps: whole numbers from 0 to {len(rates) - 1}, the last step of the schedule, are allowed")
        sums = np.cumsum(rates)
        change = 1 + np.flatnonzero((np.diff(rates) != 0) & (rates[1:] > 0))
        return cls(sums[at], rates[change], rates[change] - rates[change - 1], sums[change - 1], np.searchsorted(change, at, side="right"))


def loss_and_slopes(params: Mapping[str, float], schedule: Schedule) -> tuple[Array, Array]:
    """Losses (m,) and their derivatives in `PARAMETERS` (m, 7)."""
    floor, a, alpha, b, c, beta, gamma = (float(params[name]) for name in PARAMETERS)
    with np.errstate(divide="ignore"):
        log_sums, log_rates = np.log(schedule.sums), np.log(schedule.rates)
    power = np.exp(-alpha * log_sums)
    stretch = np.exp(-gamma * log_rates)
    annealed = np.zeros((len(power), 4))  # sums of the last term, and of its derivatives in C, beta, gamma
    for i, k in enumerate(schedule.counts):
        z = stretch[:k] * (schedule.sums[i] - schedule.before[:k])
        logs = np.log1p(c * z)
        left = np.exp(-beta * logs)
        falls = schedule.falls[:k]
        slope = falls * beta * left / (1 + c * z) * z
        annealed[i] = falls @ (1 - left), slope.sum(), (falls * left) @ logs, -c * (slope @ log_rates[:k])
    loss = floor + a * power + b * annealed[:, 0]
    slopes = [np.ones_like(power), power, -a * power * log_sums, annealed[:, 0], *(b * annealed[:, 1:]).T]
    return loss, np.stack(slopes, axis=1)
