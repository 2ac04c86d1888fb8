"""Runs in, laws out: fits, intervals, optima and tables, from a results folder or anyone's CSV. Imports neither JAX nor `scaling`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.errors import UserError
    from analysis.fitting import Fit, fit
    from analysis.laws import LAWS, get_law
    from analysis.optimal import compute_optimal, predict
    from analysis.own_figures import plot_loss, plot_optimum, plot_residuals, plot_returns
    from analysis.presets import PRESETS
    from analysis.runs import Runs, read_runs
    from analysis.tables import Analysis, analyse
    from analysis.uncertainty import bootstrap

__all__ = [
    "LAWS",
    "PRESETS",
    "Analysis",
    "Fit",
    "Runs",
    "UserError",
    "analyse",
    "bootstrap",
    "compute_optimal",
    "fit",
    "get_law",
    "plot_loss",
    "plot_optimum",
    "plot_residuals",
    "plot_returns",
    "predict",
    "read_runs",
]

_HOME = {
    "LAWS": "laws",
    "PRESETS": "presets",
    "get_law": "laws",
    "Analysis": "tables",
    "analyse": "tables",
    "Fit": "fitting",
    "fit": "fitting",
    "Runs": "runs",
    "read_runs": "runs",
    "UserError": "errors",
    "bootstrap": "uncertainty",
    "compute_optimal": "optimal",
    "plot_loss": "own_figures",
    "plot_optimum": "own_figures",
    "plot_residuals": "own_figures",
    "plot_returns": "own_figures",
    "predict": "optimal",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import analysis` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    return getattr(import_module(f"analysis.{_HOME[name]}"), name)
