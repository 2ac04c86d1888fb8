"""Does the interval that ends `scaling run --until` hold the truth? The loop played on simulated sweeps with shared trunks.

    python benchmarks/stopping.py [--replicates 300] [--workers 1]

Sweeps are those of benchmarks/coverage.py (a true Chinchilla law; trunk, data and branch noise), with a second truth that the law of the
surface does not contain: small models lose up to 3 %. The target is a model four times the largest at the longest length. The grid is what
may be trained; the loop stops when the 95 % interval is narrower than a goal, or the grid is trained. Beside it: the whole grid's interval.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from coverage import Cell, grid, simulate, true_loss

from analysis.adaptive import Goal, decide, interval_of
from analysis.design import Pool
from analysis.surface import Places, fit_surface

CELL = Cell(6, 5, 2, sd=0.005)
GOALS = (0.08, 0.04, 0.02, 0.01)  # of the target's loss
COOLDOWN = 0.2


def misfit(n: np.ndarray, kind: str) -> np.ndarray:
    """Factor of the loss by which a truth differs from the law."""
    return 1 + 0.03 / (1 + n / 5e4) if kind == "small models untuned" else np.ones_like(n)


def pool_of(frame) -> Pool:
    """The sweep's runs as a pool: a branch leaves its trunk at 80 % of its length; compute 6ND."""
    n, d = frame["N"].to_numpy(), frame["D"].to_numpy()
    trunk = np.unique(frame["trunk_id"], return_inverse=True)[1]
    flops = 6 * n * d
    return Pool(frame["run_id"].to_numpy(), Places.of(n, d), COOLDOWN * flops, trunk, (1 - COOLDOWN) * flops, np.zeros(len(n)))


def play(seed: int, *, kind: str) -> list[tuple[bool, bool, float, bool]]:
    """For each goal: interval holds the truth, goal reached, share of the grid's compute; and whether the grid's interval holds it."""
    frame = simulate(CELL, seed)
    frame["loss"] *= misfit(frame["N"].to_numpy(), kind)
    sizes, lengths = grid(CELL)
    n, d = 4 * sizes[-1], lengths[-1]
    truth = float(true_loss(n, d) * misfit(np.array([n]), kind)[0])
    pool, log_loss = pool_of(frame), np.log(frame["loss"].to_numpy())
    whole = pool.bill(list(range(len(pool))))
    everything = Goal(n, d, 1.0)
    _, low, high = interval_of(fit_surface(pool.places, log_loss, target=everything.place), everything)
    found = []
    for share in GOALS:
        goal, bought = Goal(n, d, share * truth), []
        while True:
            rest = np.setdiff1d(np.arange(len(pool)), bought)
            spent = pool.bill(bought)
            places = Places(pool.places.x[bought], pool.places.y[bought])
            others = pool.rows(rest)
            decision = decide(places, log_loss[bought], others, goal, budget=whole - spent, least=2)
            if not decision.chosen:
                break
            bought += [int(rest[run]) for run in decision.chosen]
        found.append((decision.low <= truth <= decision.high, decision.why == "reached", spent / whole, low <= truth <= high))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    print("| truth | goal: width, % | reached | coverage when it stops | mean share of the grid's compute | coverage of the whole grid |")
    print("|---|---|---|---|---|---|")
    for kind in ("Chinchilla", "small models untuned"):
        with ProcessPoolExecutor(arguments.workers) as processes:
            results = np.array(list(processes.map(partial(play, kind=kind), range(arguments.replicates), chunksize=5)), dtype=np.float64)
        for i, goal in enumerate(GOALS):
            held, reached, share, full = results[:, i].mean(axis=0)
            print(f"| {kind} | {100 * goal:g} | {reached:.2f} | {held:.3f} | {share:.2f} | {full:.3f} |", flush=True)


if __name__ == "__main__":
    main()
