"""Training until an answer is good enough: the loop on a simulated grid, and the command on a tiny sweep."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from analysis.adaptive import START_RUNS, Goal, decide
from analysis.design import Pool
from analysis.surface import Places
from scaling.cli.adaptive import parse_goal
from scaling.config import UserError

SIZES, LENGTHS = np.geomspace(2e4, 6e5, 5), np.geomspace(5e5, 8e6, 5)
N, D = (grid.ravel() for grid in np.meshgrid(SIZES, LENGTHS, indexing="ij"))
LOSS = (1.1 + 22.0 / N**0.34 + 160.0 / D**0.38) * np.exp(np.random.default_rng(0).normal(0, 0.003, 25))
POOL = Pool(
    np.arange(25).astype(str), Places.of(N, D), 0.2 * 6 * N * D, np.repeat(np.arange(5), 5), 0.8 * 6 * N * D, np.zeros(25)
)  # fmt: skip


def play(goal: Goal, budget: float) -> tuple[list[int], str, float]:
    """Runs bought, why it ended, width of the last interval."""
    bought: list[int] = []
    while True:
        rest = np.setdiff1d(np.arange(25), bought)
        spent = POOL.bill(bought)
        places = Places(POOL.places.x[bought], POOL.places.y[bought])
        found = decide(places, np.log(LOSS[bought]), POOL.rows(rest), goal, budget=budget - spent, least=2)
        if not found.chosen:
            return bought, found.why, found.width
        bought += [int(rest[run]) for run in found.chosen]


def test_a_wider_goal_needs_fewer_runs_and_is_reached() -> None:
    everything = float(6 * (N * D).sum())
    wide, narrow = (play(Goal(1.2e6, 8e6, width), everything) for width in (0.2, 0.06))
    assert wide[1] == narrow[1] == "reached"
    assert wide[2] < 0.2 and narrow[2] < 0.06
    assert START_RUNS <= len(wide[0]) < len(narrow[0]) < 25


def test_it_ends_when_the_budget_or_the_grid_does() -> None:
    goal = Goal(1.2e6, 8e6, 1e-6)
    bought, why, _ = play(goal, 6e13)
    assert why == "budget spent" and START_RUNS <= len(bought) < 25
    assert POOL.bill(bought) <= 6e13
    assert play(goal, 1.0) == ([], "budget spent", pytest.approx(float("nan"), nan_ok=True))


def test_the_first_round_has_two_sizes_and_two_lengths() -> None:
    nothing = Places(np.zeros(0), np.zeros(0))
    found = decide(nothing, np.zeros(0), POOL, Goal(1e6, 8e6, 0.1), budget=1e20)
    assert found.why == "start" and len(found.chosen) == START_RUNS
    assert len(set(N[found.chosen])) > 1 and len(set(D[found.chosen])) > 1


def test_goals_are_read() -> None:
    assert parse_goal("ci_width(loss@params=1e7,tokens=1e9) < 0.02") == Goal(1e7, 1e9, 0.02)
    for bad in (
        "loss < 2",
        "ci_width(loss@params=1e7) < .1",
        "ci_width(loss@params=1e7,tokens=1B) < 0",
        "ci_width(loss@params=1,tokens=2) < e",
    ):
        with pytest.raises(UserError):
            parse_goal(bad)


def scaling(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "scaling.cli.main", *map(str, arguments)], capture_output=True, text=True, timeout=250, check=False
    )


def test_run_until_trains_a_part_and_goes_on_when_the_goal_is_narrower(tiny_sweep) -> None:
    root = tiny_sweep.parent / "tiny"
    head, _, tail = tiny_sweep.read_text().partition("[holdout]")
    tiny_sweep.write_text(head + tail[tail.index("[fit]") :])
    command = ["run", tiny_sweep, "--results", tiny_sweep.parent, "--until"]
    goal = "ci_width(loss@params=3k,tokens=40k) < {}"
    done = scaling(*command, goal.format(5))
    assert done.returncode == 0, done.stderr
    rounds = json.loads((root / "rounds.json").read_text())
    assert [entry["why"] for entry in rounds] == ["start", "reached"] and "width" in done.stderr
    with open(root / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == START_RUNS and {row["run_id"] for row in rows} == set(rounds[0]["runs"])
    again = scaling(*command, goal.format(1e-9), "--budget", "1e4")
    assert again.returncode == 0, again.stderr
    assert [entry["why"] for entry in json.loads((root / "rounds.json").read_text())] == ["start", "budget spent"]
    assert scaling("run", tiny_sweep, "--budget", "1e9").returncode == 2
