"""Fuzz: any sweep file is read or refused in one line, and what is read can be planned."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from fuzzing import changed, damaged, inputs, to_toml, well_behaved
from hypothesis import given

from analysis.errors import UserError as AnalysisError
from scaling.config import UserError

SWEEPS = Path(__file__).parents[1] / "sweeps"
EVERYTHING = """
name = "everything"
corpus = "python-stdlib"
tokenizer = "bytes"
[text]
encoding = "utf-8"
near_duplicates = 0.8
[model]
d_model = [16, 32]
n_layers = 2
[data]
tokens = ["0.5M", 1000000, 2e6]
[training]
seeds = [2, 1]
batch_tokens = 512
learning_rate = 0.02
[evaluation]
windows = 64
[[run]]
d_model = 24
tokens = "1M"
[holdout]
d_model = [64]
tokens = ["2M"]
[forecast]
law = "chinchilla"
[fit]
laws = ["power-n", "E + A*N**-alpha | E > 0"]
[records]
keep = "final"
"""
WHOLE = tomllib.loads(EVERYTHING)
TEXTS = {
    **{key: WHOLE[key] for key in ("name", "model", "training", "evaluation", "records")},
    "corpus": ["python-stdlib", "english", "english/wiki + python-stdlib"],
    "tokenizer": ["bytes", "bpe:512"],
    "data": {"tokens": ["0.5M", "1M"], "tokens_unique": ["0.2M", "all"], "mixture": [{"code": 1.0}, {"code": 0.5, "prose": 0.5}]},
}
TUNED = {**WHOLE, "tune": {"d_model": [16, 32], "rates": [0.01, 0.02, 0.04], "tokens": ["0.5M"], "batch_tokens": [256, 512], "seeds": 2}}


def plan(path: Path) -> None:
    """All that `scaling plan` does before it reads text."""
    from analysis.laws import get_law
    from scaling.accounting import count_parameters, training_flops_per_token
    from scaling.cli.texts import check_texts
    from scaling.config import format_quantity
    from scaling.plan import flops_spent, group_trunks, resolve, tune_runs
    from scaling.sweep_file import load_sweep

    sweep = load_sweep(path)
    for law in [*sweep.fit.laws, sweep.forecast_rule.law]:
        get_law(law)
    check_texts(sweep)
    runs = resolve(sweep, corpus_hash="unknown")
    if sweep.tune:
        runs = runs + tune_runs(sweep, rates=dict.fromkeys(sweep.tune.d_model, sweep.tune.rates), corpus_hash="unknown")
    for run in runs:
        assert count_parameters(run.trunk.model).total > 0
        assert format_quantity(run.tokens) and run.tokens * training_flops_per_token(run.trunk.model) > 0
    assert sum(len(trunk.runs) for trunk in group_trunks(runs) if flops_spent(trunk)) == len(runs)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps") / "sweep.toml"


@inputs(quick=150, full=20_000)
@given(tree=changed(WHOLE) | changed(TEXTS) | changed(TUNED))
def test_sweeps_with_changed_values(path: Path, tree: dict) -> None:
    path.write_text(to_toml(tree), encoding="utf-8")
    with well_behaved(UserError, AnalysisError):
        plan(path)


@inputs(quick=60, full=10_000)
@given(data=damaged((SWEEPS / "quickstart.toml").read_bytes()) | damaged(EVERYTHING.encode()))
def test_sweep_files_that_are_damaged(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with well_behaved(UserError, AnalysisError):
        plan(path)


@pytest.mark.parametrize("tree", [WHOLE, TEXTS, TUNED])
def test_the_sweeps_that_are_changed_are_good_ones(path: Path, tree: dict) -> None:
    path.write_text(to_toml(tree), encoding="utf-8")
    plan(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus": "x" * 5000}, "unknown corpus"),
        ({"tokenizer": "x" * 5000}, "allowed are bytes"),
        ({"model": {"d_model": [10**400]}}, "model.d_model"),
        ({"training": {"seeds": 2**53}}, "100000 is the most"),
        ({"text": {"encoding": "punycode"}}, "text.encoding"),
        ({"text": {"encoding": "zlib"}}, "text.encoding"),
        ({"text": {"encoding": "undefined"}}, "text.encoding"),
        ({"name": "../escape"}, "name"),
    ],
)
def test_found_by_fuzzing(path: Path, change: dict, said: str) -> None:
    path.write_text(to_toml(WHOLE | {"training": {"seeds": 1}} | change), encoding="utf-8")
    with pytest.raises((UserError, AnalysisError), match=said):
        plan(path)
