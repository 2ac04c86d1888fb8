"""Other people's models beside a sweep's law: their loss on the same text over their size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.plot_style import FAINT, HALO, HOLDOUT, INK, SMALL, axis_labels, log_axis, loss_axis, new_figure, si, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_models(fit: Fit, models: Frame, ax: Axes) -> Axes:
    """Draw the runs at the longest D, the law at that D and without end of data, and other models as diamonds.

    Parameters
    ----------
    fit : Fit
        A law in N and D, non-embedding parameters.
    models : DataFrame
        model, params_non_embedding, loss (nats per token of the sweep), loss_se.
    ax : Axes
    """
    runs = fit.frame[fit.frame["D"] >= fit.frame["D"].max() * (1 - 1e-9)]
    sizes = np.concatenate([fit.frame["N"].to_numpy(np.float64), models["params_non_embedding"].to_numpy(np.float64)])
    n = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3, 200)
    longest = float(fit.frame["D"].max())
    ax.plot(n, fit.predict(N=n, D=longest), color=INK, linewidth=1.6)
    ax.plot(n, fit.predict(N=n, D=1e30), color=FAINT, linewidth=1.2, linestyle="--")
    ax.plot(runs["N"], runs["loss"], "o", color="#31688e", markersize=5)
    ax.errorbar(models["params_non_embedding"], models["loss"], yerr=models["loss_se"], fmt="D", color=HOLDOUT, markersize=7, elinewidth=1)
    log_axis(ax, "x", limits=(float(n[0]), float(n[-1])))
    values = np.concatenate([runs["loss"].to_numpy(np.float64), models["loss"].to_numpy(np.float64), fit.predict(N=n, D=1e30)])
    loss_axis(ax, float(values.min()) * 0.93, float(values.max()) * 1.07)
    right = float(np.sqrt(n[0] * n[-1]))
    words = {"va": "center", "fontsize": SMALL, "color": HOLDOUT, "path_effects": HALO, "parse_math": False}
    for row in models.to_dict("records"):
        side = "left" if row["params_non_embedding"] < right else "right"
        ax.text(row["params_non_embedding"], row["loss"], f"  {row['model']}  ", ha=side, **words)
    axis_labels(ax, "non-embedding parameters N", "held-out loss, nats per token of the sweep")
    return ax


def models_figure(fit: Fit, folder: str | Path) -> Figure:
    """The figure of a results folder's models.csv."""
    models = pd.read_csv(Path(folder) / "models.csv")
    longest = si(float(fit.frame["D"].max()))
    caption = (
        f"Points: runs on {longest} tokens. Line: {fit.law.name} at {longest} tokens; dashed: with data without end. Diamonds: other "
        "models on the same text, in the same unit; what they were trained on is not known here, so no law is claimed for them."
    )
    figure, (ax,) = new_figure(1, height=3.6, right=0.96, caption=caption)
    draw_models(fit, models, ax)
    title(ax, "Other models beside the law")
    return figure
