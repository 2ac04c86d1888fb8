"""The loss near a target: a law, and a discrepancy that may grow with the distance from the target.

``log L(x) = log law(x; theta) + delta(x) + noise`` with x = (ln N, ln D). The law is Skaling's, ``E + (A N^-alpha + B D^-beta)^k``, with
the priors of `analysis.frontier_fit`. ``delta`` is Levy's Brownian motion that is 0 at the target's centre: the law describes that region,
and its error elsewhere has variance ``drift^2 |x - centre|``, shared by runs that lie close together. So a run far from the target tells
little about it, however often it is repeated. Everything is one Gaussian model once the law is linearised at its most probable parameters
(universal kriging: Rasmussen & Williams 2006, section 2.7).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from analysis.errors import UserError
from analysis.frontier_fit import PRIOR, skaling

Array = np.ndarray
#: Drift (log loss per root of ln distance) and noise (log loss) that are tried, and the centre and sd of their log-normal prior.
DRIFTS = np.geomspace(2e-4, 5e-2, 8)
NOISES = np.geomspace(5e-4, 5e-2, 8)
TYPICAL, TYPICAL_SD = np.log(0.005), 1.0
OUTLIER = 3.0  # noise sd: a run that misses what the others say of it by more counts with the noise that it shows
ROUNDS, STEPS = 3, 30
LONGEST_STEP = 1.0
LEAST_RUNS = 3
REPEATS = 15.387756  # R_D* of Muennighoff et al. 2023, arXiv:2305.16264: what repeated tokens are worth


@dataclass(frozen=True)
class Places:
    """Where runs lie: ln N and ln D, (n,) each; D in tokens that are worth as much as new ones."""

    x: Array
    y: Array

    @classmethod
    def of(cls, params: Array, tokens: Array, unique: Array | None = None) -> Places:
        """From parameters, tokens seen, and how many of these are different (all, when not given)."""
        seen = np.asarray(tokens, dtype=np.float64)
        if unique is not None:
            seen = worth(seen, np.asarray(unique, dtype=np.float64))
        return cls(np.log(np.asarray(params, dtype=np.float64)), np.log(seen))

    def __len__(self) -> int:
        return len(self.x)

    def __add__(self, other: Places) -> Places:
        return Places(np.concatenate([self.x, other.x]), np.concatenate([self.y, other.y]))


def worth(tokens: Array, unique: Array) -> Array:
    """New tokens that are worth as much as `tokens` of which `unique` are different: U + U R (1 - exp(-(D / U - 1) / R)), R = 15.39.

    >>> worth(np.array([1e9, 4e9]), np.array([1e9, 1e9])).round(-7).tolist()
    [1000000000.0, 3730000000.0]
    """
    unique = np.minimum(unique, tokens)
    return unique * (1 + REPEATS * -np.expm1(-(tokens / unique - 1) / REPEATS))


@dataclass(frozen=True)
class Surface:
    """What some runs tell of a target.

    Attributes
    ----------
    places, left, variance : runs (n,), their log losses less the law's, and the variances of their noise.
    theta : (6,)
        Most probable parameters (`analysis.frontier_fit.skaling`), of logs counted from `origin` (ln N, ln D, ln loss).
    centre : (ln N, ln D) of the target.
    drift, noise : float
        sd of the discrepancy at distance 1 (an e-fold) from the centre; sd of one run.
    """

    places: Places
    left: Array
    variance: Array
    theta: Array
    origin: tuple[float, float, float]
    centre: tuple[float, float]
    drift: float
    noise: float

    def predict(self, at: Places) -> Array:
        """Log loss (m,)."""
        own = self._discrepancy(self.places, self.places) + np.diag(self.variance)
        return self._law(at)[0] + self._discrepancy(at, self.places) @ np.linalg.solve(own, self.left)

    def covariance(self, at: Places, *, law_only: bool = False) -> Array:
        """Covariance of the log losses at m places, given the runs: (m, m), without the noise of new runs.

        `law_only` takes the law for true (no discrepancy).
        """
        everywhere = at + self.places
        slopes = self._law(everywhere)[1] * PRIOR[:, 1]
        whole = slopes @ slopes.T + (0.0 if law_only else self._discrepancy(everywhere, everywhere))
        m = len(at)
        own = whole[m:, m:] + np.diag(self.variance)
        return whole[:m, :m] - whole[:m, m:] @ np.linalg.solve(own, whole[m:, :m])

    def _law(self, at: Places) -> tuple[Array, Array]:
        value, slope = skaling(self.theta[None], at.x - self.origin[0], at.y - self.origin[1])
        return value[0] + self.origin[2], slope[0].T

    def _discrepancy(self, left: Places, right: Places) -> Array:
        return self.drift**2 * brownian(left, right, self.centre)


def brownian(left: Places, right: Places, centre: tuple[float, float]) -> Array:
    """Covariance of Levy's Brownian motion that is 0 at the centre: (|a| + |b| - |a - b|) / 2, distances in (ln N, ln D).

    >>> two = Places(np.array([1.0, 3.0]), np.zeros(2))
    >>> brownian(two, two, (0.0, 0.0)).tolist()  # on one side: the lesser distance
    [[1.0, 1.0], [1.0, 3.0]]
    """
    from_left = np.hypot(left.x - centre[0], left.y - centre[1])
    from_right = np.hypot(right.x - centre[0], right.y - centre[1])
    between = np.hypot(left.x[:, None] - right.x, left.y[:, None] - right.y)
    return 0.5 * (from_left[:, None] + from_right - between)


def fit_surface(places: Places, log_loss: Array, *, target: Places) -> Surface:
    """Fit law, drift and noise to runs (n,), for predictions at the target's places.

    Drift and noise are the most probable ones of a grid, the law linearised; a run that misses what the others say of it by more than 3
    noise sd counts with the noise that it shows.

    Raises
    ------
    UserError
        When there are fewer than 3 runs.
    """
    if len(places) < LEAST_RUNS:
        raise UserError(f"{len(places)} runs are too few to suggest from; train {LEAST_RUNS} cheap ones of different sizes first")
    centre = (float(target.x.mean()), float(target.y.mean()))
    origin = (float(places.x.mean()), float(places.y.mean()), float(log_loss.mean()))
    mean = PRIOR[:, 0].copy()
    mean[2] += log_loss.min() - origin[2]
    x, y, level = places.x - origin[0], places.y - origin[1], log_loss - origin[2]
    shape = brownian(places, places, centre)
    drift = noise = float(np.exp(TYPICAL))
    excess = np.ones(len(places))  # variance of each run's noise over noise^2
    theta = mean.copy()
    for _ in range(ROUNDS):
        theta = _most_probable(theta, mean, x, y, level, drift**2 * shape + np.diag(noise**2 * excess))
        value, slope = (part[0] for part in skaling(theta[None], x, y))
        by_law = (slope.T * PRIOR[:, 1]) @ (slope.T * PRIOR[:, 1]).T
        rest = level - value + slope.T @ (theta - mean)
        drift, noise = _scales(by_law, shape, excess, rest)
        inverse = np.linalg.inv(by_law + drift**2 * shape + noise**2 * np.eye(len(places)))
        left_out = (inverse @ rest) / np.diag(inverse)  # error of each run's prediction from the others
        excess = np.maximum(1.0, (left_out / (OUTLIER * noise)) ** 2)
    theta = _most_probable(theta, mean, x, y, level, drift**2 * shape + np.diag(noise**2 * excess))
    return Surface(places, level - skaling(theta[None], x, y)[0][0], noise**2 * excess, theta, origin, centre, drift, noise)


def _most_probable(theta: Array, mean: Array, x: Array, y: Array, level: Array, covariance: Array) -> Array:
    """Levenberg-Marquardt search of the law's parameters under correlated errors and their priors."""
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    best = trial = theta
    damping, cost = 1e-2, np.inf
    normal, gradient = np.eye(len(theta)), np.zeros(len(theta))
    for _ in range(STEPS):
        value, slope = (part[0] for part in skaling(trial[None], x, y))
        left, pull = whiten @ (value - level), (trial - mean) / PRIOR[:, 1]
        now = float(left @ left + pull @ pull)
        if now <= cost:
            settled = cost - now < 1e-8 * (1 + now)
            cost, best, damping = now, trial, max(0.2 * damping, 1e-9)
            jacobian = whiten @ slope.T
            normal = jacobian.T @ jacobian + np.diag(PRIOR[:, 1] ** -2.0)
            gradient = jacobian.T @ left + pull / PRIOR[:, 1]
            if settled:
                break
        else:
            damping *= 6
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
        trial = best - step * min(1.0, LONGEST_STEP / max(float(np.abs(step).max()), 1e-12))
    return best


def _scales(by_law: Array, shape: Array, excess: Array, rest: Array) -> tuple[float, float]:
    """Drift and noise of greatest posterior probability on the grid."""
    least, found = np.inf, (float(DRIFTS[0]), float(NOISES[0]))
    for drift, noise in product(DRIFTS, NOISES):
        lower = np.linalg.cholesky(by_law + drift**2 * shape + np.diag(noise**2 * excess))
        scaled = np.linalg.solve(lower, rest)
        far = (np.log([drift, noise]) - TYPICAL) / TYPICAL_SD
        value = 0.5 * float(scaled @ scaled) + float(np.log(np.diag(lower)).sum()) + 0.5 * float(far @ far)
        if value < least:
            least, found = value, (float(drift), float(noise))
    return found
