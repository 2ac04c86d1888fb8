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
SAMPLES = 1024  # points of the posterior of the noise
MISFIT_PRIOR = (-4.0, 2.0)  # of log misfit variance over that of the noise: centre and sd
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
        Of the four `EFFECTS`, in units of the squared sd at the middle of the data.
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
    the effects follow from how runs that share a trunk, a data chunk or a cell move together. Shares of trunk, data and branch are
    Dirichlet(1/2) a priori, the slope of log sd in log N normal, the overall variance Jeffreys (and integrated out in closed form); the
    posterior is that of a low-discrepancy sample of this prior, weighted by likelihood. Effects that no two runs share are one with the
    branch's. A few outliers count as 4 robust sd.

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
    span, size, _ = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0).clip(1e-300), full_matrices=False)
    jacobian = span[:, size > 1e-9 * size[0]]  # a law that is not identified spans less than it has parameters
    degrees = len(left) - jacobian.shape[1]
    quadratic, log_weight = _evidence(left / middle.mean(), jacobian, same, variance, slope, level, log_n - log_n.mean())
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
    left: Array, jacobian: Array, same: list[Array], variance: Array, slope: Array, level: Array, log_n: Array
) -> tuple[Array, Array]:
    """Restricted likelihood of the residuals at every point of the sample: quadratic form (S,), log marginal likelihood (S,)."""
    columns = np.concatenate([left[:, None], jacobian], axis=1)
    degrees = len(left) - jacobian.shape[1]
    quadratic, log_weight = np.empty(len(slope)), np.empty(len(slope))
    batch = max(1, 4_000_000 // len(left) ** 2)
    for first in range(0, len(slope), batch):
        part = slice(first, first + batch)
        sd = level * np.exp(slope[part, None] * log_n)
        noise = sum(variance[part, i, None, None] * same[i] for i in range(3)) * sd[:, :, None] * sd[:, None, :]
        noise += variance[part, 3, None, None] * same[3] + 1e-10 * np.eye(len(left))
        solved = np.linalg.solve(noise, np.broadcast_to(columns, (len(noise), *columns.shape)))
        gram = columns.T @ solved
        cross = np.linalg.solve(gram[:, 1:, 1:], gram[:, 1:, :1])
        quadratic[part] = np.maximum(gram[:, 0, 0] - (gram[:, :1, 1:] @ cross)[:, 0, 0], 1e-300)
        log_weight[part] = -0.5 * (np.linalg.slogdet(noise)[1] + np.linalg.slogdet(gram[:, 1:, 1:])[1])
    return quadratic, log_weight - 0.5 * degrees * np.log(quadratic)


def _prior_sample(alone: list[bool], *, misfit: bool, bend: bool, slope: float) -> tuple[Array, Array]:
    """Low-discrepancy sample of the prior: variances (S, 4) with noise summing to 1, slopes (S,)."""
    u = np.clip(low_discrepancy(SAMPLES, 4), 1e-4, 1 - 1e-4)
    first, second = betaincinv(0.5, 1.0, u[:, 0]), betaincinv(0.5, 0.5, u[:, 1])  # Dirichlet(1/2, 1/2, 1/2)
    shares = np.stack([first, (1 - first) * second, (1 - first) * (1 - second)], axis=1)
    if any(alone):
        kept = [i for i in range(2) if not alone[i]]
        shares = np.zeros_like(shares)
        for i in kept:
            shares[:, i] = betaincinv(0.5, 0.5, u[:, 0])
        shares[:, 2] = 1 - shares.sum(axis=1)
    shares[:, 2] = np.maximum(shares[:, 2], 1e-4)  # a run is never wholly told by its trunk and its data
    cell = np.exp(MISFIT_PRIOR[0] + MISFIT_PRIOR[1] * ndtri(u[:, 3])) if misfit else np.zeros(SAMPLES)
    slopes = SLOPE_CENTRE + SLOPE_PRIOR * ndtri(u[:, 2]) if bend else np.full(SAMPLES, slope)
    return np.concatenate([shares, cell[:, None]], axis=1), slopes


def _mean_model(model: NoiseModel, probability: Array, variance: Array, slope: Array, log_n: float) -> NoiseModel:
    """One noise model: posterior means of the slope, of the log variance and of the shares."""
    total = variance[:, :3].sum(axis=1)
    trunk, chunk, branch = (float(v) for v in probability @ (variance[:, :3] / total[:, None]))
    misfit = float(np.exp(0.5 * (probability @ np.log(variance[:, 3])))) if variance[:, 3].all() else 0.0
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
    standard = np.zeros((draws, len(frame)))
    for i, label in enumerate(effect_labels(frame)):
        size = scale * np.sqrt(noise.variance[chosen, i])
        if size.any():
            effect = generator.standard_normal((draws, label.max() + 1))[:, label] * size[:, None]
            standard += effect * (1.0 if i == 3 else sd)
    return standard
