"""Early answers: predictions against curves made elsewhere, chances against closed forms, and a tuning sweep that stops for real."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.curve_law import Curve
from analysis.early import Trial, chances, hopeful, outlooks
from analysis.errors import UserError
from scaling.cli.main import main

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "rate_transfer"


def rates_of(peak: float, steps: int, branch: int) -> np.ndarray:
    """The recipe's schedule at 512 tokens a step, from its description: warm-up, decay beyond .5M tokens, 1 - sqrt cooldown."""
    t = np.arange(steps)
    fraction = np.clip((t - branch + 1) / (steps - branch + 1), 0, 1)
    return peak * np.minimum(1, (t + 1) / 50) * np.minimum(1, ((t + 1) * 512 / 5e5) ** -0.3) * (1 - np.sqrt(fraction))


def slow_loss(rates: np.ndarray, *, floor: float, amplitude: float) -> np.ndarray:
    """A multi-power law by plain sums, in rates over their peak."""
    eta = rates / rates.max()
    sums = np.cumsum(eta)
    loss = floor + amplitude * sums**-0.5
    for k in np.flatnonzero(np.diff(eta) != 0) + 1:
        if eta[k] > 0:
            past = sums[k:] - sums[k - 1]
            loss[k:] += 0.3 * (eta[k] - eta[k - 1]) * (1 - (1 + 0.2 * eta[k] ** -0.5 * past) ** -0.5)
    return loss


def simulated(peaks: list[float], floors: list[float], *, seen: int, goal: int, noise: float = 0.0) -> tuple[list[Trial], np.ndarray]:
    """Trials at several rates, and the losses they end at."""
    rng, trials, ends = np.random.default_rng(0), [], []
    for peak, floor in zip(peaks, floors, strict=True):
        reached, full = rates_of(peak, seen, round(0.8 * seen)), rates_of(peak, goal, round(0.8 * goal))
        loss = slow_loss(reached, floor=floor, amplitude=8.0)
        steps = np.arange(149, seen, 50)
        noisy = loss[steps] * np.exp(noise * rng.standard_normal(len(steps)))
        trials.append(Trial(f"{peak:g}", peak, (Curve(reached, steps, noisy),), float(loss[-1]), reached, full))
        ends.append(slow_loss(full, floor=floor, amplitude=8.0)[-1])
    return trials, np.array(ends)


def test_final_losses_of_a_known_law_are_predicted():
    trials, ends = simulated([0.01, 0.02, 0.04, 0.08], [1.25, 1.2, 1.22, 1.4], seen=1000, goal=2000, noise=0.002)
    found = outlooks(trials)
    error = np.log([outlook.loss for outlook in found]) - np.log(ends)
    assert abs(error.mean()) < 0.03 and error.std() < 0.01
    assert all(outlook.low < end < outlook.high for outlook, end in zip(found, ends, strict=True))
    assert int(np.argmax([outlook.chance for outlook in found])) == 1 and found[3].chance < 1e-3


def test_a_trial_at_its_goal_is_not_predicted():
    trials, _ = simulated([0.01, 0.02, 0.04], [1.25, 1.2, 1.22], seen=1000, goal=1000)
    for trial, outlook in zip(trials, outlooks(trials), strict=True):
        assert outlook.loss == outlook.low == outlook.high == pytest.approx(trial.loss)


def test_chances_of_two_and_of_equals_have_closed_forms():
    """P(X < Y) = Phi((b - a) / sqrt(s^2 + t^2)): .9772499 at 2 standard deviations."""
    assert chances(np.array([0.0, 1.0]), np.array([0.3, 0.4])) == pytest.approx([0.9772498681, 0.0227501319], abs=1e-6)
    assert chances(np.zeros(5), np.ones(5)) == pytest.approx([0.2] * 5)
    draws = np.array([0.1, 0.0, 0.2])[:, None] + np.array([0.1, 0.2, 0.05])[:, None] * np.random.default_rng(1).standard_normal(
        (3, 400_000)
    )
    counted = np.bincount(draws.argmin(axis=0), minlength=3) / 400_000
    assert chances(np.array([0.1, 0.0, 0.2]), np.array([0.1, 0.2, 0.05])) == pytest.approx(counted, abs=0.003)


def test_neighbours_of_the_likeliest_are_kept_and_others_by_their_chance():
    rates = [0.064, 0.004, 0.008, 0.016, 0.032, 0.128]
    assert hopeful(rates, [0.06, 0.0, 0.0, 0.9, 0.03, 0.01], least=0.05) == [0.008, 0.016, 0.032, 0.064]
    assert hopeful(rates, [0.0, 0.99, 0.01, 0.0, 0.0, 0.0], least=0.05) == [0.004, 0.008]


def test_too_little_to_compare_is_one_line():
    trials, _ = simulated([0.01, 0.02], [1.2, 1.3], seen=200, goal=400)
    with pytest.raises(UserError, match="three logged points"):
        outlooks(trials)
    with pytest.raises(UserError, match="several rates; found 1"):
        outlooks(trials[:1])


@pytest.mark.parametrize(("seen", "goal", "spread"), [(5e5, 1e6, 0.009), (5e5, 2e6, 0.0125), (1e6, 2e6, 0.004)])
def test_on_the_committed_rate_sweep_the_best_is_never_stopped(seen, goal, spread):
    """Twelve real trunks of three widths: errors about each other below those of "all lose alike", intervals hold, the best stays."""
    runs, curves = pd.read_csv(REFERENCE / "runs.csv").query("role == 'tune'"), pd.read_parquet(REFERENCE / "curves.parquet")
    own, alike = [], []
    for _, cell in runs.groupby("d_model"):
        trials, ends = [], []
        for peak, tried in cell.groupby("learning_rate"):
            tried, made, after = tried.sort_values("tokens"), [], 150
            done = tried[tried["tokens"] <= 1.01 * seen]
            for run in done.itertuples():
                points = curves[curves["run_id"] == run.run_id].sort_values("step")
                middle, late = (points["step"] + points["step"].shift(fill_value=0) - 1) // 2, points["step"] > after
                made.append(
                    Curve(rates_of(peak, run.steps, run.branch_step), middle[late].to_numpy(int), points["train_loss"][late].to_numpy())
                )
                after = run.branch_step
            last, aim = done.iloc[-1], tried[(tried["tokens"] / goal - 1).abs() < 0.01].iloc[0]
            schedules = [rates_of(peak, run["steps"], run["branch_step"]) for run in (last, aim)]
            trials.append(Trial(f"{peak:g}", peak, tuple(made), float(last["loss"]), *schedules))
            ends.append(float(aim["loss"]))
        found = outlooks(trials)
        assert all(outlook.low < end < outlook.high for outlook, end in zip(found, ends, strict=True))
        kept = hopeful([trial.rate for trial in trials], [outlook.chance for outlook in found], least=0.05)
        assert trials[int(np.argmin(ends))].rate in kept
        error = np.log([outlook.loss for outlook in found]) - np.log(ends)
        plain = np.log([trial.loss for trial in trials]) - np.log(ends)
        own, alike = [*own, *(error - error.mean())], [*alike, *(plain - plain.mean())]
    assert np.std(own) < min(spread, np.std(alike))


STAGED = """
name = "staged"
corpus = "{corpus}"
[model]
d_model = [16]
n_layers = 1
sequence_length = 32
[data]
tokens = ["40k", "80k", "160k"]
[training]
batch_tokens = 128
warmup_steps = 5
{schedule}
[evaluation]
windows = 8
[tune]
d_model = [16]
rates = [1e-5, 1e-4, 0.004, 0.012, 0.036, 0.108]
tokens = ["40k", "80k", "160k"]
{stop}
[fit]
laws = ["power-d"]
bootstrap = 100
"""


def test_a_tuning_sweep_stops_rates_without_hope_and_says_so(tmp_path, text_folder, capsys):
    for name, stop in (("stopping", "stop = 0.05"), ("whole", "")):
        (tmp_path / f"{name}.toml").write_text(STAGED.format(corpus=text_folder, stop=stop, schedule=""))
        assert main(["tune", str(tmp_path / f"{name}.toml"), "--results", str(tmp_path / name), "--workers", "2"]) == 0, capsys.readouterr()
    told = capsys.readouterr().err
    runs, whole = (
        pd.read_csv(tmp_path / name / "staged" / "runs.csv").query("role == 'tune'").set_index("run_id") for name in ("stopping", "whole")
    )
    stopped, trained = runs[runs["status"] == "stopped"], runs[runs["status"] == "done"]
    assert len(stopped) and {1e-5, 1e-4} & set(stopped["learning_rate"])
    assert stopped["loss"].isna().all() and (stopped["flops_spent"] == 0).all() and stopped["reason"].str.contains("tune.stop = 0.05").all()
    pd.testing.assert_series_equal(trained["loss"], whole.loc[trained.index, "loss"])  # what was trained has the same bits
    saved = 1 - runs["flops_spent"].sum() / whole["flops_spent"].sum()
    assert f"{len(stopped)} of {len(runs)} tuning runs stopped, {saved:.0%} of the compute of tuning saved" in told
    best = [pd.read_csv(tmp_path / name / "staged" / "rate_law.csv")["estimate"].item() for name in ("stopping", "whole")]
    assert best[0] == pytest.approx(best[1], rel=0.3)
    table = pd.read_csv(tmp_path / "stopping" / "staged" / "early.csv")
    assert set(table[table["decision"] == "stopped"]["run_id"]) <= set(stopped.index) and table["observed"].notna().any()
    known = table.dropna(subset=["observed"])
    np.testing.assert_allclose(known["relative_error"], known["predicted"] / known["observed"] - 1)
    before = (tmp_path / "stopping" / "staged" / "early.json").read_text()
    assert main(["tune", str(tmp_path / "stopping.toml"), "--results", str(tmp_path / "stopping"), "--workers", "2"]) == 0
    assert (tmp_path / "stopping" / "staged" / "early.json").read_text() == before
    capsys.readouterr()
    assert main(["status", str(tmp_path / "stopping" / "staged"), "--json"]) == 0
    assert len(stopped) == json.dumps(json.loads(capsys.readouterr().out)).count('"stopped"')


def test_stopping_needs_trunks(tmp_path, text_folder, capsys):
    path = tmp_path / "sweep.toml"
    path.write_text(STAGED.format(corpus=text_folder, stop="stop = 0.05", schedule='schedule = "cosine"'))
    assert main(["plan", str(path), "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("tune.stop decides between the amounts of data of a trunk") == 1
