"""How much the loss moves between seeds: three shared effects, estimated from repeats."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from analysis.frames import Frame

#: Prior of the slopes of log sd in log N and log D (sd a unit of log): noise rarely changes faster than its own square root.
SLOPE_PRIOR = 0.4
#: Prior of each log variance share about one third (sd in log): keeps shares that a few repeats cannot tell from running to 0.
SHARE_PRIOR = 1.5
MAX_CONTRASTS = 300
SD_FLOOR = 1e-5


@dataclass(frozen=True)
class NoiseModel:
    """Relative noise of one run's loss: trunk effect + (data seed x D) effect + branch effect, all times one sd that may depend on N and D.

    Attributes
    ----------
    log_sd, slope_n, slope_d : float
        ``log noise_sd = log_sd + slope_n (log N - log_n) + slope_d (log D - log_d)``, held constant outside the data.
    shares : tuple of float
        Shares of the variance of trunk, (data seed x D) and branch effects; they sum to 1.
    misfit_sd : float
        Scatter of the cells' means about the law beyond that noise (relative; 0 where the noise explains the residuals).
    degrees : tuple of float
        Degrees of freedom behind the variance of each of the three effects (with two for the prior).
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
    shares: tuple[float, float, float]
    misfit_sd: float
    degrees: tuple[float, float, float]
    repeats: int
    source: str

    def noise_sd(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Relative sd between seeds of a run with N parameters and D tokens (outside the data: that of the nearest data)."""
        log_n = np.clip(np.log(n), *self.range_n) - self.log_n
        log_d = np.clip(np.log(d), *self.range_d) - self.log_d
        return np.maximum(np.exp(self.log_sd + self.slope_n * log_n + self.slope_d * log_d), SD_FLOOR)

    def run_sd(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Relative sd of one new run about the law: noise between seeds and misfit."""
        return np.hypot(self.noise_sd(n, d), self.misfit_sd)


def cell_columns(frame: Frame) -> list[str]:
    """Columns that make a cell: runs that agree in them are repeats."""
    return [name for name in ("N", "D", "U") if name in frame]


def estimate_noise(frame: Frame) -> NoiseModel | None:
    """Noise between seeds from the cells (N, D) that were run more than once; None when there is none.

    A cell's contrasts (differences from its mean) carry no law. Their variance as a function of N and D is fitted by a gamma
    likelihood with a prior on the slopes; then the three shares by restricted maximum likelihood on all contrasts together, with a
    weak prior, because a handful of repeats cannot tell them apart.

    Parameters
    ----------
    frame : DataFrame
        N, D, loss, trunk_id, seed_data.
    """
    repeated = frame[frame.duplicated(cell_columns(frame), keep=False)]
    if not len(repeated):
        return None
    cells = [group for _, group in repeated.groupby(cell_columns(frame), sort=True)]
    cells = [cell for cell in cells if np.ptp(cell["loss"]) > 0]
    if not cells:
        return None
    log_n, log_d = np.log([c["N"].iloc[0] for c in cells]), np.log([c["D"].iloc[0] for c in cells])
    degrees = np.array([len(c) - 1 for c in cells], dtype=np.float64)
    variance = np.array([np.var(np.log(c["loss"]), ddof=1) for c in cells])
    mean_n, mean_d = float(np.average(log_n, weights=degrees)), float(np.average(log_d, weights=degrees))
    pooled = 0.5 * np.log(np.average(variance, weights=degrees))
    log_sd, slope_n, slope_d = _fit_sd(log_n - mean_n, log_d - mean_d, variance, degrees, float(pooled))
    model = NoiseModel(
        log_sd=log_sd, slope_n=slope_n, slope_d=slope_d, log_n=mean_n, log_d=mean_d,
        range_n=(float(np.log(frame["N"].min())), float(np.log(frame["N"].max()))),
        range_d=(float(np.log(frame["D"].min())), float(np.log(frame["D"].max()))),
        shares=(1 / 3, 1 / 3, 1 / 3), misfit_sd=0.0, degrees=_degrees(cells), repeats=len(cells),
        source=f"{len(cells)} cells with repeats",
    )  # fmt: skip
    total, shares = _fit_shares(cells, model)
    return NoiseModel(**{**model.__dict__, "log_sd": log_sd + 0.5 * float(np.log(total)), "shares": shares})


def residual_noise(frame: Frame, sd: float, degrees: float) -> NoiseModel:
    """Noise model without repeats: the residual scale, the same everywhere, shared out equally; it includes the law's misfit."""
    log_n, log_d = np.log(frame["N"].to_numpy()), np.log(frame["D"].to_numpy())
    return NoiseModel(
        log_sd=float(np.log(max(sd, SD_FLOOR))), slope_n=0.0, slope_d=0.0, log_n=float(log_n.mean()), log_d=float(log_d.mean()),
        range_n=(float(log_n.min()), float(log_n.max())), range_d=(float(log_d.min()), float(log_d.max())),
        shares=(1 / 3, 1 / 3, 1 / 3), misfit_sd=0.0, degrees=(max(degrees, 1.0), max(degrees, 1.0), max(degrees, 1.0)), repeats=0,
        source="no repeats: the scale of the residuals, noise and misfit together",
    )  # fmt: skip


def _degrees(cells: list[Frame]) -> tuple[float, float, float]:
    """Independent contrasts between trunks, between data seeds at one D, and in all; two more each for the prior."""
    rows: Frame = pd.concat(cells)
    contrasts = len(rows) - len(cells)
    trunks = min(contrasts, max(1, rows["trunk_id"].nunique() - rows["N"].nunique()))
    seeds = rows["seed_data"].astype(str)
    known = bool((seeds != "").all())
    chunks = min(contrasts, max(1, len(rows[["D"]].assign(s=seeds).drop_duplicates()) - rows["D"].nunique())) if known else contrasts
    return 2.0 + trunks, 2.0 + chunks, 2.0 + contrasts


def _fit_sd(x: np.ndarray, y: np.ndarray, variance: np.ndarray, degrees: np.ndarray, start: float) -> tuple[float, float, float]:
    """Posterior mode of log sd = c0 + c1 x + c2 y under s^2 ~ sigma^2 chi^2_k / k."""
    has = np.array([np.ptp(x) > 1e-9, np.ptp(y) > 1e-9])

    def objective(c: np.ndarray) -> float:
        log_variance = 2 * (c[0] + has[0] * c[1] * x + has[1] * c[2] * y)
        return float((0.5 * degrees * (log_variance + variance * np.exp(-log_variance))).sum() + 0.5 * (c[1:] ** 2).sum() / SLOPE_PRIOR**2)

    found = minimize(objective, np.array([start, 0.0, 0.0]), method="L-BFGS-B", bounds=[(start - 5, start + 3), (-2, 2), (-2, 2)]).x
    return float(found[0]), float(found[1] * has[0]), float(found[2] * has[1])


def _fit_shares(cells: list[Frame], model: NoiseModel) -> tuple[float, tuple[float, float, float]]:
    """Variance components (in units of noise_sd^2) from the standardised contrasts of all cells."""
    while sum(len(c) - 1 for c in cells) > MAX_CONTRASTS:
        cells = cells[::2]
    rows: Frame = pd.concat(cells)
    rows = rows.assign(y=np.log(rows["loss"]) / model.noise_sd(rows["N"].to_numpy(), rows["D"].to_numpy()))
    seed = rows["seed_data"].astype(str)
    known = bool((seed != "").all())
    labels = (
        rows["trunk_id"].astype(str).to_numpy(),
        (seed + "@" + rows["D"].astype(str)).to_numpy() if known else np.arange(len(rows)).astype(str),
        np.arange(len(rows)).astype(str),
    )
    # One orthonormal contrast matrix a cell (Helmert): its rows see no cell mean, so the likelihood is restricted.
    edges = np.cumsum([0, *(len(c) for c in cells)])
    contrast = np.zeros((len(rows) - len(cells), len(rows)))
    at = 0
    for first, last in pairwise(edges):
        for k in range(1, last - first):
            contrast[at, first : first + k] = 1 / np.sqrt(k * (k + 1))
            contrast[at, first + k] = -k / np.sqrt(k * (k + 1))
            at += 1
    z = contrast @ rows["y"].to_numpy()
    parts = [contrast @ (label[:, None] == label[None, :]) @ contrast.T for label in labels]

    def objective(log_share: np.ndarray) -> float:
        covariance = sum(np.exp(s) * part for s, part in zip(log_share, parts, strict=True)) + 1e-9 * np.eye(len(z))
        try:
            root = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return 1e12
        prior = 0.5 * ((log_share + np.log(3)) ** 2).sum() / SHARE_PRIOR**2
        return float(np.log(np.diag(root)).sum() + 0.5 * (np.linalg.solve(root, z) ** 2).sum() + prior)

    found = np.exp(minimize(objective, np.full(3, -np.log(3)), method="L-BFGS-B", bounds=[(-7, 3)] * 3).x)
    total = float(found.sum())
    trunk, chunk, branch = (float(share / total) for share in found)
    return total, (trunk, chunk, branch)
