"""Parts that several plots share: points, bands, forecasts, and the words on axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.plot_style import HALO, HOLDOUT, SMALL, Frame, sequential

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.fitting import Fit

FORECAST_COLUMNS = ("params tokens predicted pi_low pi_high predicted_model pi_model_low pi_model_high observed relative_error").split()


def tidy_forecasts(frame: Frame | None) -> Frame:
    """Return forecast rows as floats; an empty frame with the same columns when there are none."""
    if frame is None or not len(frame):
        return pd.DataFrame({name: np.zeros(0) for name in FORECAST_COLUMNS})
    return (
        frame.reindex(columns=list(FORECAST_COLUMNS)).apply(pd.to_numeric, errors="coerce").dropna(subset=["params", "tokens", "predicted"])
    )


def runs_of(fit: Fit) -> Frame:
    """Return the runs of a fit with two more columns: flops (6ND) and ratio (D/N)."""
    frame = fit.frame
    return frame.assign(flops=6.0 * frame["N"] * frame["D"], ratio=frame["D"] / frame["N"])


def axis_name(fit: Fit, axis: str) -> str:
    """Name N, D or C with the column that stands for it."""
    column = {"N": fit.n_column, "D": fit.d_column, "C": fit.c_column}[axis]
    words = {
        "params_non_embedding": "non-embedding parameters N",
        "params_total": "total parameters N",
        "tokens": "training tokens D",
        "flops": "training compute C, FLOPs",
        "flops_6nd": "training compute C = 6ND, FLOPs",
    }
    return words.get(
        str(column),
        f"{ {'N': 'parameters N', 'D': 'training tokens D', 'C': 'training compute C, FLOPs'}[axis] } ({column})",
    )


def draw_band(fit: Fit, ax: Axes, x: np.ndarray, arguments: Mapping[str, Any], *, color: Any) -> Axes:
    """Shade the law's confidence interval at the given points; nothing when the fit has no draws."""
    if fit.draws is not None:
        low, high = fit.interval(**arguments)
        ax.fill_between(x, low, high, color=color, alpha=0.3, linewidth=0)
    return ax


def draw_points(ax: Axes, frame: Frame, x: str, by: str, palette: Mapping[float, Any], own: bool) -> Axes:
    """Draw every run as a point, coloured by `by`; every seed is its own point."""
    values = frame[by].to_numpy(dtype=np.float64)
    if own and all(value in palette for value in np.unique(values)):
        colors = [palette[value] for value in values]
    else:
        colors = sequential(values.tolist())
    many = len(frame) > 80
    ax.scatter(
        frame[x],
        frame.loss,
        c=colors,
        s=18 if many else 40,
        edgecolors="white",
        linewidths=0.3 if many else 0.7,
        zorder=3,
    )
    return ax


def nearest(values: Frame, levels: list[float]) -> np.ndarray:
    """Level (of `plot_style.distinct`) of each value: the nearest one on a log scale."""
    gaps = np.abs(np.log(np.asarray(values, dtype=np.float64))[:, None] - np.log(np.asarray(levels))[None])
    return np.asarray(levels)[gaps.argmin(axis=1)]


def law_point(fit: Fit, *, n: Any, d: Any) -> dict[str, Any]:
    """Return the variables of a fit's law at N and D: C = 6ND, one epoch (U = D), columns of the runs at their median."""
    known = {"N": n, "D": d, "C": 6.0 * np.asarray(n) * np.asarray(d), "U": d}
    return {name: known[name] if name in known else float(fit.frame[name].median()) for name in fit.law.variables}


def held_note(fit: Fit) -> str:
    """Say what `law_point` holds fixed; empty for laws in N, D and C."""
    held = ["U = D (one epoch)"] if "U" in fit.law.variables else []
    held += [f"{name} = {fit.frame[name].median():.4g} (median)" for name in fit.law.columns]
    return f"Lines: {', '.join(held)}." if held else ""


def ends_of(forecasts: Frame) -> np.ndarray:
    """Every number of the forecasts that must be inside the frame."""
    names = ["predicted", "pi_low", "pi_high", "pi_model_low", "pi_model_high", "observed"]
    values = forecasts[names].to_numpy(dtype=np.float64).ravel()
    return values[np.isfinite(values)]


def draw_forecasts(forecasts: Frame, ax: Axes, *, x: str) -> Axes:
    """Draw each forecast with both intervals, and the hold-out's observed loss where there is one.

    The thin bar with caps is the interval if the law is true, the broad pale one the interval if the law is only a law.
    """
    for row in forecasts.itertuples():
        at = float(getattr(row, x))
        ax.plot([at, at], [row.pi_model_low, row.pi_model_high], color=HOLDOUT, alpha=0.28, linewidth=9, solid_capstyle="butt", zorder=4)
        ax.errorbar(
            [at], [row.predicted], yerr=[[row.predicted - row.pi_low], [row.pi_high - row.predicted]], fmt="_", markersize=9,
            color=HOLDOUT, linewidth=1.8, capsize=4.5, zorder=5,
        )  # fmt: skip
        if pd.notna(row.observed):
            ax.plot([at], [row.observed], "*", color=HOLDOUT, markersize=15, markeredgecolor="white", zorder=6)
    if len(forecasts):
        last = forecasts.iloc[int(np.argmax(forecasts[x].to_numpy()))]
        text = "hold-out\nand forecast" if pd.notna(last.observed) else "forecast"
        low = float(np.nanmin([last.pi_low, last.pi_model_low, last.predicted]))
        ax.annotate(
            text, (float(last[x]), low), xytext=(4, -7), textcoords="offset points", ha="right", va="top", fontsize=SMALL,
            color=HOLDOUT, linespacing=1.1, path_effects=HALO,
        )  # fmt: skip
    return ax
