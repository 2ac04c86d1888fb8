"""What to train next: the Gaussian model against linear algebra done directly, costs by hand, known laws, and the command."""

from __future__ import annotations

import io
import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.design import BASELINES, Pool, greedy, plan_batch, replay, suggest
from analysis.errors import UserError
from analysis.runs import read_runs
from analysis.surface import Places, brownian, fit_surface
from scaling.cli.design_commands import parse_target
from scaling.cli.main import main
from scaling.plan import group_trunks, resolve
from scaling.sweep_file import load_sweep

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference" / "quickstart"
RNG = np.random.default_rng(3)
N, D = 10 ** RNG.uniform(7, 9, 40), 10 ** RNG.uniform(8.5, 10.5, 40)


def loss(n, d):
    """Besiroglu et al. 2024."""
    return 1.817 + 477.8 / n**0.347 + 2143.0 / d**0.367


def test_brownian_motion_by_hand() -> None:
    """In one dimension: the lesser distance on one side, nothing across the centre."""
    at = Places(np.array([3.0, 5.0, 0.0]), np.ones(3))
    assert brownian(at, at, (2.0, 1.0)) == pytest.approx(np.array([[1.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 2.0]]))


def test_a_known_law_is_predicted_beyond_its_runs() -> None:
    target = Places.of(np.array([4e9]), np.array([1e11]))
    surface = fit_surface(Places.of(N, D), np.log(loss(N, D)), target=target)
    assert np.exp(surface.predict(target)) == pytest.approx(loss(4e9, 1e11), rel=3e-3)
    assert surface.drift < 1e-3 and surface.noise < 1e-3


def test_intervals_of_the_surface_hold_the_truth_about_as_often_as_they_say() -> None:
    target, inside = Places.of(np.array([4e9]), np.array([1e11])), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        surface = fit_surface(Places.of(N, D), np.log(loss(N, D)) + rng.normal(0, 0.004, 40), target=target)
        sd = surface.covariance(target)[0, 0] ** 0.5
        inside.append(abs(surface.predict(target)[0] - np.log(loss(4e9, 1e11))) < 1.96 * sd)
    assert np.mean(inside) > 0.85


def test_a_run_that_went_wrong_hardly_moves_the_prediction() -> None:
    target, losses = Places.of(np.array([4e9]), np.array([1e11])), np.log(loss(N, D))
    wrong = losses.copy()
    wrong[int(np.argmax(N * D))] += 0.2
    before, after = (fit_surface(Places.of(N, D), values, target=target).predict(target)[0] for values in (losses, wrong))
    assert abs(after - before) < 0.01


def test_expected_variance_is_what_conditioning_on_the_chosen_runs_gives() -> None:
    target = Places.of(np.array([2e9, 4e9]), np.array([5e10, 1e11]))
    surface = fit_surface(Places.of(N[:10], D[:10]), np.log(loss(N[:10], D[:10])), target=target)
    pool = Pool.independent(np.arange(30).astype(str), Places.of(N[10:], D[10:]), 6 * N[10:] * D[10:])
    plan = plan_batch(surface, pool, target, budget=float(pool.own.sum() / 4))
    covariance = surface.covariance(target + pool.places)
    at = [2 + run for run in plan.chosen]
    direct = (
        covariance[:2, :2]
        - covariance[:2, at] @ np.linalg.inv(covariance[np.ix_(at, at)] + surface.noise**2 * np.eye(len(at))) @ covariance[at, :2]
    )
    assert plan.left == pytest.approx(np.diag(direct).mean(), rel=1e-6)
    assert plan.left < np.diag(covariance)[:2].mean()
    assert sum(plan.flops) <= pool.own.sum() / 4 and plan.flops == sorted(plan.flops)


def test_the_first_two_choices_at_equal_cost_are_near_the_best_pair() -> None:
    target = Places.of(np.array([4e9]), np.array([1e11]))
    surface = fit_surface(Places.of(N[:8], D[:8]), np.log(loss(N[:8], D[:8])), target=target)
    pool = Pool.independent(np.arange(12).astype(str), Places.of(N[8:20], D[8:20]), np.ones(12))
    covariance = surface.covariance(target + pool.places)
    plan = greedy(covariance, pool, noise=surface.noise, budget=2.0, power=1.0)

    def left(pair: tuple[int, int]) -> float:
        at = [1 + run for run in pair]
        whole = covariance[np.ix_(at, at)] + surface.noise**2 * np.eye(2)
        return float(covariance[0, 0] - covariance[0, at] @ np.linalg.solve(whole, covariance[at, 0]))

    best = min(left(pair) for pair in combinations(range(12), 2))
    now = float(covariance[0, 0])
    assert now - plan.left >= (1 - np.exp(-1)) * (now - best)  # the bound for greedy choices, Nemhauser et al. 1978


def test_costs_of_shared_trunks_by_hand() -> None:
    """One trunk with branches at 8 and 16 and a saved state at 4 (both) or 12 (the second); cooldowns of 2 and 4."""
    places = Places(np.zeros(3), np.zeros(3))
    pool = Pool(np.array(["a", "b", "c"]), places, np.array([2.0, 4.0, 7.0]), np.array([0, 0, 1]), np.array([8.0, 16, 0]), np.array([4.0, 12, 0]))  # fmt: skip
    assert pool.costs([]).tolist() == [6.0, 8.0, 7.0]  # 8 - 4 + 2; 16 - 12 + 4
    assert pool.costs([0])[1] == 12.0  # the trunk goes on from 8: 8, and its cooldown
    assert pool.costs([1])[0] == 10.0  # from 4 instead of 12: 8, and its cooldown
    assert pool.costs([0, 1])[2] == 7.0


def test_every_method_buys_within_its_budget_and_repeats_itself() -> None:
    target = Places.of(np.array([4e9]), np.array([1e11]))
    pool = Pool.independent(np.arange(40).astype(str), Places.of(N, D), 6 * N * D)
    start = np.argsort(pool.own)[:5]
    for method in ("suggest", *BASELINES):
        first, again = (
            replay(
                pool,
                np.log(loss(N, D)),
                target,
                method=method,
                budget=0.1 * pool.own.sum(),
                start=start,
                generator=np.random.default_rng(1),
            )
            for _ in range(2)
        )
        assert first == again and len(set(first)) == len(first)
        assert pool.own[first].sum() <= 0.1 * pool.own.sum() * (1 + 1e-9)
        assert len(first) > 5


def test_too_few_runs_or_too_small_a_budget_is_one_line(tmp_path) -> None:
    target = Places.of(np.array([4e9]), np.array([1e11]))
    with pytest.raises(UserError, match="too few to suggest from"):
        fit_surface(Places.of(N[:2], D[:2]), np.zeros(2), target=target)
    pd.DataFrame({"params": N, "tokens": D, "loss": loss(N, D)}).to_csv(tmp_path / "runs.csv", index=False)
    pool = Pool.independent(np.array(["a"]), target, np.array([1e20]))
    with pytest.raises(UserError, match="pays for no candidate; the cheapest costs 1e\\+20"):
        suggest(read_runs(tmp_path / "runs.csv"), pool, target, budget=1e19)


# ---------------------------------------------------------------- cells of a sweep file, and the command


def test_single_runs_join_the_grid_on_its_trunks(tiny_sweep) -> None:
    grid = resolve(load_sweep(tiny_sweep), corpus_hash="none")
    text = tiny_sweep.read_text() + '\n[[run]]\nd_model = 16\ntokens = "64k"\n[[run]]\nd_model = 16\ntokens = "8k"\nseed = 1\n'
    tiny_sweep.write_text(text)
    runs = resolve(load_sweep(tiny_sweep), corpus_hash="none")
    new = [run for run in runs if run.run_id not in {old.run_id for old in grid}]
    assert [(run.trunk.model.d_model, run.tokens, run.trunk.seed_init) for run in new] == [(16, 64000, 0)]
    assert len(group_trunks(runs)) == len(group_trunks(grid))


def test_mistakes_in_single_runs_are_named(tiny_sweep) -> None:
    from scaling.config import UserError as ConfigError

    text = tiny_sweep.read_text()
    for cell, words in (
        ('d_model = 16\ntokens = "many"', r"run\[0\].tokens"),
        ("d_model = 16\ntokens = 8000\nwidth = 3", "unknown key `width`"),
    ):
        tiny_sweep.write_text(f"{text}\n[[run]]\n{cell}\n")
        with pytest.raises(ConfigError, match=words):
            load_sweep(tiny_sweep)


def test_targets_are_read() -> None:
    from scaling.config import UserError as ConfigError

    assert parse_target("tokens=20B, params=1e9") == (1e9, 2e10)
    for bad in ("params=1e9", "params=1e9,tokens=many", "1e9,2e10", "params=1,params=2,tokens=3"):
        with pytest.raises(ConfigError):
            parse_target(bad)


def test_suggest_writes_a_sweep_that_adds_the_runs_it_names(tmp_path, capsys) -> None:
    root = Path(shutil.copytree(REFERENCE, tmp_path / "quickstart"))
    command = ["suggest", str(root), "--target", "params=1M,tokens=20M", "--budget", "2e13", "--format", "json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    before = resolve(load_sweep(root / "sweep.toml"), corpus_hash=_hash(root))
    after = resolve(load_sweep(root / "suggested.toml"), corpus_hash=_hash(root))
    assert {run.run_id for run in after} - {run.run_id for run in before} == {row["run_id"] for row in rows}
    assert rows[-1]["flops_total"] <= 2e13 and rows[-1]["half_width_after"] < rows[0]["half_width_before"]
    assert "95 % interval" in err and "next: " in err


def _hash(root: Path) -> str:
    return json.loads((root / "sweep.resolved.json").read_text())["corpus_hash"]


def test_suggest_works_on_any_csv_with_a_pool(tmp_path, capsys) -> None:
    pd.DataFrame({"run_id": [f"r{i}" for i in range(40)], "params": N, "tokens": D, "loss": loss(N, D)}).to_csv(
        tmp_path / "all.csv", index=False
    )
    pd.read_csv(tmp_path / "all.csv").head(8).to_csv(tmp_path / "runs.csv", index=False)
    target, pool = "params=4e9,tokens=1e11", str(tmp_path / "all.csv")
    assert (
        main(["suggest", str(tmp_path / "runs.csv"), "--target", target, "--candidates", pool, "--budget", "1e20", "--format", "csv"]) == 0
    )
    bought = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert not set(bought["run_id"]) & {f"r{i}" for i in range(8)} and bought["flops"].sum() <= 1e20
    assert main(["suggest", str(tmp_path / "runs.csv"), "--target", target, "--budget", "1e20"]) == 2
    assert "name it with --candidates" in capsys.readouterr().err
