"""The code of docs/api.md runs, from top to bottom, on simulated runs, and finds what they were made from."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

DOCUMENT = Path(__file__).parent.parent / "docs" / "api.md"
TRUTH = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.31}


def simulated_runs() -> pd.DataFrame:
    """Five budgets of seven sizes around the optimum, .2 % noise; one run that diverged."""
    rng = np.random.default_rng(0)
    total = TRUTH["alpha"] + TRUTH["beta"]
    scale = (TRUTH["alpha"] * TRUTH["A"] / (TRUTH["beta"] * TRUTH["B"])) ** (1 / total)
    rows = [
        {"params": n, "tokens": flops / 6 / n, "flops": flops, "width": round(float((n / 60) ** (1 / 3)))}
        for flops in np.geomspace(1e18, 1e22, 5)
        for n in scale * (flops / 6) ** (TRUTH["beta"] / total) * np.geomspace(1 / 6, 6, 7)
    ]
    table = pd.DataFrame(rows)
    loss = TRUTH["E"] + TRUTH["A"] / table["params"] ** TRUTH["alpha"] + TRUTH["B"] / table["tokens"] ** TRUTH["beta"]
    table["loss"] = loss * np.exp(0.002 * rng.standard_normal(len(table)))
    table.loc[len(table)] = {"params": 1e9, "tokens": 1e9, "flops": 6e18, "width": 256, "loss": 10.0}
    return table


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), flags=re.S | re.M)
    assert len(blocks) >= 8
    simulated_runs().to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "blocks.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path("blocks.py")
    assert capsys.readouterr().out.count("\n") > 30
    fit, best, served = found["fit"], found["best"], found["served"]
    assert fit.status == "converged" and fit.n_runs == 35 and len(found["runs"].excluded) == 1
    for name, value in TRUTH.items():
        low, high = fit.parameter_table().set_index("parameter").loc[name, ["ci_low", "ci_high"]]
        assert low < value < high
    assert best.params_low < best.params_opt < best.params_high and served.params_opt < best.params_opt
    assert found["low_run"] < found["low"] < fit.predict(N=1e9, D=2e10) < found["high"] < found["high_run"]
    assert found["own"].predict(params=1e9, tokens=2e10) == pytest.approx(fit.predict(N=1e9, D=2e10), rel=2e-3)
    assert found["beyond"].low[0] < TRUTH["E"] + 400 / 1e11**0.34 + 900 / 2e12**0.31 < found["beyond"].high[0]
    assert found["optima"]["bracketed"].all() and found["allocation"].a == pytest.approx(0.31 / 0.65, abs=0.03)
    assert found["together"].alarm == ""
    assert found["chinchilla"].name == "hoffmann2022" and np.isfinite(found["shape"].aicc)


def test_options_of_the_document_are_those_of_the_code() -> None:
    """Losses named in the table are understood; the functions of formulas are all named."""
    from analysis.expression import FUNCTIONS
    from analysis.search import parse_loss

    text = DOCUMENT.read_text(encoding="utf-8")
    row = re.search(r"^\| `loss` \|(.*)\|$", text, flags=re.M)
    assert row is not None
    losses = re.findall(r'`"([a-z]+(?::[\w.-]+)?)"`', row.group(1))
    assert {parse_loss(loss).kind for loss in losses} == {"huber", "lad", "mse"} and len(losses) == 5
    assert all(f"`{name}" in text for name in FUNCTIONS if name != "m4root")
