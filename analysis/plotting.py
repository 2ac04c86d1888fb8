"""The plots of a results folder: which are drawn, with what heading and small print, and where they are written."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from PIL import Image

from analysis.drawings import MOST_TRUNKS, draw_loss_against, draw_loss_curves, draw_residuals, draw_returns
from analysis.drawings_compute import draw_approaches, draw_isoflop, draw_loss_against_compute, usable_budgets
from analysis.drawings_runs import draw_coordinates, draw_noise, draw_rate_law, draw_rates, draw_windows
from analysis.errors import UserError
from analysis.files import write_bytes
from analysis.fitting import main_fit
from analysis.plot_parts import axis_name, held_note, runs_of
from analysis.plot_style import MOST_LEVELS, SMALL, Frame, distinct, new_figure, title
from analysis.runs import CURVE_ROWS, read_curves
from analysis.text_plots import text_figures
from analysis.tuning import rate_law

if TYPE_CHECKING:
    from analysis.fitting import Fit
    from analysis.tables import Analysis

FORMATS = ("png", "svg", "pdf")
LONG_FORMULA = 80  # characters of a formula that fit in the small print
PALETTE, NEARLY_WHITE = 240, 250  # colours of a PNG; a channel so bright is white
LEAST_SPAN = 1.05  # residuals are drawn against what varies by more


def _small_print(analysis: Analysis, fit: Fit, *extra: str) -> str:
    """Say what the picture rests on: N convention, law, runs, exclusions, what the bands mean."""
    excluded = len(analysis.tables["exclusions"])
    formula = fit.law.formula if len(fit.law.formula) <= LONG_FORMULA else fit.law.name
    for name, letter in (("alpha", "α"), ("beta", "β"), ("gamma", "γ")):
        formula = formula.replace(name, letter)
    formula = textwrap.shorten(formula, LONG_FORMULA, placeholder=" …")
    status = "" if fit.status == "converged" else f" Fit {fit.status}!"
    bands = f" Bands: {100 * fit.ci_level:g} % intervals, conditional on the law." if fit.draws is not None else ""
    return " ".join(
        [
            f"N is {fit.n_column}. Law: {formula} on {fit.n_runs} runs of {fit.n_trunks} trunks; {excluded} not"
            f" fitted (hold-outs included).{status}{bands}",
            *(note for note in extra if note),
        ]
    )


def figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Yield each plot's name and figure, in the order in which a reader wants them."""
    yield from _loss_curves(analysis)
    fit = main_fit(analysis.fits)
    if fit is None:
        return
    predictions = analysis.tables["predictions"]
    # Hold-outs and their forecasts, where these count N as the fit does.
    forecasts = predictions[(predictions["kind"] != "cv") & (predictions["n_column"] == fit.n_column)]
    yield from _loss_plots(analysis, fit, forecasts)
    yield from _approaches(analysis, fit)
    yield from _returns(analysis, fit)
    yield from _residuals(analysis, fit, forecasts)
    yield from _windows(analysis, fit)
    yield from _noise(analysis, fit)
    yield from tuning_figures(analysis.tables["tuning"], analysis.runs.all_rows)
    yield from text_figures(analysis)


def _windows(analysis: Analysis, fit: Fit) -> Iterator[tuple[str, Figure]]:
    """The exponents of the law when the ends of the grid are left out."""
    table = analysis.tables["windows"]
    shown = [name for name in ("alpha", "beta") if (table["parameter"] == name).any()]
    if not shown or table["window"].nunique() < 2:
        return
    note = "Band: the interval of all runs. Red: a window whose estimate lies outside it."
    figure, panels = new_figure(len(shown), height=2.0, right=0.96, caption=_small_print(analysis, fit, note))
    figure.subplots_adjust(left=0.3)
    for ax, name in zip(panels, shown, strict=True):
        draw_windows(table, ax, parameter=name)
        title(ax, f"{'α' if name == 'alpha' else 'β'} without the ends of the grid")
    yield "windows", figure


def _noise(analysis: Analysis, fit: Fit) -> Iterator[tuple[str, Figure]]:
    table = analysis.tables["noise"]
    if not table["sd"].notna().any() or table["params"].nunique() < 2:
        return
    note = (
        "Points: sd between the seeds of a cell, with its chi-square interval."
        " Lines: one power of N and D for all cells; they weight the fit."
    )
    figure, (ax,) = new_figure(caption=_small_print(analysis, fit, note))
    draw_noise(table, ax, axis=axis_name(fit, "N"))
    title(ax, "Noise between seeds")
    yield "noise", figure


def tuning_figures(table: Frame, rows: Frame) -> Iterator[tuple[str, Figure]]:
    """Plots of the rates tried (tuning.csv and the runs behind it); none where nothing was tuned."""
    if not len(table):
        return
    tried = rows[rows["role"] == "tune"]
    law = rate_law(table)
    verdict = "" if law is not None else " Not every minimum lies between the rates tried: no law of the rate."
    caption = (
        "Loss on the tuning text. Lines: parabola in log rate through the best and two on either side. ◆ its minimum. ▲ above the picture."
        + verdict
    )
    if table["n_stopped"].any():
        caption += " Runs that were stopped early have no point."
    figure, panels = new_figure(
        1 if law is None else 2,
        height=2.9,
        caption=caption
        + (
            " Below: minima with intervals, dark where the law passes through, pale elsewhere; line: the power law."
            if law is not None
            else ""
        ),
    )
    draw_rates(tried, table, panels[0])
    title(panels[0], "Rates tried")
    if law is not None:
        draw_rate_law(table, law, panels[1], axis="non-embedding parameters N")
        title(panels[1], "The best rate against model size")
    yield "tuning", figure


def coordinate_figures(table: Frame) -> Iterator[tuple[str, Figure]]:
    """Plot of coordinates.csv."""
    caption = (
        f"After {table['steps'].iloc[0]} steps at the sweep's rates, without warm-up, models of one depth. Slope of log change in log"
        " width: 0 where one rate moves every width alike; 1 where it must fall as 1 / width."
    )
    figure, (ax,) = new_figure(right=0.7, caption=caption)
    draw_coordinates(table, ax)
    title(ax, "Coordinate check")
    yield "coordinates", figure


def _loss_curves(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    if analysis.runs.folder is None:
        return
    curves = read_curves(analysis.runs.folder, about=CURVE_ROWS)
    sizes = {
        str(run): float(size)
        for rows in (analysis.runs.frame, analysis.runs.holdouts)
        for run, size in zip(rows["run_id"], rows["N"], strict=True)
    }
    if not curves.run_id.isin(list(sizes)).any():
        return
    trunks = curves[curves.run_id.isin(list(sizes))].trunk_id.nunique()
    few = f" Lines of {MOST_TRUNKS} of {trunks:,} trunks, evenly by N." if trunks > MOST_TRUNKS else ""
    figure, (ax,) = new_figure(
        caption="Lines: train loss, running mean; pale: trunk at constant rate, strong: cooldowns. "
        f"Points: held-out loss where a run ends. Colour: {analysis.runs.n_column} (N).{few}"
    )
    draw_loss_curves(curves, ax, sizes=sizes)
    title(ax, "Loss curves: trunks and their cooldowns")
    yield "loss_curves", figure


def _loss_plots(analysis: Analysis, fit: Fit, forecasts: Frame) -> Iterator[tuple[str, Figure]]:
    words = ("held-out " if analysis.runs.folder is not None else "") + "loss, nats per token"
    held_out = (
        "Red: hold-out (star) and forecast; thin bar: interval if the law is true, broad bar: if it is only a law."
        if len(forecasts)
        else ""
    )
    for axis, name, heading in (
        ("N", "loss_vs_params", "Loss against model size"),
        ("D", "loss_vs_tokens", "Loss against data size"),
    ):
        shown = fit if axis in fit.law.variables else next((f for f in analysis.fits if axis in f.law.variables), None)
        if shown is None:
            continue
        note = ("Points: runs, every seed. Dashed: extrapolation.", held_note(shown), held_out)
        figure, (ax,) = new_figure(caption=_small_print(analysis, shown, *note))
        draw_loss_against(shown, ax, axis=axis, forecasts=forecasts)
        ax.set_ylabel(words)
        title(ax, heading)
        yield name, figure
    sizes = len(distinct(fit.frame["N"]))
    joined = "Lines join the runs of one size." if sizes <= 3 * MOST_LEVELS else "Colour: N."
    caption = _small_print(analysis, fit, joined, "Dashed: extrapolation.", held_out)
    figure, (ax,) = new_figure(right=0.95 if sizes <= MOST_LEVELS else 0.85, caption=caption)
    frontier = analysis.tables["frontier"]
    draw_loss_against_compute(fit, ax, frontier=frontier[frontier["fit_id"] == fit.fit_id], forecasts=forecasts)
    ax.set_ylabel(words)
    title(ax, "Loss against compute")
    yield "loss_vs_flops", figure


def _approaches(analysis: Analysis, fit: Fit) -> Iterator[tuple[str, Figure]]:
    runs = analysis.runs
    budgets = usable_budgets(runs.frame)
    if len(budgets) >= 2:
        figure, (ax,) = new_figure(
            caption=f"N is {runs.n_column}, C is {runs.c_column}. Points: runs of {len(budgets)} budgets of compute with at least 4 sizes"
            " each. Lines: parabola in log N. ◆ its minimum; ○ minimum of the interpolated losses; × no minimum inside the grid: the best"
            " run is at its edge. Losses far above every minimum are cut off."
        )
        draw_isoflop(runs.frame, ax, axis=axis_name(fit, "N"))
        title(ax, "IsoFLOP: the best size at each budget")
        yield "isoflop", figure
    table = analysis.tables["frontier"]
    shown = table[(table["approach"] != "parametric") | (table["fit_id"] == fit.fit_id)]
    if not len(shown):
        return
    alarm = "The approaches disagree: see the alarm in the report." if analysis.alarm else ""
    note = f"C is {runs.c_column}; the law's 6ND is converted to it by the runs. Dotted: published lines, each with its own count of N."
    figure, panels = new_figure(2, height=3.0, right=0.96, caption=_small_print(analysis, fit, "Dashed: beyond the data.", note, alarm))
    for ax, axis, heading in zip(panels, ("N", "D"), ("Compute-optimal parameters", "Compute-optimal data"), strict=True):
        draw_approaches(shown, runs.frame, ax, axis=axis)
        title(ax, heading)
    yield "approaches", figure


def _returns(analysis: Analysis, fit: Fit) -> Iterator[tuple[str, Figure]]:
    returns = analysis.tables["returns"]
    returns = returns[returns["fit_id"] == fit.fit_id]
    found = [axis for axis in ("N", "D", "C") if (returns["axis"] == axis).any()]
    if not found:
        return
    note = "Each point: the fall of the loss over one doubling, at the middle of that doubling."
    figure, panels = new_figure(len(found), height=2.1, right=0.96, caption=_small_print(analysis, fit, note))
    for ax, axis in zip(panels, found, strict=True):
        draw_returns(returns[returns["axis"] == axis], ax, axis=axis, threshold=0.01 if axis == "C" else None)
        title(ax, f"What a doubling of {'compute' if axis == 'C' else axis} buys")
        ax.set_ylabel("nats per token", fontsize=SMALL + 1)
    yield "diminishing_returns", figure


def _residuals(analysis: Analysis, fit: Fit, forecasts: Frame) -> Iterator[tuple[str, Figure]]:
    frame = runs_of(fit)
    columns = {"N": frame["N"], "D": frame["D"], "D/N": frame["ratio"]}
    against = [name for name, values in columns.items() if values.max() > LEAST_SPAN * values.min()] or ["N"]
    star = "Star: hold-out against its forecast." if len(forecasts) else ""
    note = "Grey: ±2 sd of the noise between seeds. Bars: means."
    figure, panels = new_figure(len(against), height=2.3, caption=_small_print(analysis, fit, note, star))
    for ax, name in zip(panels, against, strict=True):
        draw_residuals(fit, ax, against=name, forecasts=forecasts)
        ax.set_ylabel("above the law, %", fontsize=SMALL + 1)
        title(ax, f"Residuals against {name}")
    yield "residuals", figure


def plot_all(analysis: Analysis, folder: str | Path, *, format: str = "png") -> list[Path]:
    """Draw every plot that the records allow into ``folder/plots``.

    Parameters
    ----------
    analysis : Analysis
        Runs, fits and tables.
    folder : str or Path
        A results folder; the plots go to its ``plots`` folder and replace those of the same name.
    format : str
        One of "png", "svg", "pdf", or several with commas between.

    Returns
    -------
    list of Path
        The files written: loss_curves (where curves are recorded), loss_vs_params, loss_vs_tokens, loss_vs_flops, isoflop (where two
        budgets have runs of four sizes), approaches (where one gives an optimum), diminishing_returns, residuals, windows, noise (where
        cells have repeats), tuning (where rates were tried), domains (where the text has some), repetition (where different tokens vary).

    Raises
    ------
    UserError
        When `format` is unknown or the folder cannot be written.
    """
    return write_figures(figures(analysis), folder, format=format)


def write_figures(drawn: Iterator[tuple[str, Figure]], folder: str | Path, *, format: str = "png") -> list[Path]:
    """Write figures to ``folder/plots/NAME.FORMAT``; see `plot_all`."""
    formats = parse_formats(format)
    written: list[Path] = []
    for name, figure in drawn:
        written += [write_bytes(Path(folder) / "plots" / f"{name}.{kind}", figure_bytes(figure, kind)) for kind in formats]
    return written


def parse_formats(text: str) -> list[str]:
    """Formats of "png,svg"; UserError for one that is not known."""
    formats = list(dict.fromkeys(text.split(",")))
    for format in formats:
        if format not in FORMATS:
            raise UserError(f"--format {format!r} is unknown; allowed: {', '.join(FORMATS)}, or several with commas between")
    return formats


def figure_bytes(figure: Figure, format: str) -> bytes:
    """One figure without dates, so that the same input gives the same bytes; PNGs with a palette, a quarter of the size."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    if format != "png":
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}[format]
        figure.savefig(drawn, format=format, metadata=metadata)
        return drawn.getvalue()
    figure.savefig(drawn, format="png")
    drawn.seek(0)
    with Image.open(drawn) as image:
        small = image.convert("RGB").quantize(PALETTE, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.putpalette([255 if value >= NEARLY_WHITE else value for value in small.getpalette() or []])
    small.save(packed, "PNG", optimize=True)
    return packed.getvalue()
