"""How every plot looks: size, fonts, colours of ordered quantities, ticks in plain numbers, and direct labels that do not overlap."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Color = tuple[float, float, float, float]
# A pandas.DataFrame. By pandas' own annotations a column is a Series, a DataFrame or an array, which no type checker accepts in arithmetic.
Frame = Any

WIDTH = 7.0  # inches
DPI = 160
FONT = 13.0  # points; at 360 px of width this is about 9 px
SMALL = 11.5
CAPTION = 11.0
INK = "#222222"
HALO = [patheffects.withStroke(linewidth=3, foreground="white")]  # keeps words readable over points and lines
FAINT = "#8a8a8a"
HOLDOUT = "#d1495b"  # the one colour outside the sequential map
BRIGHTEST = 0.78  # share of viridis that is used: its brightest fifth is invisible on white
SAME_LEVEL = 1.02  # neighbouring values within 2 % are one level
MOST_LEVELS = 6  # drawn one by one; more values are shown by a colour bar
_SUFFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def new_figure(rows: int = 1, *, height: float = 3.6, right: float = 0.85, caption: str = "") -> tuple[Figure, list[Axes]]:
    """Make a figure of stacked panels, with small print under them, without pyplot's global state.

    Parameters
    ----------
    rows : int
        Panels, one under the other.
    height : float
        Of one panel, inches.
    right : float
        Right edge of the panels, as a share of the width; what remains holds the direct labels.
    caption : str
        Small print, wrapped to the width.

    Returns
    -------
    tuple
        The figure and its axes, top to bottom.
    """
    lines = textwrap.wrap(caption, int((WIDTH - 0.3) * 72 / (CAPTION * 0.555)), break_on_hyphens=False)
    # Everything in inches, so that titles, labels and captions have the same room whatever the number of panels.
    top, gap, bottom = 0.5, 1.15, 0.85 + len(lines) * CAPTION * 1.3 / 72
    total = top + rows * height + (rows - 1) * gap + bottom
    figure = Figure(figsize=(WIDTH, total), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.95 / WIDTH, right=right, top=1 - top / total, bottom=bottom / total, hspace=gap / height)
    axes: list[Axes] = list(np.atleast_1d(np.asarray(figure.subplots(rows, 1), dtype=object)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(labelsize=SMALL, color=FAINT, labelcolor=INK)
        ax.grid(True, color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
    figure.text(
        0.15 / WIDTH, 0.1 / total, "\n".join(lines), fontsize=CAPTION, color="#555555", va="bottom", linespacing=1.25,
        parse_math=False,
    )  # fmt: skip
    return figure, axes


def title(ax: Axes, text: str) -> None:
    """Put a left-aligned title over the axes; the text is drawn as it is, never as mathematics."""
    ax.set_title(text, fontsize=FONT, loc="left", color=INK, fontweight="bold", pad=9, parse_math=False)


def axis_labels(ax: Axes, x: str, y: str) -> None:
    """Name both axes, with units."""
    ax.set_xlabel(x, fontsize=FONT, color=INK, labelpad=4)
    ax.set_ylabel(y, fontsize=FONT, color=INK, labelpad=5)


def si(value: float, digits: int = 2) -> str:
    """Write a quantity shortly: 20000 → 20k, 500000 → 0.5M, 1.5e9 → 1.5B.

    Half a million and more is counted in millions, half a billion in billions, as the sweep files write them.
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    size = abs(value)
    for unit, suffix in _SUFFIXES:
        if size >= 0.495 * unit and not (unit == 1e3 and size < 1e3):
            return f"{float(f'{value / unit:.{max(digits, 3 if size >= 99.5 * unit else digits)}g}'):g}{suffix}"
    return f"{float(f'{value:.{max(digits, 3 if size >= 99.5 else digits)}g}'):g}"


def power_of_ten(value: float) -> str:
    """Write a large number as 3×10¹¹."""
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**exponent
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if abs(factor - 1) < 1e-6 else f"{factor:.2g}×10{raised}"


def log_ticks(low: float, high: float, *, most: int = 7) -> list[float]:
    """Choose round values between two limits of a log axis: at most `most`, at least three where the range allows."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ladders: list[tuple[float, ...]] = [(1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)]
    ticks: list[float] = []
    for ladder in ladders:
        ticks = [factor * 10.0**e for e in exponents for factor in ladder if low <= factor * 10.0**e * (1 + 1e-9) <= high * (1 + 2e-9)]
        if len(ticks) <= most:
            break
    while len(ticks) > most:
        ticks = ticks[::2]
    return ticks if len(ticks) >= 2 else [float(t) for t in MaxNLocator(4).tick_values(low, high) if low <= t <= high]


def log_axis(
    ax: Axes,
    which: str,
    *,
    limits: tuple[float, float],
    formatter: Any = si,
    most: int = 7,
    levels: Sequence[float] = (),
) -> None:
    """Make one axis logarithmic; its ticks are the data's own `levels` where these are few and well apart, else round values."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    (ax.set_xlim if which == "x" else ax.set_ylim)(*limits)
    span = math.log(limits[1] / limits[0])
    apart = [math.log(b / a) / span for a, b in itertools.pairwise(levels)]
    own = 3 <= len(levels) <= most and min(apart) > 0.09
    axis.set_major_locator(FixedLocator(list(levels) if own else log_ticks(*limits, most=most)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: formatter(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def loss_axis(ax: Axes, low: float, high: float, *, below: float | None = None) -> None:
    """Logarithmic loss axis with plain decimals; `below` is a loss that needs room for two lines of text under it."""
    if below is not None:
        share = 0.15  # of the axis' height
        low = min(low, math.exp((math.log(below) - share * math.log(high)) / (1 - share)))
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ticks = [float(t) for t in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high and t > 0]
    if high / low > 8:
        ticks = log_ticks(low, high)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def sequential(values: Sequence[float] | np.ndarray, *, within: Sequence[float] | None = None) -> list[Color]:
    """Colours for ordered values, dark to light along viridis in the logarithm, without its brightest fifth (invisible on white).

    The darkest and the lightest stand for the extremes of `within`, by default of the values themselves.
    """
    logs = np.log(np.asarray(values, dtype=np.float64))
    ends = logs if within is None else np.log(np.asarray(within, dtype=np.float64))
    span = np.ptp(ends)
    shares = np.clip((logs - ends.min()) / span, 0, 1) if span > 0 else np.full(len(logs), 0.4)
    return [tuple(color) for color in colormaps["viridis"](BRIGHTEST * shares).tolist()]


def levels_of(values: Sequence[float] | np.ndarray, *, most: int = MOST_LEVELS) -> tuple[list[float], bool]:
    """Choose the values at which a law is drawn.

    Returns
    -------
    tuple
        The levels, and whether they are the data's own levels (False: representative ones, the data being spread out). Values within
        2 % of their neighbour are one level.
    """
    array = np.asarray(values, dtype=np.float64)
    found = distinct(array)
    if len(found) <= most:
        return found, True
    if len(found) * 2.5 <= len(array) and len(found) <= 3 * most:
        return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, most).round().astype(int))], True
    low, high = np.quantile(array, [0.02, 0.98])
    return [float(v) for v in np.geomspace(low, high, 5)], False


def distinct(values: Sequence[float] | np.ndarray) -> list[float]:
    """Distinct values, ascending; of those within 2 % of their neighbour, the middle one."""
    found = np.unique(np.asarray(values, dtype=np.float64))
    groups = np.split(found, np.flatnonzero(found[1:] > SAME_LEVEL * found[:-1]) + 1)
    return [float(group[len(group) // 2]) for group in groups if len(group)]


def color_bar(ax: Axes, values: Sequence[float] | np.ndarray, header: str, *, formatter: Any = si) -> None:
    """Explain the colours of `sequential` by a bar to the right of the axes; for values too many to name one by one."""
    low, high = float(np.min(values)), float(np.max(values))
    bar = ax.inset_axes((1.03, 0.0, 0.03, 0.9))
    colors = ListedColormap(colormaps["viridis"](np.linspace(0, BRIGHTEST, 128)))
    ax.figure.colorbar(ScalarMappable(LogNorm(low, high), colors), cax=bar)
    bar.yaxis.set_major_locator(FixedLocator(log_ticks(low, high, most=5)))
    bar.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatter(value)))
    bar.yaxis.set_minor_locator(NullLocator())
    bar.tick_params(labelsize=SMALL, color=FAINT, labelcolor=INK, length=3)
    bar.spines[:].set_visible(False)
    ax.text(1.025, 0.95, header, transform=ax.transAxes, color=INK, fontsize=SMALL, va="center", ha="left", parse_math=False)


def spread(positions: Sequence[float], gap: float, *, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Move positions apart, as little as possible in the least-squares sense, so that neighbours are `gap` apart.

    Examples
    --------
    >>> spread([0.0, 0.2, 5.0], 1.0)
    [-0.4, 0.6, 5.0]
    """
    order = np.argsort(positions, kind="stable")
    shifted = [float(positions[i]) - k * gap for k, i in enumerate(order)]
    pools: list[list[float]] = []  # pool adjacent violators: [mean, size]
    for value in shifted:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            value_b, size_b = pools.pop()
            value_a, size_a = pools.pop()
            pools.append([(value_a * size_a + value_b * size_b) / (size_a + size_b), size_a + size_b])
    flat = [value for value, size in pools for _ in range(int(size))]
    top = high - (len(flat) - 1) * gap
    moved = [max(min(value, max(top, low)), low) + k * gap for k, value in enumerate(flat)]
    result = [0.0] * len(moved)
    for k, i in enumerate(order):
        result[i] = moved[k]
    return result


def end_labels(ax: Axes, labels: Sequence[tuple[float, str, Any]], *, header: str = "", size: float = SMALL, leaders: bool = True) -> None:
    """Write labels to the right of the axes at given heights, moved apart where they would overlap.

    Parameters
    ----------
    ax : Axes
        With final limits and position.
    labels : sequence of (y, text, colour)
        y in data units.
    header : str
        Written over the labels: what they are.
    size : float
        Font size, points.
    leaders : bool
        Draw a thin line from each height to its label.
    """
    if not labels:
        return
    figure = ax.figure
    height = float(figure.bbox.height) / figure.dpi * 72 * ax.get_position().height  # points
    gap = size * 1.3 / height
    to_axes = (ax.transData + ax.transAxes.inverted()).transform
    x = ax.get_xlim()[0]
    heights = [min(max(float(to_axes((x, y))[1]), 0.0), 1.0) for y, _, _ in labels]
    placed = spread(heights, gap, low=0.0, high=1.0)
    for height_true, y, (_, text, color) in zip(heights, placed, labels, strict=True):
        if leaders:
            ax.plot([1.0, 1.018], [height_true, y], transform=ax.transAxes, color=color, linewidth=0.8, clip_on=False)
        ax.text(1.025, y, text, transform=ax.transAxes, color=color, fontsize=size, va="center", ha="left", parse_math=False)
    if header:
        y = max(placed) + gap * 1.15
        ax.text(1.025, y, header, transform=ax.transAxes, color=INK, fontsize=size, va="center", ha="left", parse_math=False)
