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

from analysis.errors import UserError
from analysis.plot_style import levels_of, log_ticks, power_of_ten, si, spread
from analysis.plotting import figures, plot_all
from analysis.tables import Analysis, analyse

NAMES = ["loss_curves", "loss_vs_params", "loss_vs_tokens", "loss_vs_flops", "approaches", "diminishing_returns", "residuals"]


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


def test_all_plots_are_written_and_repeat_to_the_byte(analysed: Analysis, tmp_path: Path) -> None:
    paths = plot_all(analysed, tmp_path)
    assert [path.stem for path in paths] == NAMES
    first = [path.read_bytes() for path in paths]
    assert all(content.startswith(b"\x89PNG") for content in first)
    assert [path.read_bytes() for path in plot_all(analysed, tmp_path)] == first
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(f"{name}.png" for name in NAMES)


@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_other_formats(analysed: Analysis, tmp_path: Path, format: str) -> None:
    paths = plot_all(analysed, tmp_path, format=format)
    assert [path.name for path in paths] == [f"{name}.{format}" for name in NAMES]
    assert all(path.stat().st_size > 2000 for path in paths)


def test_unknown_format_is_a_mistake(analysed: Analysis, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="png, svg, pdf"):
        plot_all(analysed, tmp_path, format="exe")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
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
    analysis = analyse(write_results(tmp_path / "results", **options), out=tmp_path / "results", bootstrap=50, laws=("chinchilla",))
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
    assert list(drawn) == NAMES[1:]  # no curves were recorded
    for name, figure in drawn.items():
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
    levels, own = levels_of(np.geomspace(1, 100, 50))
    assert len(levels) == 5 and not own
