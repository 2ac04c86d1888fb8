"""Stability by window and noise by cell: nothing moves without noise; what one more seed buys is what adding it gives."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic import write_results

import analysis
from analysis.drawings_runs import draw_windows
from analysis.repeats import noise_table, where_repeats_pay
from analysis.uncertainty import bootstrap
from analysis.windows import WINDOWS, windows


def fitted(folder, **settings):
    runs = analysis.read_runs(write_results(folder, broken=False, holdout=None, **settings))
    return runs, bootstrap(analysis.fit("chinchilla", runs), draws=200, seed=0)


def test_windows_of_an_exact_law_do_not_move(tmp_path):
    runs, fit = fitted(tmp_path / "a", noise=1e-6)
    table = windows(runs, fit, draws=0)
    assert tuple(table["window"].unique()) == WINDOWS and len(table) == 5 * 5
    moved = table[table["window"] != "all"]
    exponents = moved[moved["parameter"].isin(["E", "alpha", "beta"])]
    assert exponents["change"].abs().max() < 1e-3 and moved["left_out_max"].abs().max() < 1e-4
    assert moved.groupby("window")["n_runs"].first().to_dict() == dict.fromkeys(WINDOWS[1:], 24)


def test_windows_move_as_their_sd_says(tmp_path):
    """Over simulated sweeps, change / change_sd has sd about 1 (loosely: the noise is estimated, the sweeps are twenty)."""
    scaled = []
    for seed in range(20):
        runs, fit = fitted(tmp_path / str(seed), noise=0.003, seed=seed)
        table = windows(runs, fit, draws=0)
        rows = table[(table["window"] == "without the largest D") & (table["parameter"] == "beta")]
        scaled.append(float((rows["change"] / rows["change_sd"]).iloc[0]))
    assert 0.4 < np.median(np.abs(scaled)) / 0.674 < 2.5


def test_noise_by_cell(tmp_path):
    runs, fit = fitted(tmp_path / "a", noise=0.004)
    table = noise_table(fit)
    cell = runs.frame[(runs.frame["N"] == table["params"][0]) & (runs.frame["D"] == table["tokens"][0])]
    assert len(table) == 16 and (table["n_runs"] == 2).all()
    assert table["sd"][0] == pytest.approx(np.log(cell["loss"]).std(ddof=1))
    assert ((table["sd_ci_low"] < table["sd"]) & (table["sd"] < table["sd_ci_high"])).all()
    inside = (table["sd_ci_low"] < 0.004) & (table["sd_ci_high"] > 0.004)
    assert inside.mean() > 0.8


def test_a_seed_pays_where_the_forecast_leans(tmp_path):
    """Nothing is lost by a seed; beyond the largest size a large model's says more than a small one's; costs only rank."""
    _, fit = fitted(tmp_path / "a", noise=0.004)
    sizes = sorted(fit.frame["N"].unique())
    tables = [where_repeats_pay(fit, target=(2 * sizes[-1], 4e6), cost=cost) for cost in ({n: n for n in sizes}, dict.fromkeys(sizes, 1.0))]
    falls = [table.set_index("params")[["forecast", "alpha", "beta"]].sort_index() for table in tables]
    pd.testing.assert_frame_equal(*falls)
    assert (falls[0] > -1e-9).all(axis=None) and (falls[0] < 0.5).all(axis=None)
    assert falls[0]["forecast"][sizes[-1]] > falls[0]["forecast"][sizes[1]]
    assert tables[1]["params"].iloc[0] == falls[1]["forecast"].idxmax()
    for table in tables:
        assert table["forecast_per_flops"].max() == 1.0 and table["forecast_per_flops"].is_monotonic_decreasing


def test_an_interval_without_its_estimate_is_drawn():
    """Percentile intervals need not hold the estimate (a law at the edge of what its runs determine)."""
    table = pd.DataFrame(
        {"window": ["all", "without the smallest N"], "parameter": "alpha", "estimate": [0.3, 0.5], "ci_low": [0.2, 0.1], "ci_high": [0.4, 0.45],
         "inside": [True, False]}
    )  # fmt: skip
    ax = Figure().add_subplot()
    drawn = draw_windows(table, ax, parameter="alpha")
    assert [list(line.get_xdata()) for line in drawn.lines[1:]] == [[0.2, 0.4], [0.3], [0.1, 0.45], [0.5]]
