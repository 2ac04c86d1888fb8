"""Early answers: what runs at several rates will end at, from their curves so far, and which of them can still be the best.

The runs of one size at several rates share the multi-power law of `analysis.curve_law`, in rates over their own peak: what the schedule
does is common to them. A run has a floor L0 and an amplitude A of its own, held near the common ones (A falls as a power of the peak rate:
a low rate learns later). That a run ends at another loss than the law says is mostly an error that all of them share, and does not change
who is best; the rest has the spread below, and by it each run has a chance to be the best. For tuning only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import norm

from analysis.curve_law import LEVELS, PARAMETERS, PRIOR, PRIOR_SD, Curve, Schedule, loss_and_slopes
from analysis.errors import UserError

Array = np.ndarray
RATE_POWER = (0.2, 0.2)  # mean and sd of the power of the rate by which A falls
OWN_FLOOR, OWN_AMPLITUDE = 0.05, 0.1  # sd of a run's log L0 and log A about the common ones
POINT_SD = 0.01  # of a logged training loss, relative
SPREAD = 0.01  # relative sd of a run's error about the common error where tokens double; grows as the root of the doublings
COMMON = 0.03  # the same of the common error; grows with the doublings
CERTAIN = 1e-4  # relative sd of a loss that is measured
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Trial:
    """A run at one rate, as far as it has been trained.

    Attributes
    ----------
    name : str
    rate : float
        Peak rate.
    curves : tuple of Curve
        Training losses: of the trunk, and of each cooldown.
    loss : float
        Held-out loss at the end of its longest branch so far, nats per token.
    reached, goal : (n_steps,)
        Rates of every step of that branch, and of the branch whose loss is wanted; their lengths compare the amounts of data.
    """

    name: str
    rate: float
    curves: tuple[Curve, ...]
    loss: float
    reached: Array
    goal: Array


@dataclass(frozen=True)
class Outlook:
    """What a trial will end at: loss with its 95 % interval (nats per token), and its chance to be the best of those compared."""

    name: str
    loss: float
    low: float
    high: float
    chance: float


def outlooks(trials: Sequence[Trial]) -> list[Outlook]:
    """Predict the loss of each trial at its goal, and its chance to be the best.

    The law's ratio between goal and longest branch carries the measured loss there. A trial that has reached its goal is not predicted.

    Raises
    ------
    UserError
        When there are fewer than two trials, or a trial has fewer than three points.
    """
    if len(trials) < 2:
        raise UserError(f"early answers compare runs at several rates; found {len(trials)}")
    if poor := [trial.name for trial in trials if sum(len(curve.losses) for curve in trial.curves) < 3]:
        raise UserError(f"early answers need three logged points of a run after its warm-up; {poor[0]} has fewer: decide later")
    law = _JointLaw.fit(trials)
    doublings = np.array([max(math.log2(len(trial.goal) / len(trial.reached)), 0.0) for trial in trials])
    loss = np.array([trial.loss * law.ratio(i) for i, trial in enumerate(trials)])
    own = np.where(doublings > 0, SPREAD * np.sqrt(doublings), CERTAIN)
    whole = np.where(doublings > 0, np.hypot(own, COMMON * doublings), 0.0)
    chance = chances(np.log(loss), own)
    low, high = loss * np.exp(-Z95 * whole), loss * np.exp(Z95 * whole)
    return [Outlook(trial.name, *map(float, row)) for trial, *row in zip(trials, loss, low, high, chance, strict=True)]


def chances(means: Array, sd: Array) -> Array:
    """Chance that each of several independent normal values is the lowest: (n,), by quadrature."""
    order = np.asarray(means, dtype=np.float64)[:, None] + np.asarray(sd)[:, None] * np.linspace(-6, 6, 241)
    found = np.empty(len(order))
    for i, points in enumerate(order):
        z = (points[None, :] - np.asarray(means)[:, None]) / np.asarray(sd)[:, None]
        others = np.delete(norm.sf(z), i, axis=0).prod(axis=0)
        found[i] = np.trapezoid(others * norm.pdf(z[i]), z[i])
    return found / found.sum()


def hopeful(rates: Sequence[float], found: Sequence[float], *, least: float) -> list[float]:
    """Return the rates worth training on: chance of at least `least`, and the likeliest with one rate on either side of it.

    Parameters
    ----------
    rates, found : (n,)
        Rates that were tried, and the chance of each to be the best; the parabola of `analysis.tuning` needs the neighbours.
    """
    order = np.argsort(rates)
    best = int(np.argmax(np.asarray(found)[order]))
    return [float(rates[i]) for place, i in enumerate(order) if abs(place - best) <= 1 or found[i] >= least]


@dataclass(frozen=True)
class _JointLaw:
    """Parameters of the trials' common law: log A, alpha, B, C, beta, gamma; log L0; power of the rate; own log L0, own log A."""

    theta: Array
    trials: Sequence[Trial]
    total: float

    @classmethod
    def fit(cls, trials: Sequence[Trial]) -> _JointLaw:
        """Most probable parameters, by least squares with exact derivatives, robust to wild points."""
        total = max(float((trial.goal / trial.rate).sum()) for trial in trials)
        schedules = [
            (i, _scaled(curve.learning_rates, curve.steps, rate=trial.rate, total=total), np.log(curve.losses))
            for i, trial in enumerate(trials)
            for curve in trial.curves
        ]
        low = float(np.exp(min(y.min() for *_, y in schedules)))
        mean = np.roll(np.log(PRIOR * np.where(LEVELS, low, 1.0)), -1)  # log L0 comes last
        mean = np.concatenate([mean, [RATE_POWER[0]], np.zeros(2 * len(trials))])
        sd = np.concatenate([np.roll(PRIOR_SD, -1), [RATE_POWER[1]], np.full(len(trials), OWN_FLOOR), np.full(len(trials), OWN_AMPLITUDE)])

        def residuals(theta: Array) -> Array:
            law = cls(theta, trials, total)
            parts = [(np.log(law._loss(i, schedule)[0]) - y) / POINT_SD for i, schedule, y in schedules]
            return np.concatenate([*parts, (theta - mean) / sd])

        def jacobian(theta: Array) -> Array:
            law = cls(theta, trials, total)
            return np.concatenate([*(law._loss(i, schedule)[1] / POINT_SD for i, schedule, _ in schedules), np.diag(1 / sd)])

        found = least_squares(residuals, mean, jac=jacobian, loss="soft_l1", max_nfev=200)  # pyright: ignore[reportArgumentType]
        return cls(found.x, trials, total)

    def _loss(self, i: int, schedule: Schedule) -> tuple[Array, Array]:
        """Losses of trial i along a schedule (m,), and derivatives of their logs in theta (m, 8 + 2 n)."""
        theta, count = self.theta, len(self.trials)
        level = math.log(self.trials[i].rate) - float(np.mean([math.log(trial.rate) for trial in self.trials]))
        amplitude = math.exp(theta[0] - theta[7] * level + theta[8 + count + i])
        values = np.array([math.exp(theta[6] + theta[8 + i]), amplitude, *np.exp(theta[1:6])])
        loss, slopes = loss_and_slopes(dict(zip(PARAMETERS, values, strict=True)), schedule)
        floor, own, *rest = (slopes * values / loss[:, None]).T
        out = np.zeros((len(loss), len(theta)))
        out[:, [6, 8 + i]] = floor[:, None]
        out[:, [0, 8 + count + i]] = own[:, None]
        out[:, 7], out[:, 1:6] = -level * own, np.stack(rest, axis=1)
        return loss, out

    def ratio(self, i: int) -> float:
        """Return the loss at the goal of trial i as a share of that at the end of its longest branch."""
        trial = self.trials[i]
        goal, reached = (
            self._loss(i, _scaled(rates, [len(rates) - 1], rate=trial.rate, total=self.total))[0][0]
            for rates in (trial.goal, trial.reached)
        )
        return float(goal / reached)


def _scaled(rates: Array, steps: Sequence[int] | Array, *, rate: float, total: float) -> Schedule:
    """Return a schedule in rates over their peak, sums over the longest sum."""
    schedule = Schedule.read(np.asarray(rates) / rate, steps)
    return replace(schedule, sums=schedule.sums / total, before=schedule.before / total)
