"""Drawings of runs and laws. Each function draws on the axes it is given and returns them; nothing is fitted here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.plot_parts import axis_name, draw_band, draw_forecasts, draw_points, ends_of, law_point, nearest, runs_of, tidy_forecasts
from analysis.plot_style import (
    HALO,
    HOLDOUT,
    INK,
    MOST_LEVELS,
    SMALL,
    Frame,
    axis_labels,
    color_bar,
    distinct,
    end_labels,
    levels_of,
    log_axis,
    loss_axis,
    power_of_ten,
    sequential,
    si,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.fitting import Fit

LOSS = "loss, nats per token"
MOST_TRUNKS = 100  # more curves than this are a carpet
AXES = {"N": "parameters N", "D": "training tokens D", "C": "training compute C = 6ND, FLOPs"}


def draw_loss_curves(curves: Frame, ax: Axes, *, sizes: dict[str, float]) -> Axes:
    """Draw train loss over tokens: each trunk, the cooldowns that leave it, and held-out loss at the end of each.

    Parameters
    ----------
    curves : DataFrame
        As curves.parquet: run_id, trunk_id, phase, step, tokens, train_loss (nats/token), loss (held-out, at the last point of a run).
    ax : Axes
    sizes : dict
        N of each run_id; runs without one are left out.
    """
    frame = curves.assign(N=curves.run_id.map(sizes)).dropna(subset=["N"])
    frame = frame[(frame.tokens > 0) & frame.train_loss.gt(0)]
    levels = sorted(frame.N.unique())
    colors = dict(zip(levels, sequential(levels), strict=True))
    ends: dict[float, list[float]] = {}
    finals = frame[frame.loss.notna()]
    frame = frame[frame.trunk_id.isin(drawn_trunks(frame))]
    # Branches share their trunk's points: each is drawn once.
    trunk = frame[frame.phase != "cooldown"].drop_duplicates(["trunk_id", "step"])
    before = {line.name: line for line in _lines(trunk, "trunk_id")}
    for line in before.values():
        ax.plot(line.tokens, line.losses, color=colors[line.size], linewidth=1.2, alpha=0.45)
    trunks = dict(zip(frame.run_id, frame.trunk_id, strict=True))
    for line in _lines(frame[frame.phase == "cooldown"], "run_id"):
        tokens, losses, left = line.tokens, line.losses, before.get(str(trunks[line.name]))
        if left is not None and (earlier := np.flatnonzero(left.steps < line.steps[0])).size:
            tokens, losses = np.append(left.tokens[earlier[-1]], tokens), np.append(left.losses[earlier[-1]], losses)
        ax.plot(tokens, losses, color=colors[line.size], linewidth=1.2)
    for size, group in finals.groupby("N"):
        ax.plot(
            group.tokens,
            group.loss,
            "o",
            color=colors[size],
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=4,
        )
        far = group[group.tokens == group.tokens.max()]
        ends[float(size)] = [float(far.loss.mean())]
    start = max(float(frame.tokens.min()), float(frame.tokens.max()) / 40)
    log_axis(ax, "x", limits=(start, float(frame.tokens.max()) * 1.1), levels=_ticks(start, finals.tokens))
    seen = frame[frame.tokens >= start]
    low = min(float(seen.train_loss.min()), float(finals.loss.min()) if len(finals) else np.inf)
    loss_axis(ax, low * 0.97, float(seen.train_loss.quantile(0.985)) * 1.03)
    end_labels(ax, [(ends[n][0], si(n), colors[n]) for n in levels if n in ends], header="N")
    axis_labels(ax, "training tokens seen", "loss, nats per token")
    return ax


def _ticks(start: float, tokens: Frame) -> list[float]:
    """Token counts at which runs end, and halvings of the least of them down to the start of the axis."""
    ticks = [float(value) for value in np.unique(tokens) if value > start]
    while ticks and ticks[0] / 2 > start:
        ticks.insert(0, ticks[0] / 2)
    return ticks


def drawn_trunks(curves: Frame) -> list[str]:
    """Trunks whose curves are drawn: all, or `MOST_TRUNKS` of them evenly by N."""
    trunks = curves.drop_duplicates("trunk_id").sort_values(["N", "trunk_id"]).trunk_id.tolist()
    kept = np.unique(np.linspace(0, len(trunks) - 1, min(MOST_TRUNKS, len(trunks))).astype(int)) if trunks else []
    return [trunks[i] for i in kept]


class _Line(NamedTuple):
    """A stretch of a curve, in the order of steps; losses smoothed."""

    name: str
    size: float
    steps: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray


def _lines(frame: Frame, by: str) -> Iterator[_Line]:
    """Curves of a frame with the columns of `by`, N, step, tokens, train_loss."""
    frame = frame.sort_values([by, "step"])
    names = frame[by].to_numpy()
    sizes, steps, tokens, losses = (frame[name].to_numpy(dtype=np.float64) for name in ("N", "step", "tokens", "train_loss"))
    for own in np.split(np.arange(len(frame)), np.flatnonzero(names[1:] != names[:-1]) + 1):
        if len(own):
            yield _Line(str(names[own[0]]), float(sizes[own[0]]), steps[own], tokens[own], _smooth(losses[own]))


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Running geometric mean over an eighth of the points and at most 9."""
    window = max(1, min(9, len(losses) // 8))
    earlier, later = window // 2, (window - 1) // 2  # as pandas centres a window
    sums = np.concatenate([[0.0], np.cumsum(np.log(losses))])
    places = np.arange(len(losses))
    first, end = np.maximum(places - earlier, 0), np.minimum(places + later + 1, len(losses))
    return np.exp((sums[end] - sums[first]) / (end - first))


def draw_loss_against(fit: Fit, ax: Axes, *, axis: str, forecasts: Frame | None = None) -> Axes:
    """Draw loss against N at each D (``axis="N"``) or against D at each N (``axis="D"``): runs, law and its interval.

    Parameters
    ----------
    fit : Fit
        Of a law in N and D, or in `axis` without the other (then one line); further variables as `law_point` holds them.
    ax : Axes
    axis : {"N", "D"}
    forecasts : DataFrame, optional
        The forecast rows of predictions.csv.
    """
    other = "D" if axis == "N" else "N"
    frame = runs_of(fit)
    two = other in fit.law.variables
    fore = tidy_forecasts(forecasts)
    extra = {"N": fore.params, "D": fore.tokens}
    levels, own = levels_of(frame[other]) if two else ([float(frame[other].max())], True)
    # A hold-out at another level of the other axis gets its own, dashed line.
    beyond = [float(v) for v in np.unique(extra[other]) if two and not np.isclose(v, levels, rtol=0.02).any()]
    drawn = sorted(levels + beyond)
    palette = dict(zip(drawn, sequential(drawn, within=drawn if own else frame[other].tolist()), strict=True))
    xs = np.concatenate([frame[axis], extra[axis]])
    limits = (float(xs.min()) / 1.12, float(xs.max()) * 1.12)
    inside = (float(frame[axis].min()), float(frame[axis].max()))
    grid = np.unique(np.concatenate([np.geomspace(*limits, 61), inside]))
    labels: list[tuple[float, str, Any]] = []
    lows, highs = [float(frame.loss.min())], [float(frame.loss.max())]
    for level in drawn:
        point = {axis: grid, other: np.full(len(grid), level)}
        arguments = law_point(fit, n=point["N"], d=point["D"])
        law = np.asarray(fit.predict(**arguments))
        held = level in beyond
        draw_band(fit, ax, grid, arguments, color=palette[level])
        covered = (grid >= inside[0] * (1 - 1e-9)) & (grid <= inside[1] * (1 + 1e-9)) & (not held)
        ax.plot(grid, law, color=palette[level], linewidth=1.4, linestyle=(0, (4, 2.5)))
        ax.plot(grid[covered], law[covered], color=palette[level], linewidth=1.4)
        labels.append((float(law[-1]), si(level), HOLDOUT if held else palette[level]))
        lows.append(float(law.min()))
        highs.append(float(law.max()))
    draw_points(ax, frame, axis, other, palette, own)
    ends = ends_of(fore)
    lows, highs = [*lows, *ends], [*highs, *ends]
    log_axis(ax, "x", limits=limits, levels=levels_of(xs)[0] if levels_of(xs)[1] else ())
    below = float(ends.min()) if len(fore) else None
    loss_axis(ax, min(lows) / 1.025, max(highs) * 1.025, below=below)
    draw_forecasts(fore, ax, x="params" if axis == "N" else "tokens")
    end_labels(ax, labels if two else [], header=f"at {other} =")
    axis_labels(ax, axis_name(fit, axis), LOSS)
    return ax


def draw_returns(returns: Frame, ax: Axes, *, axis: str, threshold: float | None = None) -> Axes:
    """Draw what one more doubling of N, D or C buys, along that axis.

    Parameters
    ----------
    returns : DataFrame
        Rows of returns.csv for one axis: from, to, gain_per_doubling (nats/token), its interval, beyond_data.
    ax : Axes
    axis : {"N", "D", "C"}
    threshold : float, optional
        Share of the loss below which a doubling is said not to pay (drawn for C).
    """
    rows = returns.sort_values("from")
    middle = np.sqrt(rows["from"] * rows["to"]).to_numpy()
    gain = rows.gain_per_doubling.to_numpy()
    beyond = rows.beyond_data.astype(bool).to_numpy()
    color = {"N": "#3b528b", "D": "#21908d", "C": INK}[axis]
    high = rows.gain_per_doubling_ci_high.to_numpy()
    banded = bool(np.isfinite(high).all())
    if banded:
        ax.fill_between(middle, rows.gain_per_doubling_ci_low, high, color=color, alpha=0.18, linewidth=0)
    ax.plot(
        middle,
        gain,
        color=color,
        linewidth=1.6,
        linestyle=(0, (4, 2.5)),
        marker="o",
        markersize=4.5,
        markerfacecolor="white",
    )
    ax.plot(middle[~beyond], gain[~beyond], color=color, linewidth=2.2, marker="o", markersize=5)
    if beyond.any() and (~beyond).any():
        edge = float(rows["to"][~beyond].max())
        ax.axvspan(edge, float(rows["to"].max()) * 1.05, color="#f3efe6", linewidth=0, zorder=0)
        share = np.log(edge / rows["from"].min()) / np.log(rows["to"].max() / rows["from"].min())
        words, at, side = ("beyond the data", share + 0.015, "left") if share < 0.7 else ("beyond\nthe data", 0.985, "right")
        ax.text(at, 0.97, words, transform=ax.transAxes, fontsize=SMALL, color="#7a6a45", va="top", ha=side)
    if threshold is not None and "loss_from" in rows:
        ax.plot(middle, threshold * rows.loss_from, color=HOLDOUT, linewidth=1.3)
        ax.annotate(
            f"{100 * threshold:g} % of the loss", (middle[0], threshold * float(rows.loss_from.iloc[0])), xytext=(0, 4),
            textcoords="offset points", fontsize=SMALL, color=HOLDOUT, va="bottom",
        )  # fmt: skip
    log_axis(
        ax,
        "x",
        limits=(float(rows["from"].min()) / 1.05, float(rows["to"].max()) * 1.05),
        formatter=power_of_ten if axis == "C" else si,
        most=6,
    )
    top = float(np.max(high if banded else gain))
    ax.set_ylim(0, min(top, 2.2 * float(np.nanmax(gain))) * 1.12)
    axis_labels(ax, AXES[axis], "")
    return ax


def draw_residuals(fit: Fit, ax: Axes, *, against: str, forecasts: Frame | None = None) -> Axes:
    """Draw what the law leaves over, in percent of the loss, against N, D or D/N; the noise between seeds as a grey band.

    Parameters
    ----------
    fit : Fit
        Its frame: N, D, residual_log = log predicted − log loss, noise_sd.
    ax : Axes
    against : {"N", "D", "D/N"}
    forecasts : DataFrame, optional
        The forecast rows of predictions.csv; drawn as stars, never part of the fit.
    """
    frame = runs_of(fit)
    fore = tidy_forecasts(forecasts)
    fore = fore[fore.observed.notna()]
    # Observed against the law: above zero, the run is worse than the law says.
    frame = frame.assign(x={"N": frame.N, "D": frame.D, "D/N": frame.ratio}[against], left=100 * np.expm1(-frame.residual_log))
    held = {"N": fore.params, "D": fore.tokens, "D/N": fore.tokens / fore.params}[against].to_numpy(dtype=np.float64)
    everything = np.concatenate([frame.x, held])
    limits = (float(everything.min()) / 1.15, float(everything.max()) * 1.15)
    noise = 100 * frame.groupby("x").noise_sd.mean()
    if len(noise) > 8:
        noise = noise * 0 + 100 * frame.noise_sd.median()
    edges = [limits[0], *noise.index, limits[1]]
    band = 2 * np.array([noise.iloc[0], *noise, noise.iloc[-1]])
    ax.fill_between(edges, -band, band, color="#000000", alpha=0.08, linewidth=0)
    ax.axhline(0, color=INK, linewidth=1)
    key = "D" if against == "N" else "N"
    values = frame[key].to_numpy(dtype=np.float64)
    ax.scatter(frame.x, frame.left, c=sequential(values), s=34 if len(frame) <= 80 else 16, edgecolors="white", linewidths=0.5, zorder=3)
    means = frame.groupby(nearest(frame.x, distinct(frame.x))).left.mean()
    if 2 <= len(means) <= 8 < len(frame):
        ax.plot(means.index, means.to_numpy(), color=INK, linewidth=1.6, marker="_", markersize=16, zorder=4)
    percent = 100 * (fore.observed / fore.predicted - 1).to_numpy(dtype=np.float64)
    ax.plot(held, percent, "*", color=HOLDOUT, markersize=15, markeredgecolor="white", zorder=5)
    own, few = levels_of(everything)
    log_axis(ax, "x", limits=limits, levels=own if few else ())
    reach = 1.12 * float(np.nanmax(np.abs(np.concatenate([frame.left, percent, band, [0.05]]))))
    ax.set_ylim(-reach, reach)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], symmetric=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−")))
    axis_labels(ax, "tokens per parameter D/N" if against == "D/N" else axis_name(fit, against), "")
    levels = distinct(values)
    if 1 < len(levels) <= MOST_LEVELS:
        colors = sequential(levels, within=values.tolist())
        end_labels(ax, [(0.0, f"● {si(v)}", color) for v, color in zip(levels, colors, strict=True)], header=key, leaders=False)
    elif len(levels) > 1:
        color_bar(ax, values, key)
    if len(held) and against == "N":
        at = (float(held[-1]), float(percent[-1]))
        towards_zero = 13 if at[1] < 0 else -13  # points: beside the star other runs may lie
        ax.annotate(
            "hold-out", at, xytext=(6, towards_zero), textcoords="offset points", fontsize=SMALL, color=HOLDOUT, ha="right",
            path_effects=HALO, va="center",
        )  # fmt: skip
    return ax
