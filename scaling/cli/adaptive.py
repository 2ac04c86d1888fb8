"""`scaling run --until`: rounds of a sweep whose grid is what may be trained, and not what must be."""

import json
import re
import sys
from collections.abc import Callable

import msgspec
import numpy as np

from analysis.adaptive import Decision, Goal, decide, interval_of
from analysis.design import Pool
from analysis.errors import UserError as AnalysisError
from analysis.surface import LEAST_RUNS, Places, fit_surface
from scaling.cli.candidates import params_of, pool_of
from scaling.cli.design_commands import parse_target
from scaling.config import RunConfig, UserError
from scaling.plan import group_trunks
from scaling.record import Folder, Resolved, read_result, write_json

_GOAL = re.compile(r"^\s*ci_width\(\s*loss@(?P<target>[^()]+)\)\s*<\s*(?P<width>[0-9.eE+-]+)\s*$")


def parse_goal(text: str) -> Goal:
    """``ci_width(loss@params=1e7,tokens=1e9) < 0.02`` -> Goal; the width is that of the 95 % interval in nats per token.

    Raises
    ------
    UserError
        When it is not understood.
    """
    found = _GOAL.match(text)
    try:
        width = float(found["width"]) if found else 0.0
    except ValueError:
        width = 0.0
    if not found or not 0 < width < float("inf"):
        raise UserError(f'--until {text!r} is not understood; write "ci_width(loss@params=N,tokens=D) < WIDTH", WIDTH in nats per token')
    return Goal(*parse_target(found["target"]), width)


def adapt(
    resolved: Resolved,
    folder: Folder,
    goal: Goal,
    *,
    budget: float | None,
    workers: int,
    train: Callable[[Resolved, Callable[[], str]], None],
) -> Resolved:
    """Train rounds until the goal is reached, the budget is spent, or the grid is trained; returns the sweep with the runs chosen.

    What is chosen stands in rounds.json before it is trained, so that the same command goes on where it was interrupted.

    Parameters
    ----------
    train : callable
        Trains what is missing of a list of runs; its second argument tells the interval now, for the display.
    """
    grid = [run for run in resolved.runs if run.role == "fit"]
    known = {run.run_id: run for run in grid}
    if len({run.trunk.data.corpus_hash for run in grid}) > 1:
        raise UserError("--until needs a sweep of one text; give corpus and tokenizer one value each")
    n_column = resolved.sweep.fit.n_column
    budget = budget or sum(trunk.flops for trunk in group_trunks(grid))
    path = folder.root / "rounds.json"
    rounds = _read_rounds(path, goal)
    while True:
        chosen = [known[name] for entry in rounds for name in entry["runs"] if name in known]
        part = msgspec.structs.replace(resolved, runs=chosen)
        if any(not folder.run(run.run_id).exists() for run in chosen):
            train(part, lambda part=part: _tell(part, folder, goal, n_column))
        places, log_loss = _ended(chosen, folder, n_column)
        rest = [run for run in grid if run.run_id not in {old.run_id for old in chosen}]
        pool = pool_of(rest, folder, n_column=n_column) if rest else _nothing()
        spent = sum(entry["flops"] for entry in rounds)
        decision = decide(places, log_loss, pool, goal, budget=budget - spent, least=workers)
        print(_line(decision, goal, spent, budget), file=sys.stderr, flush=True)
        entry = {"goal": [goal.params, goal.tokens, goal.width], "why": decision.why, "flops_spent": spent}
        entry |= {"loss": decision.loss, "low": decision.low, "high": decision.high} if decision.loss == decision.loss else {}
        if rounds and not rounds[-1]["runs"]:
            rounds.pop()
        cost = pool.bill(decision.chosen)
        rounds.append({**entry, "flops": cost, "runs": [str(pool.run_id[run]) for run in decision.chosen]})
        write_json(path, rounds)
        if not decision.chosen:
            if not chosen:
                raise UserError(
                    f"--budget {budget:g} does not pay for a first round; the cheapest run costs {pool.costs([]).min():.3g} FLOPs"
                )
            kept = {run.run_id for run in chosen}
            return msgspec.structs.replace(resolved, runs=[run for run in resolved.runs if run.role != "fit" or run.run_id in kept])


def _read_rounds(path, goal: Goal) -> list[dict]:
    """Rounds chosen so far, whatever their goal was: their runs are bought."""
    if not path.exists():
        return []
    try:
        rounds = json.loads(path.read_bytes())
        return [entry for entry in rounds if isinstance(entry["runs"], list) and isinstance(entry["flops"], int | float)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it, and what is trained counts as chosen no more") from None


def _nothing() -> Pool:
    return Pool.independent(np.array([]), Places(np.zeros(0), np.zeros(0)), np.zeros(0))


def _ended(runs: list[RunConfig], folder: Folder, n_column: str) -> tuple[Places, np.ndarray]:
    """Places and log losses of the runs that ended well."""
    results = [(run, read_result(folder, run.run_id, files=False)) for run in runs]
    done = [(run, result["loss"]) for run, result in results if result and result["status"] == "done"]
    places = Places.of(np.array([params_of(run, n_column) for run, _ in done]), np.array([float(run.tokens) for run, _ in done]))
    return places, np.log(np.array([loss for _, loss in done], dtype=np.float64))


def _tell(part: Resolved, folder: Folder, goal: Goal, n_column: str) -> str:
    """Say where the interval stands with what has ended."""
    places, log_loss = _ended(part.runs, folder, n_column)
    if len(places) < LEAST_RUNS:
        return ""
    try:
        loss, low, high = interval_of(fit_surface(places, log_loss, target=goal.place), goal)
    except (AnalysisError, np.linalg.LinAlgError):
        return ""
    return f"target {loss:.3f}, 95 % {low:.3f}-{high:.3f}, width {high - low:.3f} (goal {goal.width:g})"


def _line(decision: Decision, goal: Goal, spent: float, budget: float) -> str:
    head = f"until: {spent:.2e} of {budget:.2e} FLOPs"
    if decision.loss == decision.loss:
        head += (
            f"; target {decision.loss:.4f}, 95 % {decision.low:.4f}-{decision.high:.4f}, width {decision.width:.4f} (goal {goal.width:g})"
        )
    return f"{head}: {decision.why}" + (f", {len(decision.chosen)} runs next" if decision.chosen else "")
