"""README, docs and the committed report print the numbers of results/reference.

In Markdown a paragraph, list or table is held by a comment right above it, with a query over the committed tables:

    <!-- numbers: SELECT estimate, ci_low, ci_high FROM 'quickstart/laws.csv' WHERE law = 'chinchilla' AND parameter = 'E' -->
    E is 0.835 (0.285 to 1.152).

The numbers printed up to the next blank line are, in order, the numbers of the result, row by row, to the digits that are printed. Text and
missing values of the result, code spans and addresses of links do not count. Numbers that are no results (the 95 of "95 %") are selected as
constants, so that nothing in a held block goes unchecked.
"""

from __future__ import annotations

import re
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import duckdb
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INTRODUCTIONS = [ROOT / "docs" / "introduction.md", ROOT / "docs" / "introduction_zh.md"]
HELD = re.compile(r"<!-- numbers:(.*?)-->\n(.*?)(?=\n\s*\n|\Z)", flags=re.S)
NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:e[-+]?\d+)?[kMGBT]?(?!\w)", flags=re.ASCII)
UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


class Block(NamedTuple):
    """A held part of a page."""

    name: str
    sql: str
    text: str


def blocks(path: Path) -> list[Block]:
    """All held parts of a page."""
    page = path.read_text(encoding="utf-8")
    return [
        Block(f"{path.name}:{page[: found.start()].count(chr(10)) + 1}", " ".join(found[1].split()), found[2])
        for found in HELD.finditer(page)
    ]


def printed(text: str) -> list[str]:
    """The numbers of a text as they are printed, code spans and addresses left out."""
    return NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text))


def agrees(shown: str, value: float) -> bool:
    """Is `shown` the value, rounded to as many digits?"""
    plain = shown.replace("−", "-").replace(",", "").rstrip("".join(UNITS))
    unit = UNITS.get(shown[-1], 1)
    number = Decimal(plain)
    half_a_digit = Decimal(1).scaleb(int(number.as_tuple().exponent)) / 2
    return abs(float(number) * unit - value) <= float(half_a_digit) * unit * (1 + 1e-6)


def selected(sql: str) -> list[float]:
    """The numbers of a query over results/reference, row by row."""
    connection = duckdb.connect(config={"file_search_path": str(REFERENCE), "threads": "1"})
    rows = connection.execute(sql).fetchall()
    return [float(value) for row in rows for value in row if isinstance(value, Real | Decimal) and not isinstance(value, bool)]


def differences(block: Block) -> list[str]:
    """What a held block prints otherwise than the tables."""
    shown, wanted = printed(block.text), selected(block.sql)
    if len(shown) != len(wanted):
        return [f"{len(shown)} numbers printed, {len(wanted)} selected: {shown} {wanted}"]
    return [f"number {n + 1}: printed {a}, the tables say {b:.6g}" for n, (a, b) in enumerate(zip(shown, wanted)) if not agrees(a, b)]


@pytest.mark.parametrize("block", [block for path in PAGES for block in blocks(path)], ids=lambda block: block.name)
def test_pages_print_the_numbers_of_the_tables(block: Block) -> None:
    assert differences(block) == []


def test_no_page_has_a_held_block_that_is_not_read() -> None:
    for path in PAGES:
        assert path.read_text(encoding="utf-8").count("<!-- numbers") == len(blocks(path)), path


def test_a_wrong_digit_a_missing_and_a_free_number_are_found() -> None:
    sql = "SELECT parameter, 95, estimate, ci_low FROM 'quickstart/laws.csv' WHERE law = 'chinchilla' AND parameter = 'E'"
    assert differences(Block("right", sql, "95 % of `d48`, [E](a1.md) is 0.835 from .29")) == []
    for text in ("95 % 0.836 .29", "95 % 0.835", "95 % 0.835 .29 and 3", "95 % 0.8 .28"):
        assert differences(Block("wrong", sql, text)), text


@pytest.mark.parametrize(
    ("shown", "value", "expected"),
    [
        ("1.0", 1.04, True), ("1.0", 1.06, False), ("−.5", -0.54, True), ("+8.9", 8.91, True), ("165,984", 165984, True), ("166k", 165984, True),
        ("165k", 165984, False), ("2.4M", 2400256, True), ("1.1e13", 1.13e13, True), ("1.2e13", 1.13e13, False), ("3.98e+04", 39802.3, True),
    ],
)  # fmt: skip
def test_agreement_is_to_the_digits_printed(shown: str, value: float, expected: bool) -> None:
    assert printed(f"x is {shown}, y") == [shown] and agrees(shown, value) is expected


def test_the_committed_report_shows_the_tables() -> None:
    page = (REFERENCE / "quickstart" / "report.html").read_text(encoding="utf-8")
    laws = pd.read_csv(REFERENCE / "quickstart" / "laws.csv")
    names = {"α": "alpha", "β": "beta", "γ": "gamma"}
    articles = re.findall(r"<article><h3>([a-z-]+)</h3>(.*?)</article>", page, flags=re.S)
    assert {law for law, _ in articles} == set(laws["law"])
    for law, article in articles:
        rows = re.findall(r'<th scope="row">(.*?)</th><td class="n">(.*?)</td><td class="n">(.*?) to (.*?)</td>', article)
        wanted = laws[laws["law"] == law].set_index("parameter")
        assert [names.get(name, name) for name, *_ in rows] == list(wanted.index)
        for (_, *shown), row in zip(rows, wanted[["estimate", "ci_low", "ci_high"]].to_numpy()):
            assert all(agrees(a, b) for a, b in zip(shown, row)), (law, shown, row)
    (forecast,) = pd.read_csv(REFERENCE / "quickstart" / "predictions.csv").query("kind == 'forecast'").to_dict("records")
    section = re.sub(r"<.*?>", " ", page[page.index('<section id="forecasts"') : page.index('<section id="plots"')])
    keys = ("predicted", "pi_low", "pi_high", "pi_model_low", "pi_model_high", "predicted_model", "observed")
    shown = re.findall(
        r"predicted ([\d.]+).*true: \[([\d.]+), ([\d.]+)\].*law: \[([\d.]+), ([\d.]+)\] about ([\d.]+).*?observed ([\d.]+)", section
    )[0]
    assert all(agrees(a, forecast[key]) for a, key in zip(shown, keys))
    assert forecast["verdict"] == "accepted" and "verdict: accepted" in section
    (stamp,) = re.findall(r"runs.csv, SHA-256 ([0-9a-f]{64})", page)
    import hashlib

    assert stamp == hashlib.sha256((REFERENCE / "quickstart" / "runs.csv").read_bytes()).hexdigest()
