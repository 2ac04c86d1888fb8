"""The registry of law forms: formula, parameters with bounds, source and where the search begins; and laws that users write."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from analysis.errors import UserError
from analysis.expression import Expression, names_in_exponents, parse, short
from analysis.formula import Formula, Parameter
from analysis.frames import Frame
from analysis.powers import PowerSum, power_sum

MOST_PARAMETERS = 30  # of a user's law: second derivatives grow as their square
VARIABLES = ("N", "D", "C", "U")  # parameters, tokens seen, training FLOPs, unique tokens
Seeds = Callable[[Mapping[str, float], Frame], list[dict[str, float]]]


@dataclass(frozen=True)
class Law:
    """A law of the loss (nats per token).

    Attributes
    ----------
    formula : str
        What is evaluated; ``^`` is a power. Variables: N (parameters), D (tokens), C (training FLOPs), U (unique tokens), or columns.
    free : tuple of Parameter
        Its parameters with bounds and start ranges, in the order in which they are reported.
    columns : tuple of str
        Names in the formula that are columns of the runs besides N, D, C, U.
    simpler : str
        A law whose fit seeds this one's search, by `seeds`; "" when the search needs none.
    """

    name: str
    formula: str
    free: tuple[Parameter, ...]
    source: str
    columns: tuple[str, ...] = ()
    simpler: str = ""
    seeds: Seeds | None = None

    @cached_property
    def expression(self) -> Expression:
        """The parsed formula."""
        return parse(self.formula)

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """Names of the law's variables, in the order in which the formula names them."""
        return tuple(name for name in self.expression.names if name in VARIABLES or name in self.columns)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the law's parameters."""
        return tuple(p.name for p in self.free)

    @property
    def subset(self) -> str:
        """Which runs the law is fitted on, in words."""
        slices = {
            "N": "the runs at the longest D",
            "D": "the runs of the largest N",
            "C": "the compute frontier: lower hull of the cells' mean loss over compute (laws that bend: all undominated), all seeds",
        }
        return slices.get(self.variables[0], "all usable runs") if len(self.variables) == 1 else "all usable runs"

    def bind(self, frame: Frame) -> PowerSum | Formula:
        """Return the law at the points of `frame` (columns: the law's variables, loss), in the solver's coordinates."""
        columns = {name: frame[name].to_numpy(dtype=np.float64) for name in self.variables}
        form = power_sum(self.expression)
        if form is None or form[1] != self.parameters or any(p.low != 0 or np.isfinite(p.high) for p in self.free):
            return Formula(self.expression, self.free, columns or {"loss": frame["loss"].to_numpy(dtype=np.float64)})
        logs = np.log(np.stack([columns[name] for name in form[0]], axis=1))
        loss = np.log(frame["loss"].to_numpy(dtype=np.float64))
        return PowerSum(logs - logs.mean(axis=0), logs.mean(axis=0), float(loss.min()), float(loss.max()), form[2], self.parameters)

    def predict(self, params: Mapping[str, Any], /, **variables: Any) -> np.ndarray:
        """Loss at the given N, D, C, U or columns, nats per token.

        Parameters
        ----------
        params : mapping of str to float or array
            One value, or an array of draws, for each of `parameters`.
        **variables : float or array
            Those that are no variable of the law are ignored. Parameters and variables broadcast together.

        Raises
        ------
        ValueError
            When a variable of the law is not given.

        Examples
        --------
        >>> float(get_law("power-n").predict({"E": 1.0, "A": 8.0, "alpha": 0.5}, N=16.0))
        3.0
        """
        for name in self.variables:
            if variables.get(name) is None:
                raise ValueError(f"law {self.name}: {name} is missing; its variables are {', '.join(self.variables)}")
        values = {**{name: variables[name] for name in self.variables}, **{name: params[name] for name in self.parameters}}
        shape = np.broadcast_shapes(*(np.shape(value) for value in values.values()), *(np.shape(v) for v in variables.values()))
        return np.broadcast_to(self.expression.value(values), shape).copy()


def _positive(**starts: tuple[float, float] | str) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, start=start) for name, start in starts.items())


def _powers(**starts: tuple[float, float]) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, start=start, log=False) for name, start in starts.items())


def _real(*names: str, reach: float = 1.0) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, -np.inf, np.inf, (-reach, reach), log=False) for name in names)


def _scaled(base: Mapping[str, float], shares: tuple[float, ...]) -> list[dict[str, float]]:
    """Skaling from Chinchilla: at an outer power k every term keeps its own slope."""
    return [
        {
            "E": base["E"], "k": k, "alpha": base["alpha"] / k, "beta": base["beta"] / k,
            "A": max(base["A"], 1e-200) ** (1 / k), "B": max(base["B"], 1e-200) ** (1 / k),
        }
        for k in shares
    ]  # fmt: skip


def _skaling_seeds(base: Mapping[str, float], frame: Frame) -> list[dict[str, float]]:
    del frame
    lower = {**base, "E": 0.7 * base["E"]}
    return [*_scaled(base, (0.3, 0.45, 0.7, 1.0)), *_scaled(lower, (0.35, 0.6, 1.0))]


def _bounded_seeds(base: Mapping[str, float], frame: Frame) -> list[dict[str, float]]:
    """From Chinchilla: both terms as it has them at the runs' geometric centre, under ceilings that make their slopes steeper."""
    n, d, top = *(float(np.exp(np.log(frame[name]).mean())) for name in ("N", "D")), float(frame["loss"].max())
    of_n, of_d = base["A"] * n ** -base["alpha"], base["B"] * d ** -base["beta"]
    found = []
    for ceiling in (1.15 * top, 1.6 * top, 3.0 * top):
        left = max(ceiling - base["E"] - of_n - of_d, 0.1 * top)  # u = (L - E) / (E0 - L)
        for steeper in (1.0, 1.6):
            alpha, beta = steeper * base["alpha"], steeper * base["beta"]
            start = {"E": base["E"], "E0": ceiling, "A": of_n / left * n**alpha, "B": of_d / left * d**beta, "alpha": alpha, "beta": beta}
            found.append({name: max(value, 1e-200) for name, value in start.items()})
    return found


def _kaplan_seeds(base: Mapping[str, float], frame: Frame) -> list[dict[str, float]]:
    """Kaplan's L(N, D): one-variable slopes of the log loss, with N_c and D_c where each term alone would give the loss."""
    del base
    found = []
    n, d, loss = (float(np.exp(np.log(frame[name]).mean())) for name in ("N", "D", "loss"))
    for alpha_n, alpha_d in ((0.076, 0.1), (0.15, 0.2), (0.3, 0.3), (0.1, 0.3), (0.3, 0.1)):
        half = loss / 2**alpha_d
        found.append({"N_c": n * half ** (1 / alpha_n), "D_c": d * half ** (1 / alpha_d), "alpha_N": alpha_n, "alpha_D": alpha_d})
    return found


def _repeat_seeds(base: Mapping[str, float], frame: Frame) -> list[dict[str, float]]:
    del frame
    return [{**base, "R_D": r_d, "R_N": r_n} for r_d in (4.0, 15.0, 60.0) for r_n in (2.0, 8.0)]


def _farseer_seeds(base: Mapping[str, float], frame: Frame) -> list[dict[str, float]]:
    """From Chinchilla: its N term as exp(a3 N^gamma + b3), its D term with a coefficient and an exponent that barely move with N."""
    n = np.log(frame["N"].to_numpy(dtype=np.float64))
    floor = np.log(base["E"] + base["A"] * np.exp(-base["alpha"] * n))
    found = []
    for power in (0.1, 0.2, 0.35):
        slope, level = np.polyfit(np.exp(power * n), floor, 1) if np.ptp(n) > 0 else (0.0, float(floor.mean()))
        for turn in (-1.0, 0.2, 1.0):
            reach = float(np.exp(power * n.mean()))
            found.append(
                {"a3": slope, "gamma": power, "b3": level, "a2": 0.5 * turn / reach, "beta": power, "a1": -0.1 * turn / reach,
                 "b2": float(np.log(max(base["B"], 1e-200))) - 0.5 * turn, "alpha": power, "b1": float(np.log(base["beta"])) + 0.1 * turn}
            )  # fmt: skip
    return found


def _broken_seeds(variable: str) -> Seeds:
    def seeds(base: Mapping[str, float], frame: Frame) -> list[dict[str, float]]:
        x = frame[variable].to_numpy(dtype=np.float64)
        coefficient, exponent = (next(float(v) for k, v in base.items() if k in names) for names in ("ABG", ("alpha", "beta", "gamma")))
        return [
            {"E": share * base["E"], "b": coefficient, "c0": exponent, "c1": c1, "d1": float(np.quantile(x, q)), "f1": f1}
            for share in (1.0, 0.5) for q in (0.25, 0.5, 0.75) for c1 in (0.1, -0.1) for f1 in (0.1, 0.4)
        ]  # fmt: skip

    return seeds


def _m4_seeds(base: Mapping[str, float], frame: Frame) -> list[dict[str, float]]:
    coefficient, exponent = (next(float(v) for k, v in base.items() if k in names) for names in ("ABG", ("alpha", "beta", "gamma")))
    top = float(frame["loss"].max())
    found = []
    for a in (0.05, 0.5, 1.0):
        for e0 in (1.3 * top, 2.5 * top):
            found.append({"E": base["E"], "E0": e0, "A": coefficient / (e0 - base["E"]) ** a, "c": exponent, "a": a})
    return found


_KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.{}"
_SCALE, _EXPONENT = (1e-2, 1e8), (0.05, 1.5)
_ONE = {"N": ("power-n", "A", "alpha"), "D": ("power-d", "B", "beta"), "C": ("power-c", "G", "gamma")}


def _one_variable(variable: str, equation: int) -> list[Law]:
    """Laws in N, in D or in C alone."""
    simple, coefficient, exponent = _ONE[variable]
    critical, slope, low = f"{variable}_c", f"alpha_{variable}", variable.lower()
    floor = _positive(E=(0.5, 3.0))
    kaplan = (*_positive(**{critical: (1e4, 1e35 if variable == "C" else 1e20)}), *_powers(**{slope: (0.02, 1.0)}))
    broken = (
        *floor,
        *_positive(b=_SCALE),
        *_powers(c0=(0.02, 1.0)),
        *_real("c1", reach=0.5),
        *_positive(d1=variable),
        *_powers(f1=(0.05, 1.0)),
    )
    fourth = (*floor, *_positive(E0=(3.0, 20.0), A=_SCALE), *_powers(c=_EXPONENT, a=(0.05, 2.0)))
    return [
        Law(
            simple,
            f"E + {coefficient}/{variable}^{exponent}",
            (*floor, *_positive(**{coefficient: _SCALE}), *_powers(**{exponent: _EXPONENT})),
            "Hestness et al. 2017, arXiv:1712.00409; Henighan et al. 2020, arXiv:2010.14701",
        ),
        Law(f"kaplan-{low}", f"({critical}/{variable})^{slope}", kaplan, _KAPLAN.format(equation)),
        Law(
            f"bnsl-{low}",
            f"E + b/{variable}^c0 * (1 + ({variable}/d1)^(1/f1))^(-c1*f1)",
            broken,
            "Caballero et al. 2022, arXiv:2210.14891, eq. 1 with one break",
            simpler=simple,
            seeds=_broken_seeds(variable),
        ),
        Law(
            f"m4-{low}",
            f"E + (E0 - E)/(1 + exp(-m4root(log(A) - c*log({variable}) + (a-1)*log(E0 - E), a)))",
            fourth,
            "Alabdulmohsin et al. 2022, arXiv:2209.06640, M4: (L - E)/(E0 - L)^a = A/x^c",
            simpler=simple,
            seeds=_m4_seeds,
        ),
    ]


def _several_variables() -> list[Law]:
    terms = _positive(E=(0.5, 3.0), A=_SCALE, B=_SCALE)
    chinchilla = (*terms, *_powers(alpha=_EXPONENT, beta=_EXPONENT))
    a3, b3, a2, b2, a1, b1 = _real("a3", "b3", "a2", "b2", "a1", "b1")
    gamma, beta, alpha = _powers(gamma=(0.05, 0.5), beta=(0.05, 0.5), alpha=(0.05, 0.5))
    return [
        Law("chinchilla", "E + A/N^alpha + B/D^beta", chinchilla, "Hoffmann et al. 2022, arXiv:2203.15556, approach 3"),
        Law(
            "chinchilla-tied",
            "E + A/N^alpha + B/D^alpha",
            chinchilla[:4],
            "Chinchilla with alpha = beta; with D = M N it is Gadre et al. 2024, arXiv:2403.08540, eq. 4",
        ),
        Law(
            "kaplan-nd",
            "((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
            (*_positive(N_c=(1e5, 1e20), D_c=(1e5, 1e20)), *_powers(alpha_N=(0.03, 0.6), alpha_D=(0.03, 0.6))),
            _KAPLAN.format(5),
            seeds=_kaplan_seeds,
        ),
        Law(
            "skaling",
            "E + (A/N^alpha + B/D^beta)^k",
            (*chinchilla, *_powers(k=(0.2, 1.5))),
            "Skaling law (2026): Chinchilla's terms under a common outer power",
            simpler="chinchilla",
            seeds=_skaling_seeds,
        ),
        Law(
            "bounded",
            "u = A/N^alpha + B/D^beta; E + (E0 - E)*u/(1 + u)",
            (*_positive(E=(0.5, 3.0), E0=(3.0, 20.0), A=_SCALE, B=_SCALE), *_powers(alpha=_EXPONENT, beta=_EXPONENT)),
            "M4 (Alabdulmohsin et al. 2022, arXiv:2209.06640) with a = 1 and terms of N and D: (L - E)/(E0 - L) = A/N^alpha + B/D^beta",
            simpler="chinchilla",
            seeds=_bounded_seeds,
        ),
        Law(
            "muennighoff",
            "G = (alpha*A/(beta*B))^(1/(alpha+beta)); UD = min(U, D); UN = min(N, (UD*G)^(beta/alpha)*G);"
            " ND = UN + UN*R_N*(1 - exp(-(N/UN - 1)/R_N)); DD = UD + UD*R_D*(1 - exp(-(D/UD - 1)/R_D)); E + A/ND^alpha + B/DD^beta",
            (*chinchilla, *_positive(R_D=(1.0, 100.0), R_N=(1.0, 100.0))),
            "Muennighoff et al. 2023, arXiv:2305.16264 (data-constrained; U is the number of unique tokens)",
            simpler="chinchilla",
            seeds=_repeat_seeds,
        ),
        Law(
            "farseer",
            "exp(a3*N^gamma + b3) + exp(a2*N^beta + b2) * D^(-exp(a1*N^alpha + b1))",
            (a3, gamma, b3, a2, beta, b2, a1, alpha, b1),
            "Li et al. 2025, Predictable Scale part II: Farseer, arXiv:2506.10972",
            simpler="chinchilla",
            seeds=_farseer_seeds,
        ),
        Law("constant", "E", _positive(E=(0.5, 10.0)), "null model: no law at all"),
        Law("log-linear", "K/(N^a*D^b)", (*_positive(K=_SCALE), *_real("a", "b")), "null model: a power law without a floor"),
    ]


LAWS: Mapping[str, Law] = MappingProxyType(
    {law.name: law for law in (*_one_variable("N", 1), *_one_variable("D", 2), *_one_variable("C", 3), *_several_variables())}
)


def get_law(text: str, columns: Collection[str] = ()) -> Law:
    """Return the law of that name, or the one that a formula describes.

    Parameters
    ----------
    text : str
        A name of `LAWS`; or a formula, optionally with bounds: ``E + A*N**-alpha + B*D**-beta | E > 0, 0 < alpha < 2``.
    columns : collection of str
        Columns of the runs: names in a formula that are N, D, C, U or one of these are variables, all others parameters.

    Raises
    ------
    UserError
        When there is no such law, or the formula is not understood.
    """
    if text in LAWS:
        return LAWS[text]
    if re.fullmatch(r"[\w.-]*", text):
        raise UserError(f"law {short(text)} is unknown; allowed: {', '.join(LAWS)}, or a formula such as 'E + A*N**-alpha + B*D**-beta'")
    formula, _, conditions = text.partition("|")
    expression = parse(formula.strip())
    form = power_sum(expression)
    bounds = _parse_bounds(conditions, text)
    variables = [name for name in expression.names if name in VARIABLES or name in columns]
    names = [name for name in expression.names if name not in variables]
    if form is not None and set(form[0]) == set(variables):
        names = list(form[1])
    if not names:
        raise UserError(f"formula {short(text)} has no free parameter; its names {', '.join(variables)} are all columns")
    if len(names) > MOST_PARAMETERS:
        raise UserError(f"formula {short(text)} has {len(names)} free parameters; at most {MOST_PARAMETERS} are fitted")
    unknown = sorted(set(bounds) - set(names))
    if unknown:
        raise UserError(f"formula {short(text)}: {unknown[0]} has bounds but is no parameter; parameters: {', '.join(names)}")
    exponents = names_in_exponents(expression)
    free = tuple(_guess(name, bounds.get(name), powers=form is not None, exponent=name in exponents) for name in names)
    return Law(text.strip(), formula.strip(), free, "written by the user", tuple(v for v in variables if v not in VARIABLES))


def _guess(name: str, bounds: tuple[float, float] | None, *, powers: bool, exponent: bool) -> Parameter:
    """Bounds and start of a user's parameter: real unless bounds say otherwise (those of a sum of powers are positive).

    Exponents are looked for about 0, everything else (a coefficient, a scale) over ten decades.
    """
    if powers and bounds in (None, (0.0, np.inf)):
        return Parameter(name)
    low, high = bounds or (-np.inf, np.inf)
    if np.isinf(low) and np.isinf(high):
        return Parameter(name, low, high, (-1.0, 1.0) if exponent else _SCALE, log=False)
    if low >= 0 and high == np.inf:
        start = (max(low, 0.02), max(1.5, 10 * low)) if exponent else (max(low, 1e-3), max(1e9, 1e3 * low))
        return Parameter(name, low, high, start, log=not exponent)
    bottom = low if np.isfinite(low) else min(-1.0, high - 1.0)
    top = high if np.isfinite(high) else max(1.0, low + 1.0)
    return Parameter(name, low, high, (bottom, top), log=False)


def _parse_bounds(text: str, law: str) -> dict[str, tuple[float, float]]:
    """``E > 0, 0 < alpha < 2`` -> name to (low, high)."""
    number, name = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", r"[A-Za-z_]\w*"
    found: dict[str, tuple[float, float]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        if match := re.fullmatch(rf"({number})\s*<=?\s*({name})\s*<=?\s*({number})", part):
            key, low, high = match[2], float(match[1]), float(match[3])
        elif match := re.fullmatch(rf"({name})\s*>=?\s*({number})", part):
            key, low, high = match[1], float(match[2]), np.inf
        elif match := re.fullmatch(rf"({name})\s*<=?\s*({number})", part):
            key, low, high = match[1], -np.inf, float(match[2])
        else:
            raise UserError(f"law {law!r}: bound {part!r} is not understood; write E > 0, alpha < 2 or 0 < alpha < 2")
        if low >= high:
            raise UserError(f"law {law!r}: bound {part!r} leaves nothing; the lower bound must be below the upper one")
        found[key] = (low, high)
    return found
