"""One Chinchilla fit and its bootstrap beside SciPy's L-BFGS-B from Hoffmann's 4,500 starts and, where installed, the package `chinchilla`.

Run: make bench      (or: .venv/bin/python benchmarks/fit.py [RUNS.csv] [--starts SHARE] [--repeats K])

RUNS.csv has the columns params, tokens, loss; without it the 240 published points are used where they are there, else simulated ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the `scaling` command does

import numpy as np
import pandas as pd
from scipy.optimize import minimize

import analysis

PUBLISHED = Path(__file__).parents[2] / "shared" / "published" / "besiroglu2024" / "tidy.csv"
TRUE = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
DELTA = 1e-3
LOSS = f"huber:{DELTA:g}"
#: Hoffmann et al. 2022, section D.3: alpha, beta, e, a, b (coefficients in logarithms).
GRID = list(
    itertools.product(np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5), np.arange(-1, 1.5, 0.5), np.arange(0, 30, 5), np.arange(0, 30, 5))
)
DRAWS, SCIPY_DRAWS = 4000, 50


def simulated(runs: int, *, seed: int = 0, outliers: float = 0.05) -> pd.DataFrame:
    """Runs of a known law with 1 % log-normal noise, some of them far off."""
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7.5, 10, runs), 10 ** rng.uniform(9, 11.5, runs)
    loss = TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]
    noise = rng.normal(0, 0.01, runs) + (rng.random(runs) < outliers) * rng.normal(0, 0.1, runs)
    return pd.DataFrame({"run_id": [f"r{i}" for i in range(runs)], "params": n, "tokens": d, "loss": loss * np.exp(noise)})


def huber(theta: np.ndarray, x: np.ndarray, y: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Hoffmann's objective and its gradient at (a, b, e, alpha, beta)."""
    parts = np.stack([theta[0] - theta[3] * x, theta[1] - theta[4] * y, np.full_like(x, theta[2])])
    top = parts.max(axis=0)
    weights = np.exp(parts - top)
    total = weights.sum(axis=0)
    r = top + np.log(total) - target
    slope = np.clip(r, -DELTA, DELTA)
    pull = slope * weights / total
    size = np.minimum(np.abs(r), DELTA)
    sums = pull.sum(axis=1)
    return float((size * (np.abs(r) - size / 2)).sum()), np.array([*sums, -(pull[0] * x).sum(), -(pull[1] * y).sum()])


def logs(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log params, log tokens, log loss."""
    return tuple(np.log(frame[name].to_numpy(dtype=np.float64)) for name in ("params", "tokens", "loss"))  # pyright: ignore[reportReturnType]


def descend(start: np.ndarray, data: tuple[np.ndarray, ...]) -> tuple[float, np.ndarray]:
    """L-BFGS-B from one start (a, b, e, alpha, beta), run as far as it goes."""
    # The objective is about 1e-3: it is scaled so that the tolerances of the method mean something.
    found = minimize(
        lambda t: tuple(1e3 * v for v in huber(t, *data)), start, jac=True, method="L-BFGS-B",
        options={"maxiter": 3000, "maxfun": 6000, "ftol": 1e-14, "gtol": 1e-8},
    )  # fmt: skip
    return found.fun / 1e3, found.x


def from_grid(frame: pd.DataFrame, share: float) -> np.ndarray:
    """Objectives of the descents from every (1 / share)-th start of the grid."""
    data = logs(frame)
    picked = GRID[:: max(1, round(1 / share))]
    return np.array([descend(np.array([a, b, e, alpha, beta]), data)[0] for alpha, beta, e, a, b in picked])


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """Wall seconds of a call, and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def log_huber(observed: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Hoffmann's loss of each run, as the package asks for it."""
    r = np.abs(np.log(predicted) - np.log(observed))
    size = np.minimum(r, DELTA)
    return size * (r - size / 2)


def with_package(frame: pd.DataFrame) -> tuple[float, float] | None:
    """Seconds and objective of the package `chinchilla` from Hoffmann's grid, on all cores; None where it is not installed."""
    if importlib.util.find_spec("chinchilla") is None:
        return None
    from chinchilla import Chinchilla  # pyright: ignore[reportMissingImports]

    grid = {name: sorted({float(start[at]) for start in GRID}) for at, name in enumerate(("alpha", "beta", "e", "a", "b"))}
    with tempfile.TemporaryDirectory() as folder:
        table = frame.assign(C=6 * frame["params"] * frame["tokens"]).rename(columns={"params": "N", "tokens": "D"})
        table[["C", "N", "D", "loss"]].to_csv(Path(folder) / "df.csv", index=False)
        theirs = Chinchilla(folder, grid, seed_ranges={"C": (1e18, 1e21), "N_to_D": (1, 100)}, loss_fn=log_huber)
        seconds, _ = timed(theirs.fit)
    p = {name: float(getattr(theirs, name)) for name in ("A", "B", "E", "alpha", "beta")}
    theta = np.array([*np.log([p["A"], p["B"], p["E"]]), p["alpha"], p["beta"]])
    return seconds, huber(theta, *logs(frame))[0]


def brute_force(frame: pd.DataFrame, starts: int, *, seed: int) -> float:
    """Lowest objective of descents from random starts."""
    data, rng = logs(frame), np.random.default_rng(seed)
    alpha, beta = rng.uniform(0.05, 1.5, (2, starts))
    level = rng.normal(0, 2, (3, starts))
    a, b, e = level[0] + alpha * data[0].mean(), level[1] + beta * data[1].mean(), level[2] / 3 + data[2].min() - 0.5
    return min(descend(start, data)[0] for start in np.stack([a, b, e, alpha, beta], axis=1))


def read(frame: pd.DataFrame) -> analysis.Runs:
    """Runs of a table."""
    with tempfile.TemporaryDirectory() as folder:
        frame.to_csv(Path(folder) / "runs.csv", index=False)
        return analysis.read_runs(Path(folder) / "runs.csv", n_column="params")


def main() -> None:
    """Print one row a method, then the search for anything lower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, default=PUBLISHED if PUBLISHED.is_file() else None)
    parser.add_argument("--starts", type=float, default=0.05, help="share of the 4,500 starts that SciPy takes (its time is scaled)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sweeps", type=int, default=40, help="simulated sweeps on which 200 random starts look for a lower objective")
    given = parser.parse_args()
    frame = simulated(240) if given.runs is None else pd.read_csv(given.runs)
    if "in_fit" in frame:
        frame = frame[frame["in_fit"] == 1]
    frame = frame.loc[:, ["params", "tokens", "loss"]].astype(float).reset_index(drop=True)
    frame.insert(0, "run_id", [f"r{i}" for i in range(len(frame))])
    runs = read(frame)
    fit = analysis.fit("chinchilla", runs, loss=LOSS)
    pairs = []  # ours and theirs in turn, so that both meet the same machine
    for _ in range(given.repeats):
        ours = min(timed(lambda: analysis.fit("chinchilla", runs, loss=LOSS))[0] for _ in range(3))
        pairs.append((ours, timed(lambda: from_grid(frame, 0.002))[0] / len(GRID[::500]) * len(GRID)))
    seconds, found = timed(lambda: from_grid(frame, given.starts))
    values = np.asarray(found)
    scaled = seconds * len(GRID) / len(values)
    best = min(float(values.min()), fit.objective)
    reached = float((values <= best * (1 + 1e-6)).mean())
    boots = [timed(lambda: analysis.bootstrap(fit, draws=DRAWS, method="pairs"))[0] for _ in range(3)]
    data, rng = logs(frame), np.random.default_rng(0)
    optimum = np.array([*np.log([fit.params[name] for name in "ABE"]), fit.params["alpha"], fit.params["beta"]])
    drawn = [rng.integers(0, len(frame), len(frame)) for _ in range(SCIPY_DRAWS)]
    loop = timed(lambda: [descend(optimum, tuple(column[rows] for column in data)) for rows in drawn])[0] * DRAWS / SCIPY_DRAWS
    print(f"{len(frame)} runs, {LOSS}; {given.runs.parent.name if given.runs else 'simulated'}\n")
    print(f"{'method':58}{'seconds':>10}  {'objective':>16}  starts that reach the optimum")
    middle = statistics.median(a for a, _ in pairs)
    print(f"{'analysis.fit':58}{middle:10.4f}  {fit.objective:16.10g}  {100 * fit.starts_agree:.0f} % of {fit.starts} cells")
    label = f"SciPy L-BFGS-B, {len(GRID):,} starts (scaled from {len(values)})"
    print(f"{label:58}{scaled:10.1f}  {values.min():16.10g}  {100 * reached:.0f} % of {len(values)}")
    package = with_package(frame)
    if package is None:
        print("package chinchilla: not installed; to compare, pip install chinchilla")
    else:
        print(f"{'package chinchilla, 4,500 starts, all cores':58}{package[0]:10.1f}  {package[1]:16.10g}  not reported")
    print(f"{f'analysis.bootstrap, {DRAWS:,} draws of pairs':58}{statistics.median(boots):10.3f}")
    label = f"SciPy loop from the optimum, {DRAWS:,} draws (scaled from {SCIPY_DRAWS})"
    print(f"{label:58}{loop:10.1f}")
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"\nratios: fit {ratio:,.0f} (median of {len(pairs)} pairs), bootstrap {loop / statistics.median(boots):.0f}")
    if given.sweeps:
        report_lower(given.sweeps)


def report_lower(sweeps: int) -> None:
    """Look for a lower objective than ours on simulated sweeps of 20 to 240 runs with outliers."""
    excess = []
    for seed in range(sweeps):
        frame = simulated(int(np.random.default_rng(seed).integers(20, 241)), seed=seed, outliers=0.1)
        ours = analysis.fit("chinchilla", read(frame), loss=LOSS).objective
        excess.append(ours / brute_force(frame, 200, seed=seed) - 1)
    lower = sum(value > 1e-9 for value in excess)
    print(
        f"200 random starts of SciPy on each of {sweeps} simulated sweeps: lower on {lower}; ours over theirs, largest {max(excess):+.1e}"
    )


if __name__ == "__main__":
    main()
