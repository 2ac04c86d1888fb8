"""`runs.csv` and `curves.parquet`, rebuilt from the run folders; and the status of every run."""

import contextlib
import csv
import io
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pandas as pd
from msgspec import UNSET

from scaling import claim as claims
from scaling.accounting import count_parameters, training_flops_per_token
from scaling.budget import Guard
from scaling.config import RunConfig
from scaling.mixture import domain_shares, unique_tokens
from scaling.plan import Trunk, flops_spent, group_trunks
from scaling.record import Folder, Resolved, folder_lock, put_in_place, read_failure, read_metrics, read_result, write_atomic
from scaling.text_axes import group_of
from scaling.timings import OVERHEAD, read_timings

RUN_COLUMNS = (
    "run_id,trunk_id,status,role,numerics_id,name,corpus,corpus_hash,tokenizer,recipe_version,d_model,n_layers,n_heads,d_ff,vocab_size,"
    "sequence_length,batch_tokens,steps,branch_step,warmup_steps,cooldown_steps,schedule,optimizer,learning_rate,weight_decay,evaluation_split,tuning,seed_init,seed_data,"
    "params_embedding,params_non_embedding,params_unembedding,params_total,tokens,tokens_unique,epochs,tokens_per_param,"
    "flops,flops_6nd,flops_spent,loss,loss_se,bits_per_byte,train_loss,reason,attempts,train_seconds,eval_seconds,overhead_seconds,host,finished_at"
).split(",")
RUN_COLUMNS += ["group", "tokens_unique_limit", "bytes_per_token", "entropy"]  # of the text: docs/corpora.md
RUN_COLUMNS += ["precision", "population", "micro_batches"]  # of the devices: docs/gpu.md
DOMAIN_COLUMNS = "run_id,group,domain,share,loss,loss_se,bits_per_byte".split(",")
CURVE_COLUMNS = "run_id,trunk_id,phase,step,tokens,flops,train_loss,loss,learning_rate,grad_norm".split(",")
CURVE_TYPES = dict.fromkeys(CURVE_COLUMNS, "DOUBLE") | dict.fromkeys(CURVE_COLUMNS[:3], "VARCHAR") | {"step": "BIGINT", "tokens": "BIGINT"}
POINT_NUMBERS = ("step", "tokens", "train_loss", "learning_rate", "grad_norm")
RUNS_AT_A_TIME = 200


def run_status(folder: Folder, trunk: Trunk, run: RunConfig, result: dict[str, Any] | None, left_out: dict[str, str]) -> tuple[str, str]:
    """Status (done, diverged, stopped, failed, running, missing) of a run and its reason; `left_out`: trunks beyond the budget."""
    if result:
        return result["status"], result.get("reason", "")
    if failure := read_failure(folder, trunk.trunk_id):
        return "failed", failure
    if claims.is_live(folder, trunk.trunk_id):
        return "running", ""
    return "missing", left_out.get(trunk.trunk_id, "waits for its forecast" if run.role == "holdout" else "")


def run_rows(folder: Folder, resolved: Resolved) -> list[dict[str, Any]]:
    """One row a run, in plan order: config, counts, and the result where there is one."""
    trunks = {trunk.trunk_id: trunk for trunk in group_trunks(resolved.runs)}
    spent = {run_id: value for trunk in trunks.values() for run_id, value in flops_spent(trunk).items()}
    left_out = Guard.of(folder, resolved).left_out()
    return [_row(folder, resolved, trunks[run.trunk_id], run, spent[run.run_id], left_out) for run in resolved.runs]


def _row(folder: Folder, resolved: Resolved, trunk: Trunk, run: RunConfig, spent: float, left_out: dict[str, str]) -> dict[str, Any]:
    result = read_result(folder, run.run_id, files=False)
    status, reason = run_status(folder, trunk, run, result, left_out)
    config, model = run.trunk, run.trunk.model
    parameters = count_parameters(model)
    facts = resolved.facts_of(config.data.corpus_hash)
    limit = int(facts.get("train_tokens", facts.get("train_bytes", 0))) or run.tokens
    unique = unique_tokens(limit, facts.get("domain_tokens", {}), config.data, tokens=run.tokens)
    row = {
        "run_id": run.run_id,
        "trunk_id": run.trunk_id,
        "status": status,
        "reason": reason,
        "role": run.role,
        "name": resolved.sweep.name,
        "corpus": config.data.corpus,
        "corpus_hash": config.data.corpus_hash,
        "tokenizer": config.data.tokenizer,
        "recipe_version": config.recipe_version,
        **{key: getattr(model, key) for key in ("d_model", "n_layers", "n_heads", "d_ff", "vocab_size", "sequence_length")},
        "batch_tokens": config.data.batch_tokens,
        "steps": run.steps,
        "branch_step": run.branch_step,
        "warmup_steps": config.schedule.warmup_steps,
        "cooldown_steps": run.steps - run.branch_step,
        "schedule": config.schedule.shape,
        "optimizer": config.optimizer.kind,
        "weight_decay": config.optimizer.weight_decay,
        "evaluation_split": config.data.evaluation_split,
        "tuning": _tuning(resolved, run),
        "learning_rate": config.optimizer.learning_rate,
        "seed_init": config.seed_init,
        "seed_data": config.data.seed_data,
        "params_embedding": parameters.embedding,
        "params_non_embedding": parameters.non_embedding,
        "params_unembedding": parameters.unembedding,
        "params_total": parameters.total,
        "tokens": run.tokens,
        "tokens_unique": unique,
        "epochs": run.tokens / unique,
        "tokens_per_param": run.tokens / parameters.non_embedding,
        "flops": run.tokens * training_flops_per_token(model),
        "flops_6nd": 6 * parameters.non_embedding * run.tokens,
        "flops_spent": 0.0 if status == "stopped" else spent,
        "group": group_of(resolved.sweep, config.data),
        "tokens_unique_limit": "" if config.data.tokens_unique is UNSET else config.data.tokens_unique,
        "bytes_per_token": facts.get("bytes_per_token", ""),
        "entropy": facts.get("entropy", ""),
        "precision": config.precision,
        "population": config.lanes,
        "micro_batches": config.batch_parts,
    }
    if result:
        keys = ("numerics_id", "loss", "loss_se", "bits_per_byte", "train_loss", "host", "finished_at")
        row |= {key: result[key] for key in keys if key in result} | {"attempts": result["attempt"]} | _timing_columns(result)
    return row


def _tuning(resolved: Resolved, run: RunConfig) -> str:
    """Where the rate of a run comes from: `tried` (a tuning run), `tuned` (this sweep's own), `set` (in the sweep file), `recipe`."""
    if run.role == "tune":
        return "tried"
    if resolved.sweep.tune is not None:
        return "tuned"
    training = resolved.sweep.training
    return "recipe" if training.learning_rate is None and training.learning_rate_params_power is None else "set"


def _timing_columns(result: dict[str, Any]) -> dict[str, float]:
    timings = read_timings(result)
    if timings is None:
        return {}
    return {
        "train_seconds": timings.seconds.get("training", 0.0),
        "eval_seconds": timings.seconds.get("evaluation", 0.0),
        "overhead_seconds": round(sum(timings.seconds.get(kind, 0.0) for kind in OVERHEAD), 6),
    }


def curve_rows(folder: Folder, runs: list[RunConfig]) -> pd.DataFrame:
    """Every logged point of runs that ended: their part of the trunk, then their cooldown; `loss` at the last point only."""
    ended, parts = [], []
    for run in runs:
        result = read_result(folder, run.run_id, files=False)
        columns = _points(folder.run(run.run_id) / "metrics.jsonl") if result else {}
        if result and len(columns["step"]):
            loss = np.full(len(columns["step"]), np.nan)
            loss[-1] = np.nan if result.get("loss") is None else result["loss"]
            flops = columns["tokens"] * float(training_flops_per_token(run.trunk.model))
            ended.append(run)
            parts.append({**columns, "loss": loss, "flops": flops})
    if not parts:
        return pd.DataFrame(columns=CURVE_COLUMNS)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    owner = np.repeat(np.arange(len(parts)), [len(part["step"]) for part in parts])
    texts = {name: np.array([getattr(run, name) for run in ended], dtype=object)[owner] for name in ("run_id", "trunk_id")}
    return pd.DataFrame({**texts, **whole})[CURVE_COLUMNS]


class _Point(msgspec.Struct):
    """A line of metrics.jsonl as it is written."""

    phase: str
    step: int
    tokens: int
    train_loss: float
    learning_rate: float
    grad_norm: float


_LINES = msgspec.json.Decoder(_Point)


def _points(path: Path) -> dict[str, np.ndarray]:
    """Columns of a metrics.jsonl; what is no number is NaN."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        points = _LINES.decode_lines(path.read_bytes())
        numbers = {name: np.array([getattr(point, name) for point in points], dtype=np.float64) for name in POINT_NUMBERS}
        return {"phase": np.array([point.phase for point in points], dtype=object), **numbers}
    rows = read_metrics(path)  # cut off, or with values that JSON proper does not know
    numbers = {
        name: pd.to_numeric(pd.Series([row.get(name) for row in rows], dtype=object), errors="coerce").to_numpy(np.float64)
        for name in POINT_NUMBERS
    }
    return {"phase": np.array([row.get("phase") for row in rows], dtype=object), **numbers}


def write_tables(root: Path, resolved: Resolved) -> list[dict[str, Any]]:
    """Rebuild both tables under the tables lock; returns the rows of `runs.csv`."""
    folder = Folder(root)
    with folder_lock(root, "tables"):
        rows = run_rows(folder, resolved)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(RUN_COLUMNS)
        writer.writerows([row.get(column, "") for column in RUN_COLUMNS] for row in rows)
        write_atomic(root / "runs.csv", text.getvalue().encode())
        _write_curves(folder, resolved, root / "curves.parquet")
        if domains := domain_rows(folder, resolved):
            write_atomic(root / "domains.csv", pd.DataFrame(domains, columns=DOMAIN_COLUMNS).to_csv(index=False).encode())
    return rows


def domain_rows(folder: Folder, resolved: Resolved) -> list[dict[str, Any]]:
    """One row a finished run and domain of its corpus; none when no corpus has domains."""
    rows = []
    for run in resolved.runs:
        data, result = run.trunk.data, read_result(folder, run.run_id, files=False) or {}
        sizes = resolved.facts_of(data.corpus_hash).get("domain_tokens", {})
        shares = domain_shares(sizes, data)
        for domain, losses in result.get("domains", {}).items():
            group = group_of(resolved.sweep, data)
            rows.append({"run_id": run.run_id, "group": group, "domain": domain, "share": shares.get(domain, 0.0), **losses})
    return rows


def _write_curves(folder: Folder, resolved: Resolved, path: Path) -> None:
    """Write `curve_rows` of all runs, some hundred at a time: ten million points do not fit the memory of a laptop."""
    whole = ", ".join(f"TRY_CAST({name} AS {kind}) AS {name}" for name, kind in CURVE_TYPES.items())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".curves-") as scratch, duckdb.connect() as connection:
        for first in range(0, max(1, len(resolved.runs)), RUNS_AT_A_TIME):
            connection.register("frame", curve_rows(folder, resolved.runs[first : first + RUNS_AT_A_TIME]))
            connection.execute(f"COPY (SELECT {whole} FROM frame) TO {_literal(Path(scratch, f'{first:06}.parquet'))} (FORMAT parquet)")
        made = Path(scratch, path.name)
        parts = ", ".join(_literal(part) for part in sorted(Path(scratch).iterdir()))
        connection.execute(f"COPY (SELECT * FROM read_parquet([{parts}])) TO {_literal(made)} (FORMAT parquet)")
        put_in_place(made, path)


def _literal(path: Path) -> str:
    """A path in SQL."""
    return "'" + str(path).replace("'", "''") + "'"
