"""Does `scaling suggest` choose well? Pools of finished runs bought one after the other, against five baselines.

    python benchmarks/design.py [FOLDER] [--seeds 10] [--share 0.1] [--curve]      (FOLDER: published data, default ../shared/published)

A problem is a set of runs with a target that is held out: its dearest fifth (`dear`), or its largest models, about a sixth of the runs
(`large`). The pool is the rest. Every method begins with the same three runs, drawn from the cheapest quarter of the pool, and buys until
the share of the pool's cost is spent; the loss of a run is seen once it is bought. All methods predict the target with the same model, that
of `scaling predict` if the law is only a law (`analysis.model_error`; under 8 runs `analysis.surface`), so that only the choice of runs
differs. R2 is that of the target's losses (nats); of the seeds the median counts. Two bars: R2 of the law that `scaling fit` fits to all
runs of the pool, and R2 of the same model on all of them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent))

from model_error import FOLDER, read_sets

import analysis
from analysis.design import BASELINES, Pool, replay
from analysis.model_error import learn_extrapolation
from analysis.surface import Places, fit_surface

METHODS = ("suggest", *BASELINES)
DEAR, LARGE, STARTS, CHEAP = 0.8, 0.15, 3, 0.25
LEAST_POOL, LEAST_TARGET = 12, 3
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
#: Simulated sweeps: what the loss is, as a function of N and D, and the sd of a run.
TRUTHS = {
    "Chinchilla, .3 % noise": (lambda n, d: 1.817 + 477.8 / n**0.347 + 2143.0 / d**0.367, 0.003),
    "Chinchilla, 1 % noise": (lambda n, d: 1.817 + 477.8 / n**0.347 + 2143.0 / d**0.367, 0.01),
    "Skaling k = .35, .3 % noise": (lambda n, d: 1.5 + (8e7 / n**0.95 + 6e8 / d**0.9) ** 0.35, 0.003),
    "Kaplan, .3 % noise": (lambda n, d: ((8.8e13 / n) ** (0.076 / 0.095) + 5.4e13 / d) ** 0.095, 0.003),
    "small models untuned, .3 % noise": (lambda n, d: (1.817 + 477.8 / n**0.347 + 2143.0 / d**0.367) * (1 + 0.03 / (1 + n / 1e8)), 0.003),
}


def problems(folder: Path) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Name, pool and target of every problem: published sets, then simulated sweeps."""
    sets = read_sets(folder)[0] if any(folder.glob("*/tidy.csv")) else {}
    for name, (law, noise) in TRUTHS.items():
        rng = np.random.default_rng(1)
        n, d = 10 ** rng.uniform(7, 9.5, 120), 10 ** rng.uniform(8.5, 11, 120)
        sets[f"simulated {name}"] = pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "loss": law(n, d) * np.exp(rng.normal(0, noise, 120))})
    for name, rows in sets.items():
        dear = rows["C"] >= np.quantile(rows["C"], DEAR)
        edge = next(size for size in sorted(rows["N"].unique())[::-1] if (rows["N"] >= size).sum() >= max(LEAST_TARGET, LARGE * len(rows)))
        for kind, held in (("dear", dear), ("large", rows["N"] >= edge)):
            if (~held).sum() >= LEAST_POOL and held.sum() >= LEAST_TARGET:
                yield f"{name.replace('|', ' ')}: {kind}", rows[~held].reset_index(drop=True), rows[held]


def places(rows: pd.DataFrame) -> Places:
    return Places.of(rows["N"].to_numpy(), rows["D"].to_numpy(), rows["unique_tokens"].to_numpy() if "unique_tokens" in rows else None)


def r2(target: pd.DataFrame, predicted: np.ndarray) -> float:
    loss = target["loss"].to_numpy()
    return float(1 - ((loss - predicted) ** 2).sum() / ((loss - loss.mean()) ** 2).sum())


def model_r2(rows: pd.DataFrame, target: pd.DataFrame) -> float:
    """R2 of the model of `scaling predict`, if the law is only a law."""
    runs, aim = places(rows), places(target)
    try:
        learnt = learn_extrapolation(np.exp(runs.x), np.exp(runs.y), rows["loss"].to_numpy())
        predicted = learnt.interval(np.exp(aim.x), np.exp(aim.y)).predicted
    except analysis.UserError:  # too few runs
        predicted = np.exp(fit_surface(runs, np.log(rows["loss"].to_numpy()), target=aim).predict(aim))
    return r2(target, predicted)


def law_r2(rows: pd.DataFrame, target: pd.DataFrame) -> float:
    """R2 of the default of `scaling fit`: Chinchilla, huber:auto, all runs of the pool."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        pd.DataFrame({"params": rows["N"], "tokens": rows["D"], "loss": rows["loss"]}).to_csv(path, index=False)
        fit = analysis.fit("chinchilla", analysis.read_runs(path))
    return r2(target, fit.predict(N=target["N"].to_numpy(), D=target["D"].to_numpy()))


def solve(task: tuple[str, pd.DataFrame, pd.DataFrame, tuple[float, ...], int]) -> list[dict]:
    """One row a method and share: R2 of every seed."""
    name, rows, target, shares, seeds = task
    log_loss, flops = np.log(rows["loss"].to_numpy()), rows["C"].to_numpy()
    pool = Pool.independent(np.arange(len(rows)).astype(str), places(rows), flops)
    cheapest = np.argsort(flops, kind="stable")[: max(STARTS + 1, int(CHEAP * len(rows)))]
    bars = {"law": law_r2(rows, target), "model": model_r2(rows, target)}
    found = []
    for share in shares:
        for method in METHODS:
            scores = []
            for seed in range(seeds):
                start = np.random.default_rng([seed, 1]).choice(cheapest, STARTS, replace=False)
                bought = replay(
                    pool, log_loss, places(target), method=method, budget=share * flops.sum(), start=start,
                    generator=np.random.default_rng([seed, 2]),
                )  # fmt: skip
                scores.append(model_r2(rows.iloc[bought], target))
            found.append({"problem": name, "pool": len(rows), "share": share, "method": method, "scores": np.array(scores), **bars})
    return found


def summary(table: pd.DataFrame) -> None:
    """Print one row a method: mean R2 (cut at -1), and how often the bars are reached."""
    print("\n| method | mean R2 | median R2 | reaches the law on all data | reaches the same model on all data | within .01 of it |")
    print("|---|---|---|---|---|---|")
    for method in METHODS:
        rows = table[table["method"] == method]
        middle = np.array([np.median(scores) for scores in rows["scores"]])
        mean = np.mean([np.clip(scores, -1, 1).mean() for scores in rows["scores"]])
        law, model = rows["law"].to_numpy(), rows["model"].to_numpy()
        shares = [(middle >= law).mean(), (middle >= model).mean(), (middle >= model - 0.01).mean()]
        print(f"| {method} | {mean:.3f} | {np.median(middle):.3f} | " + " | ".join(f"{value:.2f}" for value in shares) + " |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.1, help="of the pool's cost that may be spent (default: 0.1)")
    parser.add_argument("--curve", action="store_true", help="other shares as well")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    shares = tuple(sorted({arguments.share, *(SHARES if arguments.curve else ())}))
    tasks = [(*problem, shares, arguments.seeds) for problem in problems(arguments.folder)]
    with ProcessPoolExecutor(arguments.workers) as processes:
        table = pd.DataFrame([row for rows in processes.map(solve, tasks) for row in rows])
    at = table[table["share"] == arguments.share]
    print(f"R2 of the target at {arguments.share:.0%} of the pool's cost, median of {arguments.seeds} seeds\n")
    print("| problem | pool | law, all data | model, all data | " + " | ".join(METHODS) + " |")
    print("|---|---|---|---|" + "---|" * len(METHODS))
    for name, rows in at.groupby("problem", sort=False):
        cells = [f"{np.median(rows[rows['method'] == method]['scores'].iloc[0]):.3f}" for method in METHODS]
        first = rows.iloc[0]
        print(f"| {name} | {first['pool']} | {first['law']:.3f} | {first['model']:.3f} | " + " | ".join(cells) + " |")
    simulated = at["problem"].str.startswith("simulated")
    for title, part in (("All problems", at), ("Published sets", at[~simulated]), ("Simulated sweeps", at[simulated])):
        if len(part):
            print(f"\n{title} ({part['problem'].nunique()}):")
            summary(part)
    for share in shares if len(shares) > 1 else ():
        print(f"\nAt {share:.0%} of the cost:")
        summary(table[table["share"] == share])


if __name__ == "__main__":
    main()
