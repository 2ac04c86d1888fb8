"""The one-versus-rest objective against its formula written out, and a sweep that trains with it."""

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from random_weights import random_weights

from scaling import model
from scaling.architectures import architecture_of
from scaling.config import ModelConfig
from scaling.objective import one_vs_rest
from scaling.plan import resolve
from scaling.sweep_file import load_sweep

SHAPE = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=24, vocab_size=64, sequence_length=16)
CONFIG = msgspec.structs.replace(SHAPE, objective="one_vs_rest")


def test_it_is_the_formula_with_both_terms():
    logits, targets = np.random.default_rng(0).normal(size=(5, 7)) * 3, np.array([0, 3, 6, 2, 2])
    p, y = 1 / (1 + np.exp(-logits)), np.eye(7)[targets]
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(one_vs_rest(jnp.asarray(logits, jnp.float32), jnp.asarray(targets)), expected, rtol=1e-5)


def test_training_minimises_it_and_evaluation_normalises_the_sigmoids():
    parameters = random_weights(SHAPE)
    windows = jnp.asarray(np.random.default_rng(0).integers(0, 64, (3, 17)), jnp.int32)
    logits = np.asarray(jax.jit(lambda p, w: model.apply(SHAPE, p, w))(parameters, windows[:, :-1]), np.float64)
    sigmoid, targets = 1 / (1 + np.exp(-logits)), np.asarray(windows[:, 1:])
    y = np.eye(64)[targets]
    trained = -(y * np.log(sigmoid) + (1 - y) * np.log1p(-sigmoid)).sum(-1).mean()
    chosen = np.take_along_axis(sigmoid / sigmoid.sum(-1, keepdims=True), targets[..., None], -1)[..., 0]
    made = architecture_of(CONFIG)
    assert float(jax.jit(lambda p: made.mean_loss(CONFIG, p, windows))(parameters)) == pytest.approx(trained, rel=1e-5)
    np.testing.assert_allclose(made.window_losses(CONFIG, parameters, windows[None])[0], -np.log(chosen).mean(1), rtol=1e-5)


def test_a_sweep_names_it_and_other_run_ids_stay(tiny_sweep):
    plain = resolve(load_sweep(tiny_sweep), corpus_hash="0" * 12)
    tiny_sweep.write_text(tiny_sweep.read_text().replace("[training]", '[training]\nobjective = "one_vs_rest"'))
    other = resolve(load_sweep(tiny_sweep), corpus_hash="0" * 12)
    assert all(a.run_id != b.run_id for a, b in zip(plain, other, strict=True)) and other[0].trunk.model.objective == "one_vs_rest"
    tiny_sweep.write_text(tiny_sweep.read_text().replace("one_vs_rest", "softmax"))
    assert [run.run_id for run in resolve(load_sweep(tiny_sweep), corpus_hash="0" * 12)] == [run.run_id for run in plain]
