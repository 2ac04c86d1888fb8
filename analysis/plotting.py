"""The plots of a results folder: which are drawn, with what heading and small print, and where they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from analysis.drawings import (
    draw_loss_against,
    draw_loss_against_compute,
    draw_loss_curves,
    draw_residuals,
    draw_returns,
)
from analysis.errors import UserError
from analysis.plot_style import SMALL, Frame, levels_of, new_figure, title
from analysis.runs import read_curves

if TYPE_CHECKING:
    from analysis.fitting import Fit
    from analysis.tables import Analysis

FORMATS = ("png", "svg", "pdf")


def _main_fit(analysis: Analysis) -> Fit | None:
    """Return the fit that the plots show: a law in N and D if there is one, else the first."""
    return next(
        (fit for fit in analysis.fits if {"N", "D"} <= set(fit.law.variables)),
        analysis.fits[0] if analysis.fits else None,
    )


def _table(analysis: Analysis, name: str) -> Frame:
    return analysis.tables[name]


def _small_print(analysis: Analysis, fit: Fit, *extra: str) -> str:
    """Say what the picture rests on: N convention, law, runs, exclusions, what the bands mean."""
    excluded = len(analysis.tables["exclusions"])
    formula = fit.law.formula
    for name, letter in (("alpha", "α"), ("beta", "β"), ("gamma", "γ")):
        formula = formula.replace(name, letter)
    status = "" if fit.status == "converged" else f" Fit {fit.status}!"
    bands = f" Bands: {100 * fit.ci_level:g} % intervals, conditional on the law." if fit.draws is not None else ""
    return " ".join(
        [
            f"N is {fit.n_column}. Law: {formula} on {fit.n_runs} runs of {fit.n_trunks} trunks; {excluded} runs not"
            f" fitted (hold-outs included).{status}{bands}",
            *extra,
        ]
    )


def figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Yield each plot's name and figure, in the order in which a reader wants them."""
    fit = _main_fit(analysis)
    if analysis.runs.folder is not None:
        curves = read_curves(analysis.runs.folder)
        column = analysis.runs.n_column
        sizes = {
            str(run): float(size)
            for rows in (analysis.runs.frame, analysis.runs.holdouts)
            for run, size in zip(rows["run_id"], rows["N"], strict=True)
        }
        if curves.run_id.isin(list(sizes)).any():
            figure, (ax,) = new_figure(
                caption="Lines: train loss, running mean; pale: trunk at constant rate, strong: cooldowns. "
                f"Points: held-out loss where a run ends. Colour: {column} (N)."
            )
            draw_loss_curves(curves, ax, sizes=sizes)
            title(ax, "Loss curves: trunks and their cooldowns")
            yield "loss_curves", figure
    if fit is None:
        return
    predictions, frontier, returns = (_table(analysis, name) for name in ("predictions", "frontier", "returns"))
    # Hold-outs and their forecasts, where these count N as the fit does.
    forecasts = predictions[(predictions["kind"] != "cv") & (predictions["n_column"] == fit.n_column)]
    for axis, name, heading in (
        ("N", "loss_vs_params", "Loss against model size"),
        ("D", "loss_vs_tokens", "Loss against data size"),
    ):
        shown = fit if axis in fit.law.variables else next((f for f in analysis.fits if axis in f.law.variables), None)
        if shown is None:
            continue
        figure, (ax,) = new_figure(caption=_small_print(analysis, shown, "Points: runs, every seed. Dashed: extrapolation."))
        draw_loss_against(shown, ax, axis=axis, forecasts=forecasts)
        title(ax, heading)
        yield name, figure
    joined = "Lines join the runs of one size. " if levels_of(fit.frame["N"].tolist())[1] else ""
    figure, (ax,) = new_figure(right=0.95, caption=_small_print(analysis, fit, joined + "Dashed: extrapolation."))
    own = frontier[frontier["fit_id"] == fit.fit_id]
    draw_loss_against_compute(fit, ax, frontier=own, forecasts=forecasts)
    title(ax, "Loss against compute")
    yield "loss_vs_flops", figure
    returns = returns[returns["fit_id"] == fit.fit_id]
    found = [axis for axis in ("N", "D", "C") if (returns["axis"] == axis).any()]
    if found:
        note = "Each point: the fall of the loss over one doubling, at the middle of that doubling."
        figure, panels = new_figure(len(found), height=2.1, right=0.96, caption=_small_print(analysis, fit, note))
        for ax, axis in zip(panels, found, strict=True):
            draw_returns(returns[returns["axis"] == axis], ax, axis=axis, threshold=0.01 if axis == "C" else None)
            title(ax, f"What a doubling of {'compute' if axis == 'C' else axis} buys")
            ax.set_ylabel("nats per token", fontsize=SMALL + 1)
        yield "diminishing_returns", figure
    note = "Grey: ±2 sd of the noise between seeds. Bars: means. Star: hold-out against its forecast."
    figure, panels = new_figure(3, height=2.3, caption=_small_print(analysis, fit, note))
    for ax, against in zip(panels, ("N", "D", "D/N"), strict=True):
        draw_residuals(fit, ax, against=against, forecasts=forecasts)
        ax.set_ylabel("above the law, %", fontsize=SMALL + 1)
        title(ax, f"Residuals against {against}")
    yield "residuals", figure


def plot_all(analysis: Analysis, folder: str | Path, *, format: str = "png") -> list[Path]:
    """Draw every plot that the records allow into ``folder/plots``.

    Parameters
    ----------
    analysis : Analysis
        Runs, fits and tables.
    folder : str or Path
        A results folder; the plots go to its ``plots`` folder and replace those of the same name.
    format : {"png", "svg", "pdf"}

    Returns
    -------
    list of Path
        The files written: loss_curves (where curves are recorded), loss_vs_params, loss_vs_tokens, loss_vs_flops, diminishing_returns,
        residuals (where a law could be fitted).

    Raises
    ------
    UserError
        When `format` is unknown or the folder cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format!r} is unknown; allowed: {', '.join(FORMATS)}")
    target = Path(folder) / "plots"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"plot: cannot write to {target} ({error.strerror}); choose a folder that can be written") from error
    written: list[Path] = []
    for name, figure in figures(analysis):
        path = target / f"{name}.{format}"
        temporary = target / f".{name}.{os.getpid()}.tmp"
        # No dates in the files: the same input gives the same bytes.
        metadata = {
            "png": {"Software": None},
            "svg": {"Date": None},
            "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        }[format]
        figure.savefig(temporary, format=format, metadata=metadata)
        os.replace(temporary, path)
        written.append(path)
    return written
