"""Chinchilla's approach 1: along compute, the model whose loss is least (the lower envelope of all models' losses)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.frames import Frame
from analysis.isoflop import FEW, HIGH_EDGE, LOW_EDGE, SIZE_STEP, OptimaDraws, chained_groups, draw_patterns, group_means, weighted_means

LEAST_MODELS = 3
POINTS_PER_DECADE = 64
#: Two losses of a model at compute closer than .1 % are one point, their mean.
COMPUTE_STEP = 1.001
FAULTS = {
    0: "",
    FEW: f"fewer than {LEAST_MODELS} models have a loss at this compute",
    LOW_EDGE: "the best is the smallest model with a loss at this compute: an edge of the sweep",
    HIGH_EDGE: "the best is the largest model with a loss at this compute: an edge of the sweep",
}
COLUMNS = "flops params_opt tokens_opt loss n_runs bracketed reason".split()


def envelope_optima(frame: Frame, *, flops: np.ndarray | None = None) -> Frame:
    """Find the best of the trained models at each compute (Hoffmann et al. 2022, approach 1, on final losses).

    For each model (distinct N) log loss is interpolated monotonically (PCHIP) in log C between its runs; seeds at one compute are
    averaged; nothing is extrapolated. The model of least loss gives N*, and D* follows from its C / (N D).

    Parameters
    ----------
    frame : DataFrame
        N, D, C (FLOPs), loss (nats per token); finished runs, or points of curves from `curve_points`.
    flops : (n,) float64, optional
        Where to look; by default 64 points a decade over the runs' compute.

    Returns
    -------
    DataFrame
        One row a compute: flops, params_opt, tokens_opt, loss, n_runs (models that compete), bracketed, reason. Where the winner is
        the smallest or the largest competitor nothing is known beyond it: not used, NaN.

    Raises
    ------
    UserError
        When fewer than 3 models have losses at two computes.
    """
    grid = compute_grid(frame) if flops is None else np.asarray(flops, dtype=np.float64)
    found = envelope_draws(frame, np.ones((1, len(frame))), flops=grid)
    c = frame["C"].to_numpy(dtype=np.float64)
    ends = np.array([(c[rows].min(), c[rows].max()) for rows in _models(frame)])
    competing = ((ends[:, :1] <= grid) & (grid <= ends[:, 1:])).sum(axis=0)
    reasons = [FAULTS[int(fault)] for fault in found.faults[0]]
    rows = zip(grid, found.params[0], found.tokens[0], found.loss[0], competing, [not r for r in reasons], reasons, strict=True)
    return pd.DataFrame(list(rows), columns=COLUMNS)


def envelope_draws(frame: Frame, counts: np.ndarray, *, flops: np.ndarray) -> OptimaDraws:
    """Find the envelopes of resampled runs.

    Parameters
    ----------
    frame : DataFrame
        N, D, C, loss.
    counts : (n_draws, n_runs) float64
        How often each draw takes each run.
    flops : (n_points,) float64

    Raises
    ------
    UserError
        When fewer than 3 models have losses at two computes.
    """
    from scipy.interpolate import PchipInterpolator  # slow to import, and only needed here

    log_grid = np.log(flops)
    models = _models(frame)
    log_loss = np.full((len(models), len(counts), len(flops)), np.inf)
    log_n, log_work = np.zeros(len(models)), np.zeros((len(models), len(flops)))
    n, d, c, loss = (frame[name].to_numpy(dtype=np.float64) for name in ("N", "D", "C", "loss"))
    for i, rows in enumerate(models):
        point = chained_groups(c[rows], COMPUTE_STEP)
        log_c, work = (group_means(v[rows], point) for v in (np.log(c), np.log(c / (n * d))))
        log_n[i], log_work[i] = np.log(n[rows]).mean(), np.interp(log_grid, log_c, work)
        weight, mean = weighted_means(np.log(loss[rows]), counts[:, rows], point)
        for draws, columns in draw_patterns(weight > 0):
            if len(columns) > 1:
                curve = PchipInterpolator(log_c[columns], mean[np.ix_(draws, columns)].T, extrapolate=False)(log_grid)
                log_loss[i, draws] = np.where(np.isnan(curve), np.inf, curve).T
    there = np.isfinite(log_loss)
    winner = log_loss.argmin(axis=0)
    smallest, largest = there.argmax(axis=0), len(models) - 1 - there[::-1].argmax(axis=0)
    few = there.sum(axis=0) < LEAST_MODELS
    faults = np.select([few, winner == smallest, winner == largest], [FEW, LOW_EDGE, HIGH_EDGE], default=0)
    best_n = np.where(faults == 0, log_n[winner], np.nan)
    tokens = np.exp(log_grid - best_n - log_work[winner, np.arange(len(flops))])
    best_loss = np.exp(np.where(faults == 0, log_loss.min(axis=0), np.nan))
    return OptimaDraws(flops, np.exp(best_n), tokens, best_loss, faults)


def compute_grid(frame: Frame) -> np.ndarray:
    """Log-spaced FLOPs over the runs' compute, 64 a decade."""
    low, high = float(frame["C"].min()), float(frame["C"].max())
    return np.geomspace(low, high, 2 + math.ceil(POINTS_PER_DECADE * math.log10(high / low)))


def curve_points(frame: Frame, curves: Frame, *, loss: str = "loss") -> Frame:
    """Points along training as rows that `envelope_optima` takes, only where they may be compared with final losses.

    Inside a trunk at constant rate the loss lies above that of a finished run of the same tokens, so runs of schedule "trunk" give
    their final loss only. Points inside a cosine schedule are unfinished runs too (Hoffmann et al. 2022 used them): prefer final runs.

    Parameters
    ----------
    frame : DataFrame
        run_id, N, D, C, loss of the runs; schedule where known.
    curves : DataFrame
        run_id, tokens, flops and the column `loss`, as `analysis.runs.read_curves` returns them; points without a loss are left out.
    loss : {"loss", "train_loss"}
        Held-out or training loss.

    Returns
    -------
    DataFrame
        run_id, trunk_id (where known), N, D, C, loss.

    Raises
    ------
    UserError
        When a column is missing.
    """
    missing = [name for name in ("run_id", "tokens", "flops", loss) if name not in curves]
    if missing:
        raise UserError(f"envelope: curves hold no column {missing[0]!r}; found: {', '.join(map(str, curves.columns[:40]))}")
    names = [name for name in ("run_id", "trunk_id", "N", "D", "C", "loss") if name in frame]
    final = frame["schedule"].eq("trunk") if "schedule" in frame else pd.Series(False, index=frame.index)
    runs = frame.loc[~final, [name for name in names if name not in ("D", "C", "loss")]]
    points = curves[["run_id", "tokens", "flops", loss]].rename(columns={"tokens": "D", "flops": "C", loss: "loss"})
    joined = runs.merge(points[points["loss"] > 0], on="run_id")
    return pd.concat([frame.loc[final, names], joined[names]], ignore_index=True)


def _models(frame: Frame) -> list[np.ndarray]:
    """Positions of the runs of each model that has losses at two computes or more, smallest model first."""
    size = chained_groups(frame["N"].to_numpy(dtype=np.float64), SIZE_STEP)
    c = frame["C"].to_numpy(dtype=np.float64)
    groups = [np.flatnonzero(size == k) for k in np.unique(size)]
    models = [rows for rows in groups if chained_groups(c[rows], COMPUTE_STEP).max() > 0]
    if len(models) < LEAST_MODELS:
        raise UserError(f"envelope: {len(models)} models have losses at two computes or more; at least {LEAST_MODELS} are needed")
    return models
