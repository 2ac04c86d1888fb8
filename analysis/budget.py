"""How to split a budget of compute into parameters and tokens, for any law in N and D.

In closed form for sums of powers (Hoffmann et al. 2022, eq. 4); otherwise by a search over tokens per parameter and the root of the
exact derivative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.errors import UserError
from analysis.expression import Jet
from analysis.laws import LAWS, VARIABLES, Law
from analysis.powers import power_sum
from analysis.roots import ridders

Array = np.ndarray
#: The search: logarithms of 1e-6 to 1e12 tokens a parameter. Beyond it a law says nothing that makes sense.
LOG_RATIOS = np.linspace(math.log(1e-6), math.log(1e12), 32)
FLAT = 1e-12  # three points of the search this near (relative) to the best one: the split does not matter
ROWS = 2000  # problems solved together: they and their grids stay in the processor's cache


def power_terms(law: Law, params: Mapping[str, Any]) -> tuple[Array, dict[str, tuple[Array, Array]]] | None:
    """Read a sum of powers: its floor, and coefficient and exponent of each variable; None for other laws."""
    form = power_sum(law.expression)
    if form is None or set(form[0]) != set(law.variables) or set(form[1]) != set(law.parameters):
        return None
    variables, names, exponent_of = form
    floor, *rest = (np.asarray(params[name], dtype=np.float64) for name in names)
    coefficients, exponents = rest[: len(variables)], rest[len(variables) :]
    return floor, {v: (coefficients[i], exponents[exponent_of[i]]) for i, v in enumerate(variables)}


def frontier_power(law: Law, params: Mapping[str, Any], unique_tokens: float | None = None) -> tuple[Array, Array, Array] | None:
    """E, K and gamma of ``L = E + K C^-gamma`` along the compute-optimal frontier; None where the law is no sum of powers in N and D."""
    law = at_optimum(law, unique_tokens)
    terms = power_terms(law, params)
    if terms is None or set(terms[1]) != {"N", "D"}:
        return None
    floor, ((a, alpha), (b, beta)) = terms[0], (terms[1][name] for name in ("N", "D"))
    n, d = split_budget(law, params, 6.0)
    gamma = alpha * beta / (alpha + beta)
    return floor, (a * n**-alpha + b * d**-beta) * 6.0**gamma, gamma


def need_n_and_d(law: Law) -> None:
    """Refuse laws for which a compute-optimal size has no meaning.

    Raises
    ------
    UserError
        When the law is not in N and D, or needs a column besides.
    """
    if {"N", "D"} - set(law.variables):
        found = f"is in {' and '.join(law.variables)} only" if law.variables else "is in no variable"
        raise UserError(f"law {law.name} {found}; compute-optimal sizes need a law in N and D, such as chinchilla")
    need_no_column(law)


def need_no_column(law: Law) -> None:
    """Refuse laws in columns of the runs, whose value a question about N and D leaves open; UserError."""
    extra = [name for name in law.variables if name not in VARIABLES]
    if extra:
        raise UserError(f"law {law.name} also needs {', '.join(extra)}; ask for it in Python: fit.predict(N=..., D=..., {extra[0]}=...)")


def point(n: Any, d: Any, unique_tokens: float | None) -> dict[str, Any]:
    """Return every variable of a law at N and D: C is 6ND; U is D (one epoch) unless unique tokens are given."""
    n, d = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
    return {"N": n, "D": d, "C": 6 * n * d, "U": d if unique_tokens is None else unique_tokens}


def log_slopes(law: Law, params: Mapping[str, Any], n: Array, d: Array, unique_tokens: float | None = None) -> tuple[Array, Array]:
    """Exact ``dL/dlog N`` and ``dL/dlog D``, nats per token."""
    compute = 6 * n * d
    # Only first derivatives are read, so second ones of the inputs are left out.
    inputs = {name: Jet(np.asarray(params[name], dtype=np.float64)) for name in law.parameters}
    inputs |= {"N": Jet(n, {0: n}), "D": Jet(d, {1: d}), "C": Jet(compute, {0: compute, 1: compute})}
    inputs["U"] = inputs["D"] if unique_tokens is None else Jet(np.asarray(unique_tokens, dtype=np.float64))
    first = law.expression.jet(inputs).first
    return first.get(0, np.zeros(())), first.get(1, np.zeros(()))


def split_budget(
    law: Law, params: Mapping[str, Any], flops: Any, *, served: float = 0.0, unique_tokens: float | None = None
) -> tuple[Array, Array]:
    """N and D of least loss under ``6 N D + 2 N served = flops`` (Sardana et al. 2023, arXiv:2401.00448, with `served` tokens).

    Parameters
    ----------
    params : mapping of str to float or array
        Values or draws of the law's parameters; they broadcast with `flops`.
    unique_tokens : float, optional
        U of a data-constrained law; D (one epoch) when not given.

    Returns
    -------
    N, D
        To 1e-10 in their logarithms; NaN where no split within 1e-6 to 1e12 tokens a parameter is better than all splits beside it. Of
        several such, the best; NaN also where the law is flat there.

    Raises
    ------
    UserError
        When the law is not in N and D, or needs a column besides.
    """
    need_n_and_d(law)
    law = at_optimum(law, unique_tokens)
    terms = power_terms(law, params)
    if terms is not None and served == 0:
        return _closed_form(terms[1], np.asarray(flops, dtype=np.float64))
    arrays = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (flops, *(params[name] for name in law.parameters))))
    shape, table = arrays[0].shape, np.stack([array.ravel() for array in arrays])
    parts = [table[:, at : at + ROWS] for at in range(0, table.shape[1], ROWS)]
    log_ratio = np.concatenate([_best_ratio(law, part, served, unique_tokens) for part in parts]) if parts else np.empty(0)
    n, d, _ = _at_ratio(log_ratio.reshape(shape), arrays[0], served)
    return n, d


def at_optimum(law: Law, unique_tokens: float | None) -> Law:
    """Return the law that has the same optimum: at one epoch, N not above the optimum, the data-constrained law is Chinchilla."""
    return LAWS["chinchilla"] if law.name == "muennighoff" and unique_tokens is None else law


def _closed_form(terms: Mapping[str, tuple[Array, Array]], flops: Array) -> tuple[Array, Array]:
    """``N = G (C/6)^(beta/(alpha+beta))``, ``G = (alpha A / (beta B))^(1/(alpha+beta))``."""
    (a, alpha), (b, beta) = terms["N"], terms["D"]
    with np.errstate(all="ignore"):
        n = np.exp((np.log(alpha * a) - np.log(beta * b) + beta * np.log(flops / 6)) / (alpha + beta))
        d = flops / 6 / n
    fine = np.isfinite(n) & np.isfinite(d) & (n > 0) & (d > 0)
    return np.where(fine, n, np.nan), np.where(fine, d, np.nan)


def _at_ratio(log_ratio: Array, flops: Array, served: float) -> tuple[Array, Array, Array]:
    """N, D and ``-dlog N/dlog(D/N)`` at D/N on the budget: the positive root of ``6 (D/N) N^2 + 2 served N = flops``."""
    ratio = np.exp(log_ratio)
    root = np.sqrt(served**2 + 6 * ratio * flops)
    n = flops / (served + root)
    return n, ratio * n, 0.5 - served / (2 * root)


def _best_ratio(law: Law, table: Array, served: float, unique_tokens: float | None) -> Array:
    """Return log D/N of least loss for each column (flops, parameters...) of the table: (1 + p, m) -> (m,)."""
    flops, params = table[0], dict(zip(law.parameters, table[1:], strict=True))
    n, d, _ = _at_ratio(LOG_RATIOS, flops[:, None], served)
    loss = law.predict({name: value[:, None] for name, value in params.items()}, **point(n, d, unique_tokens))
    with np.errstate(invalid="ignore"):
        inner = loss[:, 1:-1]
        dips = np.isfinite(inner) & (inner < loss[:, :-2]) & (inner <= loss[:, 2:])
        value = np.where(dips, inner, np.inf)
        best = value.argmin(axis=1)
        least = value.min(axis=1)
        found = np.isfinite(least) & ((np.abs(loss - least[:, None]) <= FLAT * np.abs(least[:, None])).sum(axis=1) < 3)
    low, high = (np.where(found, LOG_RATIOS[best + i], np.nan) for i in (0, 2))

    def slope(log_ratio: Array) -> Array:
        n, d, share = _at_ratio(log_ratio, flops, served)
        by_n, by_d = log_slopes(law, params, n, d, unique_tokens)
        return (1 - share) * by_d - share * by_n

    return ridders(slope, low, high)
