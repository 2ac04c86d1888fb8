"""Tuning: minima between the rates tried, the law of the best rate and its interval, and the loop that a sweep runs."""

import numpy as np
import pandas as pd
import pytest

from analysis.tuning import minimum, rate_law, tuning_table, tuning_verdict
from scaling.cli.main import main

RATES = np.array([0.004, 0.008, 0.016, 0.032, 0.064])
SIZES = (3_000, 25_000, 83_000, 200_000)


def tried(rate_at=0.02, power=0.15, bend=0.04, noise=0.0, sizes=SIZES, tokens=(1_000_000,), tokens_power=0.0, schedule="cosine", seed=0):
    """Tuning runs whose best rate is a known power law."""
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        for amount in tokens:
            best = rate_at * (size / 25_000) ** -power * (amount / 1e6) ** -tokens_power
            for rate in RATES:
                loss = (1 + 30 / size**0.5 + 150 / amount**0.45) * np.exp(bend * np.log(rate / best) ** 2 + noise * rng.normal())
                rows.append(
                    {"params_non_embedding": size, "d_model": 16, "tokens": amount, "batch_tokens": 512, "learning_rate": rate,
                     "loss": loss, "status": "done", "schedule": schedule, "role": "tune"}
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_minimum_of_a_parabola_is_found():
    found = minimum(RATES, 1.5 * np.exp(0.05 * np.log(RATES / 0.019) ** 2))
    assert found.bracketed and found.rate == pytest.approx(0.019, rel=1e-6) and found.loss == pytest.approx(1.5)
    assert found.bend == pytest.approx(0.05)


@pytest.mark.parametrize(("best", "words"), [(0.002, "0.004, is the lowest"), (0.2, "0.064, is the highest")])
def test_a_minimum_at_the_edge_is_not_used(best, words):
    found = minimum(RATES, np.exp(0.05 * np.log(RATES / best) ** 2))
    assert not found.bracketed and words in found.reason and not np.isfinite(found.rate)


def test_the_law_of_the_rate_is_recovered_over_sizes_and_data():
    table = tuning_table(tried(tokens=(250_000, 1_000_000), tokens_power=0.2))
    law = rate_law(table)
    assert law is not None
    assert (law.rate(25_000, 1e6), law.params_power, law.tokens_power) == pytest.approx((0.02, 0.15, 0.2), rel=1e-6)
    assert law.rate(100_000, 4e6) == pytest.approx(0.02 * 4**-0.15 * 4**-0.2)
    assert table["penalty"].max() < 1e-9


def test_with_trunks_the_rate_is_chosen_at_the_middle_amount_and_its_cost_at_the_ends_is_told():
    table = tuning_table(tried(tokens=(250_000, 1_000_000, 4_000_000), tokens_power=0.2, schedule="trunk"))
    law = rate_law(table)
    assert law is not None and law.tokens_power == 0 and set(table[table["chosen"]]["tokens"]) == {1_000_000}
    ends = table[~table["chosen"]]["penalty"]
    np.testing.assert_allclose(ends, np.expm1(0.04 * np.log(4**0.2) ** 2), rtol=1e-6)


def test_one_cell_without_a_minimum_leaves_no_law():
    rows = tried()
    rows.loc[rows["params_non_embedding"] == SIZES[0], "loss"] = np.linspace(2, 1, 5)
    table = tuning_table(rows)
    assert rate_law(table) is None and table["bracketed"].sum() == 3
    assert "highest" in table.set_index("params_non_embedding").loc[SIZES[0], "reason"]


def test_a_diverged_rate_counts_as_tried_and_has_no_loss():
    rows = tried(rate_at=0.014)
    rows.loc[rows["learning_rate"] == RATES[-1], ["status", "loss"]] = ["diverged", np.nan]
    table = tuning_table(rows)
    assert table["n_rates"].tolist() == [5] * 4 and table["bracketed"].all()


def test_intervals_of_the_law_cover():
    """400 simulated tunings of four sizes: Student's t of the minima holds the true numbers in 92 to 98 %."""
    inside = np.zeros(2)
    for seed in range(400):
        law = rate_law(tuning_table(tried(noise=0.003, seed=seed)))
        assert law is not None
        rows = law.table.set_index("parameter")
        for i, (name, truth) in enumerate((("rate", 0.02 * (law.params / 25_000) ** -0.15), ("params_power", 0.15))):
            inside[i] += rows.loc[name, "ci_low"] <= truth <= rows.loc[name, "ci_high"]
    assert ((inside / 400 >= 0.92) & (inside / 400 <= 0.98)).all(), inside / 400


TUNED = """
name = "tuned"
corpus = "{corpus}"
[model]
d_model = [8, 16]
n_layers = 1
sequence_length = 32
[data]
tokens = ["8k", "12k", "20k", "32k"]
[training]
batch_tokens = 128
warmup_steps = 5
[evaluation]
windows = 8
[tune]
d_model = [16]
rates = [0.0005, 0.001, 0.002]
most_rates = {most}
[fit]
laws = ["power-d"]
bootstrap = 100
"""


def test_a_sweep_adds_rates_until_the_best_lies_inside_and_trains_the_grid_with_them(tmp_path, text_folder, capsys):
    path = tmp_path / "tuned.toml"
    path.write_text(TUNED.format(corpus=text_folder, most=14))
    assert main(["run", str(path), "--results", str(tmp_path), "--workers", "2"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    words = " ".join(shown.out.split())  # the summary wraps its lines
    assert "rates: tuned here: rate" in words and "every minimum between its rates" in words, shown.err
    runs, table = pd.read_csv(tmp_path / "tuned" / "runs.csv"), pd.read_csv(tmp_path / "tuned" / "tuning.csv")
    chosen, fitted = table[table["chosen"]], runs[runs["role"] == "fit"]
    assert chosen["bracketed"].all() and (chosen["n_rates"] > 3).all() and set(chosen["tokens"]) == {16_000}
    np.testing.assert_allclose(fitted["learning_rate"], chosen["rate_best"].item(), rtol=1e-5)
    assert set(runs[runs["role"] == "tune"]["evaluation_split"]) == {"tune"} and set(fitted["evaluation_split"]) == {"heldout"}
    assert set(fitted["tuning"]) == {"tuned"} and (tmp_path / "tuned" / "plots" / "tuning.png").exists()
    assert "tuned here" in (tmp_path / "tuned" / "checklist.md").read_text()
    assert main(["run", str(path), "--results", str(tmp_path)]) == 0
    assert "nothing to train" in capsys.readouterr().err
    assert main(["plan", str(path), "--results", str(tmp_path)]) == 0
    assert "to do" not in capsys.readouterr().out


def test_a_power_that_only_noise_gives_is_refused(tmp_path, text_folder, capsys):
    path = tmp_path / "tuned.toml"
    two_sizes_that_hardly_train = TUNED.format(corpus=text_folder, most=14).replace("d_model = [16]", "d_model = [8, 16]")
    path.write_text(two_sizes_that_hardly_train)
    assert main(["tune", str(path), "--results", str(tmp_path), "--workers", "2"]) == 2
    assert "steeper than 2 either way: the minima are noise" in capsys.readouterr().err


def test_a_best_rate_that_stays_at_the_edge_ends_the_sweep_with_one_line(tmp_path, text_folder, capsys):
    path = tmp_path / "tuned.toml"
    path.write_text(TUNED.format(corpus=text_folder, most=3))
    assert main(["run", str(path), "--results", str(tmp_path), "--workers", "2"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is the highest tried after 3 rates" in last and "tune.most_rates" in last


@pytest.mark.parametrize(
    ("sources", "words"),
    [(["recipe"], "not tuned here: the recipe's rates"), (["set"], "not tuned: rates set by hand"), (["a", "b"], "mixed")],
)
def test_the_verdict_says_where_rates_come_from(sources, words):
    rows = pd.DataFrame({"role": "fit", "tuning": sources})
    assert words in tuning_verdict(rows, pd.DataFrame())
