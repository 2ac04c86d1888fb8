"""Tuning in stages: after each amount of data, rates that can hardly become the best are stopped. No law is fitted to such runs.

A run that is stopped gets a result without a loss, status `stopped`, and the reason; its trunk's state is kept, so that it goes on
where it turns out to be a neighbour of the best rate. Every prediction stands in early.json before anything is stopped, and in early.csv
beside the loss that came out, where the run was trained on.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from analysis.curve_law import Curve
from analysis.early import Outlook, Trial, hopeful, outlooks
from analysis.files import write_table
from scaling.config import RunConfig, UserError
from scaling.plan import group_trunks
from scaling.record import Folder, Resolved, publish_run, read_metrics, read_result, remove, write_json
from scaling.tables import run_rows

COLUMNS = (
    "run_id d_model batch_tokens learning_rate seed_init tokens_seen tokens predicted low high chance_rate decision observed relative_error"
).split()
WARMUPS = 3  # points before so many warm-ups say nothing of the law
Cell = dict[float, list[list[RunConfig]]]  # rate -> its trunks' runs, shortest first


def train_in_stages(part: Resolved, folder: Folder, *, least: float, train: Callable[[Resolved], None]) -> None:
    """Train the tuning runs of a sweep amount by amount, and stop rates whose chance to be the best of their cell is below `least`."""
    cells = _cells(part.runs)
    depth = max(len(runs) for cell in cells for trunks in cell.values() for runs in trunks)
    for stage in range(depth):
        _train(part, folder, [runs[stage] for cell in cells for trunks in cell.values() for runs in trunks if stage < len(runs)], train)
        for cell in cells if stage + 1 < depth else []:
            _decide(cell, folder, stage, least=least)
    while needed := [run for cell in cells for run in _wanted_again(cell, folder)]:
        for run in needed:
            remove(folder.run(run.run_id))
        _train(part, folder, needed, train)


def _cells(runs: list[RunConfig]) -> list[Cell]:
    """Trunks by size and batch, then by rate."""
    cells: dict[tuple[int, int], Cell] = {}
    for trunk in group_trunks(runs):
        config = trunk.config
        cell = cells.setdefault((config.model.d_model, config.data.batch_tokens), {})
        cell.setdefault(config.optimizer.learning_rate, []).append(list(trunk.runs))
    return list(cells.values())


def _train(part: Resolved, folder: Folder, runs: list[RunConfig], train: Callable[[Resolved], None]) -> None:
    missing = {run.run_id for run in runs if read_result(folder, run.run_id, files=False) is None}
    if missing:
        train(msgspec.structs.replace(part, runs=[run for run in part.runs if run.run_id in missing]))


def _chosen(runs: list[RunConfig]) -> int:
    """Which amount of a trunk chooses the rate: the middle one (`analysis.tuning`)."""
    return (len(runs) - 1) // 2 if len(runs) != 2 else 1


def _decide(cell: Cell, folder: Folder, stage: int, *, least: float) -> None:
    """Predict what the trunks of a cell will end at, and stop the rates without hope; nothing where all have been decided on."""
    seen = {(rate, i): runs for rate, trunks in cell.items() for i, runs in enumerate(trunks) if _status(folder, runs[stage]) == "done"}
    open_rates = {rate for (rate, _), runs in seen.items() if stage + 1 < len(runs) and _status(folder, runs[stage + 1]) is None}
    if not open_rates or len({rate for rate, _ in seen}) < 3:
        return
    aims = {key: max(stage + 1, _chosen(runs)) if stage < _chosen(runs) else len(runs) - 1 for key, runs in seen.items()}
    told = outlooks([_trial(runs, folder, aim=runs[aims[key]]) for key, runs in seen.items()])
    chance: dict[float, float] = {}
    for (rate, _), outlook in zip(seen, told, strict=True):
        chance[rate] = chance.get(rate, 0.0) + outlook.chance
    kept = hopeful(list(chance), list(chance.values()), least=least)
    rows = [
        _told(runs[stage], runs[aims[rate, i]], outlook, chance[rate], "go on" if rate in kept else "stopped")
        for ((rate, i), runs), outlook in zip(seen.items(), told, strict=True)
        if rate in open_rates
    ]
    path = folder.root / "early.json"
    write_json(path, [*_read(path), *rows])
    for (rate, _), runs in seen.items():
        if rate in open_rates and rate not in kept:
            for run in runs[stage + 1 :]:
                _stop(folder, run, after=runs[stage].tokens, least=least)
    stopped = sorted(rate for rate in open_rates if rate not in kept)
    width, amount = next(iter(seen.values()))[stage].trunk.model.d_model, next(iter(seen.values()))[stage].tokens
    if stopped:
        print(f"early: width {width}, after {amount} tokens: rates {', '.join(f'{rate:g}' for rate in stopped)} stopped", file=sys.stderr)


def _trial(runs: list[RunConfig], folder: Folder, *, aim: RunConfig) -> Trial:
    """What is known of a trunk: the curves and the loss of the branches that are done, up to the one that is wanted."""
    done = [run for run in runs if run.tokens <= aim.tokens and _status(folder, run) == "done"]
    curves, after = [], WARMUPS * runs[0].trunk.schedule.warmup_steps
    for run in done:
        curves.append(_curve(run, read_metrics(folder.run(run.run_id) / "metrics.jsonl"), after))
        after = max(after, run.branch_step)
    result = read_result(folder, done[-1].run_id, files=False)
    assert result is not None
    rate = runs[0].trunk.optimizer.learning_rate
    return Trial(runs[0].trunk_id, rate, tuple(curves), float(result["loss"]), _rates(done[-1]), _rates(aim))


def _curve(run: RunConfig, points: list[dict[str, Any]], after: int) -> Curve:
    """Logged losses after a step; each is the mean of a segment, and counts at its middle."""
    steps = np.array([0, *(point["step"] for point in points)])
    middle, losses = (steps[1:] + steps[:-1] - 1) // 2, np.array([point["train_loss"] for point in points])
    return Curve(_rates(run), middle[steps[1:] > after], losses[steps[1:] > after])


def _rates(run: RunConfig) -> np.ndarray:
    """Rate of the matrices at every step of a run."""
    from scaling.optimizer import rate_multiplier
    from scaling.train import schedule_of

    schedule: dict[str, Any] = dict(schedule_of(run.trunk, (run.branch_step, run.steps)))
    multipliers = rate_multiplier(np.arange(run.steps, dtype=np.float32), **schedule)
    return run.trunk.optimizer.learning_rate * np.asarray(multipliers, dtype=np.float64)


def _status(folder: Folder, run: RunConfig) -> str | None:
    result = read_result(folder, run.run_id, files=False)
    return result["status"] if result else None


def _told(seen: RunConfig, aim: RunConfig, outlook: Outlook, chance: float, decision: str) -> dict[str, Any]:
    """One row of early.json."""
    trunk = aim.trunk
    return {
        "run_id": aim.run_id, "d_model": trunk.model.d_model, "batch_tokens": trunk.data.batch_tokens,
        "learning_rate": trunk.optimizer.learning_rate, "seed_init": trunk.seed_init, "tokens_seen": seen.tokens, "tokens": aim.tokens,
        "predicted": outlook.loss, "low": outlook.low, "high": outlook.high, "chance_rate": chance, "decision": decision,
    }  # fmt: skip


def _stop(folder: Folder, run: RunConfig, *, after: int, least: float) -> None:
    """Give a run a result without a loss, and the reason. A run that a law of the loss may be fitted on is never stopped."""
    if run.role != "tune" or run.trunk.data.evaluation_split != "tune":
        raise ValueError(
            f"{run.run_id}: role {run.role}, scored on {run.trunk.data.evaluation_split}: only runs of the tuning split are stopped"
        )
    staged = folder.trunk(run.trunk_id) / f"stopped-{run.run_id}"
    remove(staged)
    staged.mkdir(parents=True)
    write_json(staged / "config.json", run)
    reason = f"after {after} tokens the chance to be the best rate is below tune.stop = {least:g}"
    publish_run(
        staged,
        folder.run(run.run_id),
        {"run_id": run.run_id, "trunk_id": run.trunk_id, "status": "stopped", "reason": reason, "attempt": 0},
    )


def _wanted_again(cell: Cell, folder: Folder) -> list[RunConfig]:
    """Return stopped runs up to the amount that chooses the rate, of rates that turn out to be neighbours of the best one there."""
    losses: dict[float, list[float]] = {}
    for rate, trunks in cell.items():
        results = [read_result(folder, runs[_chosen(runs)].run_id, files=False) or {} for runs in trunks]
        losses[rate] = [result["loss"] for result in results if result.get("status") == "done"]
    done = {rate: float(np.mean(found)) for rate, found in losses.items() if found}
    if not done:
        return []
    order = sorted(cell)
    best = order.index(min(done, key=lambda rate: done[rate]))
    near = [rate for place, rate in enumerate(order) if abs(place - best) <= 1]
    return [
        run
        for rate in near
        for runs in cell[rate]
        for run in runs[: _chosen(runs) + 1]
        if _status(folder, run) == "stopped"
    ]  # fmt: skip


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the predictions so far."""
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_bytes())
        return [row for row in rows if row["run_id"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it: what is trained stays") from None


def write_early_table(folder: Folder, tried: Resolved) -> str:
    """Write early.csv: every prediction, beside the loss that came out where the run was trained on; say what was saved."""
    rows = []
    for row in _read(folder.root / "early.json"):
        result = read_result(folder, row["run_id"], files=False) or {}
        observed = result.get("loss", float("nan"))
        rows.append({**row, "observed": observed, "relative_error": row["predicted"] / observed - 1})
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_table(folder.root / "early.csv", table)
    runs = pd.DataFrame(run_rows(folder, tried))
    trained, planned = runs["flops_spent"].sum(), sum(trunk.flops for trunk in group_trunks(tried.runs))
    stopped = int((runs["status"] == "stopped").sum())
    line = f"early: {stopped} of {len(runs)} tuning runs stopped, {1 - trained / planned:.0%} of the compute of tuning saved"
    known = table.dropna(subset=["observed"])
    if len(known):
        error = np.log(known["predicted"].astype(float) / known["observed"])
        cells = known.assign(error=error).groupby(["d_model", "batch_tokens", "tokens_seen"])["error"]
        own = float(np.sqrt(np.mean((error - cells.transform("mean")) ** 2)))
        inside = float(((known["low"] <= known["observed"]) & (known["observed"] <= known["high"])).mean())
        line += (
            f"; {len(known)} predictions of runs that were trained on: mean error {error.mean():+.1%}, {own:.1%} about each other,"
            f" {inside:.0%} inside their intervals"
        )
    return line
