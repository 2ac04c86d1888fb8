"""Drawings of how the runs were made and how firm the law is: noise between seeds, stability by window, rates tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis.plot_style import FAINT, HOLDOUT, INK, SMALL, Frame, axis_labels, distinct, end_labels, log_axis, sequential, si
from analysis.tuning import RateLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_noise(noise: Frame, ax: Axes, *, axis: str) -> Axes:
    """Draw the sd between the seeds of each cell with its interval, and the model of all cells as lines, one an amount of data.

    Parameters
    ----------
    noise : DataFrame
        As noise.csv: params, tokens, sd, sd_ci_low, sd_ci_high, noise_sd (relative).
    ax : Axes
    axis : str
        Words for N.
    """
    levels = distinct(noise["tokens"])
    colors = sequential(levels)
    for i, (level, color) in enumerate(zip(levels, colors, strict=True)):
        cells = noise[np.isclose(noise["tokens"], level, rtol=0.02)].sort_values("params")
        ax.plot(cells["params"], 100 * cells["noise_sd"], color=color, linewidth=1.8, zorder=2)
        seen = cells[cells["sd"].notna()]
        at = seen["params"] * 1.035 ** (i - (len(levels) - 1) / 2)  # beside each other, so that intervals can be told apart
        middle, low, high = (100 * seen[name].to_numpy(dtype=np.float64) for name in ("sd", "sd_ci_low", "sd_ci_high"))
        ax.errorbar(at, middle, yerr=[middle - low, high - middle], fmt="o", color=color, markersize=6, linewidth=1, alpha=0.9, zorder=3)
    ax.set_yscale("log")
    known = 100 * np.concatenate([noise["sd"].dropna(), noise["noise_sd"]])
    log_axis(ax, "y", limits=(float(known.min()) / 1.6, float(known.max()) * 1.6), formatter=lambda value: f"{value:g}")
    sizes = distinct(noise["params"])
    log_axis(ax, "x", limits=(sizes[0] / 1.25, sizes[-1] * 1.25), levels=sizes if len(sizes) <= 8 else ())
    last = noise[noise["params"] == noise["params"].max()].set_index("tokens")["noise_sd"]
    ends = [
        (100 * float(last.iloc[np.abs(np.log(last.index / level)).argmin()]), si(level), color)
        for level, color in zip(levels, colors, strict=True)
    ]
    end_labels(ax, ends, header="D")
    axis_labels(ax, axis, "sd between seeds, %")
    return ax


def draw_windows(windows: Frame, ax: Axes, *, parameter: str) -> Axes:
    """Draw one parameter of the law in every window, with intervals; the band is the interval of all runs.

    Parameters
    ----------
    windows : DataFrame
        As windows.csv: window, parameter, estimate, ci_low, ci_high.
    ax : Axes
    parameter : str
    """
    rows = windows[windows["parameter"] == parameter].reset_index(drop=True)
    whole = rows.iloc[0]
    if math.isfinite(whole["ci_low"]):
        ax.axvspan(whole["ci_low"], whole["ci_high"], color="#000000", alpha=0.08, linewidth=0)
    ax.axvline(whole["estimate"], color=FAINT, linewidth=1)
    for at, row in rows.iterrows():
        color = INK if row["inside"] else HOLDOUT
        if math.isfinite(row["ci_low"]):  # a percentile interval need not hold the estimate
            ax.plot([row["ci_low"], row["ci_high"]], [at, at], color=color, linewidth=1.6, marker="|", markersize=9)
        ax.plot([row["estimate"]], [at], "o", color=color, markersize=7)
    reach = (
        rows["estimate"].max() - rows["estimate"].min() + (whole["ci_high"] - whole["ci_low"] if math.isfinite(whole["ci_low"]) else 0.1)
    )
    ax.set_xlim(max(0.0, rows["estimate"].min() - reach), rows["estimate"].max() + reach)
    ax.set_yticks(range(len(rows)), rows["window"], fontsize=SMALL)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    axis_labels(ax, {"alpha": "α, exponent of N", "beta": "β, exponent of D"}.get(parameter, parameter), "")
    return ax


def draw_rates(rows: Frame, table: Frame, ax: Axes) -> Axes:
    """Draw the loss over the rate of every chosen cell, relative to its best, with its parabola and minimum; ▲ lies above the picture.

    Parameters
    ----------
    rows : DataFrame
        Tuning runs: params_non_embedding, tokens, batch_tokens, learning_rate, loss.
    table : DataFrame
        As tuning.csv.
    ax : Axes
    """
    cells = table[table["chosen"].astype(bool)].sort_values(["params_non_embedding", "tokens"])
    sizes = distinct(cells["params_non_embedding"])
    colors = dict(zip(sizes, sequential(sizes), strict=True))
    reach, ends, points = 0.3, [], []
    for cell in cells.itertuples():
        color = colors[min(sizes, key=lambda size: abs(math.log(size / cell.params_non_embedding)))]
        same = (rows["params_non_embedding"] == cell.params_non_embedding) & (rows["tokens"] == cell.tokens)
        runs = rows[same & (rows["batch_tokens"] == cell.batch_tokens) & rows["loss"].notna()].astype(
            {"loss": float, "learning_rate": float}
        )
        best = cell.loss_best if math.isfinite(cell.loss_best) else float(runs["loss"].min())
        points += [(rate, 100 * (loss / best - 1), color) for rate, loss in zip(runs["learning_rate"], runs["loss"], strict=True)]
        if not math.isfinite(cell.rate_best):
            continue
        rates = np.geomspace(float(cell.rate_low), float(cell.rate_high), 80)
        bend = math.log1p(cell.cost_of_factor_2) / math.log(2) ** 2
        curve = 100 * np.expm1(bend * np.log(rates / cell.rate_best) ** 2)
        ax.plot(rates, curve, color=color, linewidth=1.7, zorder=2)
        ax.plot([cell.rate_best], [0], "D", color=color, markersize=8, markeredgecolor="white", zorder=5)
        reach = max(reach, float(curve.max()))
        ends.append((float(curve[-1]), si(cell.params_non_embedding), color))
    for rate, above, color in points:
        ax.plot([rate], [min(above, 1.18 * reach)], "o" if above < 1.2 * reach else "^", color=color, markersize=6, zorder=3)
    ax.set_ylim(-0.12 * reach, 1.25 * reach)
    tried = rows["learning_rate"].astype(float)
    log_axis(ax, "x", limits=(float(tried.min()) / 1.15, float(tried.max()) * 1.15), formatter=lambda value: f"{value:g}")
    end_labels(ax, [(min(y, 1.2 * reach), words, color) for y, words, color in ends], header="N")
    axis_labels(ax, "peak rate of the matrices", "loss above the cell's best, %")
    return ax


def draw_rate_law(table: Frame, law: RateLaw, ax: Axes, *, axis: str) -> Axes:
    """Draw the best rates against N with their intervals, and the power law through the chosen ones; the others are pale.

    Parameters
    ----------
    table : DataFrame
        As tuning.csv.
    law : RateLaw
    ax : Axes
    axis : str
        Words for N.
    """
    found = table[table["rate_best"].notna() & (table["batch_tokens"] == law.batch_tokens)].astype({"rate_best": float})
    amounts = distinct(found["tokens"])
    for level, color in zip(amounts, sequential(amounts), strict=True):
        cells = found[np.isclose(found["tokens"], level, rtol=0.02)]
        for cell in cells.itertuples():
            half = [[cell.rate_best - cell.ci_low], [cell.ci_high - cell.rate_best]] if math.isfinite(cell.ci_low) else None
            ax.errorbar([cell.params_non_embedding], [cell.rate_best], yerr=half, fmt="o", color=color, markersize=8, linewidth=1.4,
                        alpha=1.0 if cell.chosen else 0.4, capsize=3)  # fmt: skip
    sizes = found["params_non_embedding"].to_numpy(dtype=np.float64)
    grid = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3, 50)
    chosen = np.exp(np.log(table[table["chosen"].astype(bool)]["tokens"].to_numpy(dtype=np.float64)).mean())
    ax.plot(grid, [law.rate(n, chosen) for n in grid], color=INK, linewidth=1.6)
    ax.set_yscale("log")
    low, high = float(found["rate_best"].min()), float(found["rate_best"].max())
    log_axis(ax, "y", limits=(low / 2, high * 2), formatter=lambda value: f"{value:g}")
    log_axis(ax, "x", limits=(grid[0], grid[-1]), levels=distinct(sizes))
    colors = sequential(amounts)
    end_labels(
        ax,
        [(law.rate(grid[-1], level), f"● {si(level)}", color) for level, color in zip(amounts, colors, strict=True)],
        header="D",
        leaders=False,
    )
    axis_labels(ax, axis, "best rate")
    power = f"as N to the {-law.params_power:.2f}" if law.params_power else "one size only: no power of N"
    words = f"{law.rate_at:.3g} at {si(law.params)} parameters, {power}"
    ax.annotate(words, (0.03, 0.05), xycoords="axes fraction", fontsize=SMALL, color=INK)
    return ax


def draw_coordinates(changes: Frame, ax: Axes) -> Axes:
    """Draw how far each part of the forward pass moved against the width; level lines: one rate moves every width alike.

    Parameters
    ----------
    changes : DataFrame
        As coordinates.csv: part, d_model, change (root mean square), slope.
    ax : Axes
    """
    parts = list(dict.fromkeys(changes["part"]))
    colors = sequential(list(range(1, len(parts) + 1)))
    ends = []
    for part, color in zip(parts, colors, strict=True):
        rows = changes[changes["part"] == part].sort_values("d_model")
        ax.plot(rows["d_model"], rows["change"], "o-", color=color, markersize=6, linewidth=1.7)
        ends.append((float(rows["change"].iloc[-1]), f"{part} {rows['slope'].iloc[0]:+.2f}", color))
    widths = distinct(changes["d_model"])
    low, high = float(changes["change"].min()), float(changes["change"].max())
    log_axis(ax, "y", limits=(low / 1.5, high * 1.5), formatter=lambda value: f"{value:g}")
    log_axis(ax, "x", limits=(widths[0] / 1.1, widths[-1] * 1.1), levels=widths)
    end_labels(ax, ends, header="slope")
    axis_labels(ax, "width", "change, root mean square")
    return ax
