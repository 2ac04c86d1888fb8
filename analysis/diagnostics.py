"""What is said of a fit besides its parameters: identified or not, at a bound, how far cell means lie from the law."""

from __future__ import annotations

import numpy as np

from analysis.frames import Frame
from analysis.laws import Law
from analysis.newton import derivatives
from analysis.noise import NoiseModel, cell_columns
from analysis.powers import PowerSum
from analysis.search import MAD, Solution

CONDITION = 1e9
CONDITION_FORMULA = 1e15  # a formula's coordinates are not centred, which alone costs six digits


def winsorised_sd(left: np.ndarray, p: int) -> float:
    """Return the sd of residuals with p parameters spent; a few outliers count as 3 robust sd."""
    limit = 3 * MAD * np.median(np.abs(left)) * np.sqrt(len(left) / max(len(left) - p, 1))
    clipped = np.clip(left, -limit, limit) if limit > 0 else left
    return float(np.sqrt((clipped**2).sum() / max(len(left) - p, 1)))


def misfit_sd(frame: Frame, left: np.ndarray, noise: NoiseModel, p: int) -> float:
    """Return the scatter of cell means about the law beyond the noise between seeds (by moments; 0 where noise explains it)."""
    cells = frame.assign(left=left, variance=noise.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy()) ** 2).groupby(cell_columns(frame))
    means = cells["left"].mean().to_numpy()
    if len(means) <= p:
        return 0.0
    expected = float((cells["variance"].mean() / cells["left"].size()).mean())
    return float(np.sqrt(max(0.0, winsorised_sd(means, p) ** 2 - expected)))


def information(solution: Solution) -> tuple[float, bool]:
    """Return the condition number of the scaled information matrix, and whether the exact Hessian is positive definite."""
    problem, theta, delta = solution.problem, solution.theta[None], solution.stages[-1]
    gauss, metric = derivatives(problem, theta, delta, exact=False)[2:]
    hessian = derivatives(problem, theta, delta)[2]
    size = np.sqrt(np.maximum(metric[0], 1e-300))
    eigenvalues = np.linalg.eigvalsh(gauss[0] / np.outer(size, size))
    exact = np.linalg.eigvalsh(hessian[0] / np.outer(size, size))
    return float(eigenvalues[-1] / max(eigenvalues[0], 1e-300)), bool(exact[0] > -1e-8)


def judge(law: Law, frame: Frame, solution: Solution, condition: float, positive: bool) -> tuple[str, tuple[str, ...]]:
    """Return the status of the fit, and what a reader must be told; `positive`: nothing curves down (absolute errors: never)."""
    warnings = []
    plane = [name for name in law.variables if name in ("N", "D", "C")]
    logs = np.log(frame.loc[:, plane].to_numpy(dtype=np.float64))
    levels = [len(np.unique(np.round(column, 2))) for column in logs.T]
    thin = min(levels, default=3) < 3
    for variable, count in zip(plane, levels, strict=True):
        if count < 4:
            fate = "its exponent is not identified" if count < 3 else "its exponent has no check: 4 or more are needed"
            warnings.append(f"{variable} has {count} level{'s' if count > 1 else ''}; {fate}")
    if plane == ["N", "D"] and min(levels) > 1 and abs(np.corrcoef(logs.T)[0, 1]) > 0.999:
        thin = True
        warnings.append("D is proportional to a power of N in all runs (as in D = 20 N): alpha and beta cannot be told apart")
    model = solution.problem.model
    nothing, away = model.nothing(solution.theta), model.ran_away(solution.theta)
    limit = CONDITION if isinstance(model, PowerSum) else CONDITION_FORMULA
    if thin:
        status = "not identified"
    elif away or set(nothing) - {"E"}:
        status = "degenerate"
        gone = ", ".join(dict.fromkeys([*away, *(name for name in nothing if name != "E")]))
        warnings.append(f"{gone} ran to the edge of the search: the runs do not need the term")
    elif condition >= limit:
        status = "not identified"
    elif not (solution.newton < 1e-6 and positive):
        status = "not converged"
        warnings.append(f"the optimum is not verified: one more step still promises {100 * solution.newton:.2g} % of the objective")
    elif nothing:
        status = "at bound"
        warnings.append("E is 0: the runs show no floor")
    else:
        status = "converged"
    if status in ("degenerate", "not identified"):
        warnings.append(f"the fit is {status}: its parameters say nothing; predictions inside the data may still hold")
    return status, tuple(warnings)
