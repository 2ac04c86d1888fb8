"""Approaches 1 and 2 side by side: closed forms, SciPy's regression, and the exponents that others published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress
from test_isoflop import CHINCHILLA, best_n, isoflop_runs

from analysis.allocation import allocate, fit_allocation, resample_counts
from analysis.approaches import FRONTIER_COLUMNS, Parametric, compare_approaches, conventions, frontier_rows
from analysis.envelope import curve_points, envelope_optima
from analysis.errors import UserError
from analysis.fitting import fit
from analysis.isoflop import isoflop_optima
from analysis.optimal import frontier

A = CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])
PUBLISHED = Path(__file__).parent.parent.parent / "shared" / "published"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"published tables are not at {PUBLISHED}")


def grid_runs(law=CHINCHILLA, *, sizes=14, lengths=12, noise=0.0, seed=0):
    """Every size at every data size, around the optimum of 3e17 to 1e21 FLOPs."""
    n = best_n(law, 3e19) * np.geomspace(1 / 40, 40, sizes)
    d = 3e19 / 6 / best_n(law, 3e19) * np.geomspace(1 / 150, 150, lengths)
    frame = pd.DataFrame([(size, length) for size in n for length in d], columns=["N", "D"])
    frame["C"] = 6 * frame["N"] * frame["D"]
    frame["loss"] = law["E"] + law["A"] / frame["N"] ** law["alpha"] + law["B"] / frame["D"] ** law["beta"]
    frame["loss"] *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(frame)))
    return frame


def true_parametric(factor=1.0, a=A):
    def optimum(flops):
        n = factor * best_n(CHINCHILLA, 1e20) * (flops / 1e20) ** a
        return n, flops / 6 / n

    def interval(flops):
        n, d = optimum(flops)
        return n * 0.98, n * 1.02, d * 0.98, d * 1.02

    return Parametric(
        optimum, a=a, b=1 - a, a_low=a - 0.003, a_high=a + 0.003, b_low=0.997 - a, b_high=1.003 - a, interval=interval, n_points=99
    )


# --- the power law through optima


def test_allocation_is_scipys_regression():
    rng = np.random.default_rng(0)
    flops = np.geomspace(1e18, 1e21, 7)
    optima = pd.DataFrame(
        {"flops": flops, "params_opt": 0.1 * flops**0.5 * np.exp(0.1 * rng.standard_normal(7)), "tokens_opt": flops**0.52}
    )
    found = fit_allocation(optima)
    known = linregress(np.log(flops), np.log(optima["params_opt"]))
    assert (found.a, found.a_se, found.params_r2) == pytest.approx((known.slope, known.stderr, known.rvalue**2), rel=1e-9)
    assert found.params_coefficient == pytest.approx(np.exp(known.intercept), rel=1e-9)
    assert (found.b, found.tokens_coefficient, found.tokens_r2) == pytest.approx((0.52, 1.0, 1.0))
    assert found.optimum(1e24)[1] == pytest.approx(1e24**0.52) and np.isnan(found.interval(1e24)).all()
    weights = rng.uniform(0.2, 5, 7)
    heavy = fit_allocation(optima, weights=weights)
    assert heavy.a == pytest.approx(np.polyfit(np.log(flops), np.log(optima["params_opt"]), 1, w=np.sqrt(weights))[0], rel=1e-9)


def test_allocation_leaves_out_what_is_not_an_optimum():
    flops = np.geomspace(1e18, 1e21, 6)
    optima = pd.DataFrame({"flops": flops, "params_opt": flops**0.5, "tokens_opt": flops**0.5, "bracketed": True})
    optima.loc[0, ["params_opt", "bracketed"]] = [1e30, False]
    optima.loc[1, "params_opt"] = np.nan
    assert fit_allocation(optima).a == pytest.approx(0.5) and fit_allocation(optima).n_points == 4
    assert np.isnan(fit_allocation(optima.iloc[2:4]).a_se)
    with pytest.raises(UserError, match="1 usable optima"):
        fit_allocation(optima.iloc[:3])


@needs_published
def test_porians_ten_exponents_from_their_optima_and_from_their_losses():
    """Porian et al. 2024: weighted fits of the published optima to 1e-5; our own Akima optima, with their weights, within .005."""
    targets = [row for row in json.loads((PUBLISHED / "expected.json").read_text()) if row["id"].startswith("porian-")]
    pairs = pd.read_csv(PUBLISHED / "porian2024" / "published_optimal_pairs.csv")
    losses = pd.read_csv(PUBLISHED / "porian2024" / "tidy.csv")
    fits = pd.read_csv(PUBLISHED / "porian2024" / "published_fits.csv").query("fit == 'weighted'").set_index("group")
    assert len(targets) == 10
    for target in targets:
        group = target["id"].removeprefix("porian-")
        optima = pairs[pairs["group"] == group].rename(columns={"n": "params_opt", "t": "tokens_opt"})
        theirs = fit_allocation(optima, weights=optima["n_star_std"] ** -2.0)
        assert theirs.a == pytest.approx(target["target"]["a"], abs=1e-5)
        assert theirs.params_coefficient == pytest.approx(fits["n_coef"][group], rel=1e-4)
        runs = losses[losses["group"] == group].reset_index(drop=True)
        runs = runs.assign(N=runs["n_as_counted"], D=runs["tokens"], C=runs["flops"])
        ours = isoflop_optima(runs, method="interpolated")
        spread = optima.set_index(optima["flops"].map("{:.5g}".format))["n_star_std"].reindex(ours["flops"].map("{:.5g}".format))
        assert fit_allocation(ours, weights=spread.to_numpy() ** -2.0).a == pytest.approx(target["target"]["a"], abs=0.005)


@needs_published
def test_hoffmanns_approaches_1_and_2():
    """Hoffmann et al. 2022, table 2: .50/.50 and .49/.51."""
    table = pd.read_csv(PUBLISHED / "hoffmann2022_tables" / "optimal_tokens.csv")
    table = table.rename(columns={"params": "params_opt", "tokens": "tokens_opt", "flops_6nd": "flops"})
    for approach, a, b in ((1, 0.50, 0.50), (2, 0.49, 0.51)):
        found = fit_allocation(table[table["approach"] == approach])
        assert (round(found.a, 2), round(found.b, 2)) == (a, b)


@needs_published
def test_nanochats_three_conventions():
    """nanochat dev/LOG.md: N ~ C^.54, .37, .70 and D ~ C^.49, .50, .41 by what is counted as N."""
    table = pd.read_csv(PUBLISHED / "nanochat2026" / "isoflop_optima.csv").rename(columns={"flops_inferred": "flops"})
    for convention, a, b in (("kaplan", 0.54, 0.49), ("chinchilla", 0.37, 0.50), ("transformer_only", 0.70, 0.41)):
        found = fit_allocation(table[table["param_counting"] == convention])
        assert (found.a, found.b) == pytest.approx((a, b), abs=0.0051)


# --- approach 1


def test_envelope_of_a_known_law():
    """The winner lies within half a step of N of the closed form; the staircase's slope within .01 of beta / (alpha + beta)."""
    runs = grid_runs()
    optima = envelope_optima(runs)
    used = optima[optima["bracketed"]]
    step = np.log(1600) / 13
    assert used["params_opt"].nunique() >= 8
    assert np.abs(np.log(used["params_opt"] / best_n(CHINCHILLA, used["flops"]))).max() < 0.6 * step
    np.testing.assert_allclose(6 * used["params_opt"] * used["tokens_opt"], used["flops"], rtol=1e-9)
    law = CHINCHILLA
    exact = law["E"] + law["A"] / used["params_opt"] ** law["alpha"] + law["B"] / used["tokens_opt"] ** law["beta"]
    np.testing.assert_allclose(used["loss"], exact, rtol=2e-3)
    found = fit_allocation(optima)
    assert found.a == pytest.approx(A, abs=0.01) and found.n_points == used["params_opt"].nunique()


def test_envelope_uses_no_edge_and_extrapolates_nothing():
    runs = grid_runs()
    large = runs[runs["N"] > best_n(CHINCHILLA, 1e20)]
    optima = envelope_optima(large, flops=np.array([3e19, 1e21]))
    assert list(optima["bracketed"]) == [False, True] and optima.loc[0, ["params_opt", "tokens_opt", "loss"]].isna().all()
    assert "smallest model" in optima["reason"][0]
    small = envelope_optima(runs[runs["N"] < best_n(CHINCHILLA, 1e19)], flops=np.array([3e19]))
    assert "largest model" in small["reason"][0]
    assert "fewer than 3 models" in envelope_optima(runs, flops=np.array([1e10]))["reason"][0]
    with pytest.raises(UserError, match="2 models have losses at two computes"):
        envelope_optima(runs[runs["N"].isin(runs["N"].unique()[:2])])


def test_losses_inside_a_trunk_are_no_final_losses():
    runs = pd.DataFrame(
        {"run_id": ["a", "b"], "N": [1e6, 2e6], "D": [1e7, 1e7], "C": [6e13, 1.2e14], "loss": [3.0, 2.9], "schedule": ["trunk", "cosine"]}
    )
    curves = pd.DataFrame(
        {"run_id": ["a", "a", "b", "b"], "tokens": [5e6, 1e7, 5e6, 1e7], "flops": [3e13, 6e13, 6e13, 1.2e14], "loss": [3.5, 3.0, np.nan, 2.9],
         "train_loss": [3.4, 2.9, 3.2, 2.8]}
    )  # fmt: skip
    points = curve_points(runs, curves)
    assert points[["run_id", "C", "loss"]].to_numpy().tolist() == [["a", 6e13, 3.0], ["b", 1.2e14, 2.9]]
    assert curve_points(runs, curves, loss="train_loss")["loss"].tolist() == [3.0, 3.2, 2.8]
    with pytest.raises(UserError, match="no column 'bits'"):
        curve_points(runs, curves, loss="bits")


# --- intervals


def test_whole_trunks_are_resampled_else_runs_within_budgets():
    runs = isoflop_runs(CHINCHILLA, points=6)
    counts = resample_counts(runs, draws=50, seed=1)
    assert (counts.reshape(50, 5, 6).sum(axis=2) == 6).all() and counts.std() > 0
    size = np.tile(np.arange(6), 5)
    whole = resample_counts(runs.assign(trunk_id=[f"t{i}" for i in size]), draws=50, seed=1)
    for i in range(6):
        assert (whole[:, size == i] == whole[:, [i]]).all()
    assert (whole[:, :6].sum(axis=1) == 6).all() and (whole == resample_counts(runs.assign(trunk_id=size), draws=50, seed=1)).all()


@pytest.mark.parametrize("approach", ["envelope", "isoflop-parabola", "isoflop-cubic", "isoflop-interpolated"])
def test_intervals_hold_the_truth_and_narrow_with_the_noise(approach):
    def widths(noise):
        runs = grid_runs(noise=noise) if approach == "envelope" else isoflop_runs(CHINCHILLA, noise=noise)
        optima, found = allocate(runs, approach=approach, draws=60)
        assert found.a_low < A < found.a_high and found.a_low < found.a < found.a_high and found.reason == ""
        low, high, *_ = found.interval(1e21)
        assert low < found.optimum(1e21)[0] < high
        used = optima.dropna(subset=["params_ci_low"])
        assert used["bracketed"].all() and len(used) >= 0.8 * optima["bracketed"].sum()
        assert (used["params_ci_low"] <= used["params_opt"]).all() and (used["params_opt"] <= used["params_ci_high"]).all()
        return found.a_high - found.a_low

    assert widths(0.002) < widths(0.02)


def test_few_budgets_give_no_interval_but_a_reason():
    _, found = allocate(isoflop_runs(CHINCHILLA, budgets=(1e18, 1e20)), approach="isoflop-parabola")
    assert np.isnan(found.a_low) and found.draws is None and found.reason == "2 optima; an interval needs at least 3"
    assert found.a == pytest.approx(A, abs=0.01)
    with pytest.raises(UserError, match="none of 1 budgets gives an optimum"):
        allocate(isoflop_runs(CHINCHILLA, budgets=(1e18,), points=3), approach="isoflop-parabola")
    with pytest.raises(UserError, match="2 models win"):
        allocate(grid_runs(sizes=5, lengths=40).query("N > N.min()"), approach="envelope")


# --- side by side


def test_silent_when_the_approaches_agree():
    found = compare_approaches(isoflop_runs(CHINCHILLA, noise=0.003), true_parametric(), draws=100)
    assert found.alarm == ""
    assert list(found.table["approach"]) == ["envelope", "isoflop-parabola", "isoflop-cubic", "isoflop-interpolated", "parametric"]
    row = found.table.set_index("approach").loc["isoflop-cubic"]
    assert row["flops"] == 1e21 and row["params_opt_10x"] == pytest.approx(best_n(CHINCHILLA, 1e22), rel=0.1)
    assert row["params_low"] < row["params_opt"] < row["params_high"]
    again = compare_approaches(isoflop_runs(CHINCHILLA, noise=0.003), true_parametric(), draws=100)
    pd.testing.assert_frame_equal(found.table, again.table)


@pytest.mark.parametrize(
    ("wrong", "words"), [({"a": A + 0.1}, "intervals do not overlap"), ({"factor": 1.8}, "more than their intervals explain")]
)
def test_alarm_when_they_disagree(wrong, words):
    found = compare_approaches(isoflop_runs(CHINCHILLA, noise=0.003), true_parametric(**wrong), draws=100)
    assert "isoflop-interpolated and parametric" in found.alarm and words in found.alarm


def test_without_intervals_only_a_large_factor_alarms():
    runs = isoflop_runs(CHINCHILLA, noise=0.003)
    assert compare_approaches(runs, true_parametric(factor=1.5), draws=0).alarm == ""
    assert "one of them has no interval" in compare_approaches(runs, true_parametric(factor=3.0), draws=0).alarm
    two_budgets = runs[runs["C"].isin([1e17, 1e21])]
    assert compare_approaches(two_budgets, true_parametric(factor=3.0), draws=100).alarm == "", "too few runs for an interval: not judged"


def test_what_cannot_be_done_says_why():
    runs = grid_runs(sizes=4, lengths=3).assign(C=lambda f: f["C"] * np.geomspace(1, 1.5, 12))
    found = compare_approaches(runs, true_parametric(), draws=100).table.set_index("approach")
    assert found.loc["isoflop-parabola", "n_points"] == 0 and "needed" in found.loc["isoflop-parabola", "reason"]
    assert found.loc["parametric", "reason"] == "" and found.loc["parametric", "a"] == pytest.approx(A)


def test_conventions_move_the_exponent_as_algebra_says():
    """Counting N' = 3 N^1.2 raises a by 1.2 where budgets stay; embeddings n0 + N lower it; columns of parts are no convention."""
    runs = isoflop_runs(CHINCHILLA)
    runs = runs.assign(params=3 * runs["N"] ** 1.2, params_non_embedding=runs["N"], params_unembedding=1e8, params_total=runs["N"] + 2e8)
    table = conventions(runs).set_index(["n_column", "c_column"])
    assert set(table.index.get_level_values(0)) == {
        "params", "params_non_embedding", "params_total", "params_non_embedding + params_unembedding"
    }  # fmt: skip
    recorded = table.xs("as recorded", level="c_column")["a"]
    assert recorded["params_non_embedding"] == pytest.approx(A, abs=0.001)
    assert recorded["params"] == pytest.approx(1.2 * A, abs=0.002)
    assert recorded["params_total"] < recorded["params_non_embedding + params_unembedding"] < A - 0.02
    optimum = best_n(CHINCHILLA, np.geomspace(1e17, 1e21, 5)) + 2e8
    assert recorded["params_total"] == pytest.approx(np.polyfit(np.log(np.geomspace(1e17, 1e21, 5)), np.log(optimum), 1)[0], abs=0.002)
    assert table.loc[("params_non_embedding", "6ND"), "a"] == pytest.approx(A, abs=0.001)


@needs_published
def test_counting_the_last_layer_changes_porians_exponent():
    """Porian et al. 2024, figure 1: the same training, .835 without the last layer in N and C, .706 with it."""
    runs = pd.read_csv(PUBLISHED / "porian2024" / "tidy.csv").query("group == 'rw|base|long|kaplan|kaplan|train'").reset_index(drop=True)
    runs = runs.assign(N=runs["n_as_counted"], D=runs["tokens"], C=runs["flops"])
    table = conventions(runs).set_index(["n_column", "c_column"])["a"]
    assert table["params_non_embedding", "as recorded"] == pytest.approx(0.835, abs=0.01)
    assert table["params", "6ND"] == pytest.approx(0.706, abs=0.01)


def test_frontier_rows_have_the_layout_of_frontier_csv():
    runs = isoflop_runs(CHINCHILLA, noise=0.001)
    assert list(frontier(_fit(runs)).columns) == FRONTIER_COLUMNS
    optima, _ = allocate(runs, approach="isoflop-interpolated", draws=50)
    table = frontier_rows(optima, approach="isoflop-interpolated", n_column="params", c_column="flops")
    assert list(table.columns) == FRONTIER_COLUMNS and len(table) == 5
    assert set(table["law"]) == {""} and set(table["point"]) == {"budget"} and not table["beyond_data"].any()
    np.testing.assert_allclose(table["tokens_per_param"], optima["tokens_opt"] / optima["params_opt"])
    assert (table["params_ci_low"] < table["params_opt"]).all() and table["gain_share"].isna().all()


def _fit(runs):
    from test_uncertainty import as_runs

    return fit(
        "chinchilla", as_runs(runs.assign(run_id=[f"r{i}" for i in runs.index], trunk_id=[f"r{i}" for i in runs.index], seed_data=""))
    )
