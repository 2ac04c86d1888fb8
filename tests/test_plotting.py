"""Plots: all are drawn, nothing is clipped, no label covers another, the same input gives the same file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from synthetic import true_loss, write_results

from analysis.drawings_compute import draw_approaches, draw_isoflop, draw_loss_against_compute, usable_budgets
from analysis.errors import UserError
from analysis.own_figures import plot_loss, plot_optimum, plot_residuals, plot_returns
from analysis.plot_style import distinct, levels_of, log_ticks, new_figure, power_of_ten, si, spread
from analysis.plotting import coordinate_figures, figures, plot_all, tuning_figures
from analysis.tables import Analysis, analyse
from analysis.tuning import tuning_table

NAMES = [
    "loss_curves",
    "loss_vs_params",
    "loss_vs_tokens",
    "loss_vs_flops",
    "approaches",
    "diminishing_returns",
    "residuals",
    "windows",
    "noise",
]


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = write_results(tmp_path_factory.mktemp("plots"))
    return analyse(folder, out=folder, bootstrap=100)


def check_texts(figure: Figure, name: str) -> None:
    """No text leaves the figure, and no two texts overlap."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    page = figure.bbox
    ticks = {text for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
    texts = [text for text in figure.findobj(Text) if text not in ticks]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes: list[tuple[str, Bbox]] = []
    for text in texts:
        words = text.get_text().strip()
        if not words or not text.get_visible():
            continue
        box = text.get_window_extent(renderer)
        assert page.x0 <= box.x0 and box.x1 <= page.x1, f"{name}: {words!r} leaves the page sideways"
        assert page.y0 <= box.y0 and box.y1 <= page.y1, f"{name}: {words!r} leaves the page above or below"
        boxes.append((words, box))
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or along <= 3, f"{name}: {first!r} and {second!r} overlap"


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels, for tests that write files and do not look at them."""
    monkeypatch.setattr("analysis.plot_style.DPI", 40)


@pytest.mark.usefixtures("coarse")
def test_all_plots_are_written_and_repeat_to_the_byte(analysed: Analysis, tmp_path: Path) -> None:
    paths = plot_all(analysed, tmp_path)
    assert [path.stem for path in paths] == NAMES
    first = [path.read_bytes() for path in paths]
    assert all(content.startswith(b"\x89PNG") for content in first)
    assert [path.read_bytes() for path in plot_all(analysed, tmp_path)] == first
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(f"{name}.png" for name in NAMES)


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_other_formats(analysed: Analysis, tmp_path: Path, format: str) -> None:
    paths = plot_all(analysed, tmp_path, format=format)
    assert [path.name for path in paths] == [f"{name}.{format}" for name in NAMES]
    assert all(path.stat().st_size > 2000 for path in paths)


def test_several_formats_at_once(analysed: Analysis, tmp_path: Path) -> None:
    paths = plot_all(analysed, tmp_path, format="png,svg,pdf")
    assert [path.name for path in paths] == [f"{name}.{format}" for name in NAMES for format in ("png", "svg", "pdf")]
    heads = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert all(path.read_bytes().startswith(heads[path.suffix[1:]]) for path in paths)


def test_figures_of_ones_own(analysed: Analysis) -> None:
    fit = next(fit for fit in analysed.fits if fit.law.name == "chinchilla")
    figure = Figure()
    axes = figure.subplots(2, 2).ravel()
    assert plot_loss(fit, axis="D", ax=axes[0]) is axes[0] and plot_residuals(fit, against="D/N", ax=axes[1]) is axes[1]
    assert plot_returns(fit, axis="N", ax=axes[2]) is axes[2] and plot_optimum(fit, axis="D", ax=axes[3]) is axes[3]
    assert sum(len(offsets.get_offsets()) for offsets in axes[0].collections if hasattr(offsets, "get_offsets")) >= fit.n_runs
    assert plot_loss(fit, axis="C").figure is not figure
    one = next(fit for fit in analysed.fits if fit.law.name == "power-n")
    for draw, words in (
        (lambda: plot_loss(fit, axis="E"), "allowed: N, D, C"), (lambda: plot_loss(one, axis="D"), "power-n is in N"),
        (lambda: plot_optimum(one), "no compute-optimal"), (lambda: plot_returns(one, axis="D"), "no returns"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            draw()


def test_unknown_format_is_a_mistake(analysed: Analysis, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="png, svg, pdf"):
        plot_all(analysed, tmp_path, format="exe")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        plot_all(analysed, tmp_path / "file")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"holdout": "missing"},
        {"holdout": None, "noise": 0.02},
        {"seeds": 3, "widths": (16, 24, 32, 48, 64, 80), "noise": 0.005},
        {"widths": (32, 40, 48, 56), "tokens": (1_000_000, 1_200_000, 1_500_000, 1_800_000)},
        {"widths": (64, 128, 256, 512), "tokens": (2_000_000, 30_000_000, 400_000_000, 6_000_000_000)},
    ],
    ids=["quickstart", "forecast only", "no hold-out", "six sizes", "narrow", "wide"],
)
def test_no_text_is_clipped_or_covered(tmp_path: Path, options: dict) -> None:
    analysis = analyse(write_results(tmp_path / "results", **options), out=tmp_path / "results", bootstrap=20, laws=("chinchilla",))
    drawn = dict(figures(analysis))
    assert list(drawn) == NAMES
    for name, figure in drawn.items():
        check_texts(figure, name)


def test_foreign_table_without_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7, 10, 120), 10 ** rng.uniform(9, 11.5, 120)
    loss = true_loss(params, tokens) * np.exp(rng.normal(0, 0.01, 120))
    pd.DataFrame({"params": params, "tokens": tokens, "loss": loss}).to_csv(tmp_path / "mine.csv", index=False)
    analysis = analyse(tmp_path / "mine.csv", out=tmp_path / "mine", bootstrap=50, laws=("chinchilla",))
    drawn = dict(figures(analysis))
    # No curves were recorded; by chance six budgets hold four sizes or more.
    assert list(drawn) == [*NAMES[1:4], "isoflop", *NAMES[4:-1]]
    for name, figure in drawn.items():
        check_texts(figure, name)


@pytest.mark.parametrize("rates", [[0.004, 0.008, 0.016, 0.032, 0.064], [0.002, 0.004, 0.008]], ids=["bracketed", "not bracketed"])
def test_rates_and_coordinates_are_drawn(rates: list[float]) -> None:
    rows = pd.DataFrame(
        [
            {"params_non_embedding": size, "d_model": size // 1000, "tokens": tokens, "batch_tokens": 512, "schedule": "trunk",
             "learning_rate": rate, "status": "done", "role": "tune", "loss": 2 + np.log(rate / 0.02 * (size / 25_000) ** 0.2) ** 2 / 20}
            for size in (20_000, 50_000, 170_000) for tokens in (500_000, 1_000_000, 2_000_000) for rate in rates
        ]
    )  # fmt: skip
    ((name, figure),) = tuning_figures(tuning_table(rows), rows)
    assert len(figure.axes) == (2 if len(rates) == 5 else 1)
    check_texts(figure, name)
    parts = ("embedding", "attention", "mlp", "residual stream", "logits")
    changes = pd.DataFrame(
        [
            {"part": part, "d_model": width, "steps": 10, "change": 0.1 * (1 + i), "slope": 0.0}
            for i, part in enumerate(parts)
            for width in (16, 64)
        ]
    )
    ((name, figure),) = coordinate_figures(changes)
    check_texts(figure, name)


def test_one_law_in_one_variable(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results")
    analysis = analyse(folder, out=folder, bootstrap=50, laws=("power-n",))
    drawn = dict(figures(analysis))
    assert "loss_vs_params" in drawn and "loss_vs_tokens" not in drawn
    for name, figure in drawn.items():
        check_texts(figure, name)


def test_holdout_and_law_are_drawn_where_they_are(analysed: Analysis) -> None:
    (ax,) = dict(figures(analysed))["loss_vs_params"].axes
    forecast = analysed.tables["predictions"].query("kind == 'forecast'").iloc[0]
    stars = [line for line in ax.lines if line.get_marker() == "*"]
    assert [(star.get_xdata()[0], star.get_ydata()[0]) for star in stars] == [(forecast.params, forecast.observed)]
    fit = next(fit for fit in analysed.fits if fit.law.name == "chinchilla")
    solid = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 20]
    levels = sorted(fit.frame.D.unique())
    assert len(solid) == len(levels)
    for line, level in zip(solid, levels, strict=True):
        x = np.asarray(line.get_xdata(), dtype=float)
        assert x.min() >= fit.frame.N.min() * (1 - 1e-9) and x.max() <= fit.frame.N.max() * (1 + 1e-9)
        np.testing.assert_allclose(line.get_ydata(), fit.predict(N=x, D=np.full(len(x), level)), rtol=1e-12)


def valley(budget: float, at: float, *, floor: float, edge: bool = False) -> pd.DataFrame:
    """Runs of one budget whose loss is a parabola in log N with its minimum at `at`, or falls to the end of the grid."""
    params = at * np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    log = np.log(params / at)
    loss = floor - 0.1 * log + 0.005 * log**2 if edge else floor + 0.1 * log**2
    return pd.DataFrame({"N": params, "D": budget / (6 * params), "C": budget, "loss": loss})


def test_isoflop_marks_the_minimum_of_each_valley() -> None:
    frame = pd.concat([valley(1e18, 1e8, floor=3.0), valley(1e19, 4e8, floor=2.7), valley(1e20, 2e9, floor=2.5, edge=True)])
    frame = frame.reset_index(drop=True)
    assert len(usable_budgets(frame)) == 3
    figure, (ax,) = new_figure()
    draw_isoflop(frame, ax)
    check_texts(figure, "isoflop")
    marks = {mark: [(x, y) for line in ax.lines if line.get_marker() == mark for x, y in line.get_xydata()] for mark in "Dx"}
    np.testing.assert_allclose(marks["D"], [(1e8, 3.0), (4e8, 2.7)], rtol=1e-9)
    last = frame.iloc[-1]
    assert marks["x"] == [(last.N, last.loss)], "a valley without a floor is marked at its best run"
    curves = [line for line in ax.lines if len(line.get_xdata()) > 20]
    for line, (at, floor) in zip(curves, ((1e8, 3.0), (4e8, 2.7)), strict=False):
        np.testing.assert_allclose(line.get_ydata(), floor + 0.1 * np.log(np.asarray(line.get_xdata()) / at) ** 2, rtol=1e-9)


def test_published_lines_follow_the_closed_form() -> None:
    runs = pd.concat([valley(1e18, 1e8, floor=3.0), valley(1e20, 1e9, floor=2.5)])
    flops = np.array([1e18, 1e19, 1e20])
    rows = pd.DataFrame({"approach": "isoflop-parabola", "flops": flops, "params_opt": 1e8 * (flops / 1e18) ** 0.5})
    rows = rows.assign(tokens_opt=flops / (6 * rows.params_opt), params_ci_low=np.nan, params_ci_high=np.nan)
    figure, (ax,) = new_figure()
    draw_approaches(rows, runs, ax, axis="N")
    check_texts(figure, "approaches")
    points = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(points.get_xydata(), rows[["flops", "params_opt"]].to_numpy())
    # Hoffmann et al. 2022, eq. 4, with their coefficients as published.
    alpha, beta = 0.33917084, 0.2849083
    scale = (alpha * np.exp(6.0073404) / (beta * np.exp(6.0179186))) ** (1 / (alpha + beta))
    line = next(line for line in ax.lines if line.get_color() == "#b5179e")
    x, y = np.asarray(line.get_xydata()).T
    assert len(x) > 20
    np.testing.assert_allclose(y, scale * (x / 6) ** (beta / (alpha + beta)), rtol=1e-6)


def test_approaches_use_the_runs_own_count_of_compute() -> None:
    runs = pd.concat([valley(1e18, 1e8, floor=3.0), valley(1e20, 1e9, floor=2.5)])
    runs = runs.assign(C=2 * runs.C)  # C is twice 6ND
    rows = pd.DataFrame({"approach": "parametric", "flops": [1e18, 1e19, 1e20], "params_opt": [1e8, 3e8, 1e9]})
    rows = rows.assign(params_ci_low=rows.params_opt / 2, params_ci_high=rows.params_opt * 2)
    _, (ax,) = new_figure()
    draw_approaches(rows, runs, ax, axis="N")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [2e18, 2e19, 2e20], rtol=1e-9)


def test_both_intervals_of_a_forecast_are_drawn(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results")
    for path in (folder / "forecasts").glob("*.json"):
        path.unlink()
    analysis = analyse(folder, out=folder, bootstrap=50, laws=("chinchilla",))
    row = analysis.tables["predictions"].query("kind != 'cv'").iloc[0]
    assert row.pi_model_low < row.predicted < row.pi_model_high
    drawn = dict(figures(analysis))
    for name in ("loss_vs_params", "loss_vs_tokens", "loss_vs_flops"):
        (ax,) = drawn[name].axes
        bars = [line.get_ydata() for line in ax.lines if line.get_linewidth() == 9]
        assert [list(bar) for bar in bars] == [[row.pi_model_low, row.pi_model_high]], name
        assert ax.get_ylim()[0] < row.pi_model_low and row.pi_model_high < ax.get_ylim()[1]
        check_texts(drawn[name], name)


def write_mixture(path: Path) -> Path:
    """A table with a setting beside N and D: L = (1 + E^-0.5) N^-0.1 exactly."""
    params, experts = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 7), [1.0, 4.0, 16.0]))
    frame = pd.DataFrame({"params": params, "tokens": 1e10, "num_experts": experts})
    frame.assign(loss=10 * (1 + experts**-0.5) * params**-0.1).to_csv(path, index=False)
    return path


def test_a_law_in_a_column_is_drawn_at_its_median(tmp_path: Path) -> None:
    source = write_mixture(tmp_path / "mixture.csv")
    analysis = analyse(source, out=tmp_path / "out", bootstrap=0, laws=("(K + G*num_experts^(-p))*N^(-a)",))
    drawn = dict(figures(analysis))
    for name, figure in drawn.items():
        check_texts(figure, name)
    (ax,) = drawn["loss_vs_params"].axes
    x, y = max((line.get_xydata().T for line in ax.lines), key=lambda xy: xy.shape[1])
    np.testing.assert_allclose(y, 10 * 1.5 * x**-0.1, rtol=1e-4)
    assert any("num_experts = 4 (median)" in text.get_text().replace("\n", " ") for text in drawn["loss_vs_params"].texts)


def test_a_law_in_compute_is_drawn_against_its_own_compute(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results")
    analysis = analyse(folder, out=folder, bootstrap=20, laws=("power-c",))
    fit = analysis.fits[0]
    _, (ax,) = new_figure()
    draw_loss_against_compute(fit, ax)
    x, y = max((line.get_xydata().T for line in ax.lines), key=lambda xy: xy.shape[1])
    np.testing.assert_allclose(y, fit.predict(C=x), rtol=1e-12)
    for name, figure in figures(analysis):
        check_texts(figure, name)


def test_many_sizes_get_a_colour_bar(tmp_path: Path) -> None:
    params, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 12), np.geomspace(1e9, 1e11, 3)))
    frame = pd.DataFrame({"params": params, "tokens": tokens, "loss": true_loss(params, tokens)})
    frame.to_csv(tmp_path / "grid.csv", index=False)
    analysis = analyse(tmp_path / "grid.csv", out=tmp_path / "out", bootstrap=0, laws=("chinchilla",))
    drawn = dict(figures(analysis))
    assert len(drawn["loss_vs_flops"].axes[0].child_axes) == 1
    assert [len(ax.child_axes) for ax in drawn["residuals"].axes] == [0, 1, 1], "D has three levels, N twelve"
    for name, figure in drawn.items():
        check_texts(figure, name)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (20e3, "20k"),
        (499_712, "0.5M"),
        (1e6, "1M"),
        (1.5e6, "1.5M"),
        (110_976, "111k"),
        (70e9, "70B"),
        (0.5e9, "0.5B"),
        (14_352, "14k"),
        (12, "12"),
        (999, "999"),
    ],
)
def test_quantities_are_short(value: float, text: str) -> None:
    assert si(value) == text


def test_powers_of_ten() -> None:
    assert [power_of_ten(value) for value in (1e12, 3e11, 1e-3)] == ["10¹²", "3×10¹¹", "10⁻³"]


@given(st.floats(1e-3, 1e20), st.floats(1.05, 1e8))
@settings(max_examples=200, deadline=None)
def test_log_ticks_are_few_and_inside(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert len(ticks) <= 8
    assert ticks == sorted(ticks)
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in ticks)
    assert len(ticks) >= 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_spread_keeps_order_and_distance(positions: list[float]) -> None:
    moved = spread(positions, 0.1, low=0.0, high=1.0)
    order = np.argsort(positions, kind="stable")
    assert (np.diff(np.asarray(moved)[order]) >= 0.1 - 1e-9).all()
    assert min(moved) >= -1e-9 and max(moved) <= 1 + 1e-9
    if (np.diff(np.sort(positions)) >= 0.1).all():
        np.testing.assert_allclose(moved, positions, atol=1e-9)


def test_levels() -> None:
    assert levels_of([1.0, 1.0, 2.0, 4.0]) == ([1.0, 2.0, 4.0], True)
    assert levels_of([1.0, 1.01, 2.0, 2.1]) == ([1.01, 2.0, 2.1], True), "values within 2 % are one level"
    assert distinct([5.0, 1.0, 1.019, 1.03]) == [1.019, 5.0]
    levels, own = levels_of(np.geomspace(1, 100, 50))
    assert len(levels) == 5 and not own
