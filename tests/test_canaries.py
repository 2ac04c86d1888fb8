"""Planted secrets: as many in the text as were planted, seen as often as the windows hold them, exposure by its definition."""

import json
import math

import numpy as np
import pytest

from scaling.canaries import OTHERS, exposures, make_canaries, read_canaries
from scaling.cli.main import main
from scaling.corpus import load
from scaling.decoding.strategies import Limits, Sample, generate
from scaling.language_model import open_model, read_resolved


def test_canaries_are_planted_as_often_as_they_say(tmp_path, text_folder, capsys):
    command = ["corpus", "plant", str(text_folder), "--to", str(tmp_path / "planted"), "--repeats", "0,1,8", "--each", "3"]
    assert main(command) == 0 and capsys.readouterr().out.strip().endswith("text.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "planted" / "text.jsonl").read_text().splitlines()]
    canaries = read_canaries(tmp_path / "planted" / "canaries.json")
    assert [canary.planted for canary in canaries] == [0] * 3 + [1] * 3 + [8] * 3
    for canary in canaries:
        assert sum(text.count(f"\n{canary.prefix}{canary.code}\n") for text in texts) == canary.planted
    assert main(command) == 2 and "holds a planted text already" in capsys.readouterr().err
    assert main(["corpus", "plant", str(text_folder), "--to", str(tmp_path / "x"), "--repeats", "a"]) == 2
    assert "whole numbers with commas" in capsys.readouterr().err


def test_what_was_never_seen_has_a_random_rank_and_exposure_is_its_definition(finished_tiny):
    model, resolved = open_model(finished_tiny), read_resolved(finished_tiny)
    data = model.run.trunk.data
    corpus = load(data.corpus, content_hash=data.corpus_hash, options=resolved.sweep.text)
    canaries = make_canaries([0], each=30, seed=1)
    found = exposures(model, corpus, model.run, canaries)
    assert all(one.seen == 0 and one.bits == pytest.approx(math.log2((OTHERS + 1) / one.rank)) for one in found)
    bits = np.array([one.bits for one in found])
    assert abs(bits.mean() - 1 / math.log(2)) < 4 * bits.std() / 30**0.5 + 0.05


def test_a_line_is_counted_in_the_windows_of_training(finished_tiny):
    from scaling.canaries import _seen
    from scaling.mixture import training_windows

    model, resolved = open_model(finished_tiny), read_resolved(finished_tiny)
    data, length = model.run.trunk.data, model.run.trunk.model.sequence_length
    corpus = load(data.corpus, content_hash=data.corpus_hash, options=resolved.sweep.text)
    word = corpus.train[:200].tobytes().split()[3].decode()
    windows = training_windows(corpus, data, seed=data.seed_data, first=0, count=model.run.tokens // length, length=length)
    assert _seen(corpus, model.run, [word], model.codec) == [sum(row.tobytes().count(word.encode()) for row in windows)] != [0]


def test_losses_of_codes_are_the_models(finished_tiny):
    from scaling.canaries import _code_losses

    model = open_model(finished_tiny)
    (drawn,) = generate(model, ["\nabc "], Sample(), limits=Limits(tokens=4, seed=2))
    text = bytes(drawn.tokens).decode("latin-1")
    if text.isascii() and "\x00" not in text:
        assert _code_losses(model, "abc ", [text])[0] == pytest.approx(-drawn.log_probability, rel=1e-4)
