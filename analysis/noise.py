"""How much the loss moves between seeds, and how runs share it: trunk, (data seed x D), branch, and misfit of a cell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from analysis.frames import Frame

Array = np.ndarray
#: Prior of the slopes of log sd in log N and log D (sd a unit of log): noise rarely changes faster than its own square root.
SLOPE_PRIOR = 0.4
#: Centre of the prior of the slope in log N: noise falls with size (from 1 % to .1 % over a factor of 30 in N in our own sweeps).
SLOPE_CENTRE = -0.25
SLOPES = np.arange(-1.0, 0.41, 0.2)  # of log sd in log N: the mixture that draws come from
#: Prior of each log variance component (sd in log), about a third of the variance each: a handful of trunks cannot tell them apart.
COMPONENT_PRIOR = 1.5
MISFIT_PRIOR = (-2.0, 2.0)
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
    log_variance, covariance : (4,), (4, 4)
        Posterior mode and covariance of the log variances of the four `EFFECTS`, in units of noise_sd^2 (misfit: of its median).
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
    log_variance: tuple[float, ...] = (-1.1, -1.1, -1.1, -50.0)
    covariance: Array | None = None

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
    return _sd_model(frame, cells["log_n"].to_numpy(), cells["log_d"].to_numpy(), cells["v"].to_numpy(), degrees,
                     repeats=len(cells), source=f"{len(cells)} cells with repeats")  # fmt: skip


def residual_noise(frame: Frame, left: Array, p: int) -> NoiseModel:
    """Noise model without repeats: the residuals of a fit with p parameters, as a function of N and D; it includes the law's misfit.

    A few outliers count as 3 robust sd.
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
        value = 0.5 * (degrees * (log_variance + ratio)).sum() + 0.5 * (c[1:] ** 2).sum() / SLOPE_PRIOR**2
        return float(value), design.T @ (degrees * (1 - ratio)) + np.array([0.0, *c[1:]]) / SLOPE_PRIOR**2

    bounds = [(start - 5, start + 3), (-2, 2), (-2, 2)]
    log_sd, slope_n, slope_d = minimize(objective, np.array([start, 0.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds).x * has
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


def split_noise(model: NoiseModel, frame: Frame, left: Array, jacobian: Array) -> list[tuple[float, NoiseModel]]:
    """Split the noise into its effects by restricted maximum likelihood on what the law cannot follow.

    Residuals are taken out of the span of the law's derivatives (so that a trunk effect that the fit has absorbed is not counted as absent),
    and the variances of the effects follow from how runs that share a trunk, a data chunk or a cell move together; a weak prior holds what the
    runs cannot tell. Effects that no two runs share are one with the branch's. How the noise falls with N is not taken as known: there is
    one model for each slope, with its posterior probability.

    Parameters
    ----------
    frame : DataFrame
        trunk_id, seed_data, N, D of the fitted runs.
    left : (n,) residuals in log loss.
    jacobian : (n, p) derivatives of log loss in the law's parameters.

    Returns
    -------
    list of (probability, NoiseModel), the most probable first
    """
    sd = model.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy())
    e = left / sd
    limit = 3 * 1.4826 * np.median(np.abs(e - np.median(e)))
    left = sd * np.clip(e, -limit, limit) if limit > 0 else left
    step = -(-len(frame) // LARGEST)
    frame, left, jacobian = frame.iloc[::step], left[::step], jacobian[::step]
    labels = effect_labels(frame)
    shared = [len(np.unique(label)) < len(label) for label in labels[:2]]
    active = [i for i, used in enumerate((*shared, True, model.repeats > 0)) if used]
    mean = np.array([MISFIT_PRIOR[0] if i == 3 else -np.log(sum(shared) + 1) for i in active])
    spread = np.array([MISFIT_PRIOR[1] if i == 3 else COMPONENT_PRIOR for i in active])
    found, start = [], mean
    for slope in SLOPES if frame["N"].nunique() > 2 else [model.slope_n]:
        bent = replace(model, slope_n=float(slope))
        sd = bent.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy())
        sd = sd * np.exp(np.log(model.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy())).mean() - np.log(sd).mean())
        q, r = np.linalg.qr(jacobian / sd[:, None], mode="complete")
        basis = q[:, jacobian.shape[1] :]
        relative = np.median(sd) / sd
        same = [(labels[i][:, None] == labels[i][None, :]) * (np.outer(relative, relative) if i == 3 else 1.0) for i in active]
        start, covariance, value = _components(basis.T @ (left / sd), [basis.T @ m @ basis for m in same], start, mean, spread)
        value += np.log(sd).sum() + np.log(np.abs(np.diag(r)) + 1e-300).sum() + 0.5 * ((slope - SLOPE_CENTRE) / SLOPE_PRIOR) ** 2
        scale = float(np.log(sd / bent.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy())).mean())
        found.append((value, _with_components(bent, start, covariance, active, float(np.median(sd)), scale)))
    odds = np.exp(min(value for value, _ in found) - np.array([value for value, _ in found]))
    order = np.argsort(-odds, kind="stable")
    return [(float(odds[i] / odds.sum()), found[i][1]) for i in order]


def _with_components(model: NoiseModel, mode: Array, covariance: Array, active: list[int], middle: float, scale: float) -> NoiseModel:
    """Write variances of effects into a model whose sd is `scale` (in log) too small, so that its shares sum to 1."""
    log_variance, full = np.full(4, -50.0), np.zeros((4, 4))
    log_variance[active], full[np.ix_(active, active)] = mode, covariance
    variance = np.exp(log_variance)
    total = float(variance[:3].sum())
    trunk, chunk, branch = (float(v / total) for v in variance[:3])
    return replace(
        model, log_sd=model.log_sd + scale + 0.5 * float(np.log(total)), shares=(trunk, chunk, branch),
        log_variance=tuple(float(v) for v in log_variance - np.log(total)), covariance=full,
        misfit_sd=float(np.sqrt(variance[3])) * middle if 3 in active else 0.0,
    )  # fmt: skip


def _components(z: Array, matrices: list[Array], start: Array, mean: Array, spread: Array) -> tuple[Array, Array, float]:
    """Posterior mode and covariance of log variances, and minus its log density: Gaussian z (m,), normal priors; Fisher scoring."""
    log_variance = start.copy()
    value = np.inf
    for _ in range(40):
        covariance = sum(np.exp(v) * matrix for v, matrix in zip(log_variance, matrices, strict=True)) + 1e-9 * np.eye(len(z))
        inverse = np.linalg.inv(covariance)
        solved = inverse @ z
        parts = [np.exp(v) * (inverse @ matrix) for v, matrix in zip(log_variance, matrices, strict=True)]
        quadratic = [np.exp(v) * float(solved @ matrix @ solved) for v, matrix in zip(log_variance, matrices, strict=True)]
        gradient = np.array([0.5 * (np.trace(part) - q) for part, q in zip(parts, quadratic, strict=True)])
        gradient += (log_variance - mean) / spread**2
        information = np.array([[0.5 * float((a * b.T).sum()) for b in parts] for a in parts]) + np.diag(1 / spread**2)
        new = 0.5 * (np.linalg.slogdet(covariance)[1] + z @ solved) + 0.5 * (((log_variance - mean) / spread) ** 2).sum()
        move = np.clip(-np.linalg.solve(information, gradient), -1.5, 1.5)
        if np.abs(move).max() < 1e-2 or abs(value - new) < 1e-4:
            break
        value = new
        log_variance = np.clip(log_variance + move, -12.0, 8.0)
    return log_variance, np.linalg.inv(information), float(new - 0.5 * np.linalg.slogdet(np.linalg.inv(information))[1])


def simulate_noise(models: list[tuple[float, NoiseModel]], frame: Frame, *, draws: int, generator: np.random.Generator) -> Array:
    """Relative noise of the runs of `frame`: (draws, n), with every effect shared as the runs share trunk, data seed and cell.

    Every draw has a model and variances of its own, from their posterior: few trunks give wider intervals, as Student's t does.
    """
    counts = generator.multinomial(draws, [probability for probability, _ in models])
    labels = effect_labels(frame)
    parts = [_simulate(model, frame, labels, int(count), generator) for count, (_, model) in zip(counts, models, strict=True) if count]
    return np.concatenate(parts)


def _simulate(noise: NoiseModel, frame: Frame, labels: list[Array], draws: int, generator: np.random.Generator) -> Array:
    sd = noise.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy())
    covariance = np.zeros((4, 4)) if noise.covariance is None else noise.covariance
    mode = np.array(noise.log_variance)
    logs = generator.multivariate_normal(mode, covariance, size=draws, method="eigh")
    sizes = np.exp(0.5 * np.minimum(logs, mode + 4.0))
    standard = np.zeros((draws, len(frame)))
    for i, label in enumerate(labels):
        effect = generator.standard_normal((draws, label.max() + 1))[:, label] * sizes[:, i, None]
        standard += effect * (np.median(sd) if i == 3 else sd)
    return standard
