"""Using a law: closed forms, SciPy's minimum, published optima and losses, hand arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from test_uncertainty import as_runs, simulated, true_loss

from analysis.errors import UserError
from analysis.fitting import Fit, fit
from analysis.laws import LAWS, get_law
from analysis.optimal import compute_optimal, frontier, predict
from analysis.presets import PRESETS, Preset
from analysis.uncertainty import bootstrap
from scaling.cli.main import main

PRESET = PRESETS["besiroglu2024"]
FARSEER = {"a3": -0.1, "gamma": 0.1, "b3": 1.3, "a2": -0.05, "beta": 0.1, "b2": 7.3, "a1": -0.02, "alpha": 0.1, "b1": -1.0}
SKALING = {"E": 1.5, "A": 3e3, "B": 2e4, "alpha": 0.6, "beta": 0.55, "k": 0.5}
MIXED = get_law("E + A/N^a + B/D^b + F/(N*D)^g")


def made(law: str, params: dict[str, float]) -> Preset:
    return Preset(law, LAWS[law], params, "params_total", "made up")


NUMERIC = {
    "kaplan-nd": PRESETS["kaplan2020"],
    "skaling": made("skaling", SKALING),
    "farseer": made("farseer", FARSEER),
    "written": Preset(
        "written", MIXED, {"E": 1.7, "A": 400.0, "B": 400.0, "F": 50.0, "a": 0.34, "b": 0.28, "g": 0.2}, "params_total", "made up"
    ),
}


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return bootstrap(fit("chinchilla", as_runs(simulated(0))), draws=100)


@pytest.mark.parametrize("flops", [1e18, 5.76e23])
@pytest.mark.parametrize("served", [None, 1e12])
def test_optimum_is_that_of_brute_force(flops: float, served: float | None) -> None:
    def loss(log_n):
        n = np.exp(log_n)
        d = (flops - 2 * n * (served or 0)) / (6 * n)
        return float(PRESET.predict(N=n, D=d)) if d > 0 else 1e9

    top = np.log(flops / (2 * served)) if served else np.log(flops / 6)
    brute = minimize_scalar(loss, bounds=(min(10.0, top - 10), top), method="bounded", options={"xatol": 1e-9})
    found = compute_optimal(PRESET, flops, inference_tokens=served)
    assert found.loss == pytest.approx(brute.fun, rel=1e-10)
    assert found.params_opt == pytest.approx(np.exp(brute.x), rel=1e-3)
    assert 6 * found.params_opt * found.tokens_opt + 2 * found.params_opt * (served or 0) == pytest.approx(flops)


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize(("flops", "served"), [(1e18, None), (1e23, None), (1e22, 1e12)])
def test_optimum_of_any_law_is_that_of_scipy(name: str, flops: float, served: float | None) -> None:
    source = NUMERIC[name]

    def loss(log_n: float) -> float:
        n = np.exp(log_n)
        d = (flops - 2 * n * (served or 0)) / (6 * n)
        return float(source.predict(N=n, D=d)) if d > 1e-4 * n else 1e9  # Farseer's formula falls again where there is hardly any data

    top = np.log(flops / (2 * served)) if served else np.log(flops / 6)
    grid = np.linspace(top - 40, top, 400)
    best = int(np.argmin([loss(u) for u in grid]))
    scipy = minimize_scalar(loss, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-10})
    found = compute_optimal(source, flops, inference_tokens=served)
    # A minimum can be told from values of the loss only to the root of the rounding error.
    assert np.log(found.params_opt) == pytest.approx(scipy.x, abs=2e-6)
    assert found.loss == pytest.approx(scipy.fun, rel=1e-14)
    assert 6 * found.params_opt * found.tokens_opt + 2 * found.params_opt * (served or 0) == pytest.approx(flops, rel=1e-12)


@pytest.mark.parametrize("served", [0.0, 1e11])
def test_search_agrees_with_the_closed_form_to_1e_8(served: float) -> None:
    """Skaling with k = 1 is Chinchilla, but is solved by the search; serving: the derivative of the law is 0 there, by hand."""
    p = PRESET.params
    found = compute_optimal(made("skaling", {**p, "k": 1.0}), 1e22, inference_tokens=served or None)
    n, d = found.params_opt, found.tokens_opt
    if not served:
        share = p["beta"] / (p["alpha"] + p["beta"])
        gain = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
        assert np.log(n) == pytest.approx(np.log(gain) + share * np.log(1e22 / 6), abs=1e-8)
        assert compute_optimal(PRESET, 1e22).params_opt == pytest.approx(gain * (1e22 / 6) ** share, rel=1e-12)
    by_n, by_d = p["alpha"] * p["A"] * n ** -p["alpha"], p["beta"] * p["B"] * d ** -p["beta"]
    assert by_n == pytest.approx(by_d * (1 + served / (3 * d)), rel=1e-8)


def test_tied_exponents_split_alike_at_every_budget() -> None:
    """Gadre et al. 2024: with one exponent the best tokens per parameter, (B/A)^(1/alpha), does not depend on compute."""
    preset = PRESETS["gadre2024-c4"]
    expected = (preset.params["B"] / preset.params["A"]) ** (1 / preset.params["alpha"])
    for flops in (1e18, 1e24):
        assert compute_optimal(preset, flops).tokens_per_param == pytest.approx(expected, rel=1e-12)


def test_a_law_without_a_best_split_says_so() -> None:
    """A power law without a floor falls to the edge; with serving to pay, its optimum is N = (a - b) C / (2 served a), by hand."""
    falling, even = (made("log-linear", {"K": 10.0, "a": a, "b": 0.05}) for a in (0.1, 0.05))
    for source in (falling, even):
        with pytest.raises(UserError, match="no best split"):
            compute_optimal(source, 1e20)
    found = compute_optimal(falling, 1e20, inference_tokens=1e10)
    assert found.params_opt == pytest.approx(0.05 * 1e20 / (2 * 1e10 * 0.1), rel=1e-8)
    with pytest.raises(UserError, match="no best split"):  # so much repetition that nothing is left to win
        compute_optimal(PRESETS["muennighoff2023"], 1e24, unique_tokens=1e9)


def test_published_losses() -> None:
    """Muennighoff et al. 2023 (losses of two data-constrained models, from their code); Kaplan et al. 2020, sections 1.2 and 4.3."""
    data_constrained = PRESETS["muennighoff2023"]
    first = predict(data_constrained, params=6.34e9, tokens=242e9, unique_tokens=25e9)
    second = predict(data_constrained, params=8.67e9, tokens=178e9, unique_tokens=25e9)
    assert first.loss == pytest.approx(2.2256440889984477, rel=1e-12)
    assert second.loss == pytest.approx(2.2269634075087867, rel=1e-12)
    # Doubling N takes the loss down by 2^-.076 = .95, doubling D by 2^-.095.
    for name, factor in (("kaplan2020-n", 0.95), ("kaplan2020-d", 0.936)):
        losses = [predict(PRESETS[name], params=n, tokens=n).loss for n in (1e9, 2e9)]
        assert losses[1] / losses[0] == pytest.approx(factor, abs=2e-3)
    assert predict(PRESETS["kaplan2020-c"], params=1e9, tokens=3.1e8 * 8.64e19 / 6e9).loss == pytest.approx(1)  # C_c in FLOPs
    # D = 5e3 N^.74 keeps overfitting to about .02 of the loss.
    for n in (1e7, 1e9):
        short, endless = (predict(PRESETS["kaplan2020"], params=n, tokens=d).loss for d in (5e3 * n**0.74, 1e40))
        assert short / endless - 1 == pytest.approx(0.02, abs=0.003)


def test_data_constrained_optimum() -> None:
    """At one epoch it is Chinchilla's own; with repeats, SciPy's; and more of the compute goes to repeating than to size."""
    source = PRESETS["muennighoff2023"]
    own = compute_optimal(made("chinchilla", {k: v for k, v in source.params.items() if k[0] != "R"}), 1e22)
    once = compute_optimal(source, 1e22)
    assert (once.params_opt, once.loss) == pytest.approx((own.params_opt, own.loss), rel=1e-9)
    assert once.unique_tokens == once.tokens_opt

    def loss(log_n: float) -> float:
        return float(source.predict(N=np.exp(log_n), D=1e22 / 6 / np.exp(log_n), U=25e9))

    scipy = minimize_scalar(loss, bounds=(np.log(1e9), np.log(1e11)), method="bounded", options={"xatol": 1e-10})
    repeated = compute_optimal(source, 1e22, unique_tokens=25e9)
    assert np.log(repeated.params_opt) == pytest.approx(scipy.x, abs=2e-6)
    assert repeated.loss == pytest.approx(scipy.fun, rel=1e-14)
    assert repeated.tokens_per_param > once.tokens_per_param and repeated.loss > once.loss


def test_published_allocations() -> None:
    """Llama 3: 402B and 16.55T at 3.8e25 FLOPs; Porian et al. 2024: N* = .1189 C^.4969. They have no law of the loss."""
    llama = compute_optimal(PRESETS["llama3"], 3.8e25)
    assert (llama.params_opt, llama.tokens_opt) == pytest.approx((402e9, 16.55e12))
    assert compute_optimal(PRESETS["llama3"], 3.8e24).tokens_opt == pytest.approx(16.55e12 * 0.1**0.53)
    porian = compute_optimal(PRESETS["porian2024"], 2.56e19)
    assert porian.params_opt == pytest.approx(0.118926484 * 2.56e19**0.4968950782)
    assert np.isnan(porian.loss) and "no law of the loss" in porian.extrapolation
    with pytest.raises(UserError, match="porian2024"):
        predict(PRESETS["porian2024"], params=1e9, tokens=1e9)


def test_published_approach_3_of_hoffmann() -> None:
    """Hoffmann et al. 2022, table A3 (printed from coefficients of more digits than any it gives): tokens of the optimum for N."""
    for n, d in ((400e6, 9.2e9), (1e9, 27.1e9), (10e9, 410.1e9), (67e9, 4.1e12), (1e12, 94.1e12)):
        assert compute_optimal(PRESETS["hoffmann2022"], 6 * n * d).params_opt == pytest.approx(n, rel=0.07)


def test_published_optimum_of_chinchilla_budget() -> None:
    """Besiroglu et al. 2024: about 20 tokens a parameter at Chinchilla's 5.76e23 FLOPs; Hoffmann's own coefficients give far more."""
    assert compute_optimal(PRESET, 5.76e23).tokens_per_param == pytest.approx(20, rel=0.15)
    assert compute_optimal(PRESETS["hoffmann2022"], 5.76e23).tokens_per_param > 50


def test_serving_many_tokens_asks_for_a_smaller_model() -> None:
    """Sardana et al. 2023."""
    sizes = [compute_optimal(PRESET, 1e22, inference_tokens=t).params_opt for t in (1e9, 1e11, 1e13)]
    assert sizes == sorted(sizes, reverse=True)
    assert compute_optimal(PRESET, 1e22, inference_tokens=1.0).params_opt == pytest.approx(
        compute_optimal(PRESET, 1e22).params_opt, rel=1e-6
    )


def test_prediction_and_extrapolation(fitted: Fit) -> None:
    inside = predict(fitted, params=float(fitted.frame["N"][0]), tokens=1e6)
    assert inside.extrapolation == "inside the data"
    assert inside.pi_low < inside.low < inside.loss < inside.high < inside.pi_high
    assert inside.loss == pytest.approx(true_loss(float(fitted.frame["N"][0]), 1e6), rel=0.01)
    beyond = predict(fitted, params=4 * float(fitted.frame["N"].max()), tokens=4e6)
    assert beyond.extrapolation == "N x4, C x4 beyond the data"
    preset = predict(PRESET, params=1e9, tokens=20e9)
    assert preset.loss == pytest.approx(1.81686 + 482.006 / 1e9**0.34781 + 2085.434 / 20e9**0.36585)
    assert np.isnan(preset.low)


@pytest.mark.parametrize("law", ["chinchilla", "skaling"])
def test_intervals_are_percentiles_of_the_draws(law: str) -> None:
    fitted = bootstrap(fit(law, as_runs(simulated(0))), draws=40)
    found = compute_optimal(fitted, 1e13)
    assert fitted.draws is not None
    each = [compute_optimal(made(law, dict(row)), 1e13) for row in fitted.draws[list(fitted.law.parameters)].to_dict("records")]
    for name, low, high in (
        ("params_opt", found.params_low, found.params_high), ("tokens_opt", found.tokens_low, found.tokens_high),
        ("tokens_per_param", found.tokens_per_param_low, found.tokens_per_param_high), ("loss", found.loss_low, found.loss_high),
    ):  # fmt: skip
        assert np.percentile([getattr(one, name) for one in each], [2.5, 97.5], method="weibull") == pytest.approx([low, high], rel=1e-8)


def test_frontier_is_below_every_law_value_at_its_compute(fitted: Fit) -> None:
    table = frontier(fitted)
    for row in table[table["point"] == "grid"].to_dict("records"):
        assert 6 * row["params_opt"] * row["tokens_opt"] == pytest.approx(row["flops"])
        sizes = row["params_opt"] * np.array([0.8, 1.25])
        assert (fitted.predict(N=sizes, D=row["flops"] / 6 / sizes) > row["loss"]).all()
    assert table["flops"].max() >= 9.99 * float((6 * fitted.frame["N"] * fitted.frame["D"]).max())


def test_frontier_of_any_law_holds_the_optima() -> None:
    fitted = bootstrap(fit("skaling", as_runs(simulated(0))), draws=20)
    table = frontier(fitted, per_decade=2)
    for row in table.to_dict("records"):
        best, next_best = (compute_optimal(fitted, c) for c in (row["flops"], 2 * row["flops"]))
        assert (row["params_opt"], row["loss"], row["params_ci_low"]) == pytest.approx((best.params_opt, best.loss, best.params_low))
        assert row["gain_per_doubling"] == pytest.approx(best.loss - next_best.loss, rel=1e-9)
    assert set(table["point"]) > {"grid", "gain below 1 % of the loss"}
    assert not len(frontier(fit("log-linear", as_runs(simulated(0)))))


def test_mistakes() -> None:
    column = get_law("E + A/N^alpha + B/D^beta + F*width", ["width"])
    for call, says in (
        (lambda: compute_optimal(PRESET, -1), "above 0"), (lambda: compute_optimal(PRESET, 1e20, inference_tokens=0), "above 0"),
        (lambda: predict(PRESET, params=float("nan"), tokens=1), "finite"),
        (lambda: predict(PRESET, params=1e6, tokens=1e6, unique_tokens=1e6), "no U"),
        (lambda: compute_optimal(fit("power-n", as_runs(simulated(0))), 1e20), "power-n is in N only"),
        (lambda: compute_optimal(PRESETS["llama3"], 1e20, inference_tokens=1e9), "llama3"),
        (lambda: predict(Preset("x", column, {}, "N", ""), params=1e6, tokens=1e6), "width"),
        (lambda: compute_optimal(Preset("x", column, {}, "N", ""), 1e15), "width"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            call()


def test_commands_take_any_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = simulated(0).rename(columns={"N": "params", "D": "tokens"}).drop(columns="C")
    runs.to_csv(tmp_path / "runs.csv", index=False)
    answers = []
    for law in ("chinchilla", "E + A*N**-alpha + B*D**-beta"):
        assert main(["optimal", str(tmp_path / "runs.csv"), "--flops", "1e13", "--law", law, "--bootstrap", "20", "--format", "json"]) == 0
        answers += json.loads(capsys.readouterr().out)
    assert answers[0]["params_opt"] == pytest.approx(answers[1]["params_opt"], rel=1e-6)
    assert answers[0]["tokens_per_param_ci_low"] < answers[0]["tokens_per_param"] < answers[0]["tokens_per_param_ci_high"]
    asked = ["--params", "6.34B", "--tokens", "242B", "--unique-tokens", "25B"]
    assert main(["predict", "muennighoff2023", *asked, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["loss"] == pytest.approx(2.2256440889984477)
    assert main(["optimal", "llama3", "--flops", "3.8e25"]) == 0
    assert "4.02e+11" in capsys.readouterr().out


def test_the_registry_is_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", "--format", "json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(LAWS) | set(PRESETS)
    assert rows["chinchilla"]["parameters"] == "E > 0, A > 0, B > 0, alpha > 0, beta > 0"
    assert rows["llama3"]["kind"] == "allocation preset"
    for name, expected in (("besiroglu2024", "482.006"), ("E + A*N**-a | 0 < a < 1", "0 < a < 1"), ("skaling", "chinchilla")):
        assert main(["laws", name]) == 0
        assert expected in capsys.readouterr().out
    assert main(["laws", "nope"]) == 2


def test_public_names_stay_functions_whatever_was_imported_before():
    import analysis

    for _ in range(2):
        assert callable(analysis.compute_optimal) and callable(analysis.predict) and callable(analysis.fit)
