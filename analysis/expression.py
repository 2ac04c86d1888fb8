"""Formulas of laws: parsed safely, evaluated on arrays, differentiated exactly to second order.

A formula is ordinary arithmetic on numbers, columns and parameters (``E + A/N^alpha + B*D**-beta``); names may be given to parts of it
(``G = A/B; E + G*N**-alpha``). It is parsed with Python's own grammar, of which only arithmetic and a few functions are let through, and it
is never executed as code. Derivatives are propagated forward as sparse jets: value, gradient and Hessian of every node.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from analysis.errors import UserError

Array = np.ndarray
MAX_LENGTH = 2000
ONE_ARGUMENT = ("exp", "log", "sqrt")
TWO_ARGUMENTS = ("min", "max", "m4root")
FUNCTIONS = (*ONE_ARGUMENT, *TWO_ARGUMENTS)
OPERATORS = "+ - * / ^ ( )"


@dataclass(frozen=True)
class Jet:
    """A value with its first and second derivatives in the parameters that it depends on.

    Attributes
    ----------
    first : dict of int to array
    second : dict of (int, int) to array
        Upper triangle (i <= j); a missing key is a derivative that is zero everywhere.
    """

    value: Array
    first: dict[int, Array] = field(default_factory=dict)
    second: dict[tuple[int, int], Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Expression:
    """A parsed formula.

    Attributes
    ----------
    text : str
        As given.
    names : tuple of str
        Free names in the order in which they first appear: parameters and columns.
    """

    text: str
    names: tuple[str, ...]
    body: tuple[tuple[str, ast.expr], ...] = field(repr=False)

    def value(self, values: Mapping[str, Array | float]) -> Array:
        """Evaluate with a value for every name; arrays broadcast. Outside a function's domain the result is NaN."""
        return self.jet({name: Jet(np.asarray(values[name], dtype=np.float64)) for name in self.names}).value

    def jet(self, inputs: Mapping[str, Jet]) -> Jet:
        """Evaluate value and derivatives together, from a jet for every name."""
        known = dict(inputs)
        with np.errstate(all="ignore"):
            for name, node in self.body:
                known[name] = _evaluate(node, known)
        return known[""]


def names_in_exponents(expression: Expression) -> set[str]:
    """Names that stand in an exponent (right of a power, or inside exp) anywhere in the formula."""
    found: set[str] = set()
    for _, part in expression.body:
        for node in ast.walk(part):
            inner: list[ast.expr] = []
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                inner = [node.right]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "exp":
                inner = list(node.args)
            found |= {name.id for top in inner for name in ast.walk(top) if isinstance(name, ast.Name)}
    return found


def short(text: str) -> str:
    """Quote a formula for a message of one line."""
    return repr(text if len(text) <= 100 else f"{text[:97]}...")


def parse(text: str) -> Expression:
    """Parse a formula.

    Raises
    ------
    UserError
        When it is no arithmetic expression; the line names the part that is not understood.
    """
    if len(text) > MAX_LENGTH:
        raise UserError(f"formula of {len(text)} characters; at most {MAX_LENGTH} are allowed")
    try:
        statements = ast.parse(text.strip().replace("^", "**"), mode="exec").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"formula {short(text)} is not understood; write arithmetic such as E + A/N^alpha + B/D^beta") from None
    body: list[tuple[str, ast.expr]] = []
    names: dict[str, None] = {}
    for at, statement in enumerate(statements, start=1):
        last = at == len(statements)
        if last and isinstance(statement, ast.Expr):
            body.append(("", statement.value))
        elif not last and isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and len(statement.targets) == 1:
            body.append((statement.targets[0].id, statement.value))
        else:
            raise UserError(f"formula {short(text)}: allowed are `name = ...;` parts and, last, one expression")
        _check(statement.value, text, names, {name for name, _ in body[:-1]})
    if not body:
        raise UserError("the formula is empty; write arithmetic such as E + A/N^alpha + B/D^beta")
    return Expression(text, tuple(names), tuple(body))


def _check(node: ast.expr, text: str, names: dict[str, None], known: Collection[str], depth: int = 0) -> None:
    """Let arithmetic through and refuse everything else; collect free names."""
    if depth > 60:
        raise UserError(f"formula {short(text)} is nested too deeply")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) < 1e300:  # pyright: ignore[reportArgumentType]
        return
    if isinstance(node, ast.Name):
        if node.id not in known:
            names.setdefault(node.id)
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _check(node.operand, text, names, known, depth + 1)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow):
        _check(node.left, text, names, known, depth + 1)
        return _check(node.right, text, names, known, depth + 1)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        wanted = {**dict.fromkeys(ONE_ARGUMENT, 1), **dict.fromkeys(TWO_ARGUMENTS, 2)}.get(node.func.id)
        if wanted is not None and len(node.args) == wanted:
            for argument in node.args:
                _check(argument, text, names, known, depth + 1)
            return None
    part = ast.unparse(node)
    raise UserError(f"formula {short(text)}: {part!r} is not allowed; use numbers, names, {OPERATORS} and {', '.join(FUNCTIONS)}")


def _evaluate(node: ast.expr, known: Mapping[str, Jet]) -> Jet:
    if isinstance(node, ast.Constant):
        return Jet(np.asarray(node.value, dtype=np.float64))  # pyright: ignore[reportArgumentType]
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.UnaryOp):
        inner = _evaluate(node.operand, known)
        return _linear(inner, -1.0) if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, known), _evaluate(node.right, known)
        return _BINARY[type(node.op)](left, right)
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return _CALLS[node.func.id](*(_evaluate(argument, known) for argument in node.args))


def _linear(u: Jet, factor: Array | float) -> Jet:
    return Jet(u.value * factor, {i: d * factor for i, d in u.first.items()}, {k: d * factor for k, d in u.second.items()})


def _add(u: Jet, v: Jet) -> Jet:
    return Jet(u.value + v.value, _merge(u.first, v.first), _merge(u.second, v.second))


def _merge(a: dict, b: dict) -> dict:
    return {**a, **{key: a[key] + value if key in a else value for key, value in b.items()}}


def _multiply(u: Jet, v: Jet) -> Jet:
    if not v.first:
        return _linear(u, v.value)
    if not u.first:
        return _linear(v, u.value)
    return _two(u, v, u.value * v.value, v.value, u.value, None, np.ones(()), None)


def _power(u: Jet, v: Jet) -> Jet:
    """``u ** v``; a base that holds no parameter may have any exponent, a base that does needs to be above 0 unless v is a number."""
    if v.first:
        return _exp(_multiply(v, _log(u)))
    p = v.value
    if not u.first:
        return Jet(u.value**p)
    return _one(u, u.value**p, p * u.value ** (p - 1), p * (p - 1) * u.value ** (p - 2))


def _exp(u: Jet) -> Jet:
    value = np.exp(u.value)
    return _one(u, value, value, value)


def _log(u: Jet) -> Jet:
    inverse = 1 / u.value
    return _one(u, np.log(u.value), inverse, -inverse * inverse)


def _choose(u: Jet, v: Jet, left: Array) -> Jet:
    pick = lambda a, b: {k: np.where(left, a.get(k, 0.0), b.get(k, 0.0)) for k in {**a, **b}}  # noqa: E731
    return Jet(np.where(left, u.value, v.value), pick(u.first, v.first), pick(u.second, v.second))


def _one(u: Jet, value: Array, slope: Array, curve: Array) -> Jet:
    """Chain rule for a function of one argument."""
    first = {i: slope * d for i, d in u.first.items()}
    second = {k: slope * d for k, d in u.second.items()}
    keys = sorted(u.first)
    for at, i in enumerate(keys):
        bent = curve * u.first[i]
        for j in keys[at:]:
            second[i, j] = second.get((i, j), 0.0) + bent * u.first[j]
    return Jet(value, first, second)


def _two(u: Jet, v: Jet, value: Array, fu: Array, fv: Array, fuu: Array | None, fuv: Array, fvv: Array | None) -> Jet:
    """Chain rule for a function of two arguments; None is a second derivative that is zero."""
    first = _merge({i: fu * d for i, d in u.first.items()}, {i: fv * d for i, d in v.first.items()})
    second = _merge({k: fu * d for k, d in u.second.items()}, {k: fv * d for k, d in v.second.items()})
    keys = sorted({*u.first, *v.first})
    for at, i in enumerate(keys):
        for j in keys[at:]:
            parts = [fuv * u.first[a] * v.first[b] for a, b in ((i, j), (j, i)) if a in u.first and b in v.first]
            parts += [fuu * u.first[i] * u.first[j]] if fuu is not None and i in u.first and j in u.first else []
            parts += [fvv * v.first[i] * v.first[j]] if fvv is not None and i in v.first and j in v.first else []
            if parts:
                second[i, j] = second.get((i, j), 0.0) + sum(parts)
    return Jet(value, first, second)


def _largest(values: Array) -> float:
    """Largest size among the finite values; 0 when there is none."""
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))


def _m4root(u: Jet, v: Jet) -> Jet:
    """``z`` that solves ``log s - a log(1 - s) = t`` with ``s = 1 / (1 + exp(-z))``, t = u, a = v >= 0 (M4, Alabdulmohsin et al. 2022)."""
    t, a = np.broadcast_arrays(u.value, v.value)
    # log s - a log(1 - s) is concave in z below a = 1 and convex above it, between lines of slope 1 and a: from where the nearer line has
    # its root, Newton's steps never pass the solution.
    lines = t, t / np.maximum(a, 1e-12)
    z = np.where(a < 1, np.maximum(*lines), np.minimum(*lines))
    for _ in range(60):
        s = 1 / (1 + np.exp(-z))
        step = (-np.logaddexp(0, -z) + a * np.logaddexp(0, z) - t) / (1 - s + a * s)
        z = z - step
        if _largest(step) < 1e-14 * (1 + _largest(z)):
            break
    s = 1 / (1 + np.exp(-z))
    fz, fzz, fza, fa = 1 - s + a * s, (a - 1) * s * (1 - s), s, np.logaddexp(0, z)
    zt, za = 1 / fz, -fa / fz
    return _two(u, v, z, zt, za, -fzz * zt**3, -(fzz * za + fza) * zt / fz, -(fzz * za**2 + 2 * fza * za) / fz)


_BINARY: Mapping[type, Callable[[Jet, Jet], Jet]] = {
    ast.Add: _add,
    ast.Sub: lambda u, v: _add(u, _linear(v, -1.0)),
    ast.Mult: _multiply,
    ast.Div: lambda u, v: _multiply(u, _power(v, Jet(np.asarray(-1.0)))),
    ast.Pow: _power,
}
_CALLS: Mapping[str, Callable[..., Jet]] = {
    "exp": _exp,
    "log": _log,
    "sqrt": lambda u: _power(u, Jet(np.asarray(0.5))),
    "min": lambda u, v: _choose(u, v, u.value <= v.value),
    "max": lambda u, v: _choose(u, v, u.value >= v.value),
    "m4root": _m4root,
}
