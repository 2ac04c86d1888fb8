"""canaries.csv in a picture: exposure against how often a canary was seen, by model size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.frames import Frame
from analysis.plot_style import FAINT, axis_labels, end_labels, new_figure, sequential, si, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNSEEN_BITS = 1 / np.log(2)
"""Mean exposure of a canary whose rank is random."""


def exposure_by_size(folder: str | Path) -> Frame:
    """Mean exposure, its standard error and the number of canaries, by run and number of times planted.

    Returns
    -------
    DataFrame
        run_id, N, tokens, planted, seen (mean), bits, bits_se, n.
    """
    root = Path(folder)
    runs = pd.read_csv(root / "runs.csv")[["run_id", "params_non_embedding", "tokens"]].rename(columns={"params_non_embedding": "N"})
    table = pd.read_csv(root / "canaries.csv").merge(runs, on="run_id", validate="many_to_one")
    grouped = table.groupby(["N", "tokens", "run_id", "planted"])
    found = grouped.agg(seen=("seen", "mean"), bits=("bits", "mean"), sd=("bits", "std"), n=("bits", "size")).reset_index()
    return found.assign(bits_se=found["sd"] / np.sqrt(found["n"])).drop(columns="sd")


def draw_exposure(frame: Frame, ax: Axes) -> Axes:
    """Draw mean exposure (bits, with standard errors) over how often canaries were seen, a line for each size.

    Parameters
    ----------
    frame : DataFrame
        As from `exposure_by_size`, one amount of tokens.
    ax : Axes
    """
    sizes, labels = sorted(frame["N"].unique()), []
    for size, color in zip(sizes, sequential(sizes) if len(sizes) > 1 else ["#555555"], strict=True):
        line = frame[frame["N"] == size].groupby("planted").mean(numeric_only=True).sort_values("seen")
        ax.errorbar(line["seen"], line["bits"], yerr=line["bits_se"], fmt="o-", color=color, markersize=5, linewidth=1.5, elinewidth=1)
        labels.append((float(line["bits"].iloc[-1]), si(size), color))
    ax.axhline(UNSEEN_BITS, color=FAINT, linestyle="--", linewidth=1.2)
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = [tick for tick in (0, 1, 3, 10, 30, 100, 300, 1000) if tick <= max(float(frame["seen"].max()), 1.0) * 1.5]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(-0.1, frame["seen"].max() * 1.3)
    ax.set_ylim(0, 10.3)
    axis_labels(ax, "times seen in training (mean of the canaries)", "exposure, bits")
    end_labels(ax, labels, header="N")
    return ax


def memorisation_figure(folder: str | Path) -> Figure:
    """A panel for each amount of training tokens."""
    frame = exposure_by_size(folder)
    amounts = sorted(frame["tokens"].unique())
    caption = (
        f"Mean over {int(frame['n'].median())} canaries with its standard error. 10 bits: the planted code is likelier than 1,023 random "
        "others. Dashed: 1.44 bits, what a canary that was never seen has in the mean."
    )
    figure, axes = new_figure(len(amounts), height=3.0, caption=caption)
    for ax, amount in zip(axes, amounts, strict=True):
        draw_exposure(frame[frame["tokens"] == amount], ax)
        title(ax, f"Exposure of planted codes, {si(float(amount))} tokens")
    return figure
