"""Published loss curves of schedules that were not fitted, predicted from those that were (Luo et al. 2025, arXiv:2503.12811).

Run: `.venv/bin/python benchmarks/curve_law.py [FOLDER]` (three minutes on one core); FOLDER holds `mpl2025/loss_curves.csv`, by default the
folder `../shared/published` beside the project.
The law is fitted on the three training schedules of each model, and compared on the six others.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from replications import FOLDER, learning_rates

from analysis.curve_law import Curve, curve_errors, fit_multi_power, multi_power_loss

PUBLISHED = {"25M": (0.9988, 0.0011), "100M": (0.9983, 0.00142), "400M": (0.9978, 0.00168)}


def fitted_and_tested(curves: pd.DataFrame, *, every: int = 1) -> tuple[float, float, float, dict[str, float]]:
    """Mean R2, mean relative error and worst relative error over the test curves of one model, and the law.

    Parameters
    ----------
    curves : DataFrame
        The model's rows of loss_curves.csv.
    every : int
        Fit on every so many-th point only.
    """
    read = {
        (split, schedule): Curve(learning_rates(str(schedule)), rows["step"].to_numpy(), rows["loss"].to_numpy())
        for (split, schedule), rows in curves.groupby(["split", "schedule"])
    }
    thinned = [Curve(c.learning_rates, c.steps[::every], c.losses[::every]) for (split, _), c in read.items() if split == "train"]
    law = fit_multi_power(thinned)
    errors = [
        curve_errors(multi_power_loss(law, c.learning_rates, steps=c.steps), c.losses) for (split, _), c in read.items() if split == "test"
    ]
    return (
        float(np.mean([e.r2 for e in errors])),
        float(np.mean([e.mean_relative for e in errors])),
        max(e.worst_relative for e in errors),
        law,
    )


def main() -> None:
    """Print the table of docs/design.md."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    curves = pd.read_csv(folder / "mpl2025" / "loss_curves.csv")
    print("| model | R² published | R² ours | mean relative error published | ours | worst | L0 | alpha |")
    print("|---|---|---|---|---|---|---|---|")
    for model, (r2, error) in PUBLISHED.items():
        ours, mean, worst, law = fitted_and_tested(curves[curves["model"] == model])
        print(
            f"| {model} | {r2} | {ours:.4f} | {error:.3%} | {mean:.3%} | {worst:.2%} | {law['L0']:.3f} | {law['alpha']:.3f} |", flush=True
        )


if __name__ == "__main__":
    main()
