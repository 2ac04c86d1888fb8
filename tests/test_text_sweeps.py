"""Sweeps over text, end to end on a small folder: groups, domains, repetition; every shipped sweep's first steps."""

import csv
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from scaling import claim as claims
from scaling.corpus import prepare
from scaling.plan import Trunk, group_trunks, resolve
from scaling.record import Folder, read_result
from scaling.sweep_file import load_sweep
from scaling.train import Trainer

ROOT = Path(__file__).parent.parent
TEXT_SWEEPS = ("repetition", "diversity", "multilingual", "vocabulary", "known_entropy")

SWEEP = """
name = "{name}"
corpus = {corpus}
tokenizer = {tokenizer}
[model]
d_model = {widths}
n_layers = 1
sequence_length = 32
[data]
tokens = ["8k", "16k", "32k", "48k"]
{axes}
[training]
batch_tokens = 128
warmup_steps = 5
[evaluation]
windows = 32
[fit]
laws = {laws}
bootstrap = 100
"""


@pytest.fixture(scope="module")
def two_texts(tmp_path_factory) -> Path:
    """Two folders of pseudo-words over different letters."""
    root = tmp_path_factory.mktemp("two")
    for name, letters in (("low", "abcdef"), ("high", "uvwxyz")):
        rng = np.random.default_rng(len(name))
        words = ["".join(rng.choice(list(letters), size=rng.integers(2, 6))) for _ in range(100)]
        (root / name).mkdir()
        for number in range(80):
            (root / name / f"{number}.txt").write_text("\n".join(" ".join(rng.choice(words, size=9)) for _ in range(40)))
    return root


def run(tmp_path, **values):
    path = tmp_path / f"{values['name']}.toml"
    path.write_text(SWEEP.format(**{"tokenizer": '"bytes"', "axes": "", "widths": "[8, 16]", "laws": '["chinchilla"]', **values}))
    command = [sys.executable, "-m", "scaling.cli.main", "run", str(path), "--results", str(tmp_path), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / values["name"], done


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_mixtures_give_losses_by_domain_and_a_law_each(tmp_path, two_texts):
    corpus = f'"{two_texts / "low"} + {two_texts / "high"}"'
    root, done = run(tmp_path, name="mixed", corpus=corpus, axes="mixture = [{low = 1.0}, {low = 0.5, high = 0.5}]")
    table = pd.read_csv(root / "domains.csv").merge(pd.read_csv(root / "runs.csv")[["run_id", "tokens", "d_model"]], on="run_id")
    cell = table[(table.tokens > 40_000) & (table.d_model == 16)].set_index(["group", "domain"]).loss
    assert cell["low", "high"] > 2 * cell["low", "low"]  # never seen
    assert cell["0.5 high + 0.5 low", "high"] < 0.7 * cell["low", "high"]
    assert cell["0.5 high + 0.5 low", "low"] > cell["low", "low"]  # half as much of it
    assert set(table.share) == {0.0, 0.5, 1.0}
    groups = rows(root / "groups.csv")
    assert [row["group"] for row in groups] == ["low", "0.5 high + 0.5 low"] and all(float(row["E"]) >= 0 for row in groups)
    assert {path.stem for path in (root / "plots").glob("*.png")} == {"groups", "domains"}
    assert "0.5 high + 0.5 low" in done.stdout and not (root / "laws.csv").exists()
    assert len(rows(root / "groups" / "low" / "runs.csv")) == 8 and (root / "groups" / "low" / "laws.csv").exists()


def test_vocabularies_are_compared_in_bits_per_byte(tmp_path, two_texts):
    root, _ = run(tmp_path, name="vocabulary", corpus=f'"{two_texts / "low"}"', tokenizer='["bytes", "bpe:320"]', widths="[8]")
    found = pd.read_csv(root / "runs.csv")
    wide = found[found.tokenizer == "bpe:320"]
    assert set(wide.vocab_size) == {320} and (wide.bytes_per_token > 1.5).all()
    np.testing.assert_allclose(wide.bits_per_byte, wide.loss / np.log(2) / wide.bytes_per_token, rtol=1e-12)
    assert found[found.tokenizer == "bytes"].bytes_per_token.eq(1).all()
    groups = rows(root / "groups.csv")  # one width cannot give a law in N and D: said, not invented
    assert [row["E"] for row in groups] == ["", ""] and all(row["note"].startswith("no law: ") for row in groups)


def test_repetition_reaches_muennighoffs_law_with_unique_tokens(tmp_path, two_texts):
    axes, laws = 'tokens_unique = ["4k", "12k", "all"]', '["muennighoff", "chinchilla"]'
    root, done = run(tmp_path, name="repeat", corpus=f'"{two_texts / "low"}"', axes=axes, laws=laws)
    found = pd.read_csv(root / "runs.csv")
    assert len(found) == 2 * (4 + 4 + 3) and found.epochs.max() == pytest.approx(12, rel=0.05)
    assert set(found.tokens_unique[found.tokens_unique_limit == 4000]) == {4000}
    assert (root / "plots" / "repetition.png").exists()
    laws_found = pd.read_csv(root / "laws.csv")
    assert "R_D" in set(laws_found.parameter) or "muennighoff" in done.stdout + done.stderr


@pytest.mark.parametrize("name", TEXT_SWEEPS)
def test_two_steps_of_every_shipped_sweep(name, tmp_path, two_texts):
    """The smallest models of the sweep's first and last text, cut to two steps, on stand-in text where its own must be fetched."""
    sweep = load_sweep(ROOT / "sweeps" / f"{name}.toml")
    hashes = {}
    fetched = not (isinstance(sweep.corpus, list) and sweep.corpus[0].startswith("synthetic")) and sweep.corpus != "python-stdlib"
    runs = resolve(sweep, corpus_hash="0")
    smallest = [found for found in runs if found.trunk.model.d_model == runs[0].trunk.model.d_model]
    for place, run_config in (("first", smallest[0]), ("last", smallest[-1])):
        data = run_config.trunk.data
        stand_in = f"{two_texts / 'low'} + {two_texts / 'high'}" if fetched else data.corpus
        corpus = hashes.setdefault((stand_in, data.tokenizer), prepare(stand_in, tokenizer=data.tokenizer))
        renamed = {"sotu": "low", "wiki": "high", "wordnet": "low", "recipes": "high", "wiki-long": "low"}
        mixture = data.mixture
        if mixture is not msgspec.UNSET:
            weights: dict[str, float] = {}
            for domain, weight in mixture:
                weights[renamed[domain]] = weights.get(renamed[domain], 0.0) + weight
            mixture = tuple(sorted(weights.items()))
        data = msgspec.structs.replace(data, corpus=stand_in, corpus_hash=corpus.content_hash, mixture=mixture, evaluation_windows=8)
        trunk_config = msgspec.structs.replace(run_config.trunk, data=data)
        short = msgspec.structs.replace(run_config, trunk=trunk_config, steps=2, branch_step=1)
        trunk = Trunk(trunk_id=short.trunk_id, config=trunk_config, runs=(short,), role="fit")
        folder = Folder(tmp_path / place)
        claim = claims.take(folder, trunk.trunk_id)
        assert claim is not None
        Trainer(folder, trunk, claim, corpus).train()
        result = read_result(folder, short.run_id)
        assert result is not None and result["status"] == "done" and 0 < result["bits_per_byte"] < 12
        assert ("domains" in result) == bool(corpus.domains)


@pytest.mark.parametrize("name", TEXT_SWEEPS)
def test_every_shipped_sweep_plans_what_its_comment_says(name):
    text = (ROOT / "sweeps" / f"{name}.toml").read_text()
    runs = resolve(load_sweep(ROOT / "sweeps" / f"{name}.toml"), corpus_hash="0")
    assert f"Cost: {len(runs)} runs on {len(group_trunks(runs))} trunks" in text
