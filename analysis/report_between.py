"""The page of two sweeps: what differs, in one sentence, two tables and a picture."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.between import Comparison, comparison_answer
from analysis.budget import split_budget
from analysis.files import write_table, write_text
from analysis.page_sections import plots, printed
from analysis.page_tables import table, text
from analysis.plot_parts import runs_of
from analysis.plot_style import axis_labels, log_axis, loss_axis, new_figure, power_of_ten, sequential, title
from analysis.plotting import write_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.fitting import Fit

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_comparison(found: Comparison, folder: str | Path, names: tuple[str, str]) -> Path:
    """Write comparison.html, shifts.csv, multipliers.csv and plots/frontiers.png; return the page's path.

    Raises
    ------
    UserError
        When the folder cannot be written.
    """
    folder = Path(folder)
    write_table(folder / "shifts.csv", found.shifts)
    write_table(folder / "multipliers.csv", found.multipliers)
    drawn = write_figures(iter([("frontiers", frontiers_figure(found, names))]), folder)
    style = resources.files("analysis").joinpath("page", "style.css").read_text(encoding="utf-8")
    heading = f"{text(names[0])} and {text(names[1])}"
    first, second = (f"{fit.n_runs} runs, fit {fit.fit_id}, {fit.status}" for fit in (found.first, found.second))
    page = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{heading}</title><style>{style}</style></head><body><header><h1>{heading}</h1>",
        f'<p class="note">First: {text(names[0])} ({text(first)}). Second: {text(names[1])} ({text(second)}). Law:'
        f" L = {printed(found.first.law.formula)}; N is the column <code>{text(found.first.n_column)}</code>. Intervals"
        " are conditional on the law and take the sweeps as independent."
        " Losses on different texts or tokenizers are not comparable.</p></header><main>",
        f'<section><h2>Answer</h2><p class="answer">{printed(comparison_answer(found, names))}</p></section>',
        f"<section><h2>Compute for the same loss</h2>{table('multipliers', found.multipliers)}</section>",
        f"<section><h2>Shift of parameters and exponents</h2>{table('shifts', found.shifts)}</section>",
        f"<section><h2>Frontiers</h2>{plots(drawn)}</section></main></body></html>\n",
    ]
    return write_text(folder / "comparison.html", "\n".join(page))


def frontiers_figure(found: Comparison, names: tuple[str, str]) -> Any:
    """Runs and compute-optimal frontier of both sweeps on one pair of axes."""
    caption = (
        f"Law: {found.first.law.formula}; N is {found.first.n_column}. Lines: compute-optimal loss by the law, with its"
        f" {100 * found.first.ci_level:g} % band, over the compute of the runs. Points: every run, {found.first.n_runs} and"
        f" {found.second.n_runs}."
    )
    figure, (ax,) = new_figure(right=0.95, caption=caption)
    draw_frontiers((found.first, found.second), ax, names=names)
    title(ax, "Loss against compute, both sweeps")
    return figure


def draw_frontiers(fits: tuple[Fit, Fit], ax: Axes, *, names: tuple[str, str]) -> Axes:
    """Draw runs, frontier and band of two fits."""
    losses = np.concatenate([fit.frame["loss"] for fit in fits])
    flops = np.concatenate([runs_of(fit)["flops"] for fit in fits])
    for fit, name, color, marker in zip(fits, names, sequential([1.0, 10.0]), "os", strict=True):
        frame = runs_of(fit)
        ax.scatter(frame["flops"], frame["loss"], color=color, marker=marker, s=22, alpha=0.55, edgecolors="white", linewidths=0.4)
        grid = np.geomspace(frame["flops"].min(), frame["flops"].max(), 40)
        n, d = split_budget(fit.law, fit.params, grid)
        ax.plot(grid, fit.predict(N=n, D=d), color=color, linewidth=2.2, label=name)
        if fit.draws is not None:
            ax.fill_between(grid, *fit.interval(N=n, D=d), color=color, alpha=0.25, linewidth=0)
    log_axis(ax, "x", limits=(flops.min() / 1.3, flops.max() * 1.3), formatter=power_of_ten)
    loss_axis(ax, losses.min() / 1.03, losses.max() * 1.03)
    axis_labels(ax, "training compute C = 6ND, FLOPs", "loss, nats per token")
    ax.legend(frameon=False, loc="upper right")
    return ax
