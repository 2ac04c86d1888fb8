"""Do intervals hold when a law is extrapolated? Cheap-to-dear splits of published sets, two intervals side by side.

Run: .venv/bin/python benchmarks/model_error.py [FOLDER]      (about two minutes; FOLDER: published data, default ../shared/published)

Classical: Chinchilla, Huber, pairs bootstrap, residual noise added. Learnt: analysis.model_error.extrapolation_interval.
The rules of usability, and what the columns mean, are in docs/model_error.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

import analysis
from analysis.model_error import extrapolation_interval

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "published"
SHARES = (0.5, 0.6, 0.7)
MIN_RUNS, MIN_LEVELS, MIN_CHEAP, MIN_DEAR = 16, 3, 8, 3
DRAWS, LEVEL, LEVELS = 300, 0.95, (0.5, 0.8, 0.9, 0.99)
TRAINED = 5.0  # tokens per parameter: the second pooled table leaves out runs with fewer
TRUE = {"E": 1.817, "A": 477.8, "B": 2143.0, "alpha": 0.347, "beta": 0.367}
#: Folders that hold no set of their own.
SKIPPED = {"takano_chinchilla": "the runs of besiroglu2024, rounded", "nanochat2026": "optima, in bits per byte; not runs in nats"}


def read_sets(folder: Path) -> tuple[dict[str, pd.DataFrame], list[tuple[str, str]]]:
    """Usable sets (columns N, D, C, loss), and what was left out, with the reason."""
    usable, left_out = {}, []
    for path in sorted(folder.glob("*/tidy.csv")):
        source = path.parent.name
        if source in SKIPPED:
            left_out.append((source, SKIPPED[source]))
            continue
        table = pd.read_csv(path, low_memory=False)
        if not {"params", "tokens", "loss", "flops", "group"} <= set(table):
            left_out.append((source, "no columns params, tokens, loss, flops, group"))
            continue
        for name, rows in families(source, table):
            unique = ["unique_tokens"] if "unique_tokens" in rows and rows["unique_tokens"].notna().all() else []
            rows = rows.rename(columns={"params": "N", "tokens": "D"})[["N", "D", "flops", "loss", *unique]].apply(pd.to_numeric)
            rows = rows[np.isfinite(rows[["N", "D", "loss"]]).all(axis=1) & (rows[["N", "D", "loss"]] > 0).all(axis=1)]
            rows["C"] = rows["flops"] if rows["flops"].notna().all() else 6 * rows["N"] * rows["D"]
            reason = why_not(rows)
            if reason:
                left_out.append((name, reason))
            else:
                usable[name] = rows
    return usable, left_out


def families(source: str, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Sets of one file: its final runs, by group (what a final run is, is said by the file's README)."""
    if source == "besiroglu2024":
        table = table[table["in_fit"] == 1]
    elif source == "porian2024":
        table = table.assign(params=table["n_as_counted"])
    elif source == "olmo_ladder2024":
        table = table[table["length"].notna() | (table["split"] == "target")]
    elif source == "datablations2023":
        main = table[table["variant"].isin(["main", "seed"])]
        yield f"{source} one epoch", main[main["epochs"] <= 1.01]
        yield f"{source} all epochs", main
        table = table[~table["variant"].isin(["main", "seed"])]
        yield from ((f"{source} {name}", rows) for name, rows in table.groupby("variant"))
        return
    elif source == "steplaw2025":
        clean = table[(table["suspect"] == 0) & table["loss"].notna()]
        yield f"{source} best of each cell", clean.loc[clean.groupby("group")["loss"].idxmin()]
        return
    for group, rows in table.groupby("group"):
        yield f"{source} {group}", rows


def why_not(rows: pd.DataFrame) -> str:
    """Why a set is not usable; empty when it is."""
    if rows.empty:
        return "no row with parameters, tokens and loss"
    if len(rows) < MIN_RUNS:
        return f"{len(rows)} runs; at least {MIN_RUNS}"
    for name, words in (("N", "sizes"), ("D", "data sizes")):
        if rows[name].nunique() < MIN_LEVELS:
            return f"{rows[name].nunique()} {words}; at least {MIN_LEVELS}"
    return ""


def splits(rows: pd.DataFrame) -> Iterator[tuple[float, pd.DataFrame, pd.DataFrame]]:
    """Cheap and dear runs at 50, 60, 70 % of the runs by compute; equal compute stays together, equal splits count once."""
    seen = set()
    for share in SHARES:
        cheap = rows["C"] <= np.quantile(rows["C"], share, method="lower") * (1 + 1e-9)
        count = int(cheap.sum())
        if count not in seen and count >= MIN_CHEAP and len(rows) - count >= MIN_DEAR:
            seen.add(count)
            yield share, rows[cheap], rows[~cheap]


def classical(cheap: pd.DataFrame, dear: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log of prediction, low and high of a Chinchilla fit with a pairs bootstrap and residual noise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        pd.DataFrame({"params": cheap["N"], "tokens": cheap["D"], "loss": cheap["loss"]}).to_csv(path, index=False)
        fit = analysis.bootstrap(analysis.fit("chinchilla", analysis.read_runs(path)), draws=DRAWS, method="pairs")
    at = {"N": dear["N"].to_numpy(), "D": dear["D"].to_numpy()}
    low, high = fit.interval(noise=True, **at)
    return np.log(fit.predict(**at)), np.log(low), np.log(high)


def learnt(cheap: pd.DataFrame, dear: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log of prediction, low and high of the extrapolation interval."""
    found = extrapolation_interval(cheap["N"], cheap["D"], cheap["loss"], dear["N"], dear["D"], level=LEVEL)
    return np.log(found.predicted), np.log(found.low), np.log(found.high)


def scores(log_loss: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, float]:
    """Coverage, half-width, interval score (Gneiting & Raftery 2007, eq. 43, in log loss) and root mean square error."""
    outside = np.maximum(low - log_loss, 0) + np.maximum(log_loss - high, 0)
    return {
        "coverage": float((outside == 0).mean()),
        "width": float((high - low).mean() / 2),
        "score": float((high - low + 2 / (1 - LEVEL) * outside).mean()),
        "rmse": float(np.sqrt(np.mean((log_loss - mean) ** 2))),
    }


def compare(sets: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """One row a split, and its errors in units of the learnt half-width."""
    table, ratios = [], []
    for name, rows in sets.items():
        for share, cheap, dear in splits(rows):
            log_loss = np.log(dear["loss"].to_numpy())
            began = time.process_time()
            new = learnt(cheap, dear)
            row = {"set": name, "source": name.split()[0], "share": share, "cheap": len(cheap), "dear": len(dear)}
            row["seconds"] = time.process_time() - began
            ratios.append(2 * np.abs(log_loss - new[0]) / (new[2] - new[1]))
            for label, found in (("classical", classical(cheap, dear)), ("learnt", new)):
                row |= {f"{label}_{key}": value for key, value in scores(log_loss, *found).items()}
            table.append(row)
    return pd.DataFrame(table), ratios


def print_sets(table: pd.DataFrame) -> None:
    """One Markdown row a set: mean over its splits, classical / learnt."""
    print("| set | splits | coverage | half-width % | score | RMSE % |")
    print("|---|---|---|---|---|---|")
    for name, rows in table.groupby("set", sort=False):
        mean = rows.mean(numeric_only=True)
        cells = [
            f"{scale * mean[f'classical_{key}']:.{digits}f} / {scale * mean[f'learnt_{key}']:.{digits}f}"
            for key, scale, digits in (("coverage", 1, 2), ("width", 100, 1), ("score", 1, 3), ("rmse", 100, 1))
        ]
        print(f"| {str(name).replace('|', ' ')} | {len(rows)} | {' | '.join(cells)} |")


def print_pooled(table: pd.DataFrame, ratios: list[np.ndarray], title: str) -> None:
    """Print coverage, width, score and error pooled over splits, sets and sources."""
    sets = table.groupby("set").mean(numeric_only=True)
    sources = table.groupby(["source", "set"]).mean(numeric_only=True).groupby("source").mean()
    print(f"\n{title}: {len(table)} splits of {len(sets)} sets from {len(sources)} sources")
    for label in ("classical", "learnt"):
        inside, mean = table[f"{label}_coverage"], {key: sets[f"{label}_{key}"] for key in ("width", "score", "rmse")}
        print(
            f"  {label:9} coverage {inside.mean():.3f} (mean of sources {sources[f'{label}_coverage'].mean():.3f}),"
            f" splits >= .9 {(inside >= 0.9).mean():.2f}; half-width {100 * mean['width'].mean():.1f} %"
            f" (median set {100 * mean['width'].median():.1f} %); score {mean['score'].mean():.3f}; RMSE {100 * mean['rmse'].mean():.1f} %"
        )
    for key in ("width", "score", "rmse"):
        ratio = sets[f"learnt_{key}"] / sets[f"classical_{key}"]
        print(
            f"  {key} learnt / classical: geometric mean of sets {np.exp(np.log(ratio).mean()):.2f}, median {ratio.median():.2f};"
            f" lower in {(ratio < 1).sum()} of {len(ratio)}"
        )
    inside = [
        f"{level:g}: {np.mean([np.mean(ratio <= norm.ppf((1 + level) / 2) / norm.ppf((1 + LEVEL) / 2)) for ratio in ratios]):.3f}"
        for level in LEVELS
    ]
    print(f"  coverage of the learnt interval at other levels: {', '.join(inside)}")
    print(f"  CPU seconds an interval {table['seconds'].mean():.3f}, slowest {table['seconds'].max():.3f}")


def simulate(count: int, noise: float, *, seeds: int = 20) -> dict[str, float]:
    """Chinchilla exactly true: coverage of both intervals on the dearer 40 %, and ratio of their widths (medians)."""
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        n, d = 10 ** rng.uniform(7.5, 10, count), 10 ** rng.uniform(9, 11.5, count)
        loss = (TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]) * np.exp(rng.normal(0, noise, count))
        rows = pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "loss": loss}).sort_values("C")
        cheap, dear = rows.iloc[: round(0.6 * count)], rows.iloc[round(0.6 * count) :]
        log_loss = np.log(dear["loss"].to_numpy())
        found.append({"classical": scores(log_loss, *classical(cheap, dear)), "learnt": scores(log_loss, *learnt(cheap, dear))})
    ratio = [row["learnt"]["width"] / row["classical"]["width"] for row in found]
    inside = {label: float(np.mean([row[label]["coverage"] for row in found])) for label in ("classical", "learnt")}
    return inside | {"ratio": float(np.median(ratio))}


def main() -> None:
    """Print the tables."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not any(folder.glob("*/tidy.csv")):
        sys.exit(f"{folder}: holds no published data (SET/tidy.csv); give the folder as the argument")
    sets, left_out = read_sets(folder)
    table, ratios = compare(sets)
    print_sets(table)
    print_pooled(table, ratios, "all final runs")
    trained = {name: rows[rows["D"] >= TRAINED * rows["N"]] for name, rows in sets.items()}
    print_pooled(*compare({name: rows for name, rows in trained.items() if not why_not(rows)}), f"runs with D >= {TRAINED:g} N only")
    print("\nleft out:")
    for name, reason in left_out:
        print(f"  {name}: {reason}")
    print("\nChinchilla exactly true (20 simulated sets each, dearer 40 % forecast):")
    for count, noise in ((30, 0.003), (60, 0.003), (60, 0.01), (240, 0.003), (240, 0.01)):
        row = simulate(count, noise)
        words = f"coverage {row['classical']:.2f}, learnt {row['learnt']:.2f}; learnt {row['ratio']:.1f} times as wide"
        print(f"  {count:3} runs, noise {100 * noise:g} %: {words}")


if __name__ == "__main__":
    main()
