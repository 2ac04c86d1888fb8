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
#: Cells an exponent of the grid, by number of exponents and whether the profile is robust (which costs six times as much a cell).
CELLS = {(1, False): 48, (1, True): 48, (2, False): 20, (2, True): 14}


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
    def _monomials(self) -> Array:
        """Products of two of (1, x_1, ..., x_k) at the points, one a pair of `_pairs`: (n, pairs)."""
        factors = [np.ones(len(self.x)), *self.x.T]
        return np.stack([factors[i] * factors[j] for i, j in self._pairs], axis=1)

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """Pairs of terms, the floor being term 0."""
        return [(i, j) for i in range(self.terms + 1) for j in range(i, self.terms + 1)]

    @cached_property
    def _tie(self) -> Array:
        """Map from a coordinate for every term's own exponent to theta: (1 + 2k, p)."""
        k = self.terms
        tie = np.zeros((1 + 2 * k, 1 + k + max(self.exponent_of) + 1))
        tie[: 1 + k, : 1 + k] = np.eye(1 + k)
        tie[1 + k + np.arange(k), 1 + k + np.array(self.exponent_of)] = 1
        return tie

    @cached_property
    def _assembly(self) -> tuple[Array, Array]:
        """Linear maps from sums over points (rows: shares, products of shares, squared shares; each times every monomial).

        To the gradient, the Hessian and the metric's diagonal in theta, side by side; exact, and Gauss-Newton.
        """
        k, pairs, tie = self.terms, self._pairs, self._tie
        full, rows = 1 + 2 * k, (k + 1) + len(pairs) + (k + 1)
        term, factor = [*range(k + 1), *range(1, k + 1)], [0] * (k + 1) + [*range(1, k + 1)]
        sign = np.array([1.0] * (k + 1) + [-1.0] * k)
        of_pair = {pair: at for at, pair in enumerate(pairs)}
        gradient, own, product = np.zeros((rows, len(pairs), full)), *np.zeros((2, rows, len(pairs), full, full))
        diagonal = np.zeros((rows, len(pairs), full))
        for c in range(full):
            gradient[term[c], of_pair[0, factor[c]], c] = sign[c]
            diagonal[k + 1 + len(pairs) + term[c], of_pair[factor[c], factor[c]], c] = 1
            for d in range(full):
                monomial = of_pair[min(factor[c], factor[d]), max(factor[c], factor[d])]
                product[k + 1 + of_pair[min(term[c], term[d]), max(term[c], term[d])], monomial, c, d] = sign[c] * sign[d]
                if term[c] == term[d]:
                    own[term[c], monomial, c, d] = sign[c] * sign[d]
        flat = rows * len(pairs)

        def assemble(hessian: Array) -> Array:
            tied = (tie.T @ hessian @ tie).reshape(flat, -1)
            return np.concatenate([gradient.reshape(flat, full) @ tie, tied, diagonal.reshape(flat, full) @ tie], axis=1)

        return assemble(own + product), assemble(product)

    def _parts(self, theta: Array) -> tuple[Array, Array]:
        """Each term over the floor (the first, the floor's own, is left empty): (1 + k, problems, n); and the log of their sum."""
        parts = np.empty((self.terms + 1, len(theta), len(self.x)))
        for i, at in enumerate(self.exponent_of):
            part = np.multiply(-theta[:, 1 + self.terms + at, None], self.x[:, i], out=parts[1 + i])
            part += (theta[:, 1 + i] - theta[:, 0])[:, None]
        np.exp(parts[1:], out=parts[1:])
        total = parts[1] + 1.0
        for part in parts[2:]:
            total += part
        return parts, total

    def log_loss(self, theta: Array) -> Array:
        """See `Model`."""
        return np.log(self._parts(theta)[1]) + theta[:, :1]

    def evaluate(self, theta: Array) -> tuple[Array, Array]:
        """See `Model`; the state is each term's share of the loss, the floor's first: (1 + k, problems, n)."""
        parts, total = self._parts(theta)
        np.divide(1.0, total, out=parts[0])
        parts[1:] *= parts[0]
        f = np.log(total, out=total)
        f += theta[:, :1]
        return f, parts

    def contract(self, state: Array, theta: Array, slope: Array, curve: Array, metric: Array | None) -> tuple[Array, Array, Array]:
        """See `Model`: d2f = sum_i share_i z'_i z'_i^T - J J^T, so that everything is a sum of shares times monomials of x."""
        k, p, pairs = self.terms, theta.shape[1], self._pairs
        exact, gauss = self._assembly
        used = (k + 1) + len(pairs) + (0 if metric is None else k + 1)
        block = np.empty((used, *slope.shape))
        np.multiply(state, slope, out=block[: k + 1])
        weighted = state * (curve if metric is None else curve - slope)
        for at, (i, j) in enumerate(pairs, start=k + 1):
            np.multiply(weighted[i], state[j], out=block[at])
        if metric is not None:
            square = np.multiply(state, state, out=block[k + 1 + len(pairs) :])
            square *= metric
        sums = (block.reshape(-1, slope.shape[1]) @ self._monomials).reshape(used, len(theta), len(pairs))
        sums = np.moveaxis(sums, 1, 0).reshape(len(theta), -1)
        found = sums @ (gauss if metric is None else exact)[: sums.shape[1]]
        hessian = found[:, p : p + p * p].reshape(-1, p, p)
        diagonal = np.einsum("bii->bi", hessian).copy() if metric is None else found[:, p + p * p :]
        return found[:, :p], hessian, diagonal

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of log loss at one theta (p,): (n, p)."""
        shares = self.evaluate(theta[None])[1]
        columns = [*shares, *(-share * self.x[:, i] for i, share in enumerate(shares[1:]))]
        return np.stack([c[0] for c in columns], axis=1) @ self._tie

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
        inside = np.asarray(np.ravel_multi_index(np.add(np.indices(shape).reshape(m, -1), 1), np.add(shape, 2)))
        lookup = np.zeros(table.size, dtype=int)
        lookup[inside] = np.arange(inside.size)
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
        m, robust = max(self.exponent_of) + 1, np.isfinite(delta)
        grid = np.geomspace(0.03, 2.5, CELLS[m, bool(robust)])
        powers = [np.exp(-np.outer(grid, self.x[:, i])) for i in range(self.terms)]
        gram, right = self._moments(powers, loss, weight, len(grid), m)
        error, coefficients = nonnegative(gram, right)
        if not robust:
            return grid, error + float(weight @ (loss * loss)), coefficients
        at = np.indices((len(grid),) * m).reshape(m, -1)
        columns = [powers[i][at[e]] for i, e in enumerate(self.exponent_of)]
        size = np.sqrt(weight)
        bent, moment = np.empty((2, len(error), len(loss)))
        for step in range(REWEIGHTED + 1):
            r = np.multiply(columns[0], coefficients[:, 1, None], out=bent)
            for i, column in enumerate(columns[1:], start=2):
                r += np.multiply(column, coefficients[:, i, None], out=moment)
            r += coefficients[:, :1] - loss
            r *= size
            a = np.abs(r, out=bent)
            if step == REWEIGHTED:
                low = np.minimum(a, delta, out=moment)
                return grid, np.einsum("bn,bn->b", low, a) - 0.5 * np.einsum("bn,bn->b", low, low), coefficients
            w = np.divide(delta, np.maximum(a, delta, out=bent), out=bent)
            w *= weight
            gram[:, 0, 0], right[:, 0] = w.sum(axis=1), w @ loss
            for i, first in enumerate(columns, start=1):
                np.multiply(w, first, out=moment)
                gram[:, 0, i] = gram[:, i, 0] = moment.sum(axis=1)
                right[:, i] = moment @ loss
                for j in range(i, len(columns) + 1):
                    gram[:, i, j] = gram[:, j, i] = np.einsum("bn,bn->b", moment, columns[j - 1])
            coefficients = nonnegative(gram, right)[1]
        raise AssertionError

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
    """Minimise ``c G c - 2 c r`` over c >= 0, batched, by every subset of up to three columns: (b, m, m), (b, m) -> (b,), (b, m).

    Where a system is not finite the minimum is infinite, and c is 0.
    """
    m = right.shape[1]
    coefficients = np.zeros((m, len(right)))
    g, r = np.ascontiguousarray(gram.transpose(1, 2, 0)), np.ascontiguousarray(right.T)
    with np.errstate(all="ignore"):
        error = np.where(np.isfinite(r.sum(axis=0) + g.sum(axis=(0, 1))), 0.0, np.inf)
        todo: Any = slice(None)  # all; after the whole set of columns, those where its minimum is not allowed
        for size in range(m, 0, -1):
            for subset in combinations(range(m), size):
                wanted = [r[i, todo] for i in subset]
                solved = _eliminate([[g[i, j, todo] for j in subset] for i in subset], wanted)
                rest = -np.sum([c * w for c, w in zip(solved, wanted, strict=True)], axis=0)
                better = (np.array(solved) >= 0).all(axis=0) & (rest < error[todo])
                rows = np.arange(len(right))[todo][better]
                error[rows] = rest[better]
                coefficients[:, rows] = 0.0
                for i, c in zip(subset, solved, strict=True):
                    coefficients[i, rows] = c[better]
            if size == m:
                todo = np.flatnonzero(error == 0)  # elsewhere the unconstrained minimum is allowed, and nothing beats it
    return error, coefficients.T


def _eliminate(gram: list[list[Array]], right: list[Array]) -> list[Array]:
    """Solve symmetric positive definite systems by elimination over the whole batch: m x m and m arrays (b,) -> m arrays (b,)."""
    if len(right) == 1:
        return [right[0] / gram[0][0]]
    inverse = 1 / gram[0][0]
    ratios = [row[0] * inverse for row in gram[1:]]
    inner = [[v - ratio * top for v, top in zip(row[1:], gram[0][1:], strict=True)] for row, ratio in zip(gram[1:], ratios, strict=True)]
    last = _eliminate(inner, [v - ratio * right[0] for v, ratio in zip(right[1:], ratios, strict=True)])
    return [(right[0] - sum(top * c for top, c in zip(gram[0][1:], last, strict=True))) * inverse, *last]


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
