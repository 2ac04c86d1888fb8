"""A results folder with a known law, for tests: 4 sizes x 4 data sizes x 2 seeds, one hold-out trunk and its registered forecast."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

TRUTH = {"E": 0.80, "A": 15.0, "B": 100.0, "alpha": 0.35, "beta": 0.40}
WIDTHS = (24, 32, 48, 64)
TOKENS = (500_000, 1_000_000, 2_000_000, 4_000_000)
HOLDOUT_WIDTH = 96
VOCABULARY = 256
LAYERS = 2
NUMERICS = "cpu-avx2-f32"


def true_loss(params: float, tokens: float) -> float:
    """Loss of the known law, nats per token."""
    return TRUTH["E"] + TRUTH["A"] / params ** TRUTH["alpha"] + TRUTH["B"] / tokens ** TRUTH["beta"]


def params_of(width: int) -> int:
    """Non-embedding parameters of the made-up model of a width: 12 d^2 a layer and the norms."""
    return LAYERS * (12 * width**2 + 2 * width) + width


def make_row(width: int, tokens: int, seed: int, *, role: str = "fit", noise: float = 0.0) -> dict[str, object]:
    """One row of runs.csv; `noise` is the relative error of its loss."""
    params = params_of(width)
    embedding = VOCABULARY * width
    total = params + 2 * embedding
    batch = 2048
    steps = tokens // batch
    loss = true_loss(params, tokens) * math.exp(noise)
    trunk = f"d{width}-s{seed}-{width * 7919 + seed:06x}"
    return {
        "run_id": f"d{width}-t{tokens // 1000}k-s{seed}-{width * 104729 + tokens // 1000 + seed:06x}",
        "trunk_id": trunk,
        "status": "done",
        "role": role,
        "numerics_id": NUMERICS,
        "name": "synthetic",
        "corpus": "python-stdlib",
        "corpus_hash": "0" * 12,
        "tokenizer": "bytes",
        "recipe_version": 1,
        "d_model": width,
        "n_layers": LAYERS,
        "n_heads": width // 8,
        "d_ff": 4 * width,
        "vocab_size": VOCABULARY,
        "sequence_length": 128,
        "batch_tokens": batch,
        "steps": steps,
        "branch_step": int(steps * 0.8),
        "warmup_steps": 50,
        "cooldown_steps": steps - int(steps * 0.8),
        "schedule": "trunk",
        "learning_rate": 0.01,
        "seed_init": seed,
        "seed_data": seed,
        "params_embedding": embedding,
        "params_non_embedding": params,
        "params_unembedding": embedding,
        "params_total": total,
        "tokens": tokens,
        "tokens_unique": tokens,
        "epochs": 1.0,
        "tokens_per_param": tokens / params,
        "flops": 6.0 * (params + embedding) * tokens * 1.25,
        "flops_6nd": 6.0 * params * tokens,
        "flops_spent": 6.0 * (params + embedding) * tokens * 0.7,
        "loss": loss,
        "loss_se": 0.004,
        "bits_per_byte": loss / math.log(2),
        "train_loss": loss * 0.98,
        "attempts": 1,
        "train_seconds": 10.0,
        "eval_seconds": 0.5,
        "overhead_seconds": 2.0,
        "host": "laptop",
        "finished_at": "2026-01-02T03:04:05Z",
        "reason": "",
    }


def write_results(
    folder: Path,
    *,
    noise: float = 0.003,
    seeds: int = 2,
    holdout: str | None = "done",
    widths: tuple[int, ...] = WIDTHS,
    tokens: tuple[int, ...] = TOKENS,
    seed: int = 0,
    broken: bool = True,
) -> Path:
    """Write runs.csv, curves.parquet and forecasts/*.json into a new folder.

    Noise follows the three components that shared trunks make: one effect a trunk, one a (data seed, D), one a branch; together `noise`
    (relative, one standard deviation). `holdout` is the status of the hold-out run, None for no hold-out. `broken` adds one diverged run.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    order = {(s, d): rng.normal(0, noise * 0.5) for s in range(seeds) for d in tokens}
    rows: list[dict[str, object]] = []
    for width in widths:
        for data_seed in range(seeds):
            trunk = rng.normal(0, noise * 0.7)
            for size in tokens:
                rows.append(make_row(width, size, data_seed, noise=trunk + order[data_seed, size] + rng.normal(0, noise * 0.5)))
    if broken:
        rows.append(make_row(widths[0], tokens[0], seeds) | {"status": "diverged", "loss": "", "reason": "loss became NaN at step 120"})
    if holdout is not None:
        row = make_row(HOLDOUT_WIDTH, max(tokens), 0, role="holdout", noise=rng.normal(0, noise))
        if holdout != "done":
            row |= {"status": holdout, "loss": "", "reason": "not trained yet"}
        rows.append(row)
        _write_forecast(folder, row, [str(r["run_id"]) for r in rows if r["role"] == "fit"], rng, noise)
    with (folder / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _write_curves(folder, rows, rng)
    return folder


def _write_forecast(folder: Path, row: dict[str, object], run_ids: list[str], rng: np.random.Generator, noise: float) -> None:
    params, tokens = row["params_non_embedding"], row["tokens"]
    predicted = true_loss(float(str(params)), float(str(tokens))) * 1.002
    draws = np.sort(predicted * np.exp(rng.normal(0, 2 * noise, 200)))
    forecast = {
        "forecast_id": "0123456789ab",
        "target": {key: row[key] for key in ("run_id", "trunk_id", "params_non_embedding", "params_total", "tokens", "flops", "flops_6nd")},
        "law": "chinchilla",
        "fit_id": "abcdef012345",
        "n_column": "params_non_embedding",
        "parameters": TRUTH,
        "predicted": predicted,
        "pi_low": float(np.quantile(draws, 0.025)),
        "pi_high": float(np.quantile(draws, 0.975)),
        "level": 0.95,
        "threshold_relative_error": 0.015,
        "noise": "made up",
        "extrapolation": "N x2.2 above the data",
        "draws": draws.tolist(),
        "runs": run_ids,
    }
    (folder / "forecasts").mkdir(exist_ok=True)
    (folder / "forecasts" / "0123456789ab.json").write_text(json.dumps(forecast, indent=1), encoding="utf-8")


def _write_curves(folder: Path, rows: list[dict[str, object]], rng: np.random.Generator) -> None:
    """Train loss of the trunk, then of the cooldown, of each run; held-out loss at the last point only."""
    points: list[dict[str, object]] = []
    for row in rows:
        if row["status"] != "done":
            continue
        steps, branch = int(str(row["steps"])), int(str(row["branch_step"]))
        batch, params, final = (
            int(str(row["batch_tokens"])),
            float(str(row["params_non_embedding"])),
            float(str(row["loss"])),
        )
        for step in np.unique(np.geomspace(5, steps, 60).astype(int)):
            seen = float(step * batch)
            cooling = step > branch
            high = 1.05 * (TRUTH["E"] + TRUTH["A"] / params**0.35 + TRUTH["B"] / seen**0.4) + 3.5 * math.exp(-step / 20)
            share = (step - branch) / (steps - branch) if cooling else 0.0
            points.append(
                {
                    "run_id": row["run_id"],
                    "trunk_id": row["trunk_id"],
                    "phase": "cooldown" if cooling else "trunk",
                    "step": int(step),
                    "tokens": seen,
                    "flops": 6.0 * params * seen,
                    "train_loss": (high * (1 - share) + 0.98 * final * share) * math.exp(rng.normal(0, 0.01)),
                    "loss": final if step == steps else math.nan,
                    "learning_rate": 0.01 * (1 - share),
                    "grad_norm": 0.5,
                }
            )
    frame = pd.DataFrame(points)
    with duckdb.connect(":memory:") as connection:
        connection.register("points", frame)
        connection.execute(f"COPY points TO '{folder / 'curves.parquet'}' (FORMAT parquet)")


RECORDS = """
name = "tiny"
corpus = "python-stdlib"
[model]
d_model = [8, 16]
n_layers = 1
[data]
tokens = ["64k", "128k", "256k"]
[holdout]
d_model = [24]
tokens = ["256k"]
"""


def write_records(root: Path) -> Path:
    """A finished sweep of 6 runs and a hold-out that waits, in the format that workers write; with its tables. Returns `root`."""
    import hashlib

    import msgspec

    from scaling.claim import Claim
    from scaling.plan import group_trunks, resolve
    from scaling.record import Folder, Resolved, publish_run, write_json
    from scaling.sweep_file import load_sweep
    from scaling.tables import write_tables

    root.mkdir(parents=True)
    (root / "sweep.toml").write_text(RECORDS)
    sweep = load_sweep(root / "sweep.toml")
    resolved = Resolved(sweep=sweep, corpus_hash="0" * 12, corpus_facts={"train_tokens": 10**6}, runs=resolve(sweep, corpus_hash="0" * 12))
    folder = Folder(root)
    write_json(folder.resolved, resolved)
    for trunk in group_trunks(resolved.runs):
        folder.trunk(trunk.trunk_id).mkdir(parents=True)
        claim = Claim(host="gone", pid=1, process_start="1", boot_id="gone", attempt=1)
        (folder.trunk(trunk.trunk_id) / "claim").write_bytes(msgspec.json.encode(claim))
        for run in trunk.runs if trunk.role == "fit" else ():
            staged = root / "staged"
            staged.mkdir()
            loss = true_loss(float(run.trunk.model.d_model) ** 2 * 12, float(run.tokens))
            points = [
                {
                    "phase": "trunk",
                    "step": step,
                    "tokens": step * 512,
                    "train_loss": loss + 1 / step,
                    "learning_rate": 0.01,
                    "grad_norm": 0.5,
                }
                for step in (8, 16, run.steps)
            ]
            (staged / "metrics.jsonl").write_bytes(b"".join(msgspec.json.encode(point) + b"\n" for point in points))
            (staged / "config.json").write_bytes(msgspec.json.encode(run))
            timings = {"seconds": {"training": 1.0}, "steps": run.steps, "compiled": 0}
            result = {"run_id": run.run_id, "trunk_id": trunk.trunk_id, "attempt": 1, "numerics_id": NUMERICS, "status": "done"}
            result |= {"loss": loss, "loss_se": 0.004, "train_loss": loss, "timings": timings, "domains": {}}
            publish_run(staged, folder.run(run.run_id), result)
    first = group_trunks(resolved.runs)[0]
    write_json(folder.failure(first.trunk_id), {"reason": "made up", "attempt": 1})
    held = next(run for run in resolved.runs if run.role == "holdout")
    forecast = {
        "forecast_id": "0123456789ab",
        "target": {"run_id": held.run_id},
        "predicted": 1.0,
        "checksum": hashlib.sha256(b"").hexdigest(),
    }
    write_json(folder.forecasts / "0123456789ab.json", forecast)
    write_tables(root, resolved)
    return root
