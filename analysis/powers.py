"""Sums of powers bound to data: the fast model of Chinchilla-type laws, with starts by variable projection.

At fixed exponents such a law is linear in E and the coefficients (Golub & Pereyra 1973; for scaling laws Czech 2026), so that the search
for starts is exhaustive in one or two exponents.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from analysis.expression import Expression

Array = np.ndarray
EXPONENTS = (0.005, 6.0)
FLOOR_SPAN = 9.0  # log E may lie this far below the smallest log loss: E is then 0 for every purpose
COEFFICIENT_SPAN = 14.0
REWEIGHTED = 2  # reweighting steps of the robust profile


@dataclass(frozen=True)
class PowerSum:
    """``L = E + sum_k A_k v_k^-alpha_k`` with ``theta = (log E, log A'_k..., alpha...)`` and centred ``x_k = log v_k - center_k``.

    Centring takes the Hessian's condition number on the Chinchilla points from 1e7 to 1e4.

    Attributes
    ----------
    x : (n, k) centred log variables.
    low, high : float
        Least and greatest log loss: they set the box.
    exponent_of : tuple of int
        Which exponent each term has (a tied law shares one).
    """

    x: Array
    center: Array
    low: float
    high: float
    exponent_of: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def terms(self) -> int:
        """Number of falling powers."""
        return len(self.exponent_of)

    @cached_property
    def lower(self) -> Array:
        """Box, wide enough that only a parameter that runs away meets it."""
        floor, coefficient = self.low - FLOOR_SPAN, self.low - COEFFICIENT_SPAN
        return np.array([floor, *[coefficient] * self.terms, *[EXPONENTS[0]] * (max(self.exponent_of) + 1)])

    @cached_property
    def upper(self) -> Array:
        """See `lower`."""
        return np.array([self.high + 0.5, *[self.high + 8] * self.terms, *[EXPONENTS[1]] * (max(self.exponent_of) + 1)])

    @cached_property
    def loose(self) -> Array:
        """See `Model`: every coordinate is a logarithm or an exponent."""
        return np.zeros(len(self.lower))

    @cached_property
    def _bases(self) -> dict[tuple[int, int], Array]:
        """Monomials of x that the sums over points need, by pair of terms (0 is the floor)."""
        one = np.ones(len(self.x))
        bases = {(0, 0): one[:, None]}
        for i in range(self.terms):
            x = self.x[:, i]
            bases[0, 1 + i] = np.stack([one, x], axis=1)
            bases[1 + i, 1 + i] = np.stack([one, x, x * x], axis=1)
            for j in range(i + 1, self.terms):
                bases[1 + i, 1 + j] = np.stack([one, x, self.x[:, j], x * self.x[:, j]], axis=1)
        return bases

    @cached_property
    def _lower_triangle(self) -> tuple[Array, Array]:
        return np.tril_indices(1 + 2 * self.terms, -1)

    @cached_property
    def _tie(self) -> Array | None:
        """(full coordinates, theta) map of a law that shares an exponent; None when all are separate."""
        if self.exponent_of == tuple(range(self.terms)):
            return None
        k = self.terms
        tie = np.zeros((1 + 2 * k, 1 + k + max(self.exponent_of) + 1))
        tie[: 1 + k, : 1 + k] = np.eye(1 + k)
        for i, at in enumerate(self.exponent_of):
            tie[1 + k + i, 1 + k + at] = 1
        return tie

    def _parts(self, theta: Array) -> tuple[list[Array], Array]:
        """Each term over the floor (the floor's is 1), and the log of their sum."""
        parts: list[Array] = []
        for i, at in enumerate(self.exponent_of):
            z = np.multiply.outer(-theta[:, 1 + self.terms + at], self.x[:, i])
            z += (theta[:, 1 + i] - theta[:, 0])[:, None]
            parts.append(np.exp(z, out=z))
        total = 1.0 + sum(parts)
        return parts, total

    def log_loss(self, theta: Array) -> Array:
        """See `Model`."""
        return np.log(self._parts(theta)[1]) + theta[:, :1]

    def evaluate(self, theta: Array) -> tuple[Array, list[Array]]:
        """See `Model`."""
        parts, total = self._parts(theta)
        inverse = 1.0 / total
        f = np.log(total, out=total)
        f += theta[:, :1]
        for part in parts:
            part *= inverse
        return f, [inverse, *parts]

    def contract(self, state: list[Array], theta: Array, slope: Array, curve: Array, metric: Array | None) -> tuple[Array, Array, Array]:
        """See `Model`."""
        k, p = self.terms, 1 + 2 * self.terms
        # d2f = sum_i share_i z'_i z'_i^T - J J^T
        inner = curve if metric is None else curve - slope
        hessian = np.empty((len(theta), p, p))
        gradient = np.empty((len(theta), p))
        diagonal = np.empty((len(theta), p))
        for i in range(k + 1):
            own = slope * state[i]
            moments = own @ self._bases[i, i]
            gradient[:, i] = moments[:, 0]
            if i:
                gradient[:, k + i] = -moments[:, 1]
            weighted = inner * state[i]
            for j in range(i, k + 1):
                sums = (weighted * state[j]) @ self._bases[i, j]
                if metric is not None and i == j:
                    sums += moments
                hessian[:, i, j] = sums[:, 0]
                if i == j and i:
                    hessian[:, i, k + i], hessian[:, k + i, k + i] = -sums[:, 1], sums[:, 2]
                elif j and not i:
                    hessian[:, 0, k + j] = -sums[:, 1]
                elif j:
                    hessian[:, j, k + i], hessian[:, i, k + j], hessian[:, k + i, k + j] = -sums[:, 1], -sums[:, 2], sums[:, 3]
            if metric is not None:
                square = (metric * state[i] * state[i]) @ self._bases[i, i]
                diagonal[:, i] = square[:, 0]
                if i:
                    diagonal[:, k + i] = square[:, 2]
        row, column = self._lower_triangle
        hessian[:, row, column] = hessian[:, column, row]
        if metric is None:
            diagonal = np.einsum("bii->bi", hessian).copy()
        if self._tie is None:
            return gradient, hessian, diagonal
        return gradient @ self._tie, self._tie.T @ hessian @ self._tie, diagonal @ self._tie

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of log loss at one theta (p,): (n, p)."""
        shares = self.evaluate(theta[None])[1]
        columns = [*shares, *(-share * self.x[:, i] for i, share in enumerate(shares[1:]))]
        jac = np.stack([c[0] for c in columns], axis=1)
        return jac if self._tie is None else jac @ self._tie

    def decode(self, theta: Array) -> dict[str, Any]:
        """Coordinates -> parameters as published; the last axis of `theta` is the parameter."""
        k = self.terms
        values = [np.exp(theta[..., 0])]
        values += [np.exp(theta[..., 1 + i] + theta[..., 1 + k + at] * self.center[i]) for i, at in enumerate(self.exponent_of)]
        values += [theta[..., 1 + k + at] for at in range(max(self.exponent_of) + 1)]
        return {name: float(v) if theta.ndim == 1 else v for name, v in zip(self.names, values, strict=True)}

    def encode(self, params: Mapping[str, float]) -> Array:
        """Parameters as published -> coordinates (p,)."""
        k = self.terms
        values = [float(params[name]) for name in self.names]
        floor = np.log(max(values[0], 1e-300))
        exponents = values[1 + k :]
        logs = [np.log(values[1 + i]) - exponents[at] * self.center[i] for i, at in enumerate(self.exponent_of)]
        return np.array([floor, *logs, *exponents])

    def nothing(self, theta: Array) -> list[str]:
        """Names of parameters that no longer matter at the optimum (p,): E has gone to 0."""
        return [self.names[0]] if theta[0] < self.low - FLOOR_SPAN + 2 else []

    def ran_away(self, theta: Array) -> list[str]:
        """Names of parameters at the edge of the box, E at zero apart."""
        edge = (theta <= self.lower + 1e-6) | (theta >= self.upper - 1e-6)
        edge[0] = theta[0] >= self.upper[0] - 1e-6
        edge[1 + self.terms :] |= theta[1 + self.terms :] < 1.5 * EXPONENTS[0]
        return [name for name, hit in zip(self.names, edge, strict=True) if hit]

    def starts(self, loss: Array, weight: Array, count: int, delta: float = np.inf) -> tuple[Array, Array]:
        """Local minima of the variable-projection profile over all exponents, and how many cells of the grid descend to each.

        Parameters
        ----------
        loss, weight : (n,)
            Losses and their weights in a sum of squares.
        count : int
            At most so many minima, those of the widest basins among the best.
        delta : float
            Beyond it (in units of ``1 / sqrt(weight)``) residuals count linearly (Huber); solved at every cell by reweighting.

        Returns
        -------
        (s, p) theta, (s,) cells
        """
        grid, error, coefficients = self.profile(loss, weight, delta)
        m = max(self.exponent_of) + 1
        shape = (len(grid),) * m
        table = np.pad(error.reshape(shape), 1, constant_values=np.inf)
        around = np.stack([table[tuple(slice(o, o + len(grid)) for o in offset)].ravel() for offset in np.ndindex(*(3,) * m)])
        steps = np.array([np.ravel_multi_index(np.add(offset, 1), np.add(shape, 2)) for offset in np.ndindex(*(3,) * m)])
        inside = np.ravel_multi_index(np.add(np.indices(shape).reshape(m, -1), 1), np.add(shape, 2))
        lookup = np.zeros(table.size, dtype=int)
        lookup[inside] = np.arange(len(inside))
        target = lookup[inside + steps[around.argmin(axis=0)] - steps[len(steps) // 2]]
        for _ in range(int(np.ceil(np.log2(m * len(grid)))) + 1):
            target = target[target]
        cells, basin = np.unique(target, return_counts=True)
        order = np.argsort(error[cells], kind="stable")[:count]
        cells, basin = cells[order], basin[order]
        chosen = coefficients[cells]
        floored = np.log(np.maximum(chosen, 1e-3 * chosen.max(axis=1, keepdims=True)))
        exponents = grid[np.stack(np.unravel_index(cells, shape), axis=1)]
        return np.concatenate([floored, exponents], axis=1), basin.astype(np.float64)

    def profile(self, loss: Array, weight: Array, delta: float = np.inf) -> tuple[Array, Array, Array]:
        """Weighted (robust) error over a grid of exponents, minimised over E and coefficients that are not negative.

        Returns
        -------
        (g,), (g^m,), (g^m, 1 + k)
            Grid, errors in C order, the best E and (centred) coefficients.
        """
        m = max(self.exponent_of) + 1
        grid = np.geomspace(0.03, 2.5, 20 if m == 2 else 48)
        at = np.indices((len(grid),) * m).reshape(m, -1)
        powers = [np.exp(-np.outer(grid, self.x[:, i])) for i in range(self.terms)]
        gram, right = self._moments(powers, loss, weight, len(grid), m)
        error, coefficients = nonnegative(gram, right)
        if not np.isfinite(delta):
            return grid, error + float(weight @ (loss * loss)), coefficients
        columns = [powers[i][at[e]] for i, e in enumerate(self.exponent_of)]
        size = np.sqrt(weight)
        for _ in range(REWEIGHTED):
            r = (coefficients[:, :1] + sum(c * coefficients[:, 1 + i, None] for i, c in enumerate(columns)) - loss) * size
            w = weight * np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))
            design = [w, *(w * c for c in columns)]
            for i, first in enumerate(design):
                right[:, i] = first @ loss
                for j in range(i, len(design)):
                    gram[:, i, j] = first.sum(axis=1) if j == 0 else np.einsum("bn,bn->b", first, columns[j - 1])
                    gram[:, j, i] = gram[:, i, j]
            coefficients = nonnegative(gram, right)[1]
        a = np.abs(coefficients[:, :1] + sum(c * coefficients[:, 1 + i, None] for i, c in enumerate(columns)) - loss) * size
        low = np.minimum(a, delta)
        return grid, (low * (a - 0.5 * low)).sum(axis=1), coefficients

    def _moments(self, powers: list[Array], loss: Array, weight: Array, size: int, m: int) -> tuple[Array, Array]:
        """Normal equations of every cell of the grid, by products of matrices: (size^m, 1 + k, 1 + k), (size^m, 1 + k)."""
        k, shape = self.terms, (size,) * m
        gram, right = np.empty((*shape, k + 1, k + 1)), np.empty((*shape, k + 1))
        gram[..., 0, 0], right[..., 0] = weight.sum(), weight @ loss
        for i, at in enumerate(self.exponent_of):
            along = (slice(None),) + (None,) * (m - 1 - at)
            gram[..., 0, 1 + i] = gram[..., 1 + i, 0] = (powers[i] @ weight)[along]
            gram[..., 1 + i, 1 + i] = ((powers[i] ** 2) @ weight)[along]
            right[..., 1 + i] = (powers[i] @ (weight * loss))[along]
        if k == 2:
            cross = (powers[0] * weight) @ powers[1].T
            gram[..., 1, 2] = gram[..., 2, 1] = cross if m == 2 else np.diagonal(cross)
        return gram.reshape(-1, k + 1, k + 1), right.reshape(-1, k + 1)


def nonnegative(gram: Array, right: Array) -> tuple[Array, Array]:
    """Minimise ``c G c - 2 c r`` over c >= 0, batched, by every subset of up to three columns: (b, m, m), (b, m) -> (b,), (b, m)."""
    m = right.shape[1]
    error, coefficients = np.full(len(right), np.inf), np.zeros_like(right)
    todo = np.arange(len(right))
    for size in range(m, 0, -1):
        for subset in combinations(range(m), size):
            wanted = right[todo][:, subset]
            with np.errstate(all="ignore"):
                solved = _eliminate(gram[todo][:, subset][:, :, subset], wanted)
                rest = -(solved * wanted).sum(axis=1)
                better = (solved >= 0).all(axis=1) & (rest < error[todo])
            rows = todo[better]
            error[rows] = rest[better]
            coefficients[rows] = 0.0
            coefficients[np.ix_(rows, subset)] = solved[better]
        if size == m:
            todo = np.flatnonzero(np.isinf(error))  # elsewhere the unconstrained minimum is allowed, and nothing beats it
    return error, coefficients


def _eliminate(gram: Array, right: Array) -> Array:
    """Solve symmetric positive definite systems by elimination over the whole batch: (b, m, m), (b, m) -> (b, m); m is small."""
    if right.shape[1] == 1:
        return right / gram[:, 0]
    ratio = gram[:, 1:, 0] / gram[:, :1, 0]
    inner = gram[:, 1:, 1:] - ratio[:, :, None] * gram[:, None, 0, 1:]
    last = _eliminate(inner, right[:, 1:] - ratio * right[:, :1])
    return np.concatenate([(right[:, :1] - (gram[:, 0, 1:] * last).sum(axis=1, keepdims=True)) / gram[:, :1, 0], last], axis=1)


def power_sum(expression: Expression) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]] | None:
    """Read ``E + A/N^alpha + ...`` off a formula.

    Returns
    -------
    variables, parameters (E, coefficients, exponents), the exponent that each term has; None when the formula is none.
    """

    def flat(node: ast.expr) -> list[ast.expr]:
        return [*flat(node.left), *flat(node.right)] if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) else [node]

    if len(expression.body) != 1:
        return None
    floor, *terms = flat(expression.body[0][1])
    if not isinstance(floor, ast.Name) or not 1 <= len(terms) <= 2:
        return None
    found = []
    for term in terms:
        match term:
            case ast.BinOp(ast.Name(a), ast.Div(), ast.BinOp(ast.Name(v), ast.Pow(), ast.Name(p))):
                found.append((a, v, p))
            case ast.BinOp(ast.Name(a), ast.Mult(), ast.BinOp(ast.Name(v), ast.Pow(), ast.UnaryOp(ast.USub(), ast.Name(p)))):
                found.append((a, v, p))
            case _:
                return None
    coefficients, variables, exponents = zip(*found, strict=True)
    names = (floor.id, *coefficients, *dict.fromkeys(exponents))
    if len(set(names)) != 1 + len(terms) + len(set(exponents)) or set(names) & set(variables) or len(set(variables)) != len(variables):
        return None
    distinct = list(dict.fromkeys(exponents))
    return variables, names, tuple(distinct.index(e) for e in exponents)
