"""Does the interval of E hold the truth, where the truth is known? One fit a source and seed of `sweeps/known_entropy.toml`.

    python benchmarks/known_entropy.py [RESULTS] [--law chinchilla] [--draws 400]

Reads runs.csv of the sweep's results (by default results/known_entropy), fits every seed of every source apart, as if it were the only
one, and writes seeds.csv beside it: E with its interval, the exact entropy, and whether the interval holds it. The summary is printed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd

from analysis.errors import UserError
from analysis.files import write_table
from analysis.fitting import fit
from analysis.runs import read_runs
from analysis.uncertainty import bootstrap


def one_seed(runs: pd.DataFrame, *, law: str, draws: int) -> dict:
    """E and its interval from the runs of one source and seed, beside the exact entropy and the lowest loss of a run."""
    truth, lowest = float(runs["entropy"].iloc[0]), float(runs["loss"].min())
    row = {"n_runs": len(runs), "law": law, "entropy": truth, "lowest_loss": lowest, "lowest_above_entropy": lowest - truth}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.csv")
        runs.to_csv(path, index=False)
        try:
            found = bootstrap(fit(law, read_runs(path)), draws=draws)
        except UserError as error:
            return {**row, "status": f"no law: {error}"}
    e = found.parameter_table().set_index("parameter").loc["E"]
    holds = bool(e["ci_low"] <= truth <= e["ci_high"])
    return {**row, "status": found.status, "E": e["estimate"], "E_low": e["ci_low"], "E_high": e["ci_high"], "holds": holds}


def summary(table: pd.DataFrame) -> str:
    """A Markdown line a source: how many intervals hold the truth, where E lies, and how wide the interval is."""
    lines = [
        "| source | entropy | lowest loss - entropy | E - entropy: least, median, most | median width | held |",
        "|---|---|---|---|---|---|",
    ]
    for group, rows in table.groupby("group", sort=False):
        error, width = rows["E"] - rows["entropy"], rows["E_high"] - rows["E_low"]
        lines.append(
            f"| {group} | {rows['entropy'].iloc[0]:.4f} | {rows['lowest_above_entropy'].min():.4f} | {error.min():+.4f}, "
            f"{error.median():+.4f}, {error.max():+.4f} | {width.median():.4f} | {int(rows['holds'].fillna(False).sum())} of {len(rows)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Parse, fit, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results/known_entropy"))
    parser.add_argument("--law", default="chinchilla")
    parser.add_argument("--draws", type=int, default=400)
    arguments = parser.parse_args()
    path = arguments.results / "runs.csv"
    if not path.is_file():
        sys.exit(f"{path}: not there; `scaling run sweeps/known_entropy.toml` makes it")
    runs = pd.read_csv(path)
    runs = runs[(runs["status"] == "done") & runs["entropy"].notna()]
    if runs.empty:
        sys.exit(f"{path}: no finished run of a source whose entropy is known; run sweeps/known_entropy.toml")
    rows = []
    for (group, seed), part in runs.groupby(["group", "seed_init"], sort=False):
        rows.append({"group": group, "seed": seed, **one_seed(part, law=arguments.law, draws=arguments.draws)})
        print(f"{group} seed {seed}: {rows[-1]['status']}", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    write_table(arguments.results / "seeds.csv", table)
    print(summary(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
