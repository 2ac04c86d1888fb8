"""Fit a law to runs: ``fit(law, runs) -> Fit``, robust, from many starts, with what is needed to judge it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare import cross_validate
from analysis.diagnostics import information, judge, misfit_sd
from analysis.errors import UserError
from analysis.frames import Frame
from analysis.laws import Law, get_law
from analysis.newton import residuals
from analysis.noise import NoiseModel, estimate_noise, residual_noise
from analysis.runs import Runs
from analysis.sampling import percentile_band
from analysis.sandwich import parameter_intervals
from analysis.search import STARTS, Solution, find_starts, make_problem, parse_loss, solve, total
from analysis.subset import select


@dataclass(frozen=True)
class Fit:
    """A fitted law with its diagnostics. Intervals come from `draws` and are conditional on the law.

    Attributes
    ----------
    params : dict
        E (nats/token), coefficients and exponents, as published.
    objective : float
        Sum over runs of the robust loss of the residuals: Huber's ``r^2 / 2``, or ``|r|`` (lad, asymmetric), or ``r^2`` (mse).
    delta : float
        Huber's, in units of the residual (log loss, or noise sd where runs are weighted); infinity for mse, 0 for lad.
    rmse_log, r2, aicc, bic : float
        Of log residuals, unweighted (rmse_log, r2); of the weighted ones under a Gaussian (aicc, bic).
    status : str
        "converged" (gradient and Hessian checked), "not converged", "degenerate" (a parameter ran away), "not identified" (the runs
        cannot tell), "at bound" (E is 0).
    starts, starts_agree : int, float
        Points of the search (cells of the exhaustive grid of exponents, or starts), and the share of them that lead to this optimum.
    condition : float
        Of the scaled information matrix.
    frame : DataFrame
        Rows used: run_id, trunk_id, seed_data, N, D, C, loss, predicted, residual_log, noise_sd.
    residuals : (n,)
        ``log predicted - log loss``: above zero where the run is better than the law.
    draws : DataFrame or None
        Joint draws of the parameters; None before `bootstrap`.
    loss_offset_sd : float
        Relative sampling error of the held-out text, common to all runs: part of E's interval, and of nothing else.
    """

    fit_id: str
    law: Law
    n_column: str
    d_column: str
    c_column: str
    params: dict[str, float]
    n_runs: int
    n_trunks: int
    n_excluded: int
    objective: float
    loss: str
    link: str
    delta: float
    rmse_log: float
    r2: float
    aicc: float
    bic: float
    starts: int
    starts_agree: float
    condition: float
    status: str
    subset: str
    residuals: np.ndarray
    frame: Frame
    noise: NoiseModel
    method: str
    solution: Solution = field(repr=False)
    sd: np.ndarray = field(repr=False)
    draws: Frame | None = None
    ci_level: float = 0.95
    loss_offset_sd: float = 0.0
    warnings: tuple[str, ...] = ()

    @cached_property
    def cv(self) -> Frame:
        """Rolling folds inside the fitted runs (see `analysis.compare.cross_validate`)."""
        return cross_validate(self.law, self.frame, self.solution, sd=self.sd, loss=parse_loss(self.loss), link=self.link)

    @property
    def cv_error(self) -> float:
        """Mean absolute relative error of the dearest fifth, quarter, third, half of the runs, each predicted from the cheaper rest."""
        if not len(self.cv):
            return float("nan")
        return float(self.cv.groupby("fold")["relative_error"].apply(lambda e: e.abs().mean()).mean())

    def predict(self, **variables: Any) -> np.ndarray:
        """Loss at the given N, D, C, U (broadcast), nats per token. C of a law in C is 6ND where only N and D are given."""
        return self.law.predict(self.params, **_with_compute(variables))

    def interval(self, *, noise: bool = False, **variables: Any) -> tuple[np.ndarray, np.ndarray]:
        """Percentile band of the law at the given N, D, C; with `noise`, the prediction interval of one new run.

        Raises
        ------
        ValueError
            When the fit has no draws.
        """
        if self.draws is None:
            raise ValueError("this fit has no draws; call analysis.bootstrap(fit) first")
        values = {k: np.asarray(v, dtype=np.float64)[None] for k, v in _with_compute(variables).items() if v is not None}
        shape = np.broadcast_shapes(*(v.shape[1:] for v in values.values()))
        draws = {name: self.draws[name].to_numpy().reshape(-1, *[1] * len(shape)) for name in self.law.parameters}
        sample = np.broadcast_to(self.law.predict(draws, **values), (len(self.draws), *shape))
        if noise:
            n = values.get("N", np.array([np.exp(self.noise.log_n)]))
            d = values.get("D", np.array([np.exp(self.noise.log_d)]))
            z = np.random.default_rng(20240101).standard_normal(len(self.draws)).reshape(-1, *[1] * len(shape))
            sample = sample * np.exp(self.noise.run_sd(n, d) * z)
        return percentile_band(sample, self.ci_level)

    def parameter_table(self) -> Frame:
        """One row a parameter: parameter, estimate, std_error, ci_low, ci_high; from the draws, without them the sandwich (HC3 or CR2).

        E's interval is that of the absolute floor: it also holds the sampling error of the held-out text (`loss_offset_sd`), as one offset
        common to all runs.
        """
        if self.draws is None:
            return parameter_intervals(self)[0]
        rows = []
        for name in self.law.parameters:
            values = self.draws[name].to_numpy()
            if name == "E" and self.loss_offset_sd > 0:
                values = values * np.exp(self.loss_offset_sd * np.random.default_rng(20240102).standard_normal(len(values)))
            low, high = percentile_band(values, self.ci_level)
            rows.append((name, self.params[name], float(np.std(values, ddof=1)), float(low), float(high)))
        return pd.DataFrame(rows, columns=["parameter", "estimate", "std_error", "ci_low", "ci_high"])


def main_fit(fits: Sequence[Fit]) -> Fit | None:
    """Return the fit that pictures and answers show: a law in N and D if there is one, else the first; None without any."""
    return next((fit for fit in fits if {"N", "D"} <= set(fit.law.variables)), fits[0] if fits else None)


def fit(law: str | Law, runs: Runs, *, loss: str = "huber:auto", link: str = "log", starts: int = STARTS, seed: int = 0) -> Fit:
    """Fit a law to runs by a robust loss of the residuals, from many starts.

    Residuals are ``log predicted - log loss`` (or the plain difference, ``link="linear"``), divided by the sd of a run (noise between seeds
    and misfit) where repeats tell it; ``huber:1e-3`` and the like, lad, mse and asymmetric are unweighted, as published.

    Parameters
    ----------
    law : str or Law
        A name of the registry (`analysis.LAWS`), or a formula (see `analysis.get_law`).
    runs : Runs
        From `read_runs`.
    loss : str
        "huber:auto" (delta = 1.345 robust sd of the residuals), "huber:DELTA", "lad", "mse", "asymmetric:WEIGHT".
    link : {"log", "linear"}
    starts : int
        How many starts of the search, besides the seeds that a simpler law gives.
    seed : int
        Kept for the interface: the search itself is deterministic.

    Raises
    ------
    UserError
        When an option is not understood, a variable of the law is missing, or no more usable rows than parameters remain.
    """
    del seed
    law = get_law(law, runs.frame.columns) if isinstance(law, str) else law
    how = parse_loss(loss)
    if link not in ("log", "linear"):
        raise UserError(f"--link {link!r} is unknown; allowed: log, linear")
    if starts < 1:
        raise UserError(f"starts = {starts} is not allowed; at least 1")
    frame = select(law, runs)
    p = len(law.parameters)
    if len(frame) <= p:
        raise UserError(
            f"{runs.source}: law {law.name} needs {p + 1} usable rows ({law.subset}), found {len(frame)}; add runs or choose another law"
        )
    measured = estimate_noise(runs.frame)
    noise = measured if how.adaptive else None
    solution, points = None, None
    for _ in range(2):
        sd = np.ones(len(frame)) if noise is None else noise.run_sd(frame["N"].to_numpy(), frame["D"].to_numpy())
        problem = make_problem(law, frame, sd=sd, link=link, above=how.above)
        points = find_starts(law, frame, problem, starts) if points is None else points
        solution = solve(problem, how, *points)
        left = problem.model.log_loss(solution.theta[None])[0] - problem.y
        if noise is None:
            break
        noise = replace(noise, misfit_sd=misfit_sd(frame, left, noise, p))
    assert solution is not None
    problem = solution.problem
    if noise is not None:
        measured = noise
    elif measured is None:
        measured = residual_noise(frame, left, p)
    else:
        measured = replace(measured, misfit_sd=misfit_sd(frame, left, measured, p))
    r = residuals(problem, solution.theta[None])[0]
    condition, positive = information(solution)
    n, k, rss = len(frame), p + 1, float((r**2).sum())
    bic = n * np.log(max(rss, 1e-300) / n) + k * np.log(n)
    frame = frame.assign(
        predicted=np.exp(problem.y + left), residual_log=left,
        noise_sd=measured.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy()),
    )  # fmt: skip
    status, warnings = judge(law, frame, solution, condition, positive or how.kind == "lad")
    if n == p + 1:
        warnings = (*warnings, f"{n} runs for {p} parameters: one is left to judge by; no interval can be trusted, none is cross-validated")
    weighted = f"weighted by noise ({noise.source})" if noise is not None else "unweighted"
    return Fit(
        fit_id=_identity(law, frame, {"loss": loss, "link": link, "starts": starts, "n": runs.n_column, "d": runs.d_column}),
        law=law, n_column=runs.n_column, d_column=runs.d_column, c_column=runs.c_column, params=problem.model.decode(solution.theta),
        n_runs=n, n_trunks=int(frame["trunk_id"].nunique()), n_excluded=len(runs.excluded), objective=total(problem, how, solution),
        loss=loss, link=link, delta=0.0 if how.kind == "lad" else solution.stages[-1], rmse_log=float(np.sqrt((left**2).mean())),
        r2=float(1 - (left**2).sum() / max(((problem.y - problem.y.mean()) ** 2).sum(), 1e-300)),
        aicc=float(bic - k * np.log(n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)) if n > k + 1 else float("nan"), bic=float(bic),
        starts=solution.starts, starts_agree=solution.agree, condition=condition, status=status, subset=law.subset, residuals=left,
        frame=frame, noise=measured, method=f"{loss}, {link} link, {weighted}; no intervals", solution=solution, sd=sd,
        loss_offset_sd=_offset(runs), warnings=warnings,
    )  # fmt: skip


def _with_compute(variables: dict[str, Any]) -> dict[str, Any]:
    if variables.get("C") is None and variables.get("N") is not None and variables.get("D") is not None:
        return {**variables, "C": 6.0 * np.asarray(variables["N"], dtype=np.float64) * np.asarray(variables["D"], dtype=np.float64)}
    return variables


def _offset(runs: Runs) -> float:
    """Relative sampling error of the held-out text: median of loss_se / loss."""
    if "loss_se" not in runs.frame or not pd.api.types.is_numeric_dtype(runs.frame["loss_se"]):
        return 0.0
    ratio = (runs.frame["loss_se"] / runs.frame["loss"]).to_numpy()
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    return float(np.median(ratio)) if len(ratio) else 0.0


def _identity(law: Law, frame: Frame, options: dict[str, Any]) -> str:
    numbers = [frame[name].to_numpy(dtype=np.float64).tolist() for name in (*law.variables, "loss")]
    rows = sorted([str(run), *map(repr, values)] for run, *values in zip(frame["run_id"], *numbers, strict=True))
    text = json.dumps([law.name, law.formula, options, rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
