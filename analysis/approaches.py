"""Chinchilla's approaches 1 (envelope) and 2 (IsoFLOP) beside the parametric one, and an alarm when they disagree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.allocation import APPROACHES, LEAST_OPTIMA, NAN, Allocation, allocate
from analysis.errors import UserError
from analysis.frames import Frame
from analysis.isoflop import BUDGET_COLUMNS, bias_warnings
from analysis.runs import N_COLUMNS

#: Differences that matter to nobody: the loss is flat about the optimum.
MATERIAL_EXPONENT, MATERIAL_FACTOR = 0.01, 1.10
#: Without an interval on one side, a factor that no one would put down to noise.
LARGE_FACTOR = 2.0
COLUMNS = (
    "approach a a_low a_high b b_low b_high flops params_opt params_low params_high tokens_opt tokens_low tokens_high"
    " params_opt_10x params_low_10x params_high_10x tokens_opt_10x tokens_low_10x tokens_high_10x n_points ci_level reason"
).split()
FRONTIER_COLUMNS = (
    "approach fit_id law n_column c_column flops params_opt tokens_opt tokens_per_param loss params_ci_low params_ci_high tokens_ci_low"
    " tokens_ci_high loss_ci_low loss_ci_high ci_level gain_per_doubling gain_share beyond_data point"
).split()


@dataclass(frozen=True)
class Parametric:
    """Approach 3 as the caller fitted it: the optimum of a law, counted in the frame's N and C.

    Attributes
    ----------
    optimum : callable
        FLOPs -> (N*, D*).
    interval : callable, optional
        FLOPs -> low and high of N*, low and high of D*.
    """

    optimum: Callable[[float], tuple[float, float]]
    a: float
    b: float
    a_low: float = NAN
    a_high: float = NAN
    b_low: float = NAN
    b_high: float = NAN
    interval: Callable[[float], tuple[float, float, float, float]] | None = None
    n_points: int = 0
    ci_level: float = 0.95


@dataclass(frozen=True)
class Comparison:
    """The approaches side by side.

    Attributes
    ----------
    table : DataFrame
        One row an approach: exponents with intervals, N* and D* at `flops` (the largest compute in the data) and at ten times that,
        n_points, and the reason where something could not be done.
    alarm : str
        What disagrees, in words; empty when all agree.
    warnings : tuple of str
        Biases to expect of the parabola.
    optima : dict of str to DataFrame
        Optima by approach, with percentile intervals `params_ci_low` and so on.
    allocations : dict of str to Allocation
    """

    table: Frame
    alarm: str
    warnings: tuple[str, ...]
    optima: dict[str, Frame]
    allocations: dict[str, Allocation]


def compare_approaches(
    frame: Frame,
    parametric: Parametric | None = None,
    *,
    budget_column: str | None = None,
    draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Put the approaches side by side, and sound an alarm when they disagree.

    Two approaches disagree when their intervals of `a`, or of N* at the largest compute of the data, do not overlap and the difference
    matters (more than .01 in a, 10 % in N*); where intervals were not asked for, when N* differs by more than a factor of 2. An approach
    whose runs are too few for an interval is not judged.

    Parameters
    ----------
    frame : DataFrame
        N, D, C, loss; trunk_id where known.
    parametric : Parametric, optional
        Approach 3 as fitted by the caller.
    budget_column, draws, seed, level
        See `allocate`.
    """
    top = float(frame["C"].max())
    rows, optima, allocations = [], {}, {}
    for approach in APPROACHES:
        try:
            optima[approach], found = allocate(frame, approach=approach, budget_column=budget_column, draws=draws, seed=seed, level=level)
        except UserError as error:
            rows.append({"approach": approach, "flops": top, "n_points": 0, "ci_level": level, "reason": str(error)})
            continue
        allocations[approach] = found
        rows.append(_row(approach, found, top, found.reason if draws else ""))
    if parametric is not None:
        rows.append(_row("parametric", parametric, top, ""))
    table = pd.DataFrame(rows, columns=COLUMNS)
    pair = [optima.get(f"isoflop-{method}") for method in ("parabola", "interpolated")]
    warnings = bias_warnings(*pair) if all(found is not None for found in pair) else ()
    return Comparison(table=table, alarm=_alarm(table), warnings=warnings, optima=optima, allocations=allocations)


def conventions(frame: Frame, *, budget_column: str | None = None) -> Frame:
    """Show how the exponents change with what is counted as N and as C, on the same runs.

    The exponent of N* is .84 or .71 with and without the last layer (Porian et al. 2024), .37, .54 or .70 in nanochat. Counting C as
    6 N D moves runs between budgets, so they are gathered anew.

    Parameters
    ----------
    frame : DataFrame
        N, D, C, loss, and the columns of parameter counts (of the usual names, n_as_counted, and non-embedding + unembedding).
    budget_column : str, optional
        See `isoflop_optima`; used while C is as recorded.

    Returns
    -------
    DataFrame
        One row a convention: n_column, c_column ("as recorded" or "6ND"), approach (interpolated IsoFLOP where it has at least 3 optima,
        else the envelope), a, b, n_points, reason.
    """
    rows = []
    for n_column, n in _counts(frame).items():
        for c_column in ("as recorded", "6ND"):
            table = frame.assign(N=n).dropna(subset=["N"])
            budgets = budget_column
            if c_column == "6ND":
                table = table.assign(C=6 * table["N"] * table["D"])
                table = table.drop(columns=[name for name in (*BUDGET_COLUMNS, budget_column) if name in table])
                budgets = None
            rows.append({"n_column": n_column, "c_column": c_column, **_exponents(table.reset_index(drop=True), budgets)})
    return pd.DataFrame(rows, columns="n_column c_column approach a b n_points reason".split())


def frontier_rows(optima: Frame, *, approach: str, n_column: str, c_column: str, ci_level: float = 0.95) -> Frame:
    """Optima in the column layout of frontier.csv.

    Parameters
    ----------
    optima : DataFrame
        As `isoflop_optima`, `envelope_optima` or `allocate` return them; what is not bracketed is left out.
    approach : str
        "envelope" or "isoflop-METHOD"; `point` is "grid" or "budget" accordingly.
    n_column, c_column : str
        What N and C are.

    Returns
    -------
    DataFrame
        `fit_id` and `law` are empty: no law was fitted. Intervals are NaN where none were drawn.
    """
    used = optima[optima["bracketed"]].reset_index(drop=True)
    table = used.reindex(columns=FRONTIER_COLUMNS)
    return table.assign(
        approach=approach, fit_id="", law="", n_column=n_column, c_column=c_column, ci_level=ci_level, beyond_data=False,
        tokens_per_param=used["tokens_opt"] / used["params_opt"], point="grid" if approach == "envelope" else "budget",
    )  # fmt: skip


def _row(approach: str, found: Allocation | Parametric, top: float, reason: str) -> dict[str, object]:
    row: dict[str, object] = {"approach": approach, "flops": top, "reason": reason}
    row |= {name: getattr(found, name) for name in ("a", "a_low", "a_high", "b", "b_low", "b_high", "n_points", "ci_level")}
    for flops, suffix in ((top, ""), (10 * top, "_10x")):
        row[f"params_opt{suffix}"], row[f"tokens_opt{suffix}"] = found.optimum(flops)
        bands = (NAN,) * 4 if found.interval is None else found.interval(flops)
        row |= dict(zip((f"{name}{suffix}" for name in ("params_low", "params_high", "tokens_low", "tokens_high")), bands, strict=True))
    return row


def _alarm(table: Frame) -> str:
    """Tell which pairs of approaches disagree; rows with a reason (no interval possible) are not judged."""
    found = []
    judged = table[np.isfinite(table["a"].astype(float)) & (table["reason"] == "")]
    for one, two in combinations(judged.to_dict("records"), 2):
        names = f"{one['approach']} and {two['approach']}"
        if abs(one["a"] - two["a"]) > MATERIAL_EXPONENT and _apart(one, two, "a_low", "a_high"):
            found.append(f"{names}: a = {one['a']:.3f} and {two['a']:.3f}, their intervals do not overlap")
        factor = float(np.exp(abs(np.log(one["params_opt"] / two["params_opt"]))))
        if factor > MATERIAL_FACTOR and _apart(one, two, "params_low", "params_high"):
            found.append(f"{names}: N* at {one['flops']:.3g} FLOPs differs by x{factor:.2f}, more than their intervals explain")
        elif factor > LARGE_FACTOR and not np.isfinite([one["params_low"], two["params_low"]]).all():
            found.append(f"{names}: N* at {one['flops']:.3g} FLOPs differs by x{factor:.2f}, and one of them has no interval")
    return "; ".join(found)


def _apart(one: dict[str, float], two: dict[str, float], low: str, high: str) -> bool:
    """Whether both have an interval and these do not overlap."""
    return bool(one[high] < two[low] or two[high] < one[low])


def _counts(frame: Frame) -> dict[str, np.ndarray]:
    """Every count of parameters that the frame holds: name -> values, NaN where missing."""
    names = [name for name in dict.fromkeys((*N_COLUMNS, "n_as_counted", *frame.columns)) if name in frame]
    part = ("params_embedding", "params_unembedding")
    names = [name for name in names if name in (*N_COLUMNS, "n_as_counted") or (str(name).startswith("params_") and name not in part)]
    counts = {name: pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64) for name in names}
    if {"params_non_embedding", "params_unembedding"} <= set(frame.columns):
        head = pd.to_numeric(frame["params_unembedding"], errors="coerce").to_numpy(dtype=np.float64)
        counts["params_non_embedding + params_unembedding"] = counts["params_non_embedding"] + head
    counts = {name: np.where(values > 0, values, np.nan) for name, values in counts.items() if (values > 0).any()}
    named = [values for name, values in counts.items() if name != "N"]
    if any(np.array_equal(values, counts["N"]) for values in named):
        del counts["N"]
    return counts


def _exponents(frame: Frame, budget_column: str | None) -> dict[str, object]:
    """Exponents by the interpolated IsoFLOP optima, else by the envelope."""
    reasons = []
    for approach in ("isoflop-interpolated", "envelope"):
        try:
            _, found = allocate(frame, approach=approach, budget_column=budget_column, draws=0)
        except UserError as error:
            reasons.append(str(error))
            continue
        if found.n_points >= LEAST_OPTIMA:
            return {"approach": approach, "a": found.a, "b": found.b, "n_points": found.n_points, "reason": ""}
        reasons.append(f"{approach}: {found.n_points} optima")
    return {"approach": "", "a": NAN, "b": NAN, "n_points": 0, "reason": "; ".join(reasons)}
