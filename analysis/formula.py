"""Any formula bound to data, with exact derivatives and starts from a low-discrepancy search.

Parameters in which the formula is jointly linear are read off its second derivatives and solved at every point of the search (variable
projection: Golub & Pereyra 1973).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.expression import Expression, Jet
from analysis.powers import nonnegative
from analysis.sampling import low_discrepancy

Array = np.ndarray
REACH = 1e15  # of parameters that are searched as they stand and have no bound
SAMPLES = 2048  # points of the search of the nonlinear parameters
WIDE = 10.0  # a range from 0 to more than this is searched over four decades, not evenly


@dataclass(frozen=True)
class Parameter:
    """A free parameter of a law.

    Attributes
    ----------
    low, high : float
        Bounds of the published value.
    log : bool
        Whether the search is in the logarithm (coefficients, which span decades) or in the value itself (exponents: with centred or
        logarithmic coefficients a term's valley is straight in its exponent, not in the exponent's logarithm).
    start : (float, float) or str
        Where the search begins; the name of a variable means the range of that variable in the data.
    """

    name: str
    low: float = 0.0
    high: float = np.inf
    start: tuple[float, float] | str = (0.05, 1.5)
    log: bool = True


@dataclass(frozen=True)
class Formula:
    """Any formula, in ``theta``: logarithms of coefficients, exponents as they stand.

    Attributes
    ----------
    columns : dict of str to (n,) array
        Values of the variables.
    """

    expression: Expression
    parameters: tuple[Parameter, ...]
    columns: Mapping[str, Array]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(p.name for p in self.parameters)

    @cached_property
    def lower(self) -> Array:
        """Box of theta."""
        return np.array([max(np.log(p.low) if p.low > 0 else -80.0, -80.0) if p.log else max(p.low, -REACH) for p in self.parameters])

    @cached_property
    def upper(self) -> Array:
        """See `lower`."""
        return np.array([min(np.log(p.high), 150.0) if p.log else min(p.high, REACH) for p in self.parameters])

    @cached_property
    def loose(self) -> Array:
        """See `Model`."""
        return np.array([0.0 if p.low >= 0 else 1.0 for p in self.parameters])

    def _range(self, parameter: Parameter) -> tuple[float, float]:
        if isinstance(parameter.start, str):
            values = self.columns[parameter.start]
            return float(values.min()), float(values.max())
        return parameter.start

    def _inputs(self, theta: Array, *, order: int = 2) -> dict[str, Jet]:
        inputs = {name: Jet(values) for name, values in self.columns.items()}
        for i, parameter in enumerate(self.parameters):
            value = theta[:, i, None]
            if parameter.log:
                value = np.exp(value)
                inputs[parameter.name] = Jet(value, {i: value}, {(i, i): value}) if order else Jet(value)
            else:
                inputs[parameter.name] = Jet(value, {i: np.ones_like(value)}) if order else Jet(value)
        return inputs

    @cached_property
    def size(self) -> int:
        """Number of points."""
        return max((len(v) for v in self.columns.values()), default=1)

    def log_loss(self, theta: Array) -> Array:
        """See `Model`."""
        value = self.expression.jet(self._inputs(theta, order=0)).value
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.log(np.where(value > 0, value, np.nan)), (len(theta), self.size))

    def evaluate(self, theta: Array) -> tuple[Array, Jet]:
        """See `Model`."""
        jet = self.expression.jet(self._inputs(theta))
        shape = (len(theta), self.size)
        with np.errstate(all="ignore"):
            inverse = 1 / np.where(jet.value > 0, jet.value, np.nan)
            first = {i: d * inverse for i, d in jet.first.items()}
            return np.broadcast_to(-np.log(inverse), shape), Jet(inverse, first, {k: d * inverse for k, d in jet.second.items()})

    def contract(self, state: Jet, theta: Array, slope: Array, curve: Array, metric: Array | None) -> tuple[Array, Array, Array]:
        """See `Model`."""
        p = len(self.parameters)
        jacobian = np.zeros((len(theta), p, slope.shape[1]))
        for i, d in state.first.items():
            jacobian[:, i] = d
        gradient = (jacobian @ slope[:, :, None])[:, :, 0]
        # d2 log f = d2 f / f - J J^T
        inner = curve if metric is None else curve - slope
        hessian = (jacobian * inner[:, None, :]) @ jacobian.swapaxes(1, 2)
        if metric is None:
            return gradient, hessian, np.einsum("bii->bi", hessian).copy()
        for (i, j), d in state.second.items():
            total = (slope * d).sum(axis=1)
            hessian[:, i, j] += total
            if i != j:
                hessian[:, j, i] += total
        return gradient, hessian, (jacobian**2 @ metric[:, :, None])[:, :, 0]

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of log loss at one theta (p,): (n, p)."""
        first = self.evaluate(theta[None])[1].first
        columns = [np.broadcast_to(first[i][0], self.size) if i in first else np.zeros(self.size) for i in range(len(theta))]
        return np.stack(columns, axis=1)

    def decode(self, theta: Array) -> dict[str, Any]:
        """Coordinates -> parameters as published; the last axis of `theta` is the parameter."""
        found = {}
        for i, p in enumerate(self.parameters):
            value = np.exp(theta[..., i]) if p.log else theta[..., i]
            found[p.name] = float(value) if theta.ndim == 1 else value
        return found

    def encode(self, params: Mapping[str, float]) -> Array:
        """Parameters as published -> coordinates (p,)."""
        values = [np.log(max(params[p.name], 1e-300)) if p.log else params[p.name] for p in self.parameters]
        return np.clip(np.array(values, dtype=np.float64), self.lower, self.upper)

    def nothing(self, theta: Array) -> list[str]:
        """Names of parameters that do not move any prediction at the optimum (p,): a coefficient that has gone to 0."""
        state = self.evaluate(theta[None])[1]
        reach = {i: float(np.nanmax(np.abs(d))) for i, d in state.first.items()}
        return [p.name for i, p in enumerate(self.parameters) if p.low >= 0 and reach.get(i, 0.0) < 1e-4]

    def ran_away(self, theta: Array) -> list[str]:
        """Names of parameters at the edge of the search box that are not bounds of the law."""
        edge = (theta <= self.lower + 1e-6) | (theta >= self.upper - 1e-6)
        return [p.name for p, hit in zip(self.parameters, edge, strict=True) if hit]

    @cached_property
    def linear_parameters(self) -> tuple[int, ...]:
        """Positions of parameters in which, jointly, the formula is linear (read off the structure of its second derivatives)."""
        theta = np.full((1, len(self.parameters)), 0.5)
        inputs = {name: Jet(values[:1]) for name, values in self.columns.items()}
        for i, p in enumerate(self.parameters):
            inputs[p.name] = Jet(theta[:, i, None], {i: np.ones((1, 1))})
        curved = set(self.expression.jet(inputs).second)
        chosen: list[int] = []
        for i in range(len(self.parameters)):
            if all((min(i, j), max(i, j)) not in curved for j in [*chosen, i]):
                chosen.append(i)
        return tuple(chosen)

    def starts(self, loss: Array, weight: Array, count: int, delta: float = np.inf) -> tuple[Array, Array]:
        """Best points of a low-discrepancy sample of the nonlinear parameters, the linear ones solved at each: (s, p), and ones (s,)."""
        del delta
        linear = list(self.linear_parameters)
        curved = [i for i in range(len(self.parameters)) if i not in linear]
        sample = low_discrepancy(SAMPLES, len(curved)) if curved else np.zeros((1, 1))
        values = np.ones((len(sample), len(self.parameters)))
        for column, i in enumerate(curved):
            low, high = self._range(self.parameters[i])
            share = sample[:, column]
            if low == 0 and high > WIDE:
                low = 1e-4 * high
            values[:, i] = low * (high / low) ** share if low > 0 else low + (high - low) * share
            if low < 0 < high:
                # A law is mostly written so that its exponents are above 0: half of the search looks there alone.
                values[::2, i] = 0.05 * (1.5 * max(high, 0.1) / 0.05) ** share[::2]
        inputs = {name: Jet(v) for name, v in self.columns.items()}
        for i, p in enumerate(self.parameters):
            inputs[p.name] = Jet(values[:, i, None], {i: np.ones((len(values), 1))} if i in linear else {})
        jet = self.expression.jet(inputs)
        shape = (len(values), self.size)
        predicted = np.broadcast_to(jet.value, shape)
        with np.errstate(all="ignore"):
            if linear:
                design = np.stack([np.broadcast_to(jet.first[i], shape) if i in jet.first else np.zeros(shape) for i in linear], axis=2)
                rest = loss - (predicted - design.sum(axis=2))
                values[:, linear] = self._solve_linear(design, rest, weight, linear)
                predicted = loss - rest + (design * values[:, None, linear]).sum(axis=2)
            error = ((predicted - loss) ** 2 * weight).sum(axis=1)
        error = np.where(np.isfinite(error) & (predicted > 0).all(axis=1), error, np.inf)
        order = np.argsort(error, kind="stable")
        order = order[np.isfinite(error[order])]
        picked: list[int] = []
        for i in order:
            if all((np.abs(sample[i] - sample[j]) > 0.05).any() for j in picked):
                picked.append(int(i))
            if len(picked) == count:
                break
        theta = [self.encode(dict(zip(self.names, values[i], strict=True))) for i in picked]
        return np.array(theta).reshape(-1, len(self.parameters)), np.ones(len(picked))

    def _solve_linear(self, design: Array, rest: Array, weight: Array, linear: Sequence[int]) -> Array:
        """Weighted least squares of the linear parameters at every sample; positive ones are not allowed below 0."""
        scaled = design * np.sqrt(weight)[:, None]
        gram = scaled.swapaxes(1, 2) @ scaled
        right = (scaled * (rest * np.sqrt(weight))[:, :, None]).sum(axis=1)
        broken = ~(np.isfinite(gram).all(axis=(1, 2)) & np.isfinite(right).all(axis=1))
        gram[broken], right[broken] = np.eye(len(linear)), np.nan
        size = np.sqrt(np.maximum(np.einsum("bii->bi", gram), 1e-300))
        gram, right = gram / (size[:, :, None] * size[:, None, :]), right / size
        positive = np.array([self.parameters[i].low >= 0 for i in linear])
        if positive.all() and len(linear) <= 3:
            solved = nonnegative(gram, right)[1]
        else:
            solved = np.linalg.solve(gram + 1e-12 * np.eye(len(linear)), right[:, :, None])[:, :, 0]
        tiny = 1e-3 * np.abs(solved).max(axis=1, keepdims=True)
        return np.where(positive, np.maximum(solved, tiny), solved) / size
