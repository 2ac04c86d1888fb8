"""Do 95 % intervals hold the truth 95 times in 100? Simulated sweeps, fitted and bootstrapped as `scaling fit` does it.

    python benchmarks/coverage.py [--replicates 2000] [--draws 400] [--cells NAME ...]     (make coverage)

Each cell is a design (sizes x data lengths x data seeds, on shared trunks or independent runs) with a noise: trunk, (data seed x D) and
branch effects, an sd that falls with N, and perhaps outliers. The law is true, so this measures the intervals "if the law is true" and
nothing else. The table goes to docs/coverage.md, row by row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
TRUTH = {"E": 1.1, "A": 22.0, "B": 160.0, "alpha": 0.34, "beta": 0.38}
QUANTITIES = (*TRUTH, "inside", "beyond", "new run")


@dataclass(frozen=True)
class Cell:
    """A design and its noise: sizes x lengths x seeds; `trunks`: lengths share a trunk; `sd` at the smallest N, times (N/N0)^slope."""

    sizes: int
    lengths: int
    seeds: int = 1
    trunks: bool = True
    sd: float = 0.006
    slope: float = -0.4
    shares: tuple[float, float, float] = (0.4, 0.3, 0.3)
    outliers: float = 0.0

    @property
    def runs(self) -> int:
        """How many runs."""
        return self.sizes * self.lengths * self.seeds

    @property
    def n_trunks(self) -> int:
        """How many trunks."""
        return self.sizes * self.seeds if self.trunks else self.runs


CELLS = {
    "16 runs, 4 trunks": Cell(4, 4),
    "32 runs, 8 trunks": Cell(4, 4, 2),
    "32 runs, 8 trunks, outliers": Cell(4, 4, 2, outliers=0.03),
    "30 runs, 6 trunks": Cell(6, 5),
    "45 runs, 9 trunks": Cell(3, 5, 3),
    "60 runs, 12 trunks": Cell(6, 5, 2),
    "60 runs, 12 trunks, no repeats": Cell(12, 5),
    "96 runs, 24 trunks, outliers": Cell(8, 4, 3, outliers=0.03),
    "240 runs, 60 trunks": Cell(20, 4, 3),
    "60 runs, 12 trunks, trunk noise": Cell(6, 5, 2, shares=(0.8, 0.0, 0.2)),
    "40 runs, 8 trunks, trunk noise, no repeats": Cell(8, 5, shares=(0.8, 0.0, 0.2)),
    "32 runs, 8 trunks, branch noise": Cell(4, 4, 2, shares=(0.0, 0.0, 1.0), slope=0.0),
    "20 runs, independent": Cell(5, 4, trunks=False, shares=(0, 0, 1)),
    "36 runs, independent, outliers": Cell(6, 6, trunks=False, shares=(0, 0, 1), outliers=0.03),
    "60 runs, independent": Cell(10, 6, trunks=False, shares=(0, 0, 1)),
    "250 runs, independent, outliers": Cell(25, 10, trunks=False, shares=(0, 0, 1), outliers=0.03),
}


def true_loss(n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
    """Return the law that all runs follow."""
    return np.asarray(TRUTH["E"] + TRUTH["A"] / np.power(n, TRUTH["alpha"]) + TRUTH["B"] / np.power(d, TRUTH["beta"]))


def grid(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Sizes over 1.5 decades and lengths over 1.2 to 2 decades."""
    return np.geomspace(2e4, 6e5, cell.sizes), np.geomspace(5e5, 5e5 * (16 if cell.lengths < 5 else 64), cell.lengths)


def simulate(cell: Cell, seed: int) -> pd.DataFrame:
    """One sweep of the cell."""
    rng = np.random.default_rng([seed, 1])  # a stream of its own: the bootstrap is seeded with `seed`
    sizes, lengths = grid(cell)
    chunk = rng.standard_normal((cell.seeds, len(lengths)))
    rows = []
    for i, n in enumerate(sizes):
        for s in range(cell.seeds):
            trunk = rng.standard_normal()
            for j, d in enumerate(lengths):
                z = np.array([trunk, chunk[s, j], rng.standard_normal()]) @ np.sqrt(cell.shares)
                if rng.random() < cell.outliers:
                    z += rng.uniform(4, 10)
                loss = true_loss(n, d) * np.exp(cell.sd * (n / sizes[0]) ** cell.slope * z)
                run = f"r{len(rows)}"
                rows.append((run, f"t{i}-{s}" if cell.trunks else run, str(s) if cell.trunks else "", "fit", n, d, 6 * n * d, float(loss)))
    return pd.DataFrame(rows, columns="run_id trunk_id seed_data role N D C loss".split())


def replicate(task: tuple[str, int, int]) -> tuple[list[bool], list[bool], list[float], float]:
    """Fit and bootstrap one sweep; whether each interval holds the truth (bootstrap, then instant), widths, seconds."""
    from analysis.fitting import fit
    from analysis.runs import Runs
    from analysis.uncertainty import bootstrap

    name, seed, draws = task
    cell = CELLS[name]
    frame = simulate(cell, seed)
    nothing = pd.DataFrame(columns=["run_id", "reason"])
    runs = Runs(frame, frame.iloc[:0], nothing, frame, "params", "tokens", "loss", "flops", Path("simulated"), None)
    started = time.perf_counter()
    found = bootstrap(fit("chinchilla", runs), draws=draws, seed=seed)
    seconds = time.perf_counter() - started
    sizes, lengths = grid(cell)
    hits, instant = [], []
    for kind, table in ((hits, found.parameter_table()), (instant, bootstrap(found, draws=0).parameter_table())):
        table = table.set_index("parameter")
        kind += [bool(table.ci_low[p] <= v <= table.ci_high[p]) for p, v in TRUTH.items()]
    widths = []
    for n, d in ((sizes[len(sizes) // 2], lengths[len(lengths) // 2]), (4 * sizes[-1], lengths[-1])):
        low, high = found.interval(N=n, D=d)
        hits.append(bool(low <= true_loss(n, d) <= high))
        widths.append(float((high - low) / true_loss(n, d)))
    n, d = 2 * sizes[-1], lengths[-1]
    low, high = found.interval(noise=True, N=n, D=d)
    rng = np.random.default_rng([seed, 2])
    z = rng.standard_normal()
    if rng.random() < cell.outliers:  # as the runs of the sweep
        z += rng.uniform(4, 10)
    new = true_loss(n, d) * np.exp(cell.sd * (n / sizes[0]) ** cell.slope * z)
    hits.append(bool(low <= new <= high))
    return hits, instant, widths, seconds


def main() -> None:
    """Run the study and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), metavar="NAME")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "coverage.md")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.workers) as pool:
        for name in arguments.cells:
            tasks = [(name, 10_000 + i, arguments.draws) for i in range(arguments.replicates)]
            results = list(pool.map(replicate, tasks, chunksize=20))
            hits, instant = (np.mean([r[i] for r in results], axis=0) for i in (0, 1))
            width = 100 * np.median([r[2] for r in results], axis=0)
            shares = [f"{v:.3f}" for v in (*hits, instant.min(), instant.max())]
            row = [
                name,
                str(arguments.replicates),
                *shares,
                *(f"{v:.2f}" for v in width),
                f"{1000 * np.median([r[3] for r in results]):.0f}",
            ]
            write(arguments.out, row)
            print(" | ".join(row), file=sys.stderr, flush=True)


COLUMNS = ("cell", "replicates", *QUANTITIES, "instant, least", "instant, most", "width inside, %", "width beyond, %", "ms")


def write(page: Path, row: list[str]) -> None:
    """Put one cell's row into the table between the marks of the page, in the order of `CELLS`; other rows stay."""
    text = page.read_text(encoding="utf-8") if page.exists() else "<!-- table -->\n<!-- end -->\n"
    head, rest = text.split("<!-- table -->", 1)
    table, tail = rest.split("<!-- end -->", 1)
    known = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    known[row[0]] = "| " + " | ".join(row) + " |"
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *(known[name] for name in CELLS if name in known)]
    page.write_text("\n".join([head + "<!-- table -->", *lines, "<!-- end -->"]) + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
