"""How much the loss moves between seeds, and how runs share it: trunk, (data seed x D), branch, and misfit of a cell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import betaincinv, ndtri

from analysis.frames import Frame
from analysis.sampling import low_discrepancy

Array = np.ndarray
#: Prior of the slopes of log sd in log N and log D (sd a unit of log): noise rarely changes faster than its own square root.
SLOPE_PRIOR = 0.4
SLOPE_PRIOR_D = 0.2
#: Centre of the prior of the slope in log N: noise falls with size (from 1 % to .1 % over a factor of 30 in N in our own sweeps).
SLOPE_CENTRE = -0.25
SAMPLES = 1024  # points of the posterior of the noise
MISFIT_PRIOR = (-4.0, 2.0)  # of log misfit variance over that of the noise: centre and sd
LARGEST = 160  # runs; beyond it the components are read off a systematic subset
SD_FLOOR = 1e-5
EFFECTS = ("trunk", "data seed x D", "branch", "misfit")


@dataclass(frozen=True)
class NoiseModel:
    """Relative noise of one run's loss: trunk + (data seed x D) + branch effects, times one sd that may depend on N and D; and misfit.

    Attributes
    ----------
    log_sd, slope_n, slope_d : float
        ``log noise_sd = log_sd + slope_n (log N - log_n) + slope_d (log D - log_d)``, held constant outside the data.
    misfit_sd : float
        Scatter of the cells' means about the law beyond that noise (relative; 0 where the noise explains the residuals).
    shares : tuple of float
        Shares of the variance of trunk, (data seed x D) and branch effects; they sum to 1. Equal until `split_noise` has looked.
    repeats : int
        Cells that were run more than once.
    source : str
        Where it comes from, in words.
    """

    log_sd: float
    slope_n: float
    slope_d: float
    log_n: float
    log_d: float
    range_n: tuple[float, float]
    range_d: tuple[float, float]
    misfit_sd: float
    repeats: int
    source: str
    shares: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)

    def noise_sd(self, n: Array, d: Array) -> Array:
        """Relative sd between seeds of a run with N parameters and D tokens (outside the data: that of the nearest data)."""
        log_n = np.clip(np.log(n), *self.range_n) - self.log_n
        log_d = np.clip(np.log(d), *self.range_d) - self.log_d
        return np.maximum(np.exp(self.log_sd + self.slope_n * log_n + self.slope_d * log_d), SD_FLOOR)

    def run_sd(self, n: Array, d: Array) -> Array:
        """Relative sd of one new run about the law: noise between seeds and misfit."""
        return np.hypot(self.noise_sd(n, d), self.misfit_sd)


def cell_columns(frame: Frame) -> list[str]:
    """Columns that make a cell: runs that agree in them are repeats."""
    return [name for name in ("N", "D", "U") if name in frame]


def estimate_noise(frame: Frame) -> NoiseModel | None:
    """Noise between seeds from the cells (N, D) that were run more than once; None when there is none.

    A cell's contrasts (differences from its mean) carry no law. Their variance as a function of N and D is fitted by a gamma
    likelihood with a prior on the slopes.

    Parameters
    ----------
    frame : DataFrame
        N, D, loss.
    """
    repeated = frame[frame.duplicated(cell_columns(frame), keep=False)]
    if not len(repeated):
        return None
    logs = repeated.assign(log_n=np.log(repeated["N"]), log_d=np.log(repeated["D"]), y=np.log(repeated["loss"]))
    cells = logs.groupby(cell_columns(frame), sort=True).agg(
        log_n=("log_n", "first"), log_d=("log_d", "first"), v=("y", "var"), k=("y", "size")
    )
    cells = cells[cells["v"] > 0]
    if not len(cells):
        return None
    degrees = cells["k"].to_numpy(dtype=np.float64) - 1
    # Runs of one trunk move together: their contrasts say less of the slopes than as many independent ones.
    independent = repeated["trunk_id"].nunique() - repeated["N"].nunique()
    degrees *= np.clip(independent / degrees.sum(), 0.05, 1.0)
    return _sd_model(frame, cells["log_n"].to_numpy(), cells["log_d"].to_numpy(), cells["v"].to_numpy(), degrees,
                     repeats=len(cells), source=f"{len(cells)} cells with repeats")  # fmt: skip


def residual_noise(frame: Frame, left: Array, p: int) -> NoiseModel:
    """Noise model without repeats: the residuals of a fit with p parameters, as a function of N and D; it includes the law's misfit.

    A few outliers count as 4 robust sd.
    """
    limit = 3 * 1.4826 * np.median(np.abs(left)) * np.sqrt(len(left) / max(len(left) - p, 1))
    clipped = np.clip(left, -limit, limit) if limit > 0 else left
    variance = np.maximum(clipped**2 * len(left) / max(len(left) - p, 1), SD_FLOOR**2)
    log_n, log_d = np.log(frame["N"].to_numpy(dtype=np.float64)), np.log(frame["D"].to_numpy(dtype=np.float64))
    source = "no repeats: the scale of the residuals, noise and misfit together"
    return _sd_model(frame, log_n, log_d, variance, np.full(len(left), 1 - p / len(left)), repeats=0, source=source)


def _sd_model(frame: Frame, log_n: Array, log_d: Array, variance: Array, degrees: Array, *, repeats: int, source: str) -> NoiseModel:
    """Posterior mode of log sd = c0 + c1 log N + c2 log D under s^2 ~ sigma^2 chi^2_k / k."""
    mean_n, mean_d = float(np.average(log_n, weights=degrees)), float(np.average(log_d, weights=degrees))
    x, y = log_n - mean_n, log_d - mean_d
    start = float(0.5 * np.log(np.average(variance, weights=degrees)))
    has = np.array([1.0, np.ptp(x) > 1e-9, np.ptp(y) > 1e-9])
    design = np.stack([np.ones_like(x), x, y], axis=1) * has

    def objective(c: Array) -> tuple[float, Array]:
        log_variance = 2 * design @ c
        ratio = variance * np.exp(-log_variance)
        away = (c - prior) / spread
        return float(0.5 * (degrees * (log_variance + ratio)).sum() + 0.5 * (away**2).sum()), design.T @ (
            degrees * (1 - ratio)
        ) + away / spread

    bounds = [(start - 5, start + 3), (-2, 2), (-2, 2)]
    prior, spread = np.array([start, SLOPE_CENTRE, 0.0]), np.array([1e3, SLOPE_PRIOR, SLOPE_PRIOR_D])
    log_sd, slope_n, slope_d = minimize(objective, prior, jac=True, method="L-BFGS-B", bounds=bounds).x * has
    return NoiseModel(
        log_sd=float(log_sd), slope_n=float(slope_n), slope_d=float(slope_d), log_n=mean_n, log_d=mean_d,
        range_n=(float(np.log(frame["N"].min())), float(np.log(frame["N"].max()))),
        range_d=(float(np.log(frame["D"].min())), float(np.log(frame["D"].max()))),
        misfit_sd=0.0, repeats=repeats, source=source,
    )  # fmt: skip


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

    The law's derivatives are projected out (so that a trunk effect that the fit has absorbed is not counted as absent); the variances of the
    effects follow from how runs that share a trunk, a data chunk or a cell move together. Shares of trunk, data and branch are
    Dirichlet(1/2) a priori, the slope of log sd in log N normal, the overall variance Jeffreys (and integrated out in closed form); the posterior is that of
    a low-discrepancy sample of this prior, weighted by likelihood. Effects that no two runs share are one with the branch's.

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
    step = -(-len(frame) // LARGEST)
    frame, left, jacobian, middle = frame.iloc[::step], left[::step], jacobian[::step], middle[::step]
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
    quadratic, log_weight = np.empty(len(slope)), np.empty(len(slope))
    batch = max(1, 4_000_000 // len(left) ** 2)
    for first in range(0, len(slope), batch):
        part = slice(first, first + batch)
        sd = level * np.exp(slope[part, None] * (log_n - log_n.mean()))
        noise = sum(variance[part, i, None, None] * same[i] for i in range(3)) * sd[:, :, None] * sd[:, None, :]
        noise += variance[part, 3, None, None] * same[3] + 1e-10 * np.eye(len(left))
        columns = np.concatenate([left[:, None] / middle.mean(), jacobian], axis=1)
        solved = np.linalg.solve(noise, np.broadcast_to(columns, (len(noise), *columns.shape)))
        gram = columns.T @ solved
        cross = np.linalg.solve(gram[:, 1:, 1:], gram[:, 1:, :1])
        quadratic[part] = gram[:, 0, 0] - (gram[:, :1, 1:] @ cross)[:, 0, 0]
        log_weight[part] = -0.5 * (np.linalg.slogdet(noise)[1] + np.linalg.slogdet(gram[:, 1:, 1:])[1])
    quadratic = np.maximum(quadratic, 1e-300)
    log_weight -= 0.5 * degrees * np.log(quadratic)
    weight = np.exp(log_weight - log_weight.max())
    probability = weight / weight.sum()
    # In units of relative variance: the scale that the closed form integrates over is put back, at its posterior mean.
    variance = variance * (quadratic / degrees * middle.mean() ** 2)[:, None]
    return NoisePosterior(probability, variance, slope, degrees, _mean_model(model, probability, variance, slope, float(log_n.mean())))


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
