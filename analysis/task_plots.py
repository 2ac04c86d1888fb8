"""Pictures of task laws: a metric against the loss, and against compute with the two-step prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.fitting import Fit
from analysis.frames import Frame
from analysis.plot_style import HOLDOUT, axis_labels, end_labels, log_axis, new_figure, power_of_ten, sequential, si, title
from analysis.task_laws import TaskLaw, chosen, read_evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG = {
    "accuracy": "accuracy of the next token",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "f1": "F1",
    "exact_match": "exact match",
    "distinct_1": "distinct words",
    "distinct_2": "distinct word pairs",
    "repetition_4": "repeated 4-grams of tokens",
}


def draw_metric_vs_loss(part: Frame, law: TaskLaw, ax: Axes) -> Axes:
    """Draw a metric over the loss, nats per token: runs coloured by N, hold-outs as rings, the form with its band.

    Parameters
    ----------
    part : DataFrame
        Rows of `read_evaluation` of one task, domain and metric.
    law : TaskLaw
        Of the same metric, x = loss.
    ax : Axes
    """
    xs = np.linspace(part["loss"].min(), part["loss"].max(), 100)
    low, high = law.band(xs)
    ax.fill_between(xs, low, high, color="#dddddd", linewidth=0)
    ax.plot(xs, law.predict(xs), color="#555555", linewidth=1.6)
    labels = _points(part, "loss", ax)
    ax.set_xlim(xs[-1] + 0.02 * np.ptp(xs), xs[0] - 0.02 * np.ptp(xs))  # better to the right
    axis_labels(ax, "held-out loss, nats per token (better to the right)", LONG.get(law.metric, law.metric))
    end_labels(ax, labels, header="N", leaders=False)
    return ax


def draw_metric_vs_flops(part: Frame, law: TaskLaw, ax: Axes, *, fit: Fit | None) -> Axes:
    """Draw a metric over compute, FLOPs; lines: the sweep's law gives the loss of each N along D, the form the metric of that loss.

    Parameters
    ----------
    part, law, ax
        As in `draw_metric_vs_loss`.
    fit : Fit, optional
        The law of the loss in N and D; no lines without.
    """
    labels = _points(part, "flops", ax)
    sizes = sorted(part["N"].unique())
    if fit is not None:
        for size, color in zip(sizes, sequential(sizes) if len(sizes) > 1 else ["#555555"], strict=True):
            rows = part[part["N"] == size]
            d = np.geomspace(part["D"].min(), part["D"].max(), 60)
            per_token = float((rows["flops"] / rows["D"]).iloc[0])
            ax.plot(per_token * d, law.predict(fit.predict(N=float(size), D=d)), color=color, linewidth=1.3)
    log_axis(ax, "x", limits=(part["flops"].min() / 1.2, part["flops"].max() * 1.2), formatter=power_of_ten, most=5)
    axis_labels(ax, "training compute, FLOPs", LONG.get(law.metric, law.metric))
    end_labels(ax, labels, header="N", leaders=False)
    return ax


def _points(part: Frame, x: str, ax: Axes) -> list[tuple[float, str, object]]:
    """Draw the runs; returns a label for each size, at the height of its best run."""
    sizes, labels = sorted(part["N"].unique()), []
    for size, color in zip(sizes, sequential(sizes) if len(sizes) > 1 else ["#555555"], strict=True):
        rows = part[part["N"] == size]
        fitted, held = rows[rows["role"] != "holdout"], rows[rows["role"] == "holdout"]
        ax.plot(fitted[x], fitted["value"], "o", color=color, markersize=5)
        ax.plot(held[x], held["value"], "o", color=HOLDOUT, markerfacecolor="none", markersize=9, markeredgewidth=1.8)
        labels.append((float(rows["value"].iloc[int(np.argmin(rows["loss"].to_numpy()))]), si(size), color if len(fitted) else HOLDOUT))
    return labels


def task_figures(folder: Path, laws: Sequence[TaskLaw], fit: Fit | None) -> Iterator[tuple[str, Figure]]:
    """A figure of two panels for each task and metric, over all domains, by the form chosen against the loss."""
    table = read_evaluation(folder)
    for (task, domain, metric, x), law in chosen(list(laws)).items():
        if domain != "all" or x != "loss":
            continue
        part = table[(table["task"] == task) & (table["domain"] == domain) & (table["metric"] == metric)]
        caption = (
            f"Line and band: {law.form.name} of the loss, fitted to {law.n_runs} runs; 95 % of {len(law.draws)} bootstrap draws over "
            f"trunks. It explains {100 * law.r2:.1f} % of the variance. Below: the law gives the loss, the line above the metric. On the "
            f"largest N and hold-outs (rings), unseen: mean error {law.largest_out_error:.3g} from the measured loss, "
            f"{law.two_step_error:.3g} from the predicted one. {task.replace('_', ' ')}, mean of {int(part['n'].median()):,} values a run."
        )
        figure, (top, bottom) = new_figure(2, height=3.2, caption=caption)
        draw_metric_vs_loss(part, law, top)
        title(top, f"{LONG.get(metric, metric)} and the loss")
        draw_metric_vs_flops(part, law, bottom, fit=fit)
        title(bottom, "Against compute, predicted in two steps")
        yield f"task_{task}_{metric}", figure
