"""Pictures of sweeps over text: a law per group, the loss of every mixture on every domain, and what repetition costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm

from analysis.frames import Frame
from analysis.plot_style import INK, SMALL, axis_labels, end_labels, log_axis, loss_axis, new_figure, sequential, si, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.fitting import Fit
    from analysis.tables import Analysis


def draw_groups(found: Frame, ax: Axes) -> Axes:
    """Draw, for every group, the lowest loss that was reached and E with its interval, in bits per byte.

    Parameters
    ----------
    found : DataFrame
        As groups.csv, one law.
    ax : Axes
    """
    frame = found.sort_values("lowest_bits_per_byte", ascending=False).reset_index(drop=True)
    scale = frame["lowest_bits_per_byte"] / frame["lowest_loss"]
    places = np.arange(len(frame))
    dark, light = sequential([1.0, 10.0])
    known = frame["status"].eq("converged").to_numpy()
    ax.hlines(places[known], (frame["E_low"] * scale)[known], (frame["E_high"] * scale)[known], color=dark, linewidth=2.2)
    ax.plot(frame["E_bits_per_byte"][known], places[known], "o", color=dark, markersize=6)
    if not known.all():
        hollow = {"marker": "o", "linestyle": "", "markerfacecolor": "none", "markersize": 6, "clip_on": False}
        ax.plot(frame["E_bits_per_byte"][~known], places[~known], color=dark, **hollow)
    ax.plot(frame["lowest_bits_per_byte"], places, "D", color=light, markersize=6)
    if frame["entropy"].notna().any():
        ax.plot(frame["entropy"] * scale, places, "x", color=INK, markersize=8)
    ax.set_yticks(places, [_short(str(name)) for name in frame["group"]], fontsize=SMALL)
    ax.set_xlim(left=0)
    ax.set_ylim(-0.6, len(frame) - 0.4)
    axis_labels(ax, "bits per byte", "")
    return ax


def draw_domains(table: Frame, ax: Axes) -> Axes:
    """Draw the held-out loss of every mixture (rows) on every domain (columns); framed where the domain was trained on, if not all were.

    Parameters
    ----------
    table : DataFrame
        group, domain, share, bits_per_byte; one row a cell.
    ax : Axes
    """
    groups = list(dict.fromkeys(table["group"]))
    domains = list(dict.fromkeys(table["domain"]))
    values = table.pivot_table(index="group", columns="domain", values="bits_per_byte").loc[groups, domains].to_numpy()
    shares = table.pivot_table(index="group", columns="domain", values="share").loc[groups, domains].to_numpy()
    ax.imshow(values, aspect="auto", cmap="viridis_r", norm=LogNorm(np.nanmin(values), np.nanmax(values)))
    some_unseen = bool((shares == 0).any())
    middle = np.sqrt(np.nanmin(values) * np.nanmax(values))
    for i, j in np.ndindex(*values.shape):
        seen = some_unseen and shares[i, j] > 0
        color = "white" if values[i, j] > middle else INK
        ax.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=SMALL, color=color, fontweight="bold" if seen else "normal")
        if seen:
            ax.add_patch(_frame(j, i))
    ax.set_xticks(range(len(domains)), domains, fontsize=SMALL - 1)
    ax.set_yticks(range(len(groups)), [_short(name) for name in groups], fontsize=SMALL - 1)
    ax.grid(False)
    axis_labels(ax, "held-out domain (framed: trained on)" if some_unseen else "held-out domain", "")
    return ax


def _frame(x: int, y: int):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor="#d1495b", linewidth=1.8)


def _short(name: str) -> str:
    parts = name.split(" + ")
    return name if len(parts) == 1 else " + ".join(part.split(" ", 1)[-1] for part in parts) if len(parts) < 4 else f"{len(parts)} sources"


def draw_repetition(frame: Frame, ax: Axes, *, fit: Fit | None = None) -> Axes:
    """Draw the loss of one size of model over tokens, a line for each number of unique tokens; dashed: the law.

    Parameters
    ----------
    frame : DataFrame
        tokens, tokens_unique, tokens_unique_limit (NaN: all), loss (nats/token), N; one size of model.
    ax : Axes
    fit : Fit, optional
        A law in N, D and U.
    """
    limits = sorted(frame["tokens_unique_limit"].dropna().unique())
    levels = [*limits, float(frame["tokens"].max())]
    labels = []
    free = frame[frame["tokens_unique_limit"].isna()]
    for level, color in zip(levels, sequential(levels), strict=True):
        limited = level in limits
        line = frame[frame["tokens_unique_limit"] == level] if limited else free
        before = free[free["tokens"] <= level] if limited else free.iloc[:0]  # what repeats nothing is the run of all tokens
        line = pd.concat([before.tail(1), line]).groupby("tokens", as_index=False).mean(numeric_only=True)
        ax.plot(line["tokens"], line["loss"], "o-", color=color, markersize=5, linewidth=1.6 if fit is None else 0.7)
        if fit is not None:
            d = np.geomspace(line["tokens"].min(), line["tokens"].max(), 60)
            u = np.minimum(d, level if limited else np.inf)
            ax.plot(d, fit.predict(N=float(line["N"].iloc[0]), D=d, U=u), color=color, linewidth=1.6, linestyle="--")
        labels.append((float(line["loss"].iloc[-1]), si(level) if limited else "all", color))
    log_axis(ax, "x", limits=(frame["tokens"].min() / 1.1, frame["tokens"].max() * 1.1), levels=sorted(frame["tokens"].unique()))
    loss_axis(ax, float(frame["loss"].min()) * 0.98, float(frame["loss"].max()) * 1.02)
    axis_labels(ax, "training tokens, repeats included", "loss, nats per token")
    end_labels(ax, labels, header="unique")
    return ax


def group_figures(groups: Frame, folder: str | Path) -> Iterator[tuple[str, Figure]]:
    """Plots of a sweep over several texts: groups.csv, and the loss of every text on every domain.

    Parameters
    ----------
    groups : DataFrame
        As groups.csv.
    folder : path
        The results folder, for its domains.csv.
    """
    if groups["E"].notna().any():
        frame = groups[groups["E"].notna()].drop_duplicates("group")
        note = "● E of a law of the text's own, in N and D, with its 95 % interval; ○ at its bound: these runs do not tell E;"
        note += " ◆ lowest loss of a run" + ("; × true entropy." if frame["entropy"].notna().any() else ".")
        figure, (ax,) = new_figure(height=1.0 + 0.3 * len(frame), right=0.97, caption=note)
        figure.subplots_adjust(left=0.27)
        title(draw_groups(frame, ax), "Irreducible loss E of each text")
        yield "groups", figure
    yield from _domains(Path(folder))


def text_figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Plots of what a sweep over one text says of text: losses by domain, and what repetition costs; none where nothing of it varies."""
    if analysis.runs.folder is not None:
        yield from _domains(analysis.runs.folder)
    frame = analysis.runs.frame
    if "tokens_unique_limit" not in frame or frame["tokens_unique_limit"].dtype != float:  # a column without a number stays text
        return
    fit = next((fit for fit in analysis.fits if "U" in fit.law.variables), None)
    note = f"Dots: runs of the largest model. Dashed: the law {fit.law.name} fitted to all sizes." if fit is not None else ""
    figure, (ax,) = new_figure(caption=note)
    title(draw_repetition(frame[frame["N"] == frame["N"].max()], ax, fit=fit), "Training on fewer and fewer different tokens")
    yield "repetition", figure


def _domains(folder: Path) -> Iterator[tuple[str, Figure]]:
    if not (path := folder / "domains.csv").is_file():
        return
    table = pd.read_csv(path).merge(pd.read_csv(folder / "runs.csv")[["run_id", "tokens"]], on="run_id")
    table["group"] = table["group"].fillna("all")
    table = table[table["tokens"] == table["tokens"].max()]
    cells = table.groupby(["group", "domain"], sort=False, as_index=False)[["share", "bits_per_byte"]].mean()
    note = f"Bits per byte of held-out text after {si(float(table['tokens'].max()))} tokens, mean over sizes and seeds."
    figure, (ax,) = new_figure(height=0.8 + 0.34 * cells["group"].nunique(), right=0.97, caption=note)
    figure.subplots_adjust(left=0.33)
    title(draw_domains(cells, ax), "Loss on every domain")
    yield "domains", figure
