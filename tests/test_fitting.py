"""Fits against truths written elsewhere: noiseless laws, published optima, SciPy, hand arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime, minimize

from analysis.errors import UserError
from analysis.fitting import fit, parse_loss
from analysis.newton import Problem, derivatives, huber
from analysis.runs import Runs, read_runs

PUBLISHED = Path(__file__).parents[2] / "shared" / "published"
TRUTH = {"E": 1.2, "A": 30.0, "B": 90.0, "alpha": 0.4, "beta": 0.35}


def true_loss(n, d):
    return TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]


def grid_runs(folder: Path, *, sizes=(2e4, 4e4, 8e4, 1.6e5), data=(5e5, 1e6, 2e6, 4e6), noise=0.0, seeds=1) -> Runs:
    rng = np.random.default_rng(0)
    rows = [
        {"run_id": f"n{n:g}-d{d:g}-{s}", "trunk_id": f"n{n:g}-{s}", "seed_data": s, "params": n, "tokens": d,
         "loss": true_loss(n, d) * np.exp(noise * rng.standard_normal())}
        for n in sizes for d in data for s in range(seeds)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "runs.csv", index=False)
    return read_runs(folder)


@pytest.fixture(scope="module")
def chinchilla_points() -> Runs:
    path = PUBLISHED / "besiroglu2024" / "tidy.csv"
    if not path.is_file():
        pytest.skip("the published data sets (../shared/published) are not here")
    return read_runs(path, n_column="params", exclude="in_fit == 0")


@pytest.mark.parametrize("loss", ["huber:auto", "huber:1e-3", "lad", "mse"])
@pytest.mark.parametrize("link", ["log", "linear"])
def test_a_noiseless_law_is_recovered(tmp_path: Path, loss: str, link: str) -> None:
    found = fit("chinchilla", grid_runs(tmp_path), loss=loss, link=link)
    assert found.status == "converged"
    for name, value in TRUTH.items():
        assert found.params[name] == pytest.approx(value, rel=2e-4)
    assert found.rmse_log < 1e-6
    assert found.cv_error < 1e-4


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("power-n", {"E": 1.2 + 90 / 4e6**0.35, "A": 30.0, "alpha": 0.4}),
        ("power-d", {"E": 1.2 + 30 / 1.6e5**0.4, "B": 90.0, "beta": 0.35}),
    ],
)
def test_laws_in_one_variable_use_their_slice(tmp_path: Path, law: str, expected: dict[str, float]) -> None:
    runs = grid_runs(tmp_path, sizes=np.geomspace(1e4, 1.6e5, 5), data=np.geomspace(2.5e5, 4e6, 5))
    found = fit(law, runs)
    assert found.n_runs == 5
    for name, value in expected.items():
        assert found.params[name] == pytest.approx(value, rel=1e-4)


def test_law_in_compute_is_fitted_on_the_frontier(tmp_path: Path) -> None:
    """Runs on L = 1 + 50 C^-0.2 exactly, and others 5 % above it, which must not be used."""
    compute = np.geomspace(1e10, 1e15, 8)
    on, above = 1 + 50 * compute**-0.2, 1.05 * (1 + 50 * compute**-0.2)
    rows = [{"params": 1e4 * (i + 1), "tokens": c / 6e4 / (i + 1), "loss": v} for i, (c, v) in enumerate(zip(compute, on, strict=True))]
    rows += [{"params": 2e6, "tokens": c * 1.1 / 1.2e7, "loss": v} for c, v in zip(compute, above, strict=True)]
    pd.DataFrame(rows).to_csv(tmp_path / "f.csv", index=False)
    found = fit("power-c", read_runs(tmp_path / "f.csv"))
    assert found.n_runs == 8
    assert [found.params[p] for p in ("E", "G", "gamma")] == pytest.approx([1, 50, 0.2], rel=1e-4)
    assert found.c_column == "flops_6nd"


def test_the_published_huber_optimum(chinchilla_points: Runs) -> None:
    """Optimum of Hoffmann's objective on Besiroglu et al.'s 240 points (arXiv:2404.10102, notebook cells 18 and 72)."""
    found = fit("chinchilla", chinchilla_points, loss="huber:1e-3")
    assert found.n_runs == 240
    assert found.objective == pytest.approx(1.0182740178e-3, rel=1e-9)
    expected = {"E": (1.817218, 2e-5), "A": (477.83, 0.05), "B": (2143.4, 0.5), "alpha": (0.347311, 2e-5), "beta": (0.367172, 2e-5)}
    for name, (value, tolerance) in expected.items():
        assert found.params[name] == pytest.approx(value, abs=tolerance)
    assert found.status == "converged" and found.starts_agree > 0.5


def test_the_published_headline_is_least_absolute_deviations(chinchilla_points: Runs) -> None:
    """Besiroglu et al.'s headline numbers, which their collapsed Huber scale makes those of LAD."""
    found = fit("chinchilla", chinchilla_points, loss="lad").params
    assert found["E"] == pytest.approx(1.81686, abs=1e-4)
    assert found["A"] == pytest.approx(482.006, abs=0.2)
    assert found["B"] == pytest.approx(2085.43, abs=2)
    assert found["alpha"] == pytest.approx(0.34781, abs=1e-4)
    assert found["beta"] == pytest.approx(0.36585, abs=1e-4)


def test_plain_least_squares_reproduces_scalefit(chinchilla_points: Runs) -> None:
    """Open-Athena/scalefit on the 217 points with C < 1e21, N / 1e6, D / 1e9: 1.9051, 4.0005, 1.0509, .3511, .4587, RSS .062414."""
    runs = read_runs(chinchilla_points.source, n_column="params", exclude=["in_fit == 0", "flops >= 1e21"])
    found = fit("chinchilla", runs, loss="mse", link="linear")
    p = found.params
    assert found.n_runs == 217
    assert found.objective == pytest.approx(0.062414, abs=1e-6)
    assert [p["E"], p["alpha"], p["beta"]] == pytest.approx([1.9051, 0.3511, 0.4587], abs=2e-4)
    assert [p["A"] / 1e6 ** p["alpha"], p["B"] / 1e9 ** p["beta"]] == pytest.approx([4.0005, 1.0509], abs=1e-3)


def test_no_start_of_scipy_does_better(tmp_path: Path) -> None:
    """Independent objective, independent optimiser, many starts."""
    runs = grid_runs(tmp_path, noise=0.01)
    found = fit("chinchilla", runs, loss="huber:0.005")
    n, d, loss = (runs.frame[c].to_numpy() for c in ("N", "D", "loss"))

    def objective(theta):
        e, a, b, alpha, beta = theta
        r = np.logaddexp(np.logaddexp(a - alpha * np.log(n), b - beta * np.log(d)), e) - np.log(loss)
        return np.where(np.abs(r) <= 0.005, r**2 / 2, 0.005 * (np.abs(r) - 0.0025)).sum()

    p = found.params
    mine = objective([np.log(p["E"]), np.log(p["A"]), np.log(p["B"]), p["alpha"], p["beta"]])
    assert mine == pytest.approx(found.objective, rel=1e-9)
    rng = np.random.default_rng(1)
    best = min(
        minimize(objective, [rng.normal(0, 0.5), rng.uniform(0, 8), rng.uniform(0, 8), *rng.uniform(0.1, 1, 2)], method="BFGS").fun
        for _ in range(10)
    )
    assert found.objective <= best * (1 + 1e-7)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("delta", [0.05, np.inf])
def test_derivatives_are_those_of_the_objective(linear: bool, delta: float) -> None:
    rng = np.random.default_rng(3)
    problem = Problem(rng.normal(size=(20, 2)), rng.normal(0.5, 0.2, 20), rng.uniform(0.5, 2, 20), linear)
    theta = np.array([0.2, -0.5, -1.0, 0.4, 0.7])
    weights = rng.integers(0, 4, (1, 20)).astype(float)
    value, gradient, hessian, _ = derivatives(problem, theta[None], delta, weights)
    assert gradient[0] == pytest.approx(
        approx_fprime(theta, lambda t: derivatives(problem, t[None], delta, weights)[0][0], 1e-7), rel=1e-4, abs=1e-5
    )
    numeric = np.array(
        [approx_fprime(theta, lambda t, j=j: derivatives(problem, t[None], delta, weights)[1][0, j], 1e-7) for j in range(5)]
    )
    assert hessian[0] == pytest.approx(numeric, rel=1e-3, abs=1e-4)
    assert value.shape == (1,)


def test_huber_by_hand() -> None:
    assert huber(np.array([0.5, -2.0]), 1.0) == pytest.approx([0.125, 1.5])


def test_one_wild_run_moves_the_robust_fit_little(tmp_path: Path) -> None:
    grid_runs(tmp_path, noise=0.001)
    table = pd.read_csv(tmp_path / "runs.csv")
    table.loc[5, "loss"] *= 1.3
    table.to_csv(tmp_path / "runs.csv", index=False)
    runs = read_runs(tmp_path)
    robust, plain = (fit("chinchilla", runs, loss=loss) for loss in ("huber:auto", "mse"))
    n, d = (runs.frame[c].drop(5).to_numpy() for c in ("N", "D"))
    wrong = [np.abs(found.predict(N=n, D=d) / true_loss(n, d) - 1).mean() for found in (robust, plain)]
    assert wrong[0] < 2e-3
    assert wrong[1] > 4 * wrong[0]


def test_what_the_runs_cannot_tell_is_said(tmp_path: Path) -> None:
    two = fit("chinchilla", grid_runs(tmp_path, sizes=(1e4, 1e5), noise=0.002))
    assert two.status == "not identified"
    assert any("N has 2 levels" in text for text in two.warnings)
    n = np.geomspace(1e4, 1e6, 12)
    pd.DataFrame({"params": n, "tokens": 20 * n, "loss": true_loss(n, 20 * n)}).to_csv(tmp_path / "twenty.csv", index=False)
    twenty = fit("chinchilla", read_runs(tmp_path / "twenty.csv"))
    assert twenty.status == "not identified"
    assert any("20 N" in text for text in twenty.warnings)


def test_a_law_without_a_floor_is_at_bound(tmp_path: Path) -> None:
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e6, 1e8, 5)))
    pd.DataFrame({"params": n, "tokens": d, "loss": 30 / n**0.3 + 60 / d**0.3}).to_csv(tmp_path / "f.csv", index=False)
    assert fit("chinchilla", read_runs(tmp_path / "f.csv"), loss="mse").status == "at bound"


def test_too_few_rows_and_bad_options_are_one_line(tmp_path: Path) -> None:
    runs = grid_runs(tmp_path, sizes=(1e4, 2e4), data=(1e6, 2e6, 4e6))
    for law, options, words in (
        ("chinchilla", {}, "needs 7 usable rows"), ("power-n", {}, "found 2"), ("power-d", {"loss": "huber:0"}, "lad, mse"),
        ("power-d", {"loss": "l1"}, "lad, mse"), ("power-d", {"link": "logit"}, "log, linear"), ("nope", {}, "chinchilla"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words) as error:
            fit(law, runs, **options)
        assert "\n" not in str(error.value)
    assert parse_loss("huber:1e-3") == ("huber", 1e-3)


def test_identity_is_that_of_law_options_and_runs(tmp_path: Path) -> None:
    runs = grid_runs(tmp_path, noise=0.003)
    first = fit("chinchilla", runs)
    assert first.fit_id == fit("chinchilla", runs).fit_id
    assert len(first.fit_id) == 12
    assert first.fit_id != fit("chinchilla", runs, loss="lad").fit_id
    assert first.params == fit("chinchilla", runs).params
