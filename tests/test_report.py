"""The report page: self-contained, nothing of the data runs or leaks into markup, numbers as in the tables."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import true_loss, write_results

from analysis.errors import UserError
from analysis.page_data import flags
from analysis.plotting import plot_all
from analysis.report import page_script, write_report
from analysis.report_text import MATERIAL_CONVENTION, answer, summary
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


def test_page_is_self_contained_and_escaped(analysed: tuple[Analysis, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.plot_style.DPI", 40)
    analysis, folder = analysed
    page = read_page(write_report(analysis, folder, plot_all(analysis, folder)))
    names = [tag for tag, _ in page.tags]
    assert not {"link", "iframe", "object", "b"} & set(names)
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes) or ""
    hashed = base64.b64encode(hashlib.sha256(page_script().encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{hashed}'" in policy
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 9
    assert all((image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(attributes["href"].startswith("#") for _, attributes in page.tags if "href" in attributes)
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


def test_answer_is_one_sentence_with_intervals(analysed: tuple[Analysis, Path], valleys: Analysis) -> None:
    analysis, _ = analysed
    row = analysis.tables["approaches"].query("approach == 'parametric'").iloc[0]
    error = 100 * analysis.tables["predictions"].query("kind == 'forecast'").relative_error.iloc[0]
    assert answer(analysis) == (
        "If L = E + A/N^alpha + B/D^beta, compute C is best spent on N* ~ C^a parameters with"
        f" a = {row.a:.3g} (95 % interval {row.a_low:.3g} to {row.a_high:.3g}) and D* ~ C^b tokens with"
        f" b = {row.b:.3g} (95 % interval {row.b_low:.3g} to {row.b_high:.3g});"
        f" the forecast of the hold-out was {abs(error):.2f} % too {'high' if error > 0 else 'low'}."
    )
    only_n = dataclasses.replace(valleys, fits=[f for f in analysis.fits if f.law.name == "power-n"], tables=dict(valleys.tables))
    only_n.tables["approaches"] = valleys.tables["approaches"].query("approach != 'parametric'")
    assert answer(only_n).startswith("If L = E + A/N^alpha") and "alpha = " in answer(only_n) and "95 % interval" in answer(only_n)


def test_page_has_a_section_for_everything_a_reader_wants(analysed: tuple[Analysis, Path]) -> None:
    analysis, folder = analysed
    page = read_page(write_report(analysis, folder))
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == "answer laws plot explorer forecasts plots runs exclusions tables checklist provenance cost".split()
    text = "".join(page.words)
    assert "how do N and D trade off?" in text
    assert hashlib.sha256((folder / "runs.csv").read_bytes()).hexdigest() in text
    spent = analysis.runs.all_rows.flops_spent.astype(float).sum()
    assert f"{spent:.3g}" in text
    data = json.loads(next(words for words in page.words if words.startswith('{"laws"')))
    assert data["runs"]["run_id"] == [*analysis.runs.frame.run_id, *analysis.runs.holdouts.run_id]
    assert data["runs"]["loss"] == [*analysis.runs.frame.loss, *analysis.runs.holdouts.loss]
    assert set(data["curves"]) <= set(data["runs"]["run_id"])


def test_commands_on_the_page_name_what_differs_from_the_defaults(valleys: Analysis) -> None:
    chinchilla, loglinear = valleys.fits
    assert flags(chinchilla, valleys) == " --bootstrap 30"
    told = dataclasses.replace(loglinear, loss="huber:1e-3", n_column="params_total", draws=None)
    excluded = pd.DataFrame({"run_id": ["a", "b"], "reason": ["excluded by: N < 3", "excluded by: loss > 9"]})
    analysis = dataclasses.replace(valleys, runs=dataclasses.replace(valleys.runs, excluded=excluded))
    assert flags(told, analysis) == (
        " --law log-linear --loss huber:1e-3 --n-column params_total --exclude 'N < 3 or loss > 9' --bootstrap 0"
    )


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


def unwrapped(analysis: Analysis) -> str:
    return " ".join(summary(analysis).split())


def write_isoflop(path: Path) -> Path:
    """Six budgets of compute around the optimum of the known law."""
    rows = []
    for budget in np.geomspace(1e17, 1e20, 6):
        # The optimum of E + A/N^.35 + B/D^.40 under 6ND, by eq. 4 of Hoffmann et al. 2022.
        scale = (0.35 * 15 / (0.40 * 100)) ** (1 / 0.75)
        params = scale * (budget / 6) ** (0.40 / 0.75) * np.geomspace(0.2, 5, 7)
        tokens = budget / 6 / params
        total = params + 2e3 * params**0.4
        rows.append(pd.DataFrame({"params": params, "params_total": total, "tokens": tokens, "loss": true_loss(params, tokens)}))
    pd.concat(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def valleys(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("valleys")
    return analyse(
        write_isoflop(folder / "runs.csv"), n_column="params", out=folder / "out", bootstrap=30, laws=("chinchilla", "log-linear")
    )


def test_summary_has_a_line_for_each_approach(valleys: Analysis) -> None:
    text = unwrapped(valleys)
    for row in valleys.tables["approaches"].to_dict("records"):
        if np.isfinite(row["a"]):
            assert f"- {row['approach']}: a = {row['a']:.3f}" in text
            assert row["a"] == pytest.approx(0.40 / 0.75, abs=0.03), row["approach"]
            assert f"N* = {row['params_opt']:.3g}" in text
        else:
            assert str(row["reason"]).removeprefix(f"{row['approach']}: ") in text
    assert "ALARM" not in text
    alarmed = unwrapped(dataclasses.replace(valleys, alarm="envelope and parametric: a = 0.4 and 0.6"))
    assert "ALARM: the approaches disagree (envelope and parametric: a = 0.4 and 0.6)" in alarmed


def test_rival_laws_are_ordered_by_their_error_on_dearer_runs(valleys: Analysis) -> None:
    lines = summary(valleys).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("laws in N and D, by their error"))
    assert [line.split(":")[0] for line in lines[at + 1 : at + 3]] == ["- chinchilla", "- log-linear"], "the truth has a floor"
    single = dataclasses.replace(valleys, fits=valleys.fits[:1])
    assert "laws in N and D, by their error" not in summary(single)


def test_conventions_are_shown_only_when_they_matter(valleys: Analysis) -> None:
    assert "the counts of N and C move a" in unwrapped(valleys), "two columns count N"
    table = valleys.tables["conventions"]
    one = table[table["n_column"] == "params"].assign(a=[0.5, 0.5 + MATERIAL_CONVENTION / 2])
    small = dataclasses.replace(valleys, tables={**valleys.tables, "conventions": one})
    assert "the counts of N and C" not in unwrapped(small)
    large = dataclasses.replace(valleys, tables={**valleys.tables, "conventions": one.assign(a=[0.5, 0.5 + 2 * MATERIAL_CONVENTION])})
    assert "move a from 0.500 to 0.540" in unwrapped(large)


def test_summary_names_both_intervals_of_a_holdout(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results")
    for path in (folder / "forecasts").glob("*.json"):
        path.unlink()
    analysis = analyse(folder, out=folder, bootstrap=50, laws=("chinchilla",))
    row = analysis.tables["predictions"].query("kind != 'cv'").iloc[0]
    text = unwrapped(analysis)
    assert f"- interval if the law is true: [{row.pi_low:.4f}, {row.pi_high:.4f}]" in text
    assert f"- interval if the law is only a law: [{row.pi_model_low:.4f}, {row.pi_model_high:.4f}] about {row.predicted_model:.4f}" in text
    missed = analysis.tables["predictions"].assign(observed=9.0, inside_interval=False, inside_model_interval=False)
    text = unwrapped(dataclasses.replace(analysis, tables={**analysis.tables, "predictions": missed}))
    assert "outside the interval if the law is true; outside the interval if the law is only a law" in text


def test_many_holdouts_are_summed_up(valleys: Analysis) -> None:
    table = valleys.tables["predictions"]
    row = {"kind": "holdout, no forecast registered", "observed": 1.0, "relative_error": 0.01, "inside_interval": True}
    rows = table.head(1).assign(**row, inside_model_interval=None, threshold=np.nan)
    many = pd.concat([rows.assign(run_id=f"run{i}") for i in range(12)]).assign(inside_interval=[True] * 9 + [False] * 3)
    text = unwrapped(dataclasses.replace(valleys, tables={**valleys.tables, "predictions": many}))
    assert "run7" in text and "run8" not in text and "4 more in predictions.csv" in text
    assert "12 hold-outs scored: error 1.00 % (mean), 1.00 % (largest); 9 of 12 inside the interval if the law is true" in text


def test_a_warning_that_laws_share_is_printed_once(valleys: Analysis) -> None:
    analysis = dataclasses.replace(valleys, warnings=("chinchilla: too few", "log-linear: too few", "other", "other"))
    lines = [line for line in summary(analysis).splitlines() if line.startswith("warning")]
    assert lines == ["warning: chinchilla, log-linear: too few", "warning: other"]


def test_a_formula_is_printed_once_with_instant_intervals(tmp_path: Path) -> None:
    source = write_isoflop(tmp_path / "runs.csv")
    formula = "E + A/N^alpha + B/D^beta"
    analysis = analyse(source, out=tmp_path / "out", bootstrap=0, laws=(formula,))
    text = summary(analysis)
    assert text.count(formula) == 1
    assert "no interval" not in text and "instant ones (sandwich" in text


def test_page_and_checklist_show_the_approaches(valleys: Analysis, tmp_path: Path) -> None:
    loud = dataclasses.replace(valleys, alarm="they <b>differ</b>")
    page = read_page(write_report(loud, tmp_path))
    text = "".join(page.words)
    for heading in ("Compute-optimal model by each approach", "Where returns diminish", "Exponents by the count of N and C"):
        assert heading in text
    assert any(attributes.get("class") == "alarm" for _, attributes in page.tags)
    row = valleys.tables["approaches"].query("approach == 'isoflop-interpolated'").iloc[0]
    assert f"{row.a:.5g}" in text
    checklist = (tmp_path / "checklist.md").read_text(encoding="utf-8")
    assert f"isoflop-interpolated: N\\* ~ C^{row.a:.3f}" in checklist
    assert "**Counts of N and C**: tried: params" in checklist
    assert "docs/coverage.md" in checklist and "one more Newton step promises" in checklist
    assert "**Approaches compared**" in checklist and "they disagree: they &lt;b&gt;differ" in checklist


def test_mistakes_are_one_line(analysed: tuple[Analysis, Path], tmp_path: Path) -> None:
    analysis, _ = analysed
    with pytest.raises(UserError, match=r"missing\.png.*scaling plot"):
        write_report(analysis, tmp_path, [tmp_path / "missing.png"])
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(analysis, tmp_path / "file")
