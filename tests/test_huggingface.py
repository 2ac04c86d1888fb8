"""Hugging Face folders: the fast half reads back what was written; `make test-hf` asks real `transformers` (docs/huggingface.md)."""

import json
import os
import re
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_model
from safetensors.numpy import load_file

from scaling.byte_tokenizer import byte_tokenizer
from scaling.cli.main import main
from scaling.config import ModelConfig, UserError
from scaling.decoder import forward
from scaling.decoding.sampling import Sampling, filtered, settings
from scaling.decoding.strategies import Beam, Greedy, Limits, generate
from scaling.huggingface.reading import load_folder
from scaling.huggingface.writing import save_folder
from scaling.language_model import open_model
from scaling.text_codec import make_codec

KINDS = {"transformer": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}
MADE = ["gpt2", "llama", "llama_bf16", "mistral", "qwen2", "qwen3"]
TEXTS = ["def f(x):\n    return x\n", "naïve – 你好 🙂 <|end|>", " a  b\t\tĀ", ""]
HF_PYTHON = Path(__file__).parent.parent / ".venv-hf" / "bin" / "python"


@cache
def our_model(kind):
    shape = ModelConfig(d_model=32, n_layers=2, n_heads=4, d_ff=48, vocab_size=256, sequence_length=64, kind=kind)
    return random_model(shape, make_codec("bytes"))[0]


_forward = jax.jit(forward, static_argnums=0)


def logits_of(model, tokens):
    return np.asarray(_forward(model.config, model.parameters, jnp.asarray(tokens))[0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind that we write."""
    work = tmp_path_factory.mktemp("hf")
    for kind in KINDS:
        save_folder(our_model(kind), work / f"our_{kind}", tokenizer=byte_tokenizer(), card="# card\n")
    (work / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    return work


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(folders, kind):
    ours, back = our_model(kind), load_folder(folders / f"our_{kind}")
    tokens = np.random.default_rng(0).integers(1, 256, (2, 64))
    np.testing.assert_allclose(logits_of(back, tokens), logits_of(ours, tokens), atol=1e-5)
    assert (
        back.codec.end == 0
        and generate(back, ["ab"], Greedy(), limits=Limits(tokens=60))[0].tokens
        == generate(ours, ["ab"], Greedy(), limits=Limits(tokens=60))[0].tokens
    )
    tensors = load_file(folders / f"our_{kind}" / "model.safetensors")
    assert sum(value.size for value in tensors.values()) >= sum(leaf.size for leaf in jax.tree.leaves(ours.parameters))
    assert json.loads((folders / f"our_{kind}" / "config.json").read_text())["architectures"] == [KINDS[kind]]


def test_the_tokenizer_of_bytes_gives_bytes(folders):
    codec = make_codec(str(folders / "tokenizer.json"))
    for text in TEXTS[:3]:
        assert codec.encode(text.replace("<|end|>", "")) == list(text.replace("<|end|>", "").encode())
        assert codec.decode(codec.encode(text.replace("<|end|>", ""))) == text.replace("<|end|>", "")
    assert codec.encode("a<|end|>b") == [97, 0, 98]


def test_a_run_is_exported_with_its_place_on_the_law(finished_tiny, tmp_path, capsys):
    assert main(["export", str(finished_tiny), "--to", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    run, folder = open_model(finished_tiny), open_model(tmp_path / "out")
    tokens = np.random.default_rng(0).integers(1, 256, (2, 32))
    np.testing.assert_allclose(logits_of(folder, tokens), logits_of(run, tokens), atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert run.name in card and "held-out loss" in card and "Its place on the law" in card
    assert main(["export", str(finished_tiny), "--to", str(tmp_path / "out")]) == 2 and "exists already" in capsys.readouterr().err
    assert (
        main(["export", str(tmp_path / "out"), "--to", str(tmp_path / "two")]) == 2
        and "Hugging Face folder already" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bert"}, "model_type = 'bert' is not read here; allowed: llama"),
        ({"hidden_act": "tanh"}, "activation 'tanh' is not read here"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary positions of type 'yarn'"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight (of 9 such tensors) has no place in this llama"),
        ({"hidden_size": "x"}, "Expected `int`, got `str` - at `$.hidden_size`"),
        ({"max_position_embeddings": -3}, "Expected `int` >= 1"),
        ({"num_attention_heads": 2}, "query is (32, 32) in the weights, (16, 32) by config.json"),
        ({"vocab_size": 300}, "head is (256, 32) in the weights, (300, 32) by config.json"),
    ],
)
def test_what_cannot_be_read_gets_one_line(folders, tmp_path, change, words):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        os.link(folders / "our_llama" / name, copy / name)
    config = json.loads((folders / "our_llama" / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=re.escape(words)):
        load_folder(copy)


def test_pickled_weights_are_never_read(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders / "our_gpt2" / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((folders / "tokenizer.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match="only safetensors are read"):
        load_folder(tmp_path)


SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.7, "min_p": 0.05},
]


@pytest.fixture(scope="module")
def answers(folders):
    """What transformers says of our folders, and folders that it saved."""
    if not HF_PYTHON.exists():
        pytest.fail("no .venv-hf here: `make test-hf` makes it and runs these tests")
    tokens = np.random.default_rng(0).integers(1, 256, (2, 64)).tolist()
    question = {"tokens": tokens, "prompt": "def f", "new_tokens": 40, "texts": TEXTS}
    logits = (3 * np.random.default_rng(1).normal(size=(4, 50))).tolist()
    names = [*(f"our_{kind}" for kind in KINDS), *MADE]
    questions = {"make": MADE, "folders": dict.fromkeys(names, question), "logits": logits, "settings": SETTINGS}
    (folders / "questions.json").write_text(json.dumps(questions))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = str(Path(__file__).parent / "hf_check.py")
    subprocess.run([str(HF_PYTHON), script, str(folders)], check=True, timeout=250, env=environment, capture_output=True)
    return questions, json.loads((folders / "answers.json").read_text())


@pytest.mark.hf
@pytest.mark.parametrize("name", [*(f"our_{kind}" for kind in KINDS), *MADE])
def test_transformers_agrees(folders, answers, name):
    """Logits to 1e-4, tokens of texts, greedy text and beam, on folders of ours and of theirs."""
    questions, found = answers[0]["folders"][name], answers[1][name]
    model = load_folder(folders / name)
    if name.startswith("our_"):
        ours = our_model(name.removeprefix("our_"))
        assert found["class"] == KINDS[ours.config.family]
        model = replace(ours, codec=model.codec)
    theirs = np.load(folders / f"{name}.logits.npy")
    assert np.abs(logits_of(model, questions["tokens"]) - theirs).max() < 1e-4, name
    assert found["prompt_ids"] == model.codec.encode(questions["prompt"])
    for text, ids, back in zip(questions["texts"][:3], found["text_ids"], found["text_back"], strict=False):
        assert ids == model.codec.encode(text) and back == text
    limits = Limits(tokens=questions["new_tokens"])
    (greedy,) = generate(model, [questions["prompt"]], Greedy(), limits=limits)
    assert list(greedy.tokens) == found["greedy"] and greedy.text == found["greedy_text"]
    (best,) = generate(model, [questions["prompt"]], Beam(width=4), limits=limits)
    assert list(best.tokens) == found["beam"]


@pytest.mark.hf
def test_transformers_filters_alike(answers):
    logits = jnp.asarray(answers[0]["logits"], jnp.float32)
    for options, theirs in zip(SETTINGS, answers[1]["warped"], strict=True):
        np.testing.assert_allclose(np.exp(filtered(logits, **settings(Sampling(**options), 50))), theirs, atol=1e-6)
