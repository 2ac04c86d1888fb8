"""Instant intervals: the sandwich of an M-estimator, by run (HC3) or by trunk (CR2), with Student's t."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.newton import derivatives, residuals

if TYPE_CHECKING:
    from analysis.fitting import Fit

Array = np.ndarray


def covariance(fit: Fit) -> tuple[Array, float, str]:
    """Covariance of the solver's coordinates, degrees of freedom of its t, and which estimator it is.

    Where every run is its own trunk: HC3 (MacKinnon & White 1985), a run's score divided by ``1 - leverage``. Where trunks hold several
    runs: CR2 (Bell & McCaffrey 2002), a trunk's scores adjusted by ``(1 - H_gg)^(-1/2)``, and degrees of freedom by the number of trunks.

    Returns
    -------
    (p, p), float, str
    """
    solution = fit.solution
    problem, theta, delta = solution.problem, solution.theta, solution.stages[-1]
    r = residuals(problem, theta[None])[0]
    jac = (
        problem.model.jacobian(theta)
        * (problem.scale * (np.exp(problem.model.log_loss(theta[None])[0]) if problem.linear else 1.0))[:, None]
    )
    above = np.where(r > 0, problem.above, 1.0)
    score = np.clip(r, -delta, delta) * above
    inside = np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300)) * above if np.isfinite(delta) else above
    exact = derivatives(problem, theta[None], delta)[2][0]
    gauss = (jac * inside[:, None]).T @ jac
    bread = np.linalg.pinv(exact if np.linalg.eigvalsh(exact)[0] > 0 else gauss, hermitian=True)
    root = jac * np.sqrt(inside)[:, None]
    inverse = np.linalg.pinv(gauss, hermitian=True)
    trunk, names = pd.factorize(fit.frame["trunk_id"], sort=True)
    if len(names) == len(trunk):
        leverage = np.clip(np.einsum("np,pq,nq->n", root, inverse, root), 0.0, 0.999)
        parts = jac * (score / (1 - leverage))[:, None]
        return bread @ (parts.T @ parts) @ bread, float(max(len(r) - len(theta), 1)), "HC3"
    meat = np.zeros_like(bread)
    for g in range(len(names)):
        rows = np.flatnonzero(trunk == g)
        value, vector = np.linalg.eigh(np.eye(len(rows)) - root[rows] @ inverse @ root[rows].T)
        adjust = vector @ np.diag(1 / np.sqrt(np.clip(value, 1e-3, None))) @ vector.T
        # The adjustment is exact for weighted residuals: score = weight^(1/2) (weight^(1/2) r).
        size = np.sqrt(np.maximum(inside[rows], 1e-12))
        part = (jac[rows] * size[:, None]).T @ (adjust @ (score[rows] / size))
        meat += np.outer(part, part)
    return bread @ meat @ bread, float(max(len(names) - len(theta) / 2, 1)), "CR2"


def parameter_intervals(fit: Fit) -> tuple[pd.DataFrame, str]:
    """Standard error and interval of every parameter: columns parameter, estimate, std_error, ci_low, ci_high; and the estimator's name.

    Coefficients get intervals in their logarithm, exponents and E as they stand.
    """
    matrix, degrees, name = covariance(fit)
    theta, model = fit.solution.theta, fit.solution.problem.model
    quantile = float(stdtrit(degrees, 0.5 + fit.ci_level / 2))
    rows = []
    for parameter in fit.law.parameters:
        gradient = np.array([_slope(model, theta, i, parameter) for i in range(len(theta))])
        estimate = fit.params[parameter]
        log_sd = float(np.sqrt(max(gradient @ matrix @ gradient, 0.0)))
        rows.append((parameter, estimate, *_band(parameter, estimate, log_sd, quantile)))
    return pd.DataFrame(rows, columns=["parameter", "estimate", "std_error", "ci_low", "ci_high"]), name


def _slope(model, theta: Array, i: int, parameter: str) -> float:
    """D log(parameter) / d theta_i (d parameter for those that may be negative), by a central difference of the decoder."""
    step = 1e-6 * np.eye(len(theta))[i]
    high, low = (model.decode(theta + s)[parameter] for s in (step, -step))
    return float(np.log(high / low) / 2e-6) if min(high, low) > 0 else float((high - low) / 2e-6)


def _band(parameter: str, estimate: float, sd: float, quantile: float) -> tuple[float, float, float]:
    if estimate <= 0:
        return sd, estimate - quantile * sd, estimate + quantile * sd
    if parameter == "E" or sd < 0.3:
        return estimate * sd, estimate * (1 - quantile * sd), estimate * (1 + quantile * sd)
    with np.errstate(over="ignore"):  # nothing is known of it: infinite, and shown as such
        return estimate * sd, estimate * float(np.exp(-quantile * sd)), estimate * float(np.exp(quantile * sd))
