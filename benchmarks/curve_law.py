"""Published loss curves of schedules that were not fitted, predicted from those that were (Luo et al. 2025, arXiv:2503.12811).

Run: `.venv/bin/python benchmarks/curve_law.py [FOLDER]` (six minutes on one core); FOLDER holds `mpl2025/loss_curves.csv`, by default the
folder `../shared/published` beside the project. The law is fitted on the three training schedules of each model, and compared on the
six others.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from replications import FOLDER, learning_rates

from analysis.curve_law import Curve, curve_errors, fit_multi_power, multi_power_loss

PUBLISHED = {"25M": (0.9988, 0.0011), "100M": (0.9983, 0.00142), "400M": (0.9978, 0.00168)}
"""R2 and mean relative error, means over the six test curves."""


def fitted_and_tested(curves: pd.DataFrame, *, prior: float, every: int = 1) -> tuple[float, float]:
    """Mean R2 and mean relative error over the test curves of one model.

    Parameters
    ----------
    curves : DataFrame
        The model's rows of loss_curves.csv.
    prior : float
        See `fit_multi_power`.
    every : int
        Fit on every so many-th point only.
    """
    fitted, tested = [], []
    for (split, schedule), rows in curves.groupby(["split", "schedule"]):
        steps, losses = rows["step"].to_numpy(), rows["loss"].to_numpy()
        step = every if split == "train" else 1
        (fitted if split == "train" else tested).append(Curve(learning_rates(str(schedule)), steps[::step], losses[::step]))
    law = fit_multi_power(fitted, prior=prior)
    errors = [curve_errors(multi_power_loss(law, c.learning_rates, steps=c.steps), c.losses) for c in tested]
    return float(np.mean([e.r2 for e in errors])), float(np.mean([e.mean_relative for e in errors]))


def main() -> None:
    """Print the table of docs/design.md."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    curves = pd.read_csv(folder / "mpl2025" / "loss_curves.csv")
    print("| model | R2, mean error: published | no prior | prior |\n|---|---|---|---|")
    for model, (r2, error) in PUBLISHED.items():
        found = [fitted_and_tested(curves[curves["model"] == model], prior=prior) for prior in (0.0, 1e-2)]
        print("|", " | ".join([model, *(f"{a:.4f}, {b:.3%}" for a, b in [(r2, error), *found])]), "|", flush=True)


if __name__ == "__main__":
    main()
