"""From loss to task: how a metric (evaluation.csv) follows from the loss, and from N and D by way of the loss.

Two forms, fitted by least squares to the runs: ``sigmoid`` y = top / (1 + exp(k (x - x0))), top the metric's own (1, or 100 for BLEU and
chrF), and ``power`` y = a x^b, with x the loss, or the compute C (then the sigmoid is in log10 C). Two-step prediction: the sweep's law
gives the loss of (N, D), the form the metric of that loss (Gadre et al. 2024; Bhagia et al. 2024). Hold-outs are never fitted. Each form is
scored on runs that it has not seen: the hold-outs and the largest fitted N, by a fit to the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from analysis.errors import UserError
from analysis.files import write_table
from analysis.fitting import fit
from analysis.frames import Frame
from analysis.runs import read_runs

COLUMNS = (
    "task domain metric x form parameter estimate ci_low ci_high ci_level n_runs rmse r2 largest_out_error two_step_error"
    " largest_out_runs chosen"
).split()
DRAWS = 200
LEVEL = 0.95
FEWEST = 6
"""Runs that are needed for any form."""
TOP = {"bleu": 100.0, "chrf": 100.0}
"""Largest value of a metric; 1 for all others. A free one is not identified by runs far below it (32 for an accuracy was seen)."""


@dataclass(frozen=True)
class Form:
    """A curve y(x; parameters), and where its search begins."""

    name: str
    parameters: tuple[str, ...]
    curve: Callable[..., np.ndarray]
    starts: Callable[[np.ndarray, np.ndarray], list[tuple[float, ...]]]


def _sigmoid(x: np.ndarray, k: float, x0: float, *, top: float) -> np.ndarray:
    return top / (1 + np.exp(np.clip(k * (x - x0), -60, 60)))


def _power(x: np.ndarray, a: float, b: float) -> np.ndarray:
    return a * np.exp(np.clip(b * np.log(x), -60, 60))


def _sigmoid_starts(x: np.ndarray, y: np.ndarray, *, top: float) -> list[tuple[float, ...]]:
    share = np.clip(y / top, 1e-6, 1 - 1e-6)
    slope, level = np.polyfit(x, np.log(share / (1 - share)), 1)  # the log-odds are linear
    slope = slope if abs(slope) > 1e-9 else 1e-9
    return [(-float(slope), -float(level / slope))]


def _power_starts(x: np.ndarray, y: np.ndarray) -> list[tuple[float, ...]]:
    some = y > 0
    if some.sum() < 2:
        return [(float(y.mean()), 0.0)]
    slope, level = np.polyfit(np.log(x[some]), np.log(y[some]), 1)
    return [(math.exp(level), float(slope))]


def forms_of(metric: str) -> tuple[Form, ...]:
    """The two forms of a metric."""
    top = TOP.get(metric, 1.0)
    return (
        Form("sigmoid", ("k", "x0"), partial(_sigmoid, top=top), partial(_sigmoid_starts, top=top)),
        Form("power", ("a", "b"), _power, _power_starts),
    )


@dataclass(frozen=True)
class TaskLaw:
    """One form fitted to one metric.

    Attributes
    ----------
    x : `loss` (nats per token) or `flops`
    draws : (DRAWS, parameters) float64, bootstrap over trunks
    largest_out_error : mean absolute error on the runs of the largest N, of a fit to the others, in units of the metric
    two_step_error : the same when their loss is predicted too, by the sweep's law fitted to the others; NaN for x = flops
    """

    task: str
    domain: str
    metric: str
    x: str
    form: Form
    values: tuple[float, ...]
    draws: np.ndarray
    n_runs: int
    rmse: float
    r2: float
    largest_out_error: float
    two_step_error: float
    largest_out_runs: int

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The metric at a loss (nats per token) or compute (FLOPs)."""
        return self.form.curve(_scaled(self, x), *self.values)

    def band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The central 95 % of the draws."""
        drawn = np.array([self.form.curve(_scaled(self, x), *draw) for draw in self.draws])
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return low, high


def _scaled(law: TaskLaw, x: np.ndarray) -> np.ndarray:
    return _variable(law.x, law.form, np.asarray(x, np.float64))


def _variable(name: str, form: Form, x: np.ndarray) -> np.ndarray:
    return np.log10(x) if name == "flops" and form.name == "sigmoid" else x


def fit_form(form: Form, x: np.ndarray, y: np.ndarray, start: tuple[float, ...] | None = None) -> tuple[float, ...]:
    """Least squares from the form's starts (or from one), in float64."""
    scale = max(float(np.std(y)), 1e-12)
    found = [
        least_squares(lambda p: (form.curve(x, *p) - y) / scale, begin, x_scale=np.maximum(np.abs(begin), 1e-3), method="lm", max_nfev=400)
        for begin in ([start] if start is not None else form.starts(x, y))
    ]
    return tuple(float(value) for value in min(found, key=lambda one: one.cost).x)


def read_evaluation(folder: Path) -> Frame:
    """evaluation.csv of runs joined with their role, size, tokens, loss and trunk; one row a run and metric.

    Raises
    ------
    UserError
        If there is none.
    """
    path = folder / "evaluation.csv"
    if not path.is_file():
        raise UserError(f"{path} does not exist; `scaling evaluate {folder}` writes it")
    runs = read_runs(folder)
    sizes = pd.concat([runs.frame, runs.holdouts])[["run_id", "trunk_id", "role", "N", "D", "C", "loss"]].rename(columns={"C": "flops"})
    table = pd.read_csv(path).query("source == 'run' and language == 'all'")
    return table.merge(sizes, left_on="model", right_on="run_id", validate="many_to_one")


def task_laws(folder: str | Path, *, law: str = "chinchilla", seed: int = 0, variables: Sequence[str] = ("loss", "flops")) -> list[TaskLaw]:
    """Both forms of every metric of a results folder, against the loss and against compute."""
    root = Path(folder)
    table = read_evaluation(root)
    predicted, largest = _loss_without_largest(root, law)
    return [
        one
        for (task, domain, metric), part in table.groupby(["task", "domain", "metric"], sort=False)
        if metric not in ("loss", "perplexity", "bits_per_byte")
        for name in variables
        for one in _laws_of(str(task), str(domain), str(metric), name, part, predicted, largest, seed)
    ]


def _loss_without_largest(root: Path, law: str) -> tuple[Callable[[Frame], np.ndarray] | None, float]:
    """The law fitted to all but the largest fitted N, as a function of a frame with N and D (None where too few remain), and that N."""
    runs = read_runs(root)
    largest = float(runs.frame["N"].max())
    try:
        fitted = fit(law, read_runs(root, exclude=f"{runs.n_column} >= {largest:.17g}"))
    except UserError:
        return None, largest
    return lambda frame: fitted.predict(N=frame["N"].to_numpy(), D=frame["D"].to_numpy()), largest


def _laws_of(task: str, domain: str, metric: str, name: str, part: Frame, predicted: Any, largest: float, seed: int) -> Iterator[TaskLaw]:
    held = (part["N"] >= largest * (1 - 1e-9)).to_numpy()
    fitted = (part["role"] != "holdout").to_numpy()
    all_y = part["value"].to_numpy(np.float64)
    y = all_y[fitted]
    if len(y) < FEWEST or y.std() == 0:
        return
    trunks, index = np.unique(part["trunk_id"][fitted], return_inverse=True)
    for form in forms_of(metric):
        all_x = _variable(name, form, part[name].to_numpy(np.float64))
        x = all_x[fitted]
        values = fit_form(form, x, y)
        rng, draws = np.random.default_rng(seed), []
        for _ in range(DRAWS):
            weights = np.bincount(rng.integers(0, len(trunks), len(trunks)), minlength=len(trunks))[index]
            rows = np.repeat(np.arange(len(y)), weights)
            draws.append(fit_form(form, x[rows], y[rows], values))
        residual = y - form.curve(x, *values)
        error = two_step = math.nan
        if held.any() and (~held).sum() >= FEWEST:
            without = fit_form(form, all_x[~held], all_y[~held])
            error = float(np.abs(form.curve(all_x[held], *without) - all_y[held]).mean())
            if predicted is not None and name == "loss":
                two_step = float(np.abs(form.curve(predicted(part[held]), *without) - all_y[held]).mean())
        yield TaskLaw(
            task, domain, metric, name, form, values, np.array(draws), len(y), float(np.sqrt(np.mean(residual**2))),
            float(1 - residual.var() / y.var()), error, two_step, int(held.sum()),
        )  # fmt: skip


def chosen(laws: list[TaskLaw]) -> dict[tuple[str, str, str, str], TaskLaw]:
    """Of each metric and x, the form that errs least on the largest N (by the fit to all runs where that is not known)."""
    best: dict[tuple[str, str, str, str], TaskLaw] = {}
    for one in laws:
        key = (one.task, one.domain, one.metric, one.x)
        if key not in best or _error(one) < _error(best[key]):
            best[key] = one
    return best


def _error(law: TaskLaw) -> float:
    return law.rmse if math.isnan(law.largest_out_error) else law.largest_out_error


def write_task_laws(folder: str | Path, *, law: str = "chinchilla", seed: int = 0) -> list[TaskLaw]:
    """task_laws.csv of a results folder; returns what is in it."""
    laws = task_laws(folder, law=law, seed=seed)
    best = set(map(id, chosen(laws).values()))
    rows = []
    for one in laws:
        low, high = np.quantile(one.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        for at, parameter in enumerate(one.form.parameters):
            rows.append(
                [one.task, one.domain, one.metric, one.x, one.form.name, parameter, one.values[at], low[at], high[at], LEVEL, one.n_runs,
                 one.rmse, one.r2, one.largest_out_error, one.two_step_error, one.largest_out_runs, id(one) in best]
            )  # fmt: skip
    write_table(Path(folder) / "task_laws.csv", pd.DataFrame(rows, columns=COLUMNS))
    return laws
