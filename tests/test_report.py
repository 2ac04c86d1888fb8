"""The report page: self-contained, nothing of the data runs or leaks into markup, numbers as in the tables."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import true_loss, write_results

from analysis.errors import UserError
from analysis.plotting import plot_all
from analysis.report import write_report
from analysis.tables import Analysis, analyse

EVIL = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text; checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, Path]:
    folder = write_results(tmp_path_factory.mktemp("report") / "quick & <b>dirty")
    table = pd.read_csv(folder / "runs.csv", dtype=str, keep_default_na=False)
    table.loc[table.status == "diverged", "reason"] = EVIL
    table["corpus"] = 'text"><img src=x onerror=alert(1)>'
    table.to_csv(folder / "runs.csv", index=False)
    (folder / "sweep.toml").write_text(
        f"# Question: how do N and D trade off?     Cost: 4 minutes\nname = 'x' # {EVIL}\n", encoding="utf-8"
    )
    return analyse(folder, out=folder, bootstrap=100), folder


def test_page_is_self_contained_and_escaped(analysed: tuple[Analysis, Path]) -> None:
    analysis, folder = analysed
    page = read_page(write_report(analysis, folder, plot_all(analysis, folder)))
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "b"} & set(names)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7
    assert all((image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not any(name.startswith("on") or name == "href" for _, attributes in page.tags for name in attributes)
    assert EVIL in "".join(page.words)  # shown as text
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)


def test_page_shows_the_law_the_forecast_and_the_exclusions(analysed: tuple[Analysis, Path]) -> None:
    analysis, folder = analysed
    text = "".join(read_page(write_report(analysis, folder)).words)
    laws = analysis.tables["laws"]
    alpha = laws[(laws.law == "chinchilla") & (laws.parameter == "alpha")].iloc[0]
    for value in (alpha.estimate, alpha.ci_low, alpha.ci_high):
        assert f"{value:.5g}" in text
    forecast = analysis.tables["predictions"].query("kind == 'forecast'").iloc[0]
    assert f"{forecast.predicted:.5g}" in text and f"{forecast.observed:.5g}" in text
    assert "holdout: scored, never fitted" in text
    assert "conditional on the law" in text
    assert "params_non_embedding" in text


def test_same_input_same_bytes(analysed: tuple[Analysis, Path]) -> None:
    analysis, folder = analysed
    first = write_report(analysis, folder).read_bytes()
    assert write_report(analysis, folder).read_bytes() == first


def test_checklist_is_filled_from_the_records(analysed: tuple[Analysis, Path]) -> None:
    analysis, folder = analysed
    write_report(analysis, folder)
    text = (folder / "checklist.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.M) == ["Form and hypothesis", "Training", "Data", "Fit"]
    assert "**Question**: how do N and D trade off?\n" in text
    assert "32 runs of 8 trunks, 4 sizes" in text
    assert "16 cells (N, D), 2 to 2 runs in each" in text
    assert "500000, 1000000, 2000000, 4000000 tokens" in text
    assert "threshold 1.5 %: accepted" in text
    assert "<script>" not in text and "<img" not in text


def test_what_a_foreign_table_does_not_say_is_unknown(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7, 9, 60), 10 ** rng.uniform(9, 11, 60)
    loss = true_loss(params, tokens) * np.exp(rng.normal(0, 0.005, 60))
    pd.DataFrame({"params": params, "tokens": tokens, "loss": loss}).to_csv(tmp_path / "mine.csv", index=False)
    analysis = analyse(tmp_path / "mine.csv", out=tmp_path / "mine", bootstrap=50, laws=("chinchilla",))
    read_page(write_report(analysis, tmp_path / "mine"))
    text = (tmp_path / "mine" / "checklist.md").read_text(encoding="utf-8")
    for question in ("Question", "Tuned", "Text", "Schedule", "Learning rate", "Checkpoints used"):
        assert f"**{question}**: unknown: not recorded" in text
    assert "none: no forecast was registered" in text
    assert "column params" in text


def test_mistakes_are_one_line(analysed: tuple[Analysis, Path], tmp_path: Path) -> None:
    analysis, _ = analysed
    with pytest.raises(UserError, match=r"missing\.png.*scaling plot"):
        write_report(analysis, tmp_path, [tmp_path / "missing.png"])
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
        write_report(analysis, tmp_path / "file")
