"""Laws as the report page carries them: formula, draws and all that its sliders need to give the numbers of `scaling predict | optimal`."""

from __future__ import annotations

import ast
import base64
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from analysis import model_error
from analysis.budget import LOG_RATIOS, at_optimum
from analysis.critical import critical_compute
from analysis.errors import UserError
from analysis.noise import SD_FLOOR
from analysis.powers import power_sum

if TYPE_CHECKING:
    from analysis.expression import Expression
    from analysis.fitting import Fit
    from analysis.laws import Law

Tree = Any  # a number, a name, or [operator, tree, ...]
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "^"}
FUNCTIONS = ("exp", "log", "sqrt", "min", "max")  # what page/law.js knows
MOST_DRAWS = 4000  # of a law on the page; more are thinned evenly
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05)  # of the loss that one more doubling of compute must buy


def law_record(fit: Fit) -> dict[str, Any] | None:
    """Return a fit as page/law.js reads it; None for laws in columns of the runs, or with a function that the page does not know.

    Draws are little-endian float64 in base64, so that no digit is lost.
    """
    formula = formula_tree(fit.law.expression)
    if formula is None or set(fit.law.variables) - {"N", "D", "C", "U"}:
        return None
    count = 0 if fit.draws is None else len(fit.draws)
    rows = np.linspace(0, count - 1, min(count, MOST_DRAWS)).astype(int)
    draws = None if fit.draws is None else {name: packed(fit.draws[name].to_numpy()[rows]) for name in fit.law.parameters}
    record = {
        "key": f"{fit.law.name}|{fit.n_column}",
        "name": fit.law.name,
        "formula": fit.law.formula,
        "n_column": fit.n_column,
        "variables": list(fit.law.variables),
        "parameters": list(fit.law.parameters),
        "params": fit.params,
        "status": fit.status,
        "tree": formula,
        "level": fit.ci_level,
        "draws": draws,
        "thinned": count > MOST_DRAWS,
        "range": {name: [float(values.min()), float(values.max())] for name, values in _ranges(fit).items()},
    }
    if {"N", "D"} <= set(fit.law.variables):
        # The standard normal numbers that `Fit.interval(noise=True)` multiplies the noise with.
        z = None if fit.draws is None else packed(np.random.default_rng(20240101).standard_normal(count)[rows])
        record |= {"z": z, "noise": _noise(fit), "model": _model(fit), "split": _split(fit.law), "logRatios": LOG_RATIOS.tolist()}
        record["critical"] = [_critical(fit, share) for share in SHARES]
    return record


def formula_tree(expression: Expression) -> list[list[Any]] | None:
    """Return a formula as [name, tree] pairs, the loss last under ""; None where it holds a function that the page does not know."""
    try:
        return [[name, _tree(node)] for name, node in expression.body]
    except KeyError:
        return None


def packed(values: np.ndarray) -> str:
    """Encode numbers as little-endian float64 in base64."""
    return base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode("ascii")


def _tree(node: ast.expr) -> Tree:
    if isinstance(node, ast.Constant):
        return float(node.value)  # pyright: ignore[reportArgumentType]
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.UnaryOp):
        return ["neg", _tree(node.operand)] if isinstance(node.op, ast.USub) else _tree(node.operand)
    if isinstance(node, ast.BinOp):
        return [OPERATORS[type(node.op)], _tree(node.left), _tree(node.right)]
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if node.func.id not in FUNCTIONS:
        raise KeyError(node.func.id)
    return [node.func.id, *(_tree(argument) for argument in node.args)]


def _ranges(fit: Fit) -> dict[str, Any]:
    frame = fit.frame
    return {"N": frame["N"], "D": frame["D"], "C": 6.0 * frame["N"] * frame["D"], "recorded": frame["C"], "loss": frame["loss"]}


def _split(law: Law) -> dict[str, Any]:
    """Return the law that has the same optimum at one epoch: its formula, and the names in it where it is a sum of powers."""
    same = at_optimum(law, None)
    form = power_sum(same.expression)
    powers = None
    if form is not None and set(form[0]) == {"N", "D"}:
        variables, (floor, *rest), exponent_of = form
        powers = {v: [rest[i], rest[len(variables) + exponent_of[i]]] for i, v in enumerate(variables)} | {"floor": floor}
    return {"tree": formula_tree(same.expression), "powers": powers}


def _critical(fit: Fit, share: float) -> dict[str, Any]:
    """Compute from which one more doubling buys less than a share of the loss, with its interval (as critical.csv at 1 %)."""
    found = next((point for point in critical_compute(fit, share=share) if point.share == share), None)
    values = {} if found is None else {"value": found.value, "low": found.ci_low, "high": found.ci_high, "without": found.draws_without}
    return {"share": share} | {name: plain(values.get(name)) for name in ("value", "low", "high", "without")}


def _noise(fit: Fit) -> dict[str, Any]:
    names = ("log_sd", "slope_n", "slope_d", "log_n", "log_d", "misfit_sd")
    noise = fit.noise
    followed_n, followed_d = (limits.tolist() for limits in noise.followed)
    return {name: float(getattr(noise, name)) for name in names} | {"followed_n": followed_n, "followed_d": followed_d, "floor": SD_FLOOR}


def _model(fit: Fit) -> dict[str, Any] | None:
    """Return what `model_error.Extrapolation.interval` uses; None where the runs are too few."""
    try:
        found = model_error.learn_extrapolation(fit.frame["N"], fit.frame["D"], fit.frame["loss"])
    except UserError:
        return None
    law, process = found.law, found.process
    return {
        "theta": law.theta.tolist(), "center": law.center.tolist(), "sd": law.sd, "covariance": law.covariance.tolist(),
        "at": process.at.tolist(), "weights": process.weights.tolist(), "length": process.length, "scales": list(process.scales),
        "across": model_error.ACROSS, "offset": found.compute_offset, "dearest": float(found.runs.c.max()), "best": found.best,
        "improvement": model_error.IMPROVEMENT, "tau2": found.origins.tau2, "origins": model_error.ORIGIN_SHARE * found.origins.r2,
        "width": model_error.WIDTH * float(ndtri((1 + fit.ci_level) / 2) / ndtri(0.975)),
    }  # fmt: skip


def plain(value: Any) -> Any:
    """Return a value of a table as JSON knows it: numbers, texts, truth; None where nothing is known or a number is not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str) else None
