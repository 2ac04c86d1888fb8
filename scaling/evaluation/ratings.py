"""A blind pairwise rating sheet: two models' answers side by side, the sides drawn at random, and win rates of what people chose.

The page (one HTML file, no network) does not say which side is whose: that stands in a key beside the results, named by the sheet. The page
gives the choices back as CSV: `sheet,item,choice,rater` with choice left, right or tie.
"""

import csv
import hashlib
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.config import UserError
from scaling.record import write_atomic, write_json

CHOICES = ("left", "right", "tie")


@dataclass(frozen=True)
class WinRate:
    """How often model `first` was preferred to `second`; ties count half.

    `low`, `high`: 95 % Wilson interval; `p_value`: two-sided sign test without the ties.
    """

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    rate: float
    low: float
    high: float
    p_value: float


def write_sheet(folder: Path, *, names: tuple[str, str], prompts: Sequence[str], answers: Sequence[tuple[str, str]], seed: int) -> Path:
    """Write the page and its key into `folder`; returns the page."""
    digest = hashlib.sha256(json.dumps([names, list(prompts), list(answers), seed]).encode()).hexdigest()[:10]
    swapped = np.random.default_rng(seed).integers(0, 2, len(prompts)).astype(bool)
    items = []
    for number, (prompt, pair) in enumerate(zip(prompts, answers, strict=True)):
        left, right = pair[::-1] if swapped[number] else pair
        items.append({"item": number, "prompt": prompt, "left": left, "right": right})
    write_json(folder / f"key-{digest}.json", {"first": names[0], "second": names[1], "swapped": swapped.tolist()})
    page = folder / f"sheet-{digest}.html"
    write_atomic(page, _page(digest, items).encode())
    return page


def _page(sheet: str, items: list[dict]) -> str:
    cards = "".join(
        f'<fieldset data-item="{one["item"]}"><legend>{number} of {len(items)}</legend>'
        f'<pre class="prompt">{html.escape(one["prompt"])}</pre>'
        f'<div class="pair"><pre>{html.escape(one["left"])}</pre><pre>{html.escape(one["right"])}</pre></div><p>'
        + "".join(f'<label><input type="radio" name="i{one["item"]}" value="{value}"> {word}</label> ' for value, word in _WORDS)
        + "</p></fieldset>"
        for number, one in enumerate(items, 1)
    )
    template = (Path(__file__).parent / "sheet.html").read_text(encoding="utf-8")
    return template.replace("SHEET", sheet).replace("CARDS", cards)


_WORDS = (("left", "left is better"), ("tie", "neither"), ("right", "right is better"))


def win_rate(ratings: Path, folder: Path) -> WinRate:
    """Win rate of the ratings in a CSV whose sheet's key lies in `folder`.

    Raises
    ------
    UserError
        Not such a CSV, a choice that is none, or a sheet without its key.
    """
    try:
        with open(ratings, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--ratings {ratings}: not readable as CSV ({error})") from None
    if not rows or not {"sheet", "item", "choice"} <= set(rows[0]):
        raise UserError(f"--ratings {ratings}: no ratings in it; columns are sheet,item,choice,rater, as the sheet saves them")
    sheets = {row["sheet"] for row in rows}
    key = folder / f"key-{min(sheets)}.json"
    if len(sheets) > 1 or not key.is_file():
        raise UserError(f"--ratings {ratings}: of sheets {', '.join(sorted(sheets))}; one sheet at a time, its key in {folder}")
    facts = json.loads(key.read_text(encoding="utf-8"))
    counts = {"first": 0, "second": 0, "tie": 0}
    for number, row in enumerate(rows, 2):
        item = int(row["item"]) if row["item"].isdigit() else -1
        if row["choice"] not in CHOICES or not 0 <= item < len(facts["swapped"]):
            raise UserError(f"{ratings}:{number}: item {row['item']!r}, choice {row['choice']!r}; choices are {', '.join(CHOICES)}")
        swapped = facts["swapped"][item]
        counts["tie" if row["choice"] == "tie" else "first" if (row["choice"] == "left") != swapped else "second"] += 1
    wins, losses, ties = counts["first"], counts["second"], counts["tie"]
    rate = (wins + ties / 2) / len(rows)
    low, high = wilson_interval(rate, len(rows))
    return WinRate(facts["first"], facts["second"], wins, losses, ties, rate, low, high, sign_test(wins, losses))


def wilson_interval(rate: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval of a proportion (Wilson 1927).

    >>> tuple(round(end, 4) for end in wilson_interval(0.5, 10))
    (0.2366, 0.7634)
    """
    centre, spread = rate + z * z / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of a fair coin.

    >>> sign_test(9, 1)
    0.021484375
    """
    n, k = wins + losses, max(wins, losses)
    tail = sum(math.comb(n, at) for at in range(k, n + 1)) / 2**n
    return min(1.0, 2 * tail)
