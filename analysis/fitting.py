"""Fit a law to runs: ``fit(law, runs) -> Fit``, robust, from many starts, with what is needed to judge it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.diagnostics import MAD, information, judge, misfit_sd, winsorised_sd
from analysis.errors import UserError
from analysis.frames import Frame
from analysis.laws import Law, get_law
from analysis.newton import Problem, Solution, minimise, predict_log, projection_starts, residuals
from analysis.noise import NoiseModel, estimate_noise, residual_noise
from analysis.runs import Runs

FRAME_COLUMNS = ("run_id", "trunk_id", "seed_data", "N", "D", "C", "loss")
CV_SHARES = (0.2, 0.25, 1 / 3, 0.5)
HUBER = 1.345  # 95 % efficiency at the normal (Huber 1981)
ROUGH: dict[str, Any] = {"iterations": 30, "tolerance": 1e-6}  # of the stages before the last


@dataclass(frozen=True)
class Fit:
    """A fitted law with its diagnostics. Intervals come from `draws` and are conditional on the law.

    Attributes
    ----------
    params : dict
        E (nats/token), coefficients and exponents, as published.
    objective : float
        Sum over runs of the robust loss of the residuals: Huber's ``r^2 / 2``, or ``|r|`` (lad), or ``r^2`` (mse).
    delta : float
        Huber's, in units of the residual (log loss, or noise sd where runs are weighted); infinity for mse, 0 for lad.
    rmse_log, r2, aicc, bic : float
        Of log residuals, unweighted (rmse_log, r2); of the weighted ones under a Gaussian (aicc, bic).
    cv_error : float
        Mean absolute relative error of the dearest fifth, quarter, third, half of the runs, each predicted from the cheaper rest.
    status : str
        "converged", "degenerate" (a parameter ran away), "not identified" (the runs cannot tell), "at bound" (E is 0).
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
    cv_error: float
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
    cv: Frame = field(repr=False)
    draws: Frame | None = None
    ci_level: float = 0.95
    loss_offset_sd: float = 0.0
    warnings: tuple[str, ...] = ()

    def predict(self, **variables: Any) -> np.ndarray:
        """Loss at the given N, D, C (broadcast), nats per token. C of a law in C is 6ND where only N and D are given."""
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
        tail = 50 * (1 - self.ci_level)
        low, high = np.percentile(sample, [tail, 100 - tail], axis=0)
        return low, high

    def parameter_table(self) -> Frame:
        """One row a parameter: parameter, estimate, std_error, ci_low, ci_high (empty without draws).

        E's interval is that of the absolute floor: it also holds the sampling error of the held-out text (`loss_offset_sd`), as one offset
        common to all runs.
        """
        tail, rows = 50 * (1 - self.ci_level), []
        for name in self.law.parameters:
            row = {"parameter": name, "estimate": self.params[name], "std_error": np.nan, "ci_low": np.nan, "ci_high": np.nan}
            if self.draws is not None:
                values = self.draws[name].to_numpy()
                if name == "E" and self.loss_offset_sd > 0:
                    values = values * np.exp(self.loss_offset_sd * np.random.default_rng(20240102).standard_normal(len(values)))
                low, high = np.percentile(values, [tail, 100 - tail])
                row |= {"std_error": float(np.std(values, ddof=1)), "ci_low": float(low), "ci_high": float(high)}
            rows.append(row)
        return pd.DataFrame(rows)


def fit(law: str | Law, runs: Runs, *, loss: str = "huber:auto", link: str = "log", starts: int | None = None, seed: int = 0) -> Fit:
    """Fit a law to runs by a robust loss of the residuals, from many starts.

    Residuals are ``log predicted - log loss`` (or the plain difference, ``link="linear"``), divided by the sd of a run (noise between seeds
    and misfit) where repeats tell it; ``huber:1e-3`` and the like are unweighted, as published.

    Parameters
    ----------
    law : str or Law
        A name of the registry: power-n, power-d, power-c, chinchilla.
    runs : Runs
        From `read_runs`.
    loss : str
        "huber:auto" (delta = 1.345 robust sd of the residuals), "huber:DELTA", "lad", "mse".
    link : {"log", "linear"}
    starts : int, optional
        How many starts (default 12), from a variable-projection grid.
    seed : int
        Kept for the interface: the search itself is deterministic.

    Raises
    ------
    UserError
        When an option is not understood, or fewer usable rows than parameters + 2 remain.
    """
    del seed
    law = get_law(law) if isinstance(law, str) else law
    kind, delta = parse_loss(loss)
    if link not in ("log", "linear"):
        raise UserError(f"--link {link!r} is unknown; allowed: log, linear")
    if starts is not None and starts < 1:
        raise UserError(f"starts = {starts} is not allowed; at least 1")
    frame, subset = select(law, runs)
    p = len(law.parameters)
    if len(frame) < p + 2:
        raise UserError(
            f"{runs.source}: law {law.name} needs {p + 2} usable rows ({subset}), found {len(frame)}; add runs or choose another law"
        )
    noise = estimate_noise(runs.frame) if kind != "huber" or not delta else None
    count = 12 if starts is None else starts
    found = None
    for _ in range(2):
        sd = np.ones(len(frame)) if noise is None else noise.run_sd(frame["N"].to_numpy(), frame["D"].to_numpy())
        solution, found, values = solve(law, frame, sd=sd, kind=kind, delta=delta, link=link, starts=count if found is None else found)
        left = predict_log(solution.theta[None], solution.problem.x)[0] - solution.problem.y
        if noise is None:
            break
        noise = replace(noise, misfit_sd=misfit_sd(frame, left, noise, p))
    measured = noise or estimate_noise(runs.frame)
    if measured is None:
        measured = residual_noise(frame, winsorised_sd(left, p), len(frame) - p)
    elif noise is None:
        measured = replace(measured, misfit_sd=misfit_sd(frame, left, measured, p))
    params = decode(law, solution.theta, solution.center)
    r = residuals(solution.problem, solution.theta[None])[0]
    objective = {"huber": float(values.min()), "lad": float(np.abs(r).sum()), "mse": float((r**2).sum())}[kind]
    condition, positive = information(solution)
    n, k, rss = len(frame), p + 1, float((r**2).sum())
    bic = n * np.log(max(rss, 1e-300) / n) + k * np.log(n)
    frame = frame.assign(
        predicted=np.exp(solution.problem.y + left), residual_log=left,
        noise_sd=measured.noise_sd(frame["N"].to_numpy(), frame["D"].to_numpy()),
    )  # fmt: skip
    cv = _cross_validate(law, frame, solution, sd=sd, kind=kind, link=link)
    y = solution.problem.y
    status, warnings = judge(law, frame, solution, condition, positive)
    weighted = f"weighted by noise ({noise.source})" if noise is not None else "unweighted"
    return Fit(
        fit_id=_identity(law, frame, {"loss": loss, "link": link, "starts": count, "n": runs.n_column, "d": runs.d_column}),
        law=law, n_column=runs.n_column, d_column=runs.d_column, c_column=runs.c_column, params=params, n_runs=n,
        n_trunks=int(frame["trunk_id"].nunique()), n_excluded=len(runs.excluded), objective=objective, loss=loss, link=link,
        delta=0.0 if kind == "lad" else solution.stages[-1], rmse_log=float(np.sqrt((left**2).mean())),
        r2=float(1 - (left**2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-300)),
        aicc=float(bic - k * np.log(n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)) if n > k + 1 else float("nan"), bic=float(bic),
        cv_error=float(cv.groupby("fold")["relative_error"].apply(lambda e: e.abs().mean()).mean()) if len(cv) else float("nan"),
        starts=len(values), starts_agree=float((values <= values.min() * (1 + 1e-6) + 1e-14).mean()), condition=condition, status=status,
        subset=subset, residuals=left, frame=frame, noise=measured, method=f"{loss}, {link} link, {weighted}; no intervals",
        solution=solution, cv=cv, loss_offset_sd=_offset(runs), warnings=warnings,
    )  # fmt: skip


def parse_loss(text: str) -> tuple[str, float | None]:
    """``huber:auto``, ``huber:DELTA``, ``lad``, ``mse`` -> kind and delta (None: adaptive)."""
    if text in ("lad", "mse"):
        return text, None
    kind, _, value = text.partition(":")
    if kind == "huber" and value in ("", "auto"):
        return "huber", None
    try:
        delta = float(value)
    except ValueError:
        delta = 0.0
    if kind == "huber" and 0 < delta < float("inf"):
        return "huber", delta
    raise UserError(f"--loss {text!r} is not understood; allowed: huber:auto, huber:DELTA with DELTA above 0 (huber:1e-3), lad, mse")


def select(law: Law, runs: Runs) -> tuple[Frame, str]:
    """Return the rows that a law is fitted on, and which these are in words."""
    frame = runs.frame
    if law.name == "power-n":
        frame = frame[frame["D"] >= 0.98 * frame["D"].max()]
    elif law.name == "power-d":
        frame = frame[frame["N"] >= 0.98 * frame["N"].max()]
    elif law.name == "power-c":
        cells = frame.groupby(["N", "D"], sort=False).agg(C=("C", "mean"), loss=("loss", "mean")).sort_values(["C", "loss"], kind="stable")
        best = cells[cells["loss"] < cells["loss"].cummin().shift(fill_value=np.inf)]
        index = pd.MultiIndex.from_frame(frame[["N", "D"]])
        hull = frame[index.isin(best.index[_lower_hull(np.log(best["C"].to_numpy()), np.log(best["loss"].to_numpy()))])]
        frame = hull if len(hull) >= len(law.parameters) + 2 else frame[index.isin(best.index)]
    return frame.loc[:, list(FRAME_COLUMNS)].reset_index(drop=True), law.subset


def _lower_hull(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Return the positions of the lower convex hull of points sorted by x (Andrew's chain): a law with a floor is convex in log-log."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            (a, b), slope = hull[-2:], y[i] - y[hull[-1]]
            if (y[b] - y[a]) * (x[i] - x[b]) < slope * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return hull


def solve(
    law: Law, frame: Frame, *, sd: np.ndarray, kind: str, delta: float | None, link: str, starts: int | np.ndarray
) -> tuple[Solution, np.ndarray, np.ndarray]:
    """Global minimum over the starts (how many, or the points themselves), and where each start ended with its objective."""
    logs = np.log(frame.loc[:, list(law.variables)].to_numpy(dtype=np.float64))
    center = logs.mean(axis=0)
    loss = frame["loss"].to_numpy(dtype=np.float64)
    # With plain differences, equal sd mean equal nats; measured noise is relative, so it is turned into nats.
    scale = 1 / (sd * loss) if link == "linear" and np.ptp(sd) > 0 else 1 / sd
    problem = Problem(logs - center, np.log(loss), scale, link == "linear")
    theta = projection_starts(problem, count=starts) if isinstance(starts, int) else starts
    theta, values = minimise(problem, theta, delta=np.inf, **ROUGH)

    def robust_sd(best: np.ndarray) -> float:
        return max(MAD * float(np.median(np.abs(residuals(problem, best[None])))), 1e-9)

    if kind == "mse":
        theta, values = minimise(problem, theta, delta=np.inf)
        return Solution(problem, center, theta[values.argmin()], (np.inf,)), theta, values
    spread = robust_sd(theta[values.argmin()])
    if kind == "lad":
        stages = tuple(spread * 10.0**power for power in (0, -1, -2, -3, -4))
    elif delta is not None:
        first = max(30 * delta, 3 * spread)
        stages = (delta,)
        if isinstance(starts, int) and first > 10 * delta:
            stages = (*np.geomspace(first, delta, int(np.ceil(np.log10(first / delta))) + 1),)
    else:
        best, last = theta[values.argmin()][None], 1e9
        for _ in range(20):
            if abs(np.log(spread / last)) < 0.02:
                break
            last = spread
            best, _ = minimise(problem, best, delta=HUBER * spread, **ROUGH)
            spread = robust_sd(best[0])
        stages = (HUBER * last,)
        theta[values.argmin()] = best[0]
    for stage in stages:
        theta, values = minimise(problem, theta, delta=stage, **({} if stage == stages[-1] else ROUGH))
    warm = stages[2:] if kind == "lad" else (stages[-1],)
    return Solution(problem, center, theta[values.argmin()], tuple(float(s) for s in warm)), theta, values


def decode(law: Law, theta: np.ndarray, center: np.ndarray) -> dict[str, Any]:
    """Solver's coordinates -> parameters as published; the last axis of `theta` is the parameter."""
    k = len(center)
    values = [np.exp(theta[..., 0]), *(np.exp(theta[..., 1 + j] + theta[..., 1 + k + j] * center[j]) for j in range(k))]
    values += [theta[..., 1 + k + j] for j in range(k)]
    return {name: float(v) if theta.ndim == 1 else v for name, v in zip(law.parameters, values, strict=True)}


def _with_compute(variables: dict[str, Any]) -> dict[str, Any]:
    if variables.get("C") is None and variables.get("N") is not None and variables.get("D") is not None:
        return {**variables, "C": 6.0 * np.asarray(variables["N"], dtype=np.float64) * np.asarray(variables["D"], dtype=np.float64)}
    return variables


def _cross_validate(law: Law, frame: Frame, whole: Solution, *, sd: np.ndarray, kind: str, link: str) -> Frame:
    """Predict the dearest runs from the cheaper ones, at several cuts; Huber's delta is that of the whole fit."""
    rows = []
    compute = frame["C"].to_numpy()
    for share in CV_SHARES:
        inside = compute <= np.quantile(compute, 1 - share)
        if inside.sum() < len(law.parameters) + 2 or inside.all():
            continue
        kept, rest = frame[inside], frame[~inside]
        if min(len(np.unique(np.round(np.log(kept[v]), 2))) for v in law.variables) < 3:
            continue
        k = len(whole.center)
        moved = np.log(kept.loc[:, list(law.variables)].to_numpy()).mean(axis=0) - whole.center
        warm = np.concatenate([whole.theta[:1], whole.theta[1 : 1 + k] - whole.theta[1 + k :] * moved, whole.theta[1 + k :]])
        problem = whole.problem
        part = Problem(problem.x[inside] - moved, problem.y[inside], problem.scale[inside], problem.linear)
        points = np.concatenate([warm[None], projection_starts(part, count=1)])
        solution, _, _ = solve(law, kept, sd=sd[inside], kind=kind, delta=whole.stages[-1], link=link, starts=points)
        predicted = law.predict(decode(law, solution.theta, solution.center), N=rest["N"], D=rest["D"], C=rest["C"])
        scored = rest.loc[:, ["run_id", "N", "D", "C", "loss"]].assign(fold=f"dearest {100 * share:.0f} %", predicted=predicted)
        rows.append(scored.assign(relative_error=predicted / rest["loss"] - 1))
    columns = ["run_id", "N", "D", "C", "loss", "fold", "predicted", "relative_error"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


def _offset(runs: Runs) -> float:
    """Relative sampling error of the held-out text: median of loss_se / loss."""
    if "loss_se" not in runs.frame or not pd.api.types.is_numeric_dtype(runs.frame["loss_se"]):
        return 0.0
    ratio = (runs.frame["loss_se"] / runs.frame["loss"]).to_numpy()
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    return float(np.median(ratio)) if len(ratio) else 0.0


def _identity(law: Law, frame: Frame, options: dict[str, Any]) -> str:
    rows = [[str(r), repr(float(n)), repr(float(d)), repr(float(v))] for r, n, d, v in frame[["run_id", "N", "D", "loss"]].to_numpy()]
    text = json.dumps([law.name, law.formula, options, sorted(rows)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
