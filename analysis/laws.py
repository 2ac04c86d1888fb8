"""The registry of law forms, and published coefficients as presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from analysis.errors import UserError


@dataclass(frozen=True)
class Term:
    """One falling power of a law: ``coefficient / variable ** exponent``."""

    coefficient: str
    exponent: str
    variable: str


@dataclass(frozen=True)
class Law:
    """A floor and one or two falling powers: ``L = E + sum_k coefficient_k / variable_k ** exponent_k`` (nats per token).

    Attributes
    ----------
    variables : tuple of str
        Among "N" (parameters), "D" (tokens), "C" (training FLOPs).
    parameters : tuple of str
        As published: E, then coefficients, then exponents. All are positive.
    subset : str
        Which runs the law is fitted on, in words.
    """

    name: str
    formula: str
    terms: tuple[Term, ...]
    source: str
    subset: str

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the law's variables, in the order of its terms."""
        return tuple(term.variable for term in self.terms)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the law's parameters: E, coefficients, exponents."""
        return ("E", *(term.coefficient for term in self.terms), *(term.exponent for term in self.terms))

    def predict(self, params: Mapping[str, Any], **variables: Any) -> np.ndarray:
        """Loss at the given N, D or C, nats per token.

        Parameters
        ----------
        params : mapping of str to float or array
            One value, or an array of draws, for each of `parameters`.
        **variables : float or array
            N, D, C; those that are no variable of the law are ignored. Parameters and variables broadcast together.

        Raises
        ------
        ValueError
            When a variable of the law is not given.

        Examples
        --------
        >>> float(get_law("power-n").predict({"E": 1.0, "A": 8.0, "alpha": 0.5}, N=16.0))
        3.0
        """
        loss = np.asarray(params["E"], dtype=np.float64)
        for term in self.terms:
            value = variables.get(term.variable)
            if value is None:
                raise ValueError(f"law {self.name}: {term.variable} is missing; its variables are {', '.join(self.variables)}")
            loss = loss + np.asarray(params[term.coefficient]) * np.asarray(value, dtype=np.float64) ** -np.asarray(params[term.exponent])
        return np.asarray(loss)


@dataclass(frozen=True)
class Preset:
    """Published coefficients of a law, with their source and their convention for N."""

    name: str
    law: Law
    params: Mapping[str, float]
    n_column: str
    source: str

    def predict(self, **variables: Any) -> np.ndarray:
        """Loss at the given N, D or C, nats per token (of that publication's tokenizer)."""
        return self.law.predict(self.params, **variables)


_HENIGHAN = "Hestness et al. 2017, arXiv:1712.00409; Henighan et al. 2020, arXiv:2010.14701"
LAWS: Mapping[str, Law] = MappingProxyType(
    {
        law.name: law
        for law in (
            Law("power-n", "E + A/N^alpha", (Term("A", "alpha", "N"),), _HENIGHAN, "the runs at the longest D"),
            Law("power-d", "E + B/D^beta", (Term("B", "beta", "D"),), _HENIGHAN, "the runs of the largest N"),
            Law(
                "power-c",
                "E + G/C^gamma",
                (Term("G", "gamma", "C"),),
                _HENIGHAN,
                "the compute frontier: lower hull of the cells' mean loss over compute, all seeds",
            ),
            Law(
                "chinchilla",
                "E + A/N^alpha + B/D^beta",
                (Term("A", "alpha", "N"), Term("B", "beta", "D")),
                "Hoffmann et al. 2022, arXiv:2203.15556, approach 3",
                "all usable runs",
            ),
        )
    }
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "hoffmann2022",
                LAWS["chinchilla"],
                MappingProxyType(
                    {
                        "E": float(np.exp(0.5267228)),
                        "A": float(np.exp(6.0073404)),
                        "B": float(np.exp(6.0179186)),
                        "alpha": 0.33917084,
                        "beta": 0.2849083,
                    }
                ),
                "params_total",
                "Hoffmann et al. 2022, arXiv:2203.15556, at the precision of its TeX source",
            ),
            Preset(
                "besiroglu2024",
                LAWS["chinchilla"],
                MappingProxyType({"E": 1.81686, "A": 482.006, "B": 2085.434, "alpha": 0.34781, "beta": 0.36585}),
                "params_total",
                "Besiroglu et al. 2024, arXiv:2404.10102 (least absolute deviations on 240 points read off Hoffmann's figure)",
            ),
        )
    }
)


def get_law(name: str) -> Law:
    """Return the law of that name.

    Raises
    ------
    UserError
        When there is none; the line lists those that there are.
    """
    if name not in LAWS:
        raise UserError(f"law {name!r} is unknown; allowed: {', '.join(LAWS)}")
    return LAWS[name]


def get_preset(name: str) -> Preset:
    """Return the published preset of that name; UserError when there is none."""
    if name not in PRESETS:
        raise UserError(f"{name!r} is neither a results folder, a CSV nor a preset; presets: {', '.join(PRESETS)}")
    return PRESETS[name]
