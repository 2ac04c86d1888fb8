"""Milliseconds of one Chinchilla fit and of its bootstrap, beside SciPy's multi-start least squares on the same simulated runs.

Run: make bench      (or: .venv/bin/python benchmarks/fit.py)
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

import analysis

TRUE = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
STARTS = list(itertools.product((0.2, 0.5), (0.2, 0.5), (0.5,), (5, 10), (5, 10)))


def simulated(runs: int, *, seed: int = 0) -> pd.DataFrame:
    """Runs of a known law with 1 % log-normal noise."""
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7.5, 10, runs), 10 ** rng.uniform(9, 11.5, runs)
    loss = TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]
    return pd.DataFrame(
        {"run_id": [f"r{i}" for i in range(runs)], "params": n, "tokens": d, "loss": loss * np.exp(rng.normal(0, 0.01, runs))}
    )


def scipy_fit(frame: pd.DataFrame) -> float:
    """Best cost over a grid of starts."""
    x, y, target = np.log(frame["params"]), np.log(frame["tokens"]), np.log(frame["loss"])

    def residuals(t):
        return (np.logaddexp(np.logaddexp(t[0] - t[3] * x, t[1] - t[4] * y), t[2]) - target) / 1e-3

    return min(least_squares(residuals, (a, b, e, alpha, beta), loss="huber").cost for alpha, beta, e, a, b in STARTS)


def main() -> None:
    """Print one row a size."""
    print(f"runs   fit ms   1,000 bootstraps s   SciPy, {len(STARTS)} starts s")
    with tempfile.TemporaryDirectory() as folder:
        for count in (36, 240):
            path = Path(folder) / "runs.csv"
            frame = simulated(count)
            frame.to_csv(path, index=False)
            runs = analysis.read_runs(path)
            times = []
            for _ in range(9):
                began = time.perf_counter()
                fit = analysis.fit("chinchilla", runs, loss="huber:1e-3")
                times.append(time.perf_counter() - began)
            began = time.perf_counter()
            analysis.bootstrap(fit, draws=1000)
            boot = time.perf_counter() - began
            began = time.perf_counter()
            scipy_fit(frame)
            print(f"{count:4} {1e3 * statistics.median(times):8.1f} {boot:20.2f} {time.perf_counter() - began:20.1f}", flush=True)


if __name__ == "__main__":
    main()
