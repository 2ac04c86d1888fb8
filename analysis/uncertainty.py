"""Joint draws of a fit's parameters: a bootstrap that follows how runs share noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.effects import EFFECTS, simulate_noise, split_noise
from analysis.errors import UserError
from analysis.fitting import Fit
from analysis.search import resolve

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
        method = "pairs" if fit.n_trunks >= FEW_TRUNKS and not _shares_data(fit) else "parametric"
    generator = np.random.default_rng(seed)
    solution, frame, noise = fit.solution, fit.frame, fit.noise
    problem, weights = solution.problem, None
    if method == "pairs":
        trunk = pd.factorize(frame["trunk_id"], sort=True)[0]
        counts = generator.multinomial(fit.n_trunks, np.full(fit.n_trunks, 1 / fit.n_trunks), size=draws)
        weights = counts[:, trunk].astype(np.float64)
        words = f"pairs bootstrap of whole trunks ({fit.n_trunks})"
    else:
        posterior = split_noise(noise, frame, fit.residuals, problem.model.jacobian(solution.theta))
        noise = posterior.model
        law = problem.model.log_loss(solution.theta[None])
        problem = replace(problem, y=law + simulate_noise(posterior, frame, draws=draws, generator=generator))
        shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(EFFECTS, noise.shares, strict=False))
        words = (
            f"parametric bootstrap, {fit.n_trunks} trunks; noise from {noise.source}; variance shares {shares};"
            f" misfit {100 * noise.misfit_sd:.2g} %"
        )
    theta, _ = resolve(solution, problem, np.tile(solution.theta, (draws, 1)), weights)
    table = pd.DataFrame(solution.problem.model.decode(theta))
    head = fit.method.rsplit("; ", 1)[0]
    return replace(fit, draws=table, noise=noise, method=f"{head}; {words}; {draws} draws, percentiles, conditional on the law")


def _shares_data(fit: Fit) -> bool:
    """Whether trunks saw the same few data orders: noise that all of them share, which resampling trunks cannot see."""
    seeds = fit.frame["seed_data"].astype(str)
    return bool((seeds != "").all()) and seeds.nunique() < min(FEW_TRUNKS, fit.n_trunks) and fit.n_trunks < len(seeds)
