"""Plots of a fit on axes of your own: each function draws on `ax`, or on a figure in the house style, and returns the axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.drawings import draw_loss_against, draw_residuals, draw_returns
from analysis.drawings_compute import draw_approaches, draw_loss_against_compute
from analysis.errors import UserError
from analysis.optimal import frontier
from analysis.plot_style import new_figure
from analysis.returns import returns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.fitting import Fit
    from analysis.frames import Frame


def plot_loss(fit: Fit, *, axis: str = "N", ax: Axes | None = None, forecasts: Frame | None = None) -> Axes:
    """Draw loss (nats per token) along an axis: runs, law, interval (where the fit has draws), extrapolation dashed.

    Parameters
    ----------
    axis : {"N", "D", "C"}
        At each D; at each N; or against compute 6ND with the compute-optimal frontier.
    ax : Axes, optional
        A figure of its own when not given: ``ax.figure.savefig("loss.pdf")``.
    forecasts : DataFrame, optional
        The forecast rows of predictions.csv.

    Raises
    ------
    UserError
        When the axis is unknown or none of the law's.
    """
    _check("axis", axis, ("N", "D", "C"))
    if axis not in ("C", *fit.law.variables):
        raise UserError(f"axis {axis!r}: law {fit.law.name} is in {', '.join(fit.law.variables)}")
    place = _axes(ax)
    if axis == "C":
        return draw_loss_against_compute(fit, place, frontier=frontier(fit), forecasts=forecasts)
    return draw_loss_against(fit, place, axis=axis, forecasts=forecasts)


def plot_residuals(fit: Fit, *, against: str = "N", ax: Axes | None = None) -> Axes:
    """Draw what the law leaves over, in percent, against N, D or D/N (`against`)."""
    _check("against", against, ("N", "D", "D/N"))
    return draw_residuals(fit, _axes(ax), against=against)


def plot_returns(fit: Fit, *, axis: str = "C", ax: Axes | None = None) -> Axes:
    """Draw what one more doubling of N, D or C (compute-optimal) takes off the loss, with intervals; UserError without such an axis."""
    _check("axis", axis, ("N", "D", "C"))
    table = returns(fit)
    rows = table[table["axis"] == axis]
    if not len(rows):
        raise UserError(f"axis {axis!r}: law {fit.law.name} has no returns along it")
    return draw_returns(rows, _axes(ax), axis=axis, threshold=0.01 if axis == "C" else None)


def plot_optimum(fit: Fit, *, axis: str = "N", ax: Axes | None = None) -> Axes:
    """Draw the compute-optimal N or D (`axis`) against compute, with its interval; UserError where the law has no frontier."""
    _check("axis", axis, ("N", "D"))
    table = frontier(fit)
    if not len(table):
        raise UserError(f"law {fit.law.name} has no compute-optimal frontier; a law in N and D has, such as chinchilla")
    return draw_approaches(table, fit.frame, _axes(ax), axis=axis)


def _axes(ax: Axes | None) -> Axes:
    return ax if ax is not None else new_figure()[1][0]


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} {value!r} is unknown; allowed: {', '.join(allowed)}")
