"""Law forms against each publication's own formula, noiseless recovery of every law, users' formulas and presets."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import UserError
from analysis.fitting import fit
from analysis.formula import Formula
from analysis.laws import LAWS, get_law
from analysis.powers import PowerSum
from analysis.presets import PRESETS, AllocationPreset, get_preset
from analysis.runs import Runs, read_runs

TRUTHS: dict[str, dict[str, float]] = {
    "power-n": {"E": 1.7, "A": 400, "alpha": 0.34},
    "power-d": {"E": 1.7, "B": 900, "beta": 0.3},
    "power-c": {"E": 1.7, "G": 2000, "gamma": 0.16},
    "kaplan-n": {"N_c": 8.8e13, "alpha_N": 0.076},
    "kaplan-d": {"D_c": 5.4e13, "alpha_D": 0.095},
    "kaplan-c": {"C_c": 3e28, "alpha_C": 0.05},
    "bnsl-n": {"E": 1.2, "b": 60, "c0": 0.25, "c1": 0.2, "d1": 3e8, "f1": 0.3},
    "bnsl-d": {"E": 1.2, "b": 90, "c0": 0.25, "c1": -0.1, "d1": 1e10, "f1": 0.2},
    "bnsl-c": {"E": 1.2, "b": 300, "c0": 0.12, "c1": 0.1, "d1": 1e20, "f1": 0.4},
    "m4-n": {"E": 1.5, "E0": 10.8, "A": 100, "c": 0.3, "a": 0.6},
    "m4-d": {"E": 1.5, "E0": 10.8, "A": 300, "c": 0.33, "a": 0.5},
    "m4-c": {"E": 1.5, "E0": 10.8, "A": 1e3, "c": 0.17, "a": 0.8},
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "chinchilla-tied": {"E": 1.5, "A": 114, "B": 150, "alpha": 0.24},
    "kaplan-nd": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "skaling": {"E": 1.5, "A": 3e4, "B": 4e5, "alpha": 0.6, "beta": 0.62, "k": 0.45},
    "bounded": {"E": 1.5, "E0": 9.0, "A": 300, "B": 900, "alpha": 0.36, "beta": 0.33},
    "muennighoff": {"E": 1.87, "A": 520, "B": 1490, "alpha": 0.35, "beta": 0.36, "R_D": 15.4, "R_N": 5.3},
    "farseer": {"a3": -0.021, "gamma": 0.169, "b3": 0.91, "a2": -0.1, "beta": 0.15, "b2": 7.3, "a1": -0.02, "alpha": 0.15, "b1": -0.9},
    "constant": {"E": 2.5},
    "log-linear": {"K": 28, "a": 0.05, "b": 0.056},
}


def broken(x, p):
    """Caballero et al. 2022, eq. 1, one break: y = a + (b x^-c0) (1 + (x/d1)^(1/f1))^(-c1 f1)."""
    return p["E"] + p["b"] * x ** -p["c0"] * (1 + (x / p["d1"]) ** (1 / p["f1"])) ** (-p["c1"] * p["f1"])


def data_constrained(n, d, u, p):
    """Muennighoff et al. 2023, the function of their repository: repeats R = D/U - 1 decay with R*, and so do excess parameters."""
    g = ((p["alpha"] * p["A"]) / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    u_n = np.minimum(n, (u * g) ** (p["beta"] / p["alpha"]) * g)
    r_n, r_d = np.maximum(n / u_n - 1, 0), np.maximum(d / u - 1, 0)
    n_part = u_n + u_n * p["R_N"] * (1 - np.exp(-r_n / p["R_N"]))
    d_part = u + u * p["R_D"] * (1 - np.exp(-r_d / p["R_D"]))
    return p["E"] + p["A"] / n_part ** p["alpha"] + p["B"] / d_part ** p["beta"]


def farseer(n, d, p):
    """Li et al. 2025: exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1)."""
    power = np.exp(p["a1"] * n ** p["alpha"] + p["b1"])
    return np.exp(p["a3"] * n ** p["gamma"] + p["b3"]) + np.exp(p["a2"] * n ** p["beta"] + p["b2"]) * d**-power


#: Each publication's formula, written afresh: (N, D, C, U, parameters) -> loss.
FORMS = {
    "power-n": lambda n, d, c, u, p: p["E"] + p["A"] * n ** -p["alpha"],
    "power-d": lambda n, d, c, u, p: p["E"] + p["B"] * d ** -p["beta"],
    "power-c": lambda n, d, c, u, p: p["E"] + p["G"] * c ** -p["gamma"],
    "kaplan-n": lambda n, d, c, u, p: (p["N_c"] / n) ** p["alpha_N"],
    "kaplan-d": lambda n, d, c, u, p: (p["D_c"] / d) ** p["alpha_D"],
    "kaplan-c": lambda n, d, c, u, p: (p["C_c"] / c) ** p["alpha_C"],
    "bnsl-n": lambda n, d, c, u, p: broken(n, p),
    "bnsl-d": lambda n, d, c, u, p: broken(d, p),
    "bnsl-c": lambda n, d, c, u, p: broken(c, p),
    "chinchilla": lambda n, d, c, u, p: p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"],
    "chinchilla-tied": lambda n, d, c, u, p: p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["alpha"],
    "kaplan-nd": lambda n, d, c, u, p: ((p["N_c"] / n) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / d) ** p["alpha_D"],
    "skaling": lambda n, d, c, u, p: p["E"] + (p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]) ** p["k"],
    "bounded": lambda n, d, c, u, p: p["E"] + (p["E0"] - p["E"]) / (1 + 1 / (p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"])),
    "muennighoff": lambda n, d, c, u, p: data_constrained(n, d, u, p),
    "farseer": lambda n, d, c, u, p: farseer(n, d, p),
    "constant": lambda n, d, c, u, p: p["E"] + 0 * n,
    "log-linear": lambda n, d, c, u, p: np.exp(np.log(p["K"]) - p["a"] * np.log(n) - p["b"] * np.log(d)),
}  # fmt: skip


def points(name: str) -> pd.DataFrame:
    """Where a law is looked at: a grid of N and D (and U), or a line in its one variable."""
    variables = LAWS[name].variables
    if variables == ("C",):
        flops = np.geomspace(1e17, 1e23, 25)
        frame = pd.DataFrame({"N": np.sqrt(flops / 120), "D": np.sqrt(flops * 120) / 6, "C": flops})
    elif len(variables) == 1:
        line = {"N": np.geomspace(1e6, 1e11, 25), "D": np.geomspace(1e8, 1e12, 25)}[variables[0]]
        frame = pd.DataFrame({"N": 1e9, "D": 1e10, **{variables[0]: line}}, index=range(25))
    else:
        frame = pd.DataFrame(list(product(np.geomspace(1e7, 1e10, 8), np.geomspace(2e8, 2e11, 8))), columns=["N", "D"])
    frame["C"] = 6 * frame["N"] * frame["D"] if "C" not in frame else frame["C"]
    if "U" not in variables:
        return frame.assign(U=frame["D"])
    return pd.concat([frame.assign(U=frame["D"] / share) for share in (1, 4, 40)], ignore_index=True)


def as_runs(frame: pd.DataFrame, folder: Path) -> Runs:
    table = frame.rename(columns={"N": "params", "D": "tokens", "C": "flops", "U": "unique_tokens"})
    table.to_csv(folder / "runs.csv", index=False)
    return read_runs(folder / "runs.csv")


def test_every_law_is_tested_here() -> None:
    assert set(TRUTHS) == set(LAWS)
    assert set(FORMS) == {name for name in LAWS if not name.startswith("m4-")}


@pytest.mark.parametrize("name", FORMS)
def test_form_is_the_publications(name: str) -> None:
    frame, truth = points(name), TRUTHS[name]
    n, d, c, u = (frame[v].to_numpy() for v in "NDCU")
    np.testing.assert_allclose(LAWS[name].predict(truth, N=n, D=d, C=c, U=u), FORMS[name](n, d, c, u, truth), rtol=1e-12)


@pytest.mark.parametrize("name", ["m4-n", "m4-d", "m4-c"])
def test_m4_solves_its_implicit_equation(name: str) -> None:
    """Alabdulmohsin et al. 2022: (L - E) / (E0 - L)^a = A x^-c."""
    frame, p = points(name), TRUTHS[name]
    loss = LAWS[name].predict(p, **{v: frame[v].to_numpy() for v in "NDC"})
    x = frame[LAWS[name].variables[0]].to_numpy()
    np.testing.assert_allclose((loss - p["E"]) / (p["E0"] - loss) ** p["a"], p["A"] * x ** -p["c"], rtol=1e-9)
    assert ((p["E"] < loss) & (loss < p["E0"])).all()


@pytest.mark.parametrize("name", TRUTHS)
def test_noiseless_runs_give_the_law_back(name: str, tmp_path: Path) -> None:
    frame, truth = points(name), TRUTHS[name]
    loss = LAWS[name].predict(truth, **{v: frame[v].to_numpy() for v in "NDCU"})
    found = fit(name, as_runs(frame.assign(loss=loss), tmp_path), loss="mse")
    assert found.n_runs == len(frame) or LAWS[name].variables == ("C",)  # of those, runs on the lower hull only
    assert found.status == "converged" and found.rmse_log < 1e-12
    for parameter, value in truth.items():
        assert found.params[parameter] == pytest.approx(value, rel=1e-8)


# --- the registry


def test_registry_is_complete_and_named() -> None:
    for name, law in LAWS.items():
        assert law.name == name and law.source and law.subset and law.parameters
        assert set(law.expression.names) == {*law.parameters, *law.variables}
        assert not law.simpler or law.simpler in LAWS
    for call in (get_law, get_preset):
        with pytest.raises(UserError, match=r"chinchilla|hoffmann2022") as error:
            call("nope")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="D is missing"):
        get_law("chinchilla").predict(PRESETS["hoffmann2022"].params, N=1)


def test_forms_by_hand() -> None:
    assert float(get_law("power-d").predict({"E": 1, "B": 10, "beta": 1}, D=5)) == 3
    assert float(get_law("power-c").predict({"E": 0.5, "G": 8, "gamma": 1 / 3}, C=64)) == pytest.approx(2.5)
    both = get_law("chinchilla").predict({"E": 1, "A": 4, "B": 9, "alpha": 0.5, "beta": 0.5}, N=[4, 16], D=[9, 81])
    assert both == pytest.approx([6, 3])


def test_draws_and_points_broadcast() -> None:
    draws = {"E": np.ones((3, 1)), "A": np.ones((3, 1)), "alpha": np.ones((3, 1))}
    assert get_law("power-n").predict(draws, N=np.array([1.0, 2.0])).shape == (3, 2)


def test_a_column_may_be_called_params() -> None:
    law = get_law("E + A*(params/1e6)**-alpha", ["params", "tokens"])
    assert law.variables == law.columns == ("params",)
    assert float(law.predict({"E": 1.0, "A": 8.0, "alpha": 0.5}, params=16e6)) == pytest.approx(3.0)


# --- users' formulas


def test_names_are_parameters_unless_they_are_columns() -> None:
    law = get_law("E + A*width**-p + B*D**-q", ["width", "depth"])
    assert law.parameters == ("E", "A", "B", "p", "q") and law.variables == ("width", "D") and law.columns == ("width",)
    assert get_law("E + A*width**-p").parameters == ("E", "A", "width", "p")
    assert get_law("x = A/N; E + x*x").parameters == ("A", "E")
    for name in LAWS:
        again = get_law(LAWS[name].formula + " | " + ", ".join(f"{p.name} > {p.low}" for p in LAWS[name].free if p.low == 0))
        assert set(again.parameters) == set(LAWS[name].parameters) and again.variables == LAWS[name].variables


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("E + A/N^alpha + B/D^beta", True),
        ("E + A*N**-alpha + B*D**-beta", True),
        ("E + A*N**-alpha + B*D**-beta | E > 0, A > 0", True),
        ("E + B/D^beta + A/N^beta", True),
        ("E + A/N^alpha + B/D^beta | 0 < alpha < 2", False),
        ("A/N^alpha + B/D^beta + E", False),
        ("E + A/N^alpha + A/D^beta", False),
        ("E + A/N^alpha + B/N^beta", False),
    ],
)
def test_sums_of_powers_take_the_fast_way(text: str, fast: bool) -> None:
    frame = points("chinchilla")
    bound = get_law(text).bind(frame.assign(loss=FORMS["chinchilla"](frame["N"], frame["D"], 0, 0, TRUTHS["chinchilla"])))
    assert isinstance(bound, PowerSum if fast else Formula)


@pytest.mark.parametrize(
    "text",
    ["A/N^alpha + B/D^beta + E", "E + A*(params/1e6)**-alpha + B*(tokens/1e9)**-beta", "E + exp(a - alpha*log(N)) + exp(b - beta*log(D))"],
)
def test_the_same_law_in_other_words_gives_the_same_predictions(text: str, tmp_path: Path) -> None:
    """With noise, by Huber's loss: the optimum of an equal law is equal, whatever its parameters are called."""
    frame = points("chinchilla")
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(frame)))
    runs = as_runs(frame.assign(loss=FORMS["chinchilla"](frame["N"], frame["D"], 0, 0, TRUTHS["chinchilla"]) * noise), tmp_path)
    known, found = (fit(law, runs, loss="huber:1e-3") for law in ("chinchilla", text))
    assert found.objective == pytest.approx(known.objective, rel=1e-8)
    np.testing.assert_allclose(found.frame["predicted"], known.frame["predicted"], rtol=1e-5)


def test_bounds_hold(tmp_path: Path) -> None:
    frame = points("chinchilla")
    runs = as_runs(frame.assign(loss=FORMS["chinchilla"](frame["N"], frame["D"], 0, 0, TRUTHS["chinchilla"])), tmp_path)
    narrow = fit("E + A/N^alpha + B/D^beta | 0.1 < alpha < 0.25, E > 0, A > 0, B > 0, beta > 0", runs, loss="mse")
    assert narrow.params["alpha"] == pytest.approx(0.25) and narrow.rmse_log > 1e-4
    wide = fit("E + A/N^alpha + B/D^beta | 0 < alpha < 1, E > 0, A > 0, B > 0, beta > 0", runs, loss="mse")
    assert wide.params["alpha"] == pytest.approx(0.34, rel=1e-6)
    free = {p.name: (p.low, p.high) for p in get_law("E + A*N^p + B | -1e0 < p <= -.5, E >= 0, A<3").free}
    assert free == {"E": (0, np.inf), "A": (-np.inf, 3), "p": (-1, -0.5), "B": (-np.inf, np.inf)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nope", "unknown; allowed: power-n"),
        ("", "unknown; allowed"),
        ("E + ", "not understood"),
        ("E + A/N^alpha | gamma > 0", "gamma has bounds but is no parameter"),
        ("E + A/N^alpha | N > 0", "N has bounds but is no parameter"),
        ("E + A/N^alpha | alpha", "'alpha' is not understood; write E > 0"),
        ("E + A/N^alpha | 2 < alpha < 1", "leaves nothing"),
        ("E + A/N^alpha | 0 > alpha > 1", "not understood"),
        ("N + D/2", "no free parameter"),
        ("E + A/N^alpha + open('x')", "not allowed"),
    ],
)
def test_bad_laws_are_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        get_law(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_column_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    frame = points("chinchilla").drop(columns="U")
    runs = as_runs(frame.assign(loss=2.0 + 1e3 / frame["N"] ** 0.5, width=[*frame["N"][1:], np.nan]), tmp_path)
    with pytest.raises(UserError, match="needs a column tokens_unique"):
        fit("muennighoff", runs)
    with pytest.raises(UserError, match="needs width, which is empty for 1 runs"):
        fit("E + A*width**-p", runs)


# --- presets


def test_published_coefficients() -> None:
    """Hoffmann et al. 2022, equation 10 (rounded), and the two losses that their abstract's models get under it."""
    hoffmann = PRESETS["hoffmann2022"].params
    assert [hoffmann[p] for p in ("E", "A", "B", "alpha", "beta")] == pytest.approx([1.69, 406.4, 410.7, 0.34, 0.28], rel=0.02)
    rounded = PRESETS["hoffmann2022-rounded"].params
    assert [rounded[p] for p in ("E", "A", "B", "alpha", "beta")] == [1.69, 406.4, 410.7, 0.34, 0.28]
    law = get_preset("hoffmann2022")
    assert not isinstance(law, AllocationPreset)
    assert float(law.predict(N=70e9, D=1.4e12)) < float(law.predict(N=280e9, D=300e9))
    assert PRESETS["besiroglu2024"].params["E"] == pytest.approx(1.8169, abs=1e-4)


def test_every_preset_says_where_it_is_from_and_predicts() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name and preset.source and preset.n_column
        if isinstance(preset, AllocationPreset):
            assert 0.3 < preset.a < 0.9 and 0.4 < preset.b < 0.6
            continue
        assert set(preset.params) == set(preset.law.parameters)
        assert 1.5 < float(preset.predict(N=1e9, D=2e10, C=1.2e20, U=2e10)) < 4.5


def test_a_formula_of_too_many_parameters_is_refused_in_a_short_line():
    long = "+".join(f"a{i}*N**-b{i}" for i in range(40))
    with pytest.raises(UserError, match="has 80 free parameters; at most 30 are fitted") as told:
        get_law(long)
    assert len(str(told.value)) < 200
