"""The language of formulas: exact derivatives against closed forms and finite differences, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from analysis.errors import UserError
from analysis.expression import MAX_LENGTH, Expression, Jet, parse

Array = np.ndarray
X, Y = np.array([0.7, 1.3, 2.9]), np.array([1.1, 0.4, 2.2])


def derived(expression: Expression, values: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Value (n,), gradient (p, n) and Hessian (p, p, n) in all names, in the order of the formula."""
    names = expression.names
    n = np.broadcast_shapes(*(np.shape(v) for v in values.values()))
    jet = expression.jet({name: Jet(np.asarray(values[name], dtype=float), {i: np.ones(n)}) for i, name in enumerate(names)})
    gradient, hessian = np.zeros((len(names), *n)), np.zeros((len(names), len(names), *n))
    for i, d in jet.first.items():
        gradient[i] = d
    for (i, j), d in jet.second.items():
        assert i <= j
        hessian[i, j] = hessian[j, i] = d
    return np.broadcast_to(jet.value, n), gradient, hessian


# --- closed forms, written by hand: value, d/dx, d/dy, d2/dx2, d2/dxdy, d2/dy2

ZERO = np.zeros(3)
CLOSED: dict[str, tuple] = {
    "x + y": (X + Y, 1 + ZERO, 1 + ZERO, ZERO, ZERO, ZERO),
    "x - y": (X - Y, 1 + ZERO, -1 + ZERO, ZERO, ZERO, ZERO),
    "x * y": (X * Y, Y, X, ZERO, 1 + ZERO, ZERO),
    "x / y": (X / Y, 1 / Y, -X / Y**2, ZERO, -1 / Y**2, 2 * X / Y**3),
    "x ** y": (
        X**Y, Y * X ** (Y - 1), X**Y * np.log(X), Y * (Y - 1) * X ** (Y - 2), X ** (Y - 1) * (1 + Y * np.log(X)), X**Y * np.log(X) ** 2
    ),
    "x^3*y": (X**3 * Y, 3 * X**2 * Y, X**3, 6 * X * Y, 3 * X**2, ZERO),
    "-x + +y": (Y - X, -1 + ZERO, 1 + ZERO, ZERO, ZERO, ZERO),
    "exp(x)*y": (np.exp(X) * Y, np.exp(X) * Y, np.exp(X), np.exp(X) * Y, np.exp(X), ZERO),
    "log(x) - y*0": (np.log(X), 1 / X, ZERO, -1 / X**2, ZERO, ZERO),
    "sqrt(x)*y": (np.sqrt(X) * Y, Y / (2 * np.sqrt(X)), np.sqrt(X), -Y / (4 * X**1.5), 1 / (2 * np.sqrt(X)), ZERO),
    "min(x, y)": (np.minimum(X, Y), 1.0 * (X <= Y), 1.0 * (X > Y), ZERO, ZERO, ZERO),
    "max(x, y)": (np.maximum(X, Y), 1.0 * (X >= Y), 1.0 * (X < Y), ZERO, ZERO, ZERO),
    "exp(-x*y)": (np.exp(-X * Y), -Y * np.exp(-X * Y), -X * np.exp(-X * Y), Y**2 * np.exp(-X * Y), (X * Y - 1) * np.exp(-X * Y), X**2 * np.exp(-X * Y)),
    "log(x + y)": (np.log(X + Y), 1 / (X + Y), 1 / (X + Y), -1 / (X + Y) ** 2, -1 / (X + Y) ** 2, -1 / (X + Y) ** 2),
    "2^x + y^2/2": (2**X + Y**2 / 2, 2**X * np.log(2), Y, 2**X * np.log(2) ** 2, ZERO, 1 + ZERO),
}  # fmt: skip


@pytest.mark.parametrize("text", CLOSED)
def test_derivatives_in_closed_form(text: str) -> None:
    value, gradient, hessian = derived(parse(text), {"x": X, "y": Y})
    expected = CLOSED[text]
    found = (value, gradient[0], gradient[1], hessian[0, 0], hessian[0, 1], hessian[1, 1])
    for ours, known in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, known, rtol=1e-12, atol=1e-14)


def check_against_differences(text: str, values: dict[str, Array], tolerance: float = 1e-6) -> None:
    """Gradient against differences of the value, Hessian against differences of the gradient (fourth order)."""
    expression = parse(text)
    value, gradient, hessian = derived(expression, values)
    np.testing.assert_allclose(value, expression.value(values), rtol=1e-13)
    size = max(float(np.abs(part).max()) for part in (value, gradient, hessian))
    for i, name in enumerate(expression.names):
        step = 1e-4 * (1 + np.abs(values[name]))
        moved = [derived(expression, {**values, name: values[name] + k * step}) for k in (-2, -1, 1, 2)]
        for part, exact in ((0, gradient[i]), (1, hessian[i])):
            low2, low, high, high2 = (m[part] for m in moved)
            np.testing.assert_allclose((low2 - 8 * low + 8 * high - high2) / (12 * step), exact, rtol=tolerance, atol=tolerance * size)


NESTED = (
    "E + A/N^alpha + B/D^beta",
    "E + (A/N^alpha + B/D^beta)^k",
    "((N_c/N)^(alpha/beta) + D_c/D)^beta",
    "E + b/N^c0 * (1 + (N/d1)^(1/f1))^(-c1*f1)",
    "exp(a3*N^gamma + b3) + exp(a2*N^beta + b2) * D^(-exp(a1*N^alpha + b1))",
    "G = (alpha*A/(beta*B))^(1/(alpha+beta)); U = min(D, (N*G)^(beta/alpha)*G); E + A/(U + U*R*(1 - exp(-(N/U - 1)/R)))^alpha",
    "E + (F - E)/(1 + exp(-m4root(log(A) - c*log(N) + (a-1)*log(F - E), a)))",
    "sqrt(exp(x*y) + log(1 + x^2)) / max(x^y, 1 + x*y/9)",
)


@pytest.mark.parametrize("text", NESTED)
def test_derivatives_of_nested_formulas(text: str) -> None:
    rng = np.random.default_rng(4)
    values = {name: rng.uniform(0.3, 1.8, 6) for name in parse(text).names}
    if "F" in values:
        values["F"] += 3
    check_against_differences(text, values)


@given(
    st.recursive(
        st.sampled_from(["x", "y", "z", "2", "0.5"]),
        lambda inner: st.one_of(
            st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*"]), inner),
            st.builds("({} / (1 + ({})^2))".format, inner, inner),
            st.builds("exp(-(({})^2))".format, inner),
            st.builds("log(2 + ({})^2)".format, inner),
            st.builds("sqrt(1 + ({})^2)".format, inner),
            st.builds("(1 + ({})^2) ** (({}) / 4)".format, inner, inner),
        ),
        max_leaves=6,
    )
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_derivatives_of_any_formula(text: str) -> None:
    values = {"x": np.array([0.8, 1.7]), "y": np.array([-0.6, 1.2]), "z": np.array([1.1, -0.3])}
    value, _, hessian = derived(parse(text + " + 0*x*y*z"), values)
    if np.abs(value).max() < 1e4 and np.abs(hessian).max() < 1e3:
        check_against_differences(text + " + 0*x*y*z", values, 1e-5)


@pytest.mark.parametrize(("t", "a"), [(-3.0, 0.4), (0.0, 1.0), (2.0, 0.05), (5.0, 2.5), (-0.5, 0.0)])
def test_m4root_solves_its_equation(t: float, a: float) -> None:
    """log s - a log(1 - s) = t with s = 1 / (1 + exp(-z)); SciPy's root of it."""
    if a == 0 and t >= 0:
        return
    z = float(parse("m4root(t, a)").value({"t": t, "a": a}))
    assert z == pytest.approx(brentq(lambda z: -np.logaddexp(0, -z) + a * np.logaddexp(0, z) - t, -60, 200, xtol=1e-13), abs=1e-10)


def test_shared_and_repeated_names() -> None:
    """x * x is x^2, x / x is 1, and a column (no derivative) stays out of the derivatives."""
    value, gradient, hessian = derived(parse("x*x + x/x"), {"x": X})
    np.testing.assert_allclose([value, gradient[0], hessian[0, 0]], [X**2 + 1, 2 * X, 2 + ZERO], atol=1e-14)
    jet = parse("A*N^alpha").jet(
        {"N": Jet(X), "A": Jet(np.float64(2.0), {0: np.float64(1.0)}), "alpha": Jet(np.float64(-1.0), {1: np.float64(1.0)})}
    )
    np.testing.assert_allclose([jet.value, jet.first[0], jet.first[1]], [2 / X, 1 / X, 2 * np.log(X) / X])
    assert (0, 0) not in jet.second and set(jet.second) == {(0, 1), (1, 1)}


# --- the language


def test_precedence_is_that_of_arithmetic() -> None:
    def number(text: str) -> float:
        return float(parse(text).value({}))

    assert number("2 + 3*4^2/8 - 1") == 7
    assert number("-2^2") == -4 and number("2^-1") == 0.5 and number("2^3^2") == 512 and number("2**3") == number("2^3")
    assert number("(1 + 2)*3") == 9 and number("1e3 + .5") == 1000.5 and number("--3") == 3
    assert number("max(2, 3) + min(2, 3)") == 5 and number("sqrt(16) + log(exp(2))") == 6


def test_parts_with_names() -> None:
    expression = parse("G = a/b; H = G*G; E + H*N")
    assert expression.names == ("a", "b", "E", "N")
    assert float(expression.value({"a": 6, "b": 2, "E": 1, "N": 10})) == 91
    assert parse("x = 2\ny = x + 1\nx*y*z").names == ("z",)
    assert parse("E + A/N^alpha  # a comment").names == ("E", "A", "N", "alpha")


def test_values_broadcast_and_leave_the_domain_quietly() -> None:
    draws, points = np.array([[1.0], [2.0]]), np.array([1.0, 4.0, 16.0])
    assert parse("E + N**-0.5").value({"E": draws, "N": points}) == pytest.approx(draws + points**-0.5)
    assert np.isnan(parse("log(x)").value({"x": -1.0})) and np.isnan(parse("x^0.5").value({"x": -1.0}))
    assert np.isposinf(parse("1/x").value({"x": 0.0}))


REFUSED = (
    "E.__class__", "E.real", "(1).__class__.__bases__", "__import__('os')", "__import__('os').system('true')", "f(E)", "print(E)", "eval(E)", "E()",
    "exp(E)(N)", "exp(E, N)", "min(E)", "exp(x=E)", "exp(*E)", "min(**E)", "[x for x in E]", "{x for x in E}", "{x: 1 for x in E}", "(x for x in E)",
    "[E]", "(E, N)", "{E}", "lambda: E", "lambda x: x + E", "E[0]", "E[0:1]", "'text'", "b'text'", "f'{E}'", "E if N else D", "E < N", "E == N",
    "E and N", "not E", "~E", "E // N", "E % N", "E @ N", "E << 2", "E & N", "(E := 2)", "(yield E)", "await E", "...", "None", "True", "1j", "import os",
    "def f(): pass", "E = 1", "x = y = 2; x", "E += 1; E", "x: float = 2; x", "(x, y) = 1; x", "x.y = 1; x", "x[0] = 1; x", "pass", "del E; E",
    "1; 2", "while E: E", "global E", "", "   ", ";", "# only", "E +", "((E)", "E)", "E!", "E?", "$E", "`E`", "E → N", "E²", "E\0", "1e999", "9" * 400,
    "(" * 300 + "E" + ")" * 300, "-" * 200 + "E", "E" + "+E" * 100, "exp(" * 80 + "E" + ")" * 80,
)  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_everything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text)
    assert "\n" not in str(error.value) and "formula" in str(error.value)


@pytest.mark.parametrize(
    ("text", "part"), [("E + A.b/N", "A.b"), ("E + open(N)", "open(N)"), ("E + A[0]", "A[0]"), ("E + (N < 2)", "N < 2")]
)
def test_the_line_names_the_part(text: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text)
    assert repr(part) in str(error.value) and "use numbers, names" in str(error.value)


def test_length_is_limited() -> None:
    text = "E" + " " * (MAX_LENGTH - 1)
    assert parse(text).names == ("E",)
    with pytest.raises(UserError, match=f"{MAX_LENGTH + 1} characters; at most {MAX_LENGTH}"):
        parse(text + " ")


def test_nothing_is_executed(tmp_path, capsys) -> None:
    """A formula that would write a file or print, were it run."""
    mark = tmp_path / "mark"
    for text in (
        f"open({str(mark)!r}, 'w')",
        "print(1)",
        f"[c for c in ().__class__.__base__.__subclasses__()] + open({str(mark)!r}, 'w')",
    ):
        with pytest.raises(UserError):
            parse(text)
    assert not mark.exists() and capsys.readouterr().out == ""
