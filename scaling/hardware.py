"""What devices do and cost (`hardware.toml`, or a file of the user's): FLOPs -> hours -> money."""

import math
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from scaling.config import Fraction, NonNegative, UserError

TABLE = Path(__file__).with_name("hardware.toml")


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of the table.

    Attributes
    ----------
    peak : dense matrix FLOP/s of one device
    mfu : share of it that training is assumed to reach
    price : US dollars an hour
    measured : pairs (non-embedding parameters, share of the peak), rising in parameters
    """

    peak: Annotated[float, msgspec.Meta(gt=0)]
    mfu: Fraction
    price: NonNegative
    source: str
    measured: list[tuple[float, Fraction]] = []

    def share(self, params: float | None) -> tuple[float, bool]:
        """Share of the peak for a model of this size, and whether it was measured (between the sizes measured: by log size)."""
        sizes = [size for size, _ in self.measured]
        if params is None or not sizes or not 0.999 * sizes[0] <= params <= 1.001 * sizes[-1]:
            return self.mfu, False
        return float(np.interp(math.log(params), np.log(sizes), [share for _, share in self.measured])), True

    def hours(self, flops: float, *, params: float | None = None) -> float:
        """Hours of one device.

        >>> Device(peak=1e12, mfu=0.5, price=2.0, source="").hours(1.8e15)
        1.0
        """
        return flops / (self.peak * self.share(params)[0]) / 3600

    def flops(self, hours: float, *, params: float | None = None) -> float:
        """FLOPs that hours of one device pay for."""
        return hours * 3600 * self.peak * self.share(params)[0]


def read_device(name: str) -> Device:
    """Entry of the table: ``h100``; or of a file with the same layout: ``FILE.toml:NAME``.

    Raises
    ------
    UserError
        When the file or the entry does not exist, or is not understood.
    """
    file, _, entry = name.rpartition(":")
    path = Path(file) if file else TABLE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--hardware {name}: {path} cannot be read ({error}); copy scaling/hardware.toml and change it") from None
    if entry not in table:
        raise UserError(f"--hardware {entry!r} is unknown; allowed: {', '.join(table)}, or FILE.toml:NAME with a table of your own")
    try:
        return msgspec.convert(table[entry], Device)
    except msgspec.ValidationError as error:
        raise UserError(f"--hardware {name}: {path}, [{entry}]: {error}; see scaling/hardware.toml") from None


def money(dollars: float) -> str:
    """``$0.0021``, ``$12.30``, ``$4,100``.

    >>> [money(0.00213), money(12.3), money(4100)]
    ['$0.0021', '$12.30', '$4,100']
    """
    if dollars >= 100:
        return f"${dollars:,.0f}"
    return f"${dollars:.2f}" if dollars >= 0.1 else f"${dollars:.2g}"


def bill(device: Device, flops: list[float], params: list[float]) -> str:
    """Hours and money of several trainings, in words."""
    shares = [device.share(size) for size in params]
    hours = sum(device.hours(amount, params=size) for amount, size in zip(flops, params, strict=True))
    low, high = (100 * end(share for share, _ in shares) for end in (min, max))
    kind = "measured" if all(known for _, known in shares) else "assumed" if not any(known for _, known in shares) else "partly measured"
    used = f"{low:.0f} %" if high - low < 0.5 else f"{low:.0f}-{high:.0f} %"
    cost = f"{money(hours * device.price)} at {money(device.price)} an hour"
    return f"{hours:.3g} device-hours, {cost} ({used} of the peak, {kind}; {device.source})"
