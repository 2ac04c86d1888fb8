"""Amounts of FLOPs, time and disk, and the limits of `[budget]`."""

import re
from dataclasses import dataclass

from scaling.config import Budget, UserError, parse_quantity

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def parse_unit(text: str, units: dict[str, float], *, what: str) -> float:
    """Number and unit, such as `90 min` or `2 GB`.

    >>> parse_unit("1.5h", _SECONDS, what="budget.time")
    5400.0

    Raises
    ------
    UserError
        Anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if not match or match[2] not in units or not float(match[1]):
        raise UserError(f'{what} = {text!r}: write a number above zero and a unit: {", ".join(units)}; such as "2 {list(units)[2]}"')
    return float(match[1]) * units[match[2]]


def parse_duration(text: str, *, what: str) -> float:
    """Seconds of `45 s`, `90 min`, `2h`, `1 d`."""
    return parse_unit(text, _SECONDS, what=what)


@dataclass(frozen=True)
class Amount:
    """FLOPs, seconds of workers and bytes: a limit, or what a trunk needs."""

    flops: float = 0.0
    time: float = 0.0
    disk: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        """Both together."""
        return Amount(self.flops + other.flops, self.time + other.time, self.disk + other.disk)


def limit_of(budget: Budget) -> Amount:
    """The limits of a sweep, infinite where it names none.

    Raises
    ------
    UserError
        A limit that cannot be read.
    """
    infinite = float("inf")
    return Amount(
        infinite if budget.flops is None else parse_quantity(budget.flops),
        infinite if budget.time is None else parse_duration(budget.time, what="budget.time"),
        infinite if budget.disk is None else parse_unit(budget.disk, _BYTES, what="budget.disk"),
    )
