"""Noise between seeds cell by cell (noise.csv), and at which size one more seed buys the most."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import chi2

from analysis.effects import effect_labels
from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.noise import cell_columns

NOISE_COLUMNS = "params tokens n_runs loss_mean sd sd_ci_low sd_ci_high ci_level noise_sd residual mean_sd".split()
LEVEL = 0.95


def noise_table(fit: Fit) -> Frame:
    """noise.csv: one row a cell (N, D).

    Returns
    -------
    DataFrame
        sd is the relative sd between the cell's own runs with its chi-square interval (empty without repeats); noise_sd the model of all
        cells' repeats, as a power of N and D; mean_sd what it leaves of a mean of n_runs; residual the mean loss over the law's, less 1.
    """
    rows = []
    for _, cell in fit.frame.groupby(cell_columns(fit.frame), sort=True):
        logs, count = np.log(cell["loss"].to_numpy()), len(cell)
        sd = float(np.std(logs, ddof=1)) if count > 1 else math.nan
        low, high = (
            sd * math.sqrt((count - 1) / chi2.ppf(p, count - 1)) if count > 1 else math.nan for p in ((1 + LEVEL) / 2, (1 - LEVEL) / 2)
        )
        model = float(cell["noise_sd"].iloc[0])
        rows.append(
            (cell["N"].iloc[0], cell["D"].iloc[0], count, float(np.exp(logs.mean())), sd, low, high, LEVEL, model,
             float(np.expm1(-cell["residual_log"].mean())), model / math.sqrt(count))
        )  # fmt: skip
    return pd.DataFrame(rows, columns=NOISE_COLUMNS)


def where_repeats_pay(fit: Fit, *, target: tuple[float, float], cost: dict[float, float]) -> Frame:
    """What one more trunk of each size takes off the uncertainty of the law, if it is true, by generalised least squares.

    The covariance of the parameters is (J' V^-1 J)^-1, J the derivatives of log loss at the fit and V the noise with its trunk and
    branch effects; a trunk more is a row more for each of its branches.

    Parameters
    ----------
    fit : Fit
        Of a law in N and D, with draws (they carry how trunks share noise).
    target : (N, D)
        The forecast that is wanted.
    cost : dict
        FLOPs of one more trunk of each size N.

    Returns
    -------
    DataFrame
        params; flops; forecast, alpha, beta: the fall of the sd as a share of what it is now (parameters that the law has);
        forecast_per_flops relative to the best size. Best first.
    """
    frame, law = fit.frame, fit.law
    theta, model = fit.solution.theta, fit.solution.problem.model
    jacobian = model.jacobian(theta)
    whole = _covariance(jacobian, _noise(fit, frame))
    gradient = {"forecast": _gradient(fit, np.array([target[0]]), np.array([target[1]]))[0]}
    decoded = {name: _decoded_gradient(fit, name) for name in ("alpha", "beta") if name in law.parameters}
    gradient |= decoded
    now = {name: math.sqrt(max(float(g @ whole @ g), 0.0)) for name, g in gradient.items()}
    rows = []
    for size in sorted(frame["N"].unique()):
        branches = frame[frame["N"] == size].drop_duplicates("D").assign(trunk_id="one more", seed_data="one more")
        more = pd.concat([frame, branches.assign(run_id=[f"one more {i}" for i in range(len(branches))])], ignore_index=True)
        extra = _gradient(fit, branches["N"].to_numpy(dtype=np.float64), branches["D"].to_numpy(dtype=np.float64))
        covariance = _covariance(np.concatenate([jacobian, extra]), _noise(fit, more))
        fall = {name: 1 - math.sqrt(max(float(g @ covariance @ g), 0.0)) / now[name] if now[name] else 0.0 for name, g in gradient.items()}
        rows.append({"params": float(size), "flops": cost[float(size)], **fall})
    table = pd.DataFrame(rows)
    gain = (table["forecast"] / table["flops"]).to_numpy()
    return table.assign(forecast_per_flops=gain / gain.max() if gain.max() > 0 else gain).sort_values("forecast_per_flops", ascending=False)


def _noise(fit: Fit, frame: Frame) -> np.ndarray:
    """Covariance of the runs' log losses: trunk and data effects shared, branch effect and misfit of their own."""
    noise = fit.noise
    sd = noise.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy())
    trunk, data, branch, cell = effect_labels(frame)
    shares = noise.shares
    same = [(label[:, None] == label[None, :]).astype(float) for label in (trunk, data, branch)]
    covariance = sum(share * one for share, one in zip(shares, same, strict=True)) * np.outer(sd, sd)
    return covariance + noise.misfit_sd**2 * (cell[:, None] == cell[None, :]) + 1e-12 * np.eye(len(frame))


def _covariance(jacobian: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(jacobian.T @ np.linalg.solve(noise, jacobian))


def _gradient(fit: Fit, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Derivatives of log loss in the optimiser's parameters at (n,) points, by central differences: (n, p)."""
    theta, model = fit.solution.theta, fit.solution.problem.model

    def log_loss(values: np.ndarray) -> np.ndarray:
        return np.log(fit.law.predict(model.decode(values), N=n, D=d, C=6 * n * d))

    return np.stack([(log_loss(theta + step) - log_loss(theta - step)) / 2e-5 for step in 1e-5 * np.eye(len(theta))], axis=1)


def _decoded_gradient(fit: Fit, name: str) -> np.ndarray:
    theta, model = fit.solution.theta, fit.solution.problem.model
    return np.array([(model.decode(theta + step)[name] - model.decode(theta - step)[name]) / 2e-5 for step in 1e-5 * np.eye(len(theta))])
