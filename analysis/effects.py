"""How runs share their noise: trunk, (data seed x D), branch and misfit effects, their posterior, and draws from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import betaincinv, ndtri

from analysis.frames import Frame
from analysis.noise import SLOPE_CENTRE, SLOPE_PRIOR, NoiseModel, cell_columns
from analysis.sampling import low_discrepancy

Array = np.ndarray
SAMPLES = 1536  # points of the posterior of the noise
TRUNK_ODDS, DATA_ODDS = (0.25, 0.2), (0.28, 0.24)  # prior probabilities that the effect is absent, and below nothing (see `split_noise`)
NO_MISFIT = 0.5  # that the law misfits nowhere
SLAB = (0.8, 0.7, 0.5)  # Dirichlet weights of trunk, data and branch where they are there
MISFIT_PRIOR = (-3.0, 1.5)  # of log misfit variance over that of the noise, where there is a misfit: centre and sd
BATCH = 64  # points of the sample at once: matrices of some dozen runs then stay in the cache
LARGEST = 100  # runs; beyond it the effects are read off whole trunks, as many as give about so many runs
EFFECTS = ("trunk", "data seed x D", "branch", "misfit")


def effect_labels(frame: Frame) -> list[Array]:
    """Levels of trunk, (data seed x D), branch and cell of every run, as (n,) integers; runs of one level share the effect.

    Where runs do not say which data they saw, the data effect is a run's own.
    """
    seeds = frame["seed_data"].astype(str)
    own = np.arange(len(frame))
    chunk = pd.factorize(seeds + "@" + frame["D"].astype(str), sort=True)[0] if (seeds != "").all() else own
    cell = frame.groupby(cell_columns(frame), sort=True).ngroup().to_numpy()
    return [pd.factorize(frame["trunk_id"].astype(str), sort=True)[0], chunk, own, cell]


@dataclass(frozen=True)
class NoisePosterior:
    """What the runs say of their noise: S weighted points of the space of variances.

    Attributes
    ----------
    probability : (S,)
    variance : (S, 4)
        Of the four `EFFECTS`, in units of the squared sd at the middle of the data. That of trunk or data below zero: so much less of
        the branches' variance is left in the mean of a level.
    slope : (S,)
        Of log sd in log N.
    degrees : int
        Of the chi-square that the overall variance follows.
    model : NoiseModel
        The posterior mean, for what wants one number.
    """

    probability: Array
    variance: Array
    slope: Array
    degrees: int
    model: NoiseModel


def split_noise(model: NoiseModel, frame: Frame, left: Array, jacobian: Array) -> NoisePosterior:
    """Split the noise into its effects by the restricted likelihood of what the law cannot follow.

    The law's derivatives are projected out (so that a trunk effect that the fit has absorbed is not counted as absent); the variances of
    the effects follow from how runs that share a trunk, a data chunk or a cell move together. A priori an effect is absent with a
    probability of its own (a few shared lengths cannot prove that a share is nothing, and a prior that cannot say so either makes
    intervals too wide: docs/coverage.md), or below nothing, else the shares of trunk, data and branch are Dirichlet. Below nothing: by
    chance the means of trunks (or of data chunks) often differ less than the branches' noise alone would make them; a prior that cuts
    this off at zero gives intervals that hold the truth too often where there is no effect. The slope of log sd in log N is normal, the
    overall variance Jeffreys (and integrated out in closed form). The posterior is that of a low-discrepancy sample of this prior,
    weighted by likelihood.
    Effects that no two runs share are one with the branch's. A few outliers count as 4 robust sd.

    Parameters
    ----------
    frame : DataFrame
        trunk_id, seed_data, N, D of the fitted runs.
    left : (n,) residuals in log loss.
    jacobian : (n, p) derivatives of log loss in the law's parameters.
    """
    middle = model.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy())
    e = left / middle
    limit = 4 * 1.4826 * np.median(np.abs(e - np.median(e)))
    left = middle * np.clip(e, -limit, limit) if limit > 0 else left
    if len(frame) > LARGEST:
        kept = _some_trunks(frame)
        frame, left, jacobian, middle = frame[kept], left[kept], jacobian[kept], middle[kept]
    labels = effect_labels(frame)
    alone = [len(np.unique(label)) == len(label) for label in labels[:2]]
    variance, slope = _prior_sample(alone, misfit=model.repeats > 0, bend=frame["N"].nunique() > 2, slope=model.slope_n)
    log_n = np.log(frame["N"].to_numpy(dtype=np.float64))
    log_d = np.clip(np.log(frame["D"].to_numpy(dtype=np.float64)), *model.range_d) - model.log_d
    level = np.exp(model.slope_d * log_d)
    same = [(label[:, None] == label[None, :]).astype(np.float64) for label in labels]
    means = [block / block.sum(axis=1) for block in same[:2]]
    span, size, _ = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0).clip(1e-300), full_matrices=False)
    jacobian = span[:, size > 1e-9 * size[0]]  # a law that is not identified spans less than it has parameters
    degrees = len(left) - jacobian.shape[1]
    quadratic, log_weight = _evidence(left / middle.mean(), jacobian, same, means, variance, slope, level, log_n - log_n.mean())
    weight = np.exp(log_weight - log_weight.max())
    probability = weight / weight.sum()
    # In units of relative variance: the scale that the closed form integrates over is put back, at its posterior mean.
    variance = variance * (quadratic / degrees * middle.mean() ** 2)[:, None]
    return NoisePosterior(probability, variance, slope, degrees, _mean_model(model, probability, variance, slope, float(log_n.mean())))


def _some_trunks(frame: Frame) -> Array:
    """Mask (n,) of the runs of trunks taken at random, the same every time, up to `LARGEST` runs."""
    trunk, names = pd.factorize(frame["trunk_id"].astype(str), sort=True)
    order = np.random.default_rng(0).permutation(len(names))
    runs_so_far = np.cumsum(np.bincount(trunk)[order])
    return np.isin(trunk, order[: max(1, int((runs_so_far <= LARGEST).sum()))])


def _evidence(
    left: Array, jacobian: Array, same: list[Array], means: list[Array], variance: Array, slope: Array, level: Array, log_n: Array
) -> tuple[Array, Array]:
    """Restricted likelihood of the residuals at every point of the sample: quadratic form (S,), log marginal likelihood (S,)."""
    n, p = len(left), jacobian.shape[1]
    degrees = n - p
    bordered = np.zeros((min(BATCH, len(slope)), n + p + 1, n + p + 1))
    bordered[:, n:, :n] = np.concatenate([jacobian, left[:, None]], axis=1).T
    bordered[:, np.arange(n, n + p + 1), np.arange(n, n + p + 1)] = 1e200  # more than any gram: only the rows above it are wanted
    diagonal = np.arange(n)
    quadratic, log_weight = np.empty(len(slope)), np.empty(len(slope))
    for first in range(0, len(slope), BATCH):
        part = slice(first, first + BATCH)
        sd = level * np.exp(slope[part, None] * log_n)
        noise = bordered[: len(sd), :n, :n]
        noise[:] = np.maximum(variance[part, 0], 0.0)[:, None, None] * same[0]
        noise += np.maximum(variance[part, 1], 0.0)[:, None, None] * same[1]
        for i in (0, 1):
            below = np.minimum(variance[part, i], 0.0)
            if below.any():
                noise += below[:, None, None] * means[i]
        noise *= sd[:, :, None]
        noise *= sd[:, None, :]
        if variance[part, 3].any():
            noise += variance[part, 3, None, None] * same[3]
        noise[:, diagonal, diagonal] += variance[part, 2, None] * sd**2 + 1e-10
        # The factor of [[noise, .], [columns', .]] holds columns' L^-T below L: what a solve would give, and the determinant beside it.
        factor = np.linalg.cholesky(bordered[: len(sd)])
        halves = factor[:, n:, :n]
        pivots = _pivots(halves)
        quadratic[part] = np.maximum(pivots[:, p] ** 2, 1e-300)  # the squared pivot is what the law's derivatives leave of the residuals
        log_weight[part] = -np.log(factor[:, diagonal, diagonal]).sum(axis=1) - np.log(pivots[:, :p]).sum(axis=1)
    return quadratic, log_weight - 0.5 * degrees * np.log(quadratic)


def _pivots(halves: Array) -> Array:
    """Diagonals of the Cholesky factors of halves halves^T, (S, p + 1) of (S, p + 1, n).

    Where the sd of the runs differ by many powers of ten the product is positive definite no more; then by QR, ten times as slow.
    """
    try:
        found = np.linalg.cholesky(halves @ halves.swapaxes(1, 2))
    except np.linalg.LinAlgError:
        found = np.abs(np.linalg.qr(halves.swapaxes(1, 2), mode="r"))
    return np.maximum(np.diagonal(found, axis1=1, axis2=2), 1e-150)


def _prior_sample(alone: list[bool], *, misfit: bool, bend: bool, slope: float) -> tuple[Array, Array]:
    """Low-discrepancy sample of the prior: variances (S, 4) with noise summing to 1, slopes (S,).

    `alone`: whether no two runs share a trunk, a data chunk; such an effect is one with the branch's.
    """
    u = np.clip(low_discrepancy(SAMPLES, 5), 1e-4, 1 - 1e-4)
    chunk_is, rest = _sign(u[:, 4], (1.0, 0.0) if alone[1] else DATA_ODDS)
    trunk_is, _ = _sign(rest, (1.0, 0.0) if alone[0] else TRUNK_ODDS)
    trunk_is = np.where(chunk_is < 0, np.maximum(trunk_is, 0), trunk_is)  # both below nothing need not leave a variance
    a_trunk, a_chunk, a_branch = SLAB
    beside = np.where(trunk_is > 0, a_trunk + a_branch, a_branch)
    chunk = np.where(chunk_is > 0, betaincinv(a_chunk, beside, u[:, 0]), 0.0)
    trunk = np.where(trunk_is > 0, (1 - chunk) * betaincinv(a_trunk, a_branch, u[:, 1]), 0.0)
    branch = np.maximum(1 - trunk - chunk, 1e-4)  # a run is never wholly told by its trunk and its data
    chunk = np.where(chunk_is < 0, -branch * (1 - u[:, 0] ** 2), chunk)
    trunk = np.where(trunk_is < 0, -branch * (1 - u[:, 1] ** 2), trunk)
    has_misfit = misfit & (u[:, 3] >= NO_MISFIT)
    rest = np.clip((u[:, 3] - NO_MISFIT) / (1 - NO_MISFIT), 1e-4, 1 - 1e-4)
    cell = has_misfit * np.exp(MISFIT_PRIOR[0] + MISFIT_PRIOR[1] * ndtri(rest))
    slopes = SLOPE_CENTRE + SLOPE_PRIOR * ndtri(u[:, 2]) if bend else np.full(SAMPLES, slope)
    return np.stack([trunk, chunk, branch, cell], axis=1), slopes


def _sign(u: Array, odds: tuple[float, float]) -> tuple[Array, Array]:
    """Split uniform numbers into 0 and -1 with the probabilities of `odds`, else 1; and uniform numbers again."""
    nothing, less = odds
    sign = np.where(u < nothing, 0, np.where(u < nothing + less, -1, 1))
    low = np.array([0.0, nothing + less, nothing])[sign]
    width = np.array([nothing, 1 - nothing - less, less])[sign]
    return sign, (u - low) / np.maximum(width, 1e-9)


def _mean_model(model: NoiseModel, probability: Array, variance: Array, slope: Array, log_n: float) -> NoiseModel:
    """One noise model: posterior means of the slope, of the log variance, of the shares and of the misfit's variance."""
    variance = np.maximum(variance, 0.0)
    total = variance[:, :3].sum(axis=1)
    trunk, chunk, branch = (float(v) for v in probability @ (variance[:, :3] / total[:, None]))
    misfit = float(np.sqrt(probability @ variance[:, 3]))
    return replace(
        model, log_n=log_n, log_sd=0.5 * float(probability @ np.log(total)), slope_n=float(probability @ slope),
        shares=(trunk, chunk, branch), misfit_sd=misfit,
    )  # fmt: skip


def simulate_noise(noise: NoisePosterior, frame: Frame, *, draws: int, generator: np.random.Generator) -> Array:
    """Relative noise of the runs of `frame`: (draws, n), with every effect shared as the runs share trunk, data seed and cell.

    Every draw has variances and a slope of its own, from their posterior: few trunks give wider intervals, as Student's t does.
    """
    chosen = generator.choice(len(noise.probability), size=draws, p=noise.probability)
    scale = np.sqrt(noise.degrees / generator.chisquare(noise.degrees, size=draws))
    model = noise.model
    n, d = frame["N"].to_numpy(dtype=np.float64), frame["D"].to_numpy(dtype=np.float64)
    log_n = np.clip(np.log(n), *model.range_n) - model.log_n
    log_d = np.clip(np.log(d), *model.range_d) - model.log_d
    sd = np.exp(noise.slope[chosen, None] * log_n + model.slope_d * log_d)
    trunk, chunk, _, cell = effect_labels(frame)
    variance = noise.variance[chosen]
    branch = np.sqrt(variance[:, 2, None]) * generator.standard_normal((draws, len(frame)))
    own = branch.copy()
    for i, label in ((0, trunk), (1, chunk)):
        effect = generator.standard_normal((draws, label.max() + 1))
        # Below nothing: the levels' means differ less than the branches' noise alone would make them.
        kept = np.sqrt(np.maximum(1 + np.minimum(variance[:, i], 0.0) / variance[:, 2], 0.0))
        means = (branch @ (label[:, None] == np.arange(label.max() + 1)) / np.bincount(label))[:, label]
        own += np.sqrt(np.maximum(variance[:, i], 0.0))[:, None] * effect[:, label] - (1 - kept)[:, None] * means
    noisy = sd * own
    if variance[:, 3].any():
        noisy += np.sqrt(variance[:, 3, None]) * generator.standard_normal((draws, cell.max() + 1))[:, cell]
    return scale[:, None] * noisy
