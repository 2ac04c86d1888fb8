"""How much the loss moves between seeds: one sd that depends on N and D, from repeats or from residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.frames import Frame

Array = np.ndarray
#: Prior of the slopes of log sd in log N and log D (sd a unit of log): noise rarely changes faster than its own square root.
SLOPE_PRIOR = 0.4
SLOPE_PRIOR_D = 0.2
#: Centre of the prior of the slope in log N: noise falls with size (from 1 % to .1 % over a factor of 30 in N in our own sweeps).
SLOPE_CENTRE = -0.25
SD_FLOOR = 1e-5
OUTLIER = 3.0  # robust sd; a residual beyond them counts as so many
BEYOND = 2.0  # how many times beyond the data in N or D the slopes are still followed; further out the noise is held


@dataclass(frozen=True)
class NoiseModel:
    """Relative noise of one run's loss: trunk + (data seed x D) + branch effects, times one sd that may depend on N and D; and misfit.

    Attributes
    ----------
    log_sd, slope_n, slope_d : float
        ``log noise_sd = log_sd + slope_n (log N - log_n) + slope_d (log D - log_d)``, held constant from
        twice beyond the data on.
    misfit_sd : float
        Scatter of the cells' means about the law beyond that noise (relative; 0 where the noise explains the residuals).
    shares : tuple of float
        Shares of the variance of trunk, (data seed x D) and branch effects; they sum to 1. Equal until `split_noise`
        has looked.
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

    @property
    def followed(self) -> tuple[Array, Array]:
        """From where to where, in log N and in log D, the slopes are followed."""
        wider = np.array([-1.0, 1.0]) * np.log(BEYOND)
        return np.asarray(self.range_n) + wider, np.asarray(self.range_d) + wider

    def noise_sd(self, n: Array, d: Array) -> Array:
        """Relative sd between seeds of a run with N parameters and D tokens (more than twice beyond the data: as at twice)."""
        followed_n, followed_d = self.followed
        log_n = np.clip(np.log(n), *followed_n) - self.log_n
        log_d = np.clip(np.log(d), *followed_d) - self.log_d
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

    A few outliers count as 3 robust sd of their place.
    """
    log_n, log_d = np.log(frame["N"].to_numpy(dtype=np.float64)), np.log(frame["D"].to_numpy(dtype=np.float64))
    source = "no repeats: the scale of the residuals, noise and misfit together"
    free = len(left) / max(len(left) - p, 1)
    sd, model = np.ones(len(left)), None
    for _ in range(2):  # outliers are seen only once it is known how the noise changes with N and D
        e = left / sd
        limit = OUTLIER * 1.4826 * np.median(np.abs(e)) * np.sqrt(free)
        clipped = sd * np.clip(e, -limit, limit) if limit > 0 else left
        variance = np.maximum(clipped**2 * free, SD_FLOOR**2)
        model = _sd_model(frame, log_n, log_d, variance, np.full(len(left), 1 / free), repeats=0, source=source)
        sd = model.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy())
    assert model is not None
    return model


def _sd_model(frame: Frame, log_n: Array, log_d: Array, variance: Array, degrees: Array, *, repeats: int, source: str) -> NoiseModel:
    """Posterior mode of log sd = c0 + c1 log N + c2 log D under s^2 ~ sigma^2 chi^2_k / k."""
    mean_n, mean_d = float(np.average(log_n, weights=degrees)), float(np.average(log_d, weights=degrees))
    x, y = log_n - mean_n, log_d - mean_d
    start = float(0.5 * np.log(np.average(variance, weights=degrees)))
    has = np.array([1.0, np.ptp(x) > 1e-9, np.ptp(y) > 1e-9])
    design = np.stack([np.ones_like(x), x, y], axis=1) * has

    prior, spread = np.array([start, SLOPE_CENTRE, 0.0]), np.array([1e3, SLOPE_PRIOR, SLOPE_PRIOR_D])
    c = prior * has
    for _ in range(30):  # Newton on a convex function: 1/2 sum k (log v + s^2 / v) and the prior
        ratio = variance * np.exp(np.minimum(-2 * design @ c, 300.0))
        gradient = design.T @ (degrees * (1 - ratio)) + (c - prior) / spread**2
        hessian = 2 * (design.T * (degrees * ratio)) @ design + np.diag(1 / spread**2)
        move = -np.linalg.lstsq(hessian, gradient)[0] * has  # sizes sixty powers of e apart leave one direction to the prior alone
        c = np.clip(c + np.clip(move, -1.0, 1.0), [start - 5, -2, -2], [start + 3, 2, 2])
        if np.abs(move).max() < 1e-9:
            break
    log_sd, slope_n, slope_d = c * has
    return NoiseModel(
        log_sd=float(log_sd), slope_n=float(slope_n), slope_d=float(slope_d), log_n=mean_n, log_d=mean_d,
        range_n=(float(np.log(frame["N"].min())), float(np.log(frame["N"].max()))),
        range_d=(float(np.log(frame["D"].min())), float(np.log(frame["D"].max()))),
        misfit_sd=0.0, repeats=repeats, source=source,
    )  # fmt: skip
