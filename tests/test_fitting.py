"""Fits against truths written elsewhere: noiseless laws, published optima, SciPy, hand arithmetic."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime, lsq_linear, minimize, nnls

from analysis.errors import UserError
from analysis.fitting import fit
from analysis.laws import LAWS
from analysis.newton import Problem, derivatives, minimise, objective, robust
from analysis.powers import nonnegative
from analysis.runs import Runs, read_runs
from analysis.search import Loss, parse_loss
from analysis.subset import select

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


@pytest.mark.parametrize(
    ("law", "loss", "slack"), [("skaling", "huber:0.005", 1e-7), ("chinchilla", "asymmetric:3", 1e-5), ("chinchilla", "lad", 1e-5)]
)
def test_nelder_mead_finds_nothing_better(tmp_path: Path, law: str, loss: str, slack: float) -> None:
    """Raw losses; another objective, written afresh, and a descent without derivatives from the optimum and from about it."""
    runs = grid_runs(tmp_path, noise=0.01, sizes=np.geomspace(2e4, 1e6, 10), data=np.geomspace(5e5, 5e7, 10))
    found = fit(law, runs, loss=loss, link="linear")
    n, d, observed = (runs.frame[c].to_numpy() for c in ("N", "D", "loss"))
    above = 3.0 if loss == "asymmetric:3" else 1.0

    def total(theta):
        (e, a, b, k), alpha, beta = np.exp(theta[:4]), theta[4], theta[5]
        r = e + (a * (n / 5e4) ** -alpha + b * (d / 1e6) ** -beta) ** (k if law == "skaling" else 1.0) - observed
        if loss.startswith("huber"):
            return np.where(np.abs(r) <= 0.005, r**2 / 2, 0.005 * (np.abs(r) - 0.0025)).sum()
        return (np.abs(r) * np.where(r > 0, above, 1.0)).sum()

    p = {"k": 1.0, **found.params}
    mine = np.array([*np.log([p["E"], p["A"] * 5e4 ** -p["alpha"], p["B"] * 1e6 ** -p["beta"], p["k"]]), p["alpha"], p["beta"]])
    assert total(mine) == pytest.approx(found.objective, rel=1e-9)
    rng = np.random.default_rng(2)
    starts = [mine + spread * rng.normal(0, 1, 6) for spread in (0, 0.01, 0.1, 0.3)]
    options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-9, "fatol": 1e-13}
    assert found.objective <= min(minimize(total, start, method="Nelder-Mead", options=options).fun for start in starts) * (1 + slack)


# --- the engine below


def bound_problem(law: str, *, linear: bool = False, above: float = 1.0) -> Problem:
    rng = np.random.default_rng(3)
    n, d = np.exp(rng.uniform(10, 14, 20)), np.exp(rng.uniform(13, 17, 20))
    loss = true_loss(n, d) * np.exp(0.01 * rng.standard_normal(20))
    frame = pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "U": d / 3, "loss": loss})
    return Problem(LAWS[law].bind(frame), np.log(loss), rng.uniform(0.5, 2, 20), linear, above)


@pytest.mark.parametrize(
    "law", ["power-n", "chinchilla", "chinchilla-tied", "skaling", "bounded", "kaplan-nd", "bnsl-d", "m4-n", "log-linear", "muennighoff"]
)
@pytest.mark.parametrize(("delta", "linear", "above"), [(0.05, False, 1.0), (np.inf, True, 1.0), (0.05, True, 10.0)])
def test_derivatives_are_those_of_the_objective(law: str, delta: float, linear: bool, above: float) -> None:
    problem = bound_problem(law, linear=linear, above=above)
    model, rng = problem.model, np.random.default_rng(5)
    theta = model.starts(np.exp(problem.y), np.ones(20), 1)[0][0]
    theta = np.clip(theta + 0.05 * rng.standard_normal(len(theta)), model.lower, model.upper)
    weights = rng.integers(0, 4, (1, 20)).astype(float)
    value, gradient, hessian, metric = (part[0] for part in derivatives(problem, theta[None], delta, weights))
    assert value == pytest.approx(objective(problem, theta[None], delta, weights)[0], rel=1e-12)

    def slope(at, part):
        return derivatives(problem, at[None], delta, weights)[part][0]

    numeric = approx_fprime(theta, lambda t: slope(t, 0), 1e-7)
    assert gradient == pytest.approx(numeric, rel=1e-4, abs=1e-5 * np.abs(gradient).max())
    curvature = approx_fprime(theta, lambda t: slope(t, 1), 1e-7)
    assert hessian == pytest.approx(curvature, rel=1e-3, abs=1e-4 * max(np.abs(hessian).max(), np.abs(gradient).max()))
    assert (metric >= 0).all() and hessian == pytest.approx(hessian.T)
    jacobian = model.jacobian(theta)
    assert jacobian == pytest.approx(
        approx_fprime(theta, lambda t: model.log_loss(t[None])[0], 1e-7), rel=1e-4, abs=1e-5 * np.abs(jacobian).max()
    )


@pytest.mark.parametrize("law", ["chinchilla", "skaling"])
def test_a_batch_is_solved_as_each_problem_alone(law: str) -> None:
    """Weighted problems side by side, as in a bootstrap, against SciPy's BFGS on each."""
    problem = bound_problem(law)
    start = problem.model.starts(np.exp(problem.y), np.ones(20), 1)[0][:1]
    weights = 1 + np.random.default_rng(0).integers(0, 3, (5, 20)).astype(float)
    theta, values = minimise(problem, np.tile(start, (5, 1)), delta=0.03, weights=weights, iterations=400)
    for i in range(5):
        alone = minimise(problem, start, delta=0.03, weights=weights[i : i + 1], iterations=400)
        np.testing.assert_allclose(alone[1], values[i], rtol=1e-9)
        oracle = minimize(lambda t, i=i: objective(problem, t[None], 0.03, weights[i : i + 1])[0], theta[i], method="BFGS")
        assert values[i] <= oracle.fun * (1 + 1e-9)


def test_nonnegative_least_squares_are_scipys() -> None:
    """The linear step of variable projection, for every pattern of coefficients at zero."""
    rng = np.random.default_rng(0)
    designs, targets = rng.normal(size=(200, 8, 3)), rng.normal(size=(200, 8))
    gram, right = designs.swapaxes(1, 2) @ designs, (designs.swapaxes(1, 2) @ targets[:, :, None])[:, :, 0]
    error, found = nonnegative(gram, right)
    known = np.array([nnls(a, b)[0] for a, b in zip(designs, targets, strict=True)])
    assert len({tuple(row) for row in known > 0}) == 8
    np.testing.assert_allclose(found, known, atol=1e-10)
    some = (known > 0).any(axis=1)
    predicted = (designs @ known[:, :, None])[:, :, 0]
    np.testing.assert_allclose(error[some], (predicted**2 - 2 * targets * predicted).sum(axis=1)[some], atol=1e-9)


def test_nonnegative_least_squares_without_any_use_are_zero() -> None:
    """Columns that all point away from the target: c = 0, and so does the error; a system that is no number is no minimum."""
    error, found = nonnegative(np.stack([np.eye(2), np.eye(2)]), np.array([[-1.0, -2.0], [np.nan, 1.0]]))
    assert found.tolist() == [[0, 0], [0, 0]]
    assert error.tolist() == [0, np.inf]


@pytest.mark.parametrize(
    ("law", "loss", "count"),
    [*itertools.product(["chinchilla"], ["lad", "asymmetric:5"], [16, 30, 240]), ("skaling", "lad", 30)],
)
def test_absolute_errors_end_at_a_vertex(tmp_path: Path, law: str, loss: str, count: int) -> None:
    """Few runs, some far off: linear programmes over subgradients agree that it is a minimum, and Nelder-Mead from about it finds none lower."""
    rng = np.random.default_rng(count)
    n, d = 10 ** rng.uniform(6, 9.5, count), 10 ** rng.uniform(8, 11, count)
    noise = 0.01 * rng.standard_normal(count) + (rng.random(count) < 0.1) * 0.1 * rng.standard_normal(count)
    table = pd.DataFrame({"params": n, "tokens": d, "loss": (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(noise)})
    table.to_csv(tmp_path / "f.csv", index=False)
    found = fit(law, read_runs(tmp_path / "f.csv"), loss=loss)
    problem, theta = found.solution.problem, found.solution.theta
    model = problem.model
    r, jacobian = (found.residuals, model.jacobian(theta))
    met = np.abs(r) < 1e-9
    assert 1 <= met.sum() <= len(theta)
    inside = (theta > model.lower + 1e-6) & (theta < model.upper - 1e-6)
    pull = jacobian[~met].T @ np.where(r[~met] > 0, problem.above, -1.0)
    size = np.abs(jacobian).sum(axis=0)
    balance = lsq_linear((jacobian[met] / size).T[inside], -(pull / size)[inside], bounds=(-1 - 1e-9, problem.above + 1e-9))
    assert found.status != "converged" or np.sqrt(2 * balance.cost) < 1e-5
    assert found.status == "converged" or not inside.all() or found.condition > 1e6

    def total(at):
        left = model.log_loss(np.clip(at, model.lower, model.upper)[None])[0] - problem.y
        return (np.abs(left) * np.where(left > 0, problem.above, 1.0)).sum()

    assert total(theta) == pytest.approx(found.objective, rel=1e-12)
    for spread in (0.003, 0.1):
        start = theta + spread * rng.standard_normal(len(theta))
        lowest = minimize(total, start, method="Nelder-Mead", options={"maxfev": 1500, "xatol": 1e-9, "fatol": 1e-13}).fun
        assert found.objective <= lowest * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_random_starts_find_nothing_lower(tmp_path: Path, seed: int) -> None:
    """Sweeps of 20 to 240 runs with outliers; `make bench` looks with 200 starts on 40 of them."""
    spec = importlib.util.spec_from_file_location("bench_fit", Path(__file__).parents[1] / "benchmarks" / "fit.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    frame = bench.simulated((20, 30, 45, 70, 120, 240)[seed], seed=seed, outliers=0.1)
    assert fit("chinchilla", bench.read(frame), loss="huber:1e-3").objective <= bench.brute_force(frame, 6, seed=seed) * (1 + 1e-9)


def test_the_frontier_of_a_law_that_may_bend_is_every_undominated_cell(tmp_path: Path) -> None:
    """An exact power law is collinear in log-log, where rounding must drop nothing; a bump is above the hull, but on the frontier."""
    compute, count = np.geomspace(1e10, 1e15, 24), np.arange(1, 25)
    for name, loss in (
        ("line", 40 * compute**-0.1),
        ("bump", 40 * compute**-0.1 * np.exp(0.05 * np.exp(-((count - 12) ** 2) / 8))),
    ):
        table = pd.DataFrame({"params": 1e4 * count, "tokens": compute / 6e4 / count, "loss": loss})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    runs = {name: read_runs(tmp_path / f"{name}.csv") for name in ("line", "bump")}
    assert len(select(LAWS["power-c"], runs["line"])) == 24
    assert len(select(LAWS["power-c"], runs["bump"])) < 24
    for law in ("bnsl-c", "m4-c"):
        assert len(select(LAWS[law], runs["bump"])) == 24


def test_one_run_more_than_parameters_is_fitted_with_a_warning(tmp_path: Path) -> None:
    """Gadre et al. 2024 fit four parameters to five runs: exact runs give the law back, and nothing is claimed of its intervals."""
    n, d = np.array([1e4, 3e4, 9e4, 2.7e5, 8e5]), np.array([5e6, 1e6, 2e7, 3e6, 8e6])
    pd.DataFrame({"params": n, "tokens": d, "loss": 1.2 + 30 / n**0.4 + 90 / d**0.4}).to_csv(tmp_path / "f.csv", index=False)
    found = fit("chinchilla-tied", read_runs(tmp_path / "f.csv"), loss="mse")
    assert [found.params[name] for name in ("E", "A", "B", "alpha")] == pytest.approx([1.2, 30, 90, 0.4], rel=1e-4)
    assert any("no interval can be trusted" in text for text in found.warnings)
    assert not len(found.cv)


def test_robust_loss_by_hand() -> None:
    assert robust(np.array([0.5, -2.0]), 1.0) == pytest.approx([0.125, 1.5])
    assert robust(np.array([0.5, -2.0, 2.0]), 1.0, 10.0) == pytest.approx([1.25, 1.5, 15.0])


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
    runs = grid_runs(tmp_path, sizes=(1e4, 2e4), data=(1e6, 2e6))
    for law, options, words in (
        ("chinchilla", {}, "needs 6 usable rows"), ("power-n", {}, "found 2"), ("power-d", {"loss": "huber:0"}, "lad, mse"),
        ("power-d", {"loss": "l1"}, "lad, mse"), ("power-d", {"link": "logit"}, "log, linear"), ("power-d", {"starts": 0}, "at least 1"),
        ("power-d", {"loss": "asymmetric:-1"}, "asymmetric:WEIGHT"), ("power-d", {"loss": "mse:2"}, "huber:auto"), ("nope", {}, "chinchilla"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words) as error:
            fit(law, runs, **options)
        assert "\n" not in str(error.value)
    assert parse_loss("huber:1e-3") == Loss("huber:1e-3", "huber", delta=1e-3)
    assert parse_loss("huber") == Loss("huber", "huber") and parse_loss("huber:auto").adaptive
    assert parse_loss("asymmetric:10") == Loss("asymmetric:10", "lad", above=10.0)


def test_identity_is_that_of_law_options_and_runs(tmp_path: Path) -> None:
    runs = grid_runs(tmp_path, noise=0.003)
    first = fit("chinchilla", runs)
    assert first.fit_id == fit("chinchilla", runs).fit_id
    assert len(first.fit_id) == 12
    assert first.fit_id != fit("chinchilla", runs, loss="lad").fit_id
    assert first.params == fit("chinchilla", runs).params
