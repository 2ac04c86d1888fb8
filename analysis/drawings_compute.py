"""Drawings along compute: runs and frontier, valleys of equal compute, and the optima of every approach."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis.budget import split_budget
from analysis.isoflop import Budget, find_budgets, isoflop_optima
from analysis.plot_parts import axis_name, draw_forecasts, draw_points, ends_of, nearest, runs_of, tidy_forecasts
from analysis.plot_style import (
    HALO,
    INK,
    MOST_LEVELS,
    SMALL,
    Frame,
    axis_labels,
    color_bar,
    distinct,
    end_labels,
    log_axis,
    loss_axis,
    power_of_ten,
    sequential,
    si,
)
from analysis.presets import PRESETS, Preset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.fitting import Fit

DASHED = (0, (4, 2.5))
LOSS = "loss, nats per token"
#: Losses further above the highest valley floor than this factor are cut off: they would flatten every valley.
VALLEY_REACH = 1.25
MARKS = {
    "envelope": ("s", "#8a6d3b"),
    "isoflop-parabola": ("o", "#3b528b"),
    "isoflop-cubic": ("^", "#21908d"),
    "isoflop-interpolated": ("D", "#5cb85c"),
}
PUBLISHED = (("hoffmann2022", "Hoffmann et al. 2022", "#b5179e"), ("kaplan2020", "Kaplan et al. 2020", "#d9730d"))


def draw_loss_against_compute(fit: Fit, ax: Axes, *, frontier: Frame | None = None, forecasts: Frame | None = None) -> Axes:
    """Draw loss against training compute: runs coloured by N, those of one model joined, and the compute-optimal frontier of the law.

    Parameters
    ----------
    fit : Fit
        Its frame gives the runs. Compute is 6ND; for a law in C alone it is the fit's own C, and that law is drawn.
    ax : Axes
    frontier : DataFrame, optional
        Rows of frontier.csv of one law: flops (6ND), loss, and optionally loss_ci_low, loss_ci_high.
    forecasts : DataFrame, optional
        The forecast rows of predictions.csv; left out for a law in C alone.
    """
    alone = fit.law.variables == ("C",)
    frame = runs_of(fit)
    frame = frame.assign(flops=frame["C"]) if alone else frame
    fore = tidy_forecasts(None if alone else forecasts)
    fore = fore.assign(flops=6.0 * fore.params * fore.tokens)
    sizes = distinct(frame.N)
    colors = dict(zip(sizes, sequential(sizes), strict=True))
    frame = frame.assign(size=nearest(frame.N, sizes))
    if len(sizes) <= 3 * MOST_LEVELS:
        for size, group in frame.groupby("size"):
            mean = group.groupby("flops").loss.mean()
            ax.plot(mean.index, mean.to_numpy(), color=colors[float(size)], linewidth=1, alpha=0.6)
    draw_points(ax, frame, "flops", "N", {}, False)
    xs = np.concatenate([frame.flops, fore.flops])
    limits = (float(xs.min()) / 1.25, float(xs.max()) * 1.35)
    losses = np.concatenate([frame.loss, ends_of(fore)])
    low, high = float(losses.min()), float(losses.max())
    line = _law_of_compute(fit, limits) if alone else _inside(frontier, limits)
    if len(line):
        banded = {"loss_ci_low", "loss_ci_high"} <= set(line.columns)
        if banded:
            ax.fill_between(line.flops, line.loss_ci_low, line.loss_ci_high, color=INK, alpha=0.16, linewidth=0)
        inside = (line.flops >= frame.flops.min()) & (line.flops <= frame.flops.max())
        ax.plot(line.flops, line.loss, color=INK, linewidth=1.6, linestyle=DASHED)
        ax.plot(line.flops[inside], line.loss[inside], color=INK, linewidth=2.2)
        low = min(low, float(line.loss.min()))
    log_axis(ax, "x", limits=limits, formatter=power_of_ten, most=6)
    room = (high / low) ** 0.09  # for the names of the sizes
    loss_axis(ax, low / 1.03, high * max(room, 1.03), below=float(ends_of(fore).min()) if len(fore) else None)
    if len(line):
        at = line.iloc[int(0.45 * len(line))]
        ax.annotate(
            "law" if alone else "compute-optimal\nfrontier", (at.flops, at.loss), xytext=(-6, -12), textcoords="offset points",
            ha="right", va="top", fontsize=SMALL, color=INK, path_effects=HALO,
        )  # fmt: skip
    draw_forecasts(fore, ax, x="flops")
    if len(sizes) > MOST_LEVELS:
        color_bar(ax, frame.N, "N")
    else:
        _name_sizes(ax, frame, colors)
    axis_labels(ax, axis_name(fit, "C") if alone else "training compute 6ND, FLOPs", LOSS)
    return ax


def _name_sizes(ax: Axes, frame: Frame, colors: dict[float, Any]) -> None:
    """Write each N beside the cheapest run of its size."""
    for number, (size, group) in enumerate(frame.groupby("size")):
        first = group[group.flops <= 1.1 * group.flops.min()]
        text = f"N = {si(float(size))}" if number == 0 else si(float(size))
        ax.annotate(
            text, (float(first.flops.iloc[0]), float(first.loss.max())), xytext=(3, 6), textcoords="offset points", fontsize=SMALL,
            color=colors[float(size)],
        )  # fmt: skip


def _law_of_compute(fit: Fit, limits: tuple[float, float]) -> Frame:
    """Return a law in C alone along compute, with its interval where there are draws."""
    flops = np.geomspace(*limits, 61)
    table = pd.DataFrame({"flops": flops, "loss": fit.predict(C=flops)})
    if fit.draws is None:
        return table
    low, high = fit.interval(C=flops)
    return table.assign(loss_ci_low=low, loss_ci_high=high)


def _inside(frontier: Frame | None, limits: tuple[float, float]) -> Frame:
    if frontier is None or not len(frontier):
        return pd.DataFrame({"flops": [], "loss": []})
    line = frontier.sort_values("flops")
    return line[(line.flops >= limits[0]) & (line.flops <= limits[1])]


def usable_budgets(frame: Frame) -> list[Budget]:
    """Budgets of compute at which an IsoFLOP valley can be drawn: runs of at least 4 sizes."""
    return [budget for budget in find_budgets(frame) if not budget.reason]


def draw_isoflop(frame: Frame, ax: Axes, *, axis: str = "parameters N") -> Axes:
    """Draw loss against N at each budget of compute, with the parabola, its minimum, and the interpolated minimum.

    Parameters
    ----------
    frame : DataFrame
        N, D, C, loss of the runs, as `Runs.frame`.
    ax : Axes
    axis : str
        What N is called.
    """
    budgets = usable_budgets(frame)
    flops = [budget.flops for budget in budgets]
    colors = dict(zip(flops, sequential(flops), strict=True))
    optima = {method: isoflop_optima(frame, method=method).set_index("flops") for method in ("parabola", "interpolated")}
    floors: list[float] = []
    for budget in budgets:
        runs = frame.iloc[budget.rows]
        color = colors[budget.flops]
        ax.plot(runs.N, runs.loss, "o", color=color, markersize=5, markeredgecolor="white", markeredgewidth=0.6, zorder=3)
        ax.plot(*_parabola(runs), color=color, linewidth=1.2, alpha=0.8)
        found = [optima[method].loc[budget.flops] for method in ("parabola", "interpolated")]
        for best, mark, fill in zip(found, ("D", "o"), (color, "none"), strict=True):
            if best.bracketed:
                size = 8 if mark == "D" else 12
                ax.plot(
                    best.params_opt,
                    best.loss,
                    mark,
                    markersize=size,
                    markerfacecolor=fill,
                    markeredgecolor=INK,
                    markeredgewidth=1.2,
                    zorder=5,
                )
        least = runs.loc[runs.loss.idxmin()]
        if not any(best.bracketed for best in found):
            ax.plot(least.N, least.loss, "x", markersize=11, color=INK, markeredgewidth=2, zorder=5)
        floors.append(float(least.loss))
    used = frame.iloc[np.concatenate([budget.rows for budget in budgets])]
    log_axis(ax, "x", limits=(float(used.N.min()) / 1.15, float(used.N.max()) * 1.15))
    high = min(float(used.loss.max()) * 1.02, max(floors) * VALLEY_REACH)
    loss_axis(ax, min(floors) / 1.03, high)
    if len(budgets) <= MOST_LEVELS:
        labels = [
            (floor, power_of_ten(float(f"{budget.flops:.2g}")), colors[budget.flops]) for floor, budget in zip(floors, budgets, strict=True)
        ]
        end_labels(ax, labels, header="FLOPs", leaders=False)
    else:
        color_bar(ax, flops, "FLOPs", formatter=power_of_ten)
    axis_labels(ax, axis, LOSS)
    return ax


def _parabola(runs: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of the loss on log N, over the range of N."""
    log_n = np.log(runs.N.to_numpy(dtype=np.float64))
    middle = log_n.mean()
    grid = np.linspace(log_n.min(), log_n.max(), 81)
    return np.exp(grid), np.polyval(np.polyfit(log_n - middle, runs.loss.to_numpy(dtype=np.float64), 2), grid - middle)


def draw_approaches(frontier: Frame, runs: Frame, ax: Axes, *, axis: str) -> Axes:
    """Draw the compute-optimal N or D against compute: optima of each approach, the law's line with its band, published lines in range.

    Parameters
    ----------
    frontier : DataFrame
        Rows of frontier.csv: those of the approaches, and those of one law.
    runs : DataFrame
        N, D, C of the runs: C as they count it, to which the law's 6ND is converted.
    ax : Axes
    axis : {"N", "D"}
    """
    name, low, high = (
        ("params_opt", "params_ci_low", "params_ci_high") if axis == "N" else ("tokens_opt", "tokens_ci_low", "tokens_ci_high")
    )
    recorded = _recorded_compute(runs)
    keys: list[Line2D] = []
    law = frontier[frontier.approach == "parametric"].sort_values("flops")
    law = law.assign(flops=recorded(law.flops.to_numpy(dtype=np.float64)))
    law = law[law.flops <= 12 * float(runs["C"].max())]
    if len(law):
        if np.isfinite(law[low].astype(float)).all():
            ax.fill_between(law.flops, law[low], law[high], color=INK, alpha=0.14, linewidth=0)
        inside = law.flops <= float(runs["C"].max()) * 1.001
        ax.plot(law.flops, law[name], color=INK, linewidth=1.6, linestyle=DASHED)
        ax.plot(law.flops[inside], law[name][inside], color=INK, linewidth=2.2)
        keys.append(Line2D([], [], color=INK, linewidth=2.2, label="fitted law"))
    for approach, (mark, color) in MARKS.items():
        rows = frontier[frontier.approach == approach]
        if len(rows):
            dense = approach == "envelope"  # 64 points a decade
            style = {"color": color, "marker": mark, "linestyle": "", "markersize": 4 if dense else 7}
            ax.plot(rows.flops, rows[name], zorder=3 if dense else 4, markeredgecolor="white", markeredgewidth=0 if dense else 0.6, **style)
            keys.append(Line2D([], [], label=approach, **style))
    every = np.concatenate([frontier.flops[frontier.approach != "parametric"], law.flops, [float(runs["C"].min()), float(runs["C"].max())]])
    limits = (float(every.min()) / 1.3, float(every.max()) * 1.3)
    own = np.concatenate([frontier[name][frontier.approach != "parametric"], law[name]]).astype(float)
    reach = (float(np.nanmin(own)) / 3, float(np.nanmax(own)) * 5)  # room for the legend above
    keys += _published(ax, axis, limits, reach, recorded)
    log_axis(ax, "x", limits=limits, formatter=power_of_ten, most=6)
    log_axis(ax, "y", limits=reach, most=6)
    ax.legend(handles=keys, loc="upper left", bbox_to_anchor=(0.0, 1.0), fontsize=SMALL, frameon=False, ncols=2 if len(keys) > 4 else 1,
              handlelength=1.6, columnspacing=1.0, labelspacing=0.3, borderaxespad=0.1)  # fmt: skip
    axis_labels(ax, "training compute C, FLOPs", "optimal N, parameters" if axis == "N" else "optimal D, tokens")
    return ax


def _published(ax: Axes, axis: str, limits: tuple[float, float], reach: tuple[float, float], recorded: Callable[..., Any]) -> list[Line2D]:
    """Draw published compute-optimal lines where they pass through the frame; return their keys."""
    keys = []
    six_nd = np.geomspace(limits[0] / 10, limits[1] * 10, 121)
    for preset_name, words, color in PUBLISHED:
        preset = PRESETS[preset_name]
        assert isinstance(preset, Preset)
        n, d = split_budget(preset.law, preset.params, six_nd)
        flops, values = recorded(six_nd), np.asarray(n if axis == "N" else d)
        seen = (flops >= limits[0]) & (flops <= limits[1]) & (values >= reach[0]) & (values <= reach[1])
        if seen.any():
            ax.plot(flops[seen], values[seen], color=color, linewidth=1.4, linestyle=":")
            keys.append(Line2D([], [], color=color, linewidth=1.4, linestyle=":", label=words))
    return keys


def _recorded_compute(runs: Frame) -> Callable[..., Any]:
    """6ND -> compute as the runs count it, by a power law through the runs."""
    log_c = np.log(runs["C"].to_numpy(dtype=np.float64))
    log_6nd = np.log(6 * runs["N"].to_numpy(dtype=np.float64) * runs["D"].to_numpy(dtype=np.float64))
    slope, level = np.polyfit(log_c, log_6nd, 1) if np.ptp(log_c) > 0 else (1.0, float((log_6nd - log_c).mean()))
    return lambda six_nd: np.exp((np.log(six_nd) - level) / slope)
