"""Joint draws of a fit's parameters: a bootstrap that follows how runs share noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.noise import NoiseModel, cell_columns, estimate_noise
from analysis.search import resolve

__all__ = ["FEW_TRUNKS", "NoiseModel", "bootstrap", "estimate_noise", "simulate_noise"]

FEW_TRUNKS = 12


def bootstrap(fit: Fit, *, draws: int = 1000, seed: int = 0, method: str = "auto") -> Fit:
    """Return the fit with joint draws of its parameters.

    Parameters
    ----------
    fit : Fit
    draws : int
        How many; 0 for a fit without draws (its parameter intervals are then the sandwich's).
    seed : int
        Of the draws.
    method : {"auto", "parametric", "pairs"}
        parametric: losses simulated from the law with trunk, (data seed x D) and branch effects and the misfit, then re-fitted. pairs:
        whole trunks resampled with their losses. auto: pairs from 12 trunks on, unless trunks share fewer than 12 data seeds whose
        effect repeats can measure (resampling trunks cannot see noise that all of them share).

    Raises
    ------
    UserError
        When an option is not allowed.

    Notes
    -----
    Every draw is solved from the optimum with the robust loss's delta held. Each simulated effect of a draw is scaled by
    ``sqrt(k / chi2_k)``, k the degrees of freedom behind its variance, so that few repeats give wider intervals, as Student's t does.
    """
    if draws == 0:
        return replace(fit, draws=None)
    if draws < 20:
        raise UserError(f"--bootstrap {draws} is not allowed; 0 for none, or at least 20 draws")
    if method not in ("auto", "parametric", "pairs"):
        raise UserError(f"bootstrap method {method!r} is unknown; allowed: auto, parametric, pairs")
    if method == "auto":
        seeds = fit.frame["seed_data"].astype(str)
        shared = bool((seeds != "").all()) and seeds.nunique() < min(FEW_TRUNKS, fit.n_trunks) and fit.noise.repeats > 0
        method = "parametric" if fit.n_trunks < FEW_TRUNKS or shared else "pairs"
    generator = np.random.default_rng(seed)
    solution, frame = fit.solution, fit.frame
    problem, weights = solution.problem, None
    if method == "pairs":
        trunk = pd.factorize(frame["trunk_id"], sort=True)[0]
        counts = generator.multinomial(fit.n_trunks, np.full(fit.n_trunks, 1 / fit.n_trunks), size=draws)
        weights = counts[:, trunk].astype(np.float64)
        words = f"pairs bootstrap of whole trunks ({fit.n_trunks})"
    else:
        law = problem.model.log_loss(solution.theta[None])
        problem = replace(problem, y=law + simulate_noise(fit.noise, frame, draws=draws, generator=generator))
        trunk_share, chunk_share, branch_share = fit.noise.shares
        words = (
            f"parametric bootstrap, {fit.n_trunks} trunks; noise from {fit.noise.source};"
            f" variance shares trunk {trunk_share:.2f}, data seed x D {chunk_share:.2f}, branch {branch_share:.2f};"
            f" misfit {100 * fit.noise.misfit_sd:.2g} %"
        )
    theta, _ = resolve(solution, problem, np.tile(solution.theta, (draws, 1)), weights)
    table = pd.DataFrame(solution.problem.model.decode(theta))
    head = fit.method.rsplit("; ", 1)[0]
    return replace(fit, draws=table, method=f"{head}; {words}; {draws} draws, percentiles, conditional on the law")


def simulate_noise(noise: NoiseModel, frame: Frame, *, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Relative noise of the runs of `frame`: (draws, n), with every effect shared as the runs share trunk, data seed and cell."""
    n, d = frame["N"].to_numpy(), frame["D"].to_numpy()
    seeds = frame["seed_data"].astype(str)
    chunk = seeds + "@" + frame["D"].astype(str) if (seeds != "").all() else frame["run_id"].astype(str)
    labels = (frame["trunk_id"].astype(str), chunk, pd.Series(np.arange(len(frame)).astype(str)))
    standard = np.zeros((draws, len(frame)))
    for share, label, degrees in zip(noise.shares, labels, noise.degrees, strict=True):
        index, levels = pd.factorize(label, sort=True)
        width = np.sqrt(degrees / generator.chisquare(degrees, size=(draws, 1)))
        standard += width * np.sqrt(share) * generator.standard_normal((draws, len(levels)))[:, index]
    cell = frame.groupby(cell_columns(frame), sort=True).ngroup().to_numpy()
    cells = np.arange(cell.max() + 1)
    misfit = noise.misfit_sd * generator.standard_normal((draws, len(cells)))[:, cell]
    return standard * noise.noise_sd(n, d) + misfit
