"""What is said of a fit besides its parameters: identified or not, at a bound, how far cell means lie from the law."""

from __future__ import annotations

import numpy as np

from analysis.frames import Frame
from analysis.laws import Law
from analysis.newton import EXPONENTS, FLOOR_SPAN, Solution, derivatives
from analysis.noise import NoiseModel

MAD = 1.4826  # median absolute deviation -> sd at the normal


def winsorised_sd(left: np.ndarray, p: int) -> float:
    """Return the sd of residuals with p parameters spent; a few outliers count as 3 robust sd."""
    limit = 3 * MAD * np.median(np.abs(left)) * np.sqrt(len(left) / max(len(left) - p, 1))
    clipped = np.clip(left, -limit, limit) if limit > 0 else left
    return float(np.sqrt((clipped**2).sum() / max(len(left) - p, 1)))


def misfit_sd(frame: Frame, left: np.ndarray, noise: NoiseModel, p: int) -> float:
    """Return the scatter of cell means about the law beyond the noise between seeds (by moments; 0 where noise explains it)."""
    cells = frame.assign(left=left, variance=noise.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy()) ** 2).groupby(["N", "D"])
    means = cells["left"].mean().to_numpy()
    if len(means) <= p:
        return 0.0
    expected = float((cells["variance"].mean() / cells["left"].size()).mean())
    return float(np.sqrt(max(0.0, winsorised_sd(means, p) ** 2 - expected)))


def information(solution: Solution) -> tuple[float, bool]:
    """Return the condition number of the scaled information matrix, and whether the exact Hessian is positive definite."""
    _, _, hessian, gauss = derivatives(solution.problem, solution.theta[None], solution.stages[-1])
    metric = np.sqrt(np.maximum(np.diag(gauss[0]), 1e-300))
    eigenvalues = np.linalg.eigvalsh(gauss[0] / np.outer(metric, metric))
    exact = np.linalg.eigvalsh(hessian[0] / np.outer(metric, metric))
    return float(eigenvalues[-1] / max(eigenvalues[0], 1e-300)), bool(exact[0] > -1e-9)


def judge(law: Law, frame: Frame, solution: Solution, condition: float, positive: bool) -> tuple[str, tuple[str, ...]]:
    """Return the status of the fit, and what a reader must be told."""
    warnings = []
    logs = np.log(frame.loc[:, list(law.variables)].to_numpy())
    levels = [len(np.unique(np.round(column, 2))) for column in logs.T]
    thin = min(levels) < 3
    for variable, count in zip(law.variables, levels, strict=True):
        if count < 4:
            fate = "its exponent is not identified" if count < 3 else "its exponent has no check: 4 or more are needed"
            warnings.append(f"{variable} has {count} level{'s' if count > 1 else ''}; {fate}")
    if logs.shape[1] == 2 and min(levels) > 1 and abs(np.corrcoef(logs.T)[0, 1]) > 0.999:
        thin = True
        warnings.append("D is proportional to a power of N in all runs (as in D = 20 N): alpha and beta cannot be told apart")
    theta, k = solution.theta, logs.shape[1]
    lower, upper = solution.problem.bounds
    slopes = theta[1 + k :]
    if thin:
        status = "not identified"
    elif (theta[1:] <= lower[1:] + 1e-6).any() or (theta[1:] >= upper[1:] - 1e-6).any() or (slopes < 1.5 * EXPONENTS[0]).any():
        status = "degenerate"
    elif theta[0] < lower[0] + FLOOR_SPAN - 7:
        status = "at bound"
        warnings.append("E is 0: the runs show no floor")
    else:
        status = "converged" if condition < 1e9 and positive else "not identified"
    if status in ("degenerate", "not identified"):
        warnings.append(f"the fit is {status}: its parameters say nothing; predictions inside the data may still hold")
    return status, tuple(warnings)
