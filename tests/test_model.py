from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling import fast, model
from scaling.accounting import count_parameters, forward_flops_per_token, training_flops_per_token
from scaling.config import ModelConfig, OptimizerConfig
from scaling.optimizer import NEWTON_SCHULZ, make_optimizer, orthogonalize, rate_multiplier
from scaling.parameters import initial_parameters

SHAPES = [
    ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=64, vocab_size=256, sequence_length=128),
    ModelConfig(d_model=24, n_layers=2, n_heads=3, d_ff=40, vocab_size=64, sequence_length=48),
]


def random_parameters(config, seed=0):
    """Parameters away from the (partly zero) start, so that every path carries gradient."""
    parameters = initial_parameters(config, seed)
    leaves, tree = jax.tree.flatten(parameters)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.mark.parametrize("config", SHAPES)
def test_fast_model_agrees_with_the_readable_one(config):
    parameters = random_parameters(config)
    windows = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (3, config.sequence_length + 1)), jnp.int32)

    def reference(p):
        return model.cross_entropy(config, p, windows).mean()

    loss, gradients = jax.jit(jax.value_and_grad(reference))(parameters)
    fast_loss, fast_gradients = jax.jit(jax.value_and_grad(lambda p: fast.mean_loss(config, p, windows)))(parameters)
    np.testing.assert_allclose(fast_loss, loss, rtol=2e-6)
    for expected, found in zip(jax.tree.leaves(gradients), jax.tree.leaves(fast_gradients), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-6)
    per_window = fast.window_losses(config, parameters, windows[None])[0]
    np.testing.assert_allclose(per_window, jax.jit(partial(model.cross_entropy, config))(parameters, windows).mean(1), rtol=2e-6)


def test_loss_at_the_start_is_that_of_a_uniform_guess():
    config = SHAPES[0]
    windows = jnp.zeros((2, config.sequence_length + 1), jnp.int32)
    assert float(jax.jit(partial(fast.mean_loss, config))(initial_parameters(config, 0), windows)) == pytest.approx(np.log(256), rel=1e-6)


def test_no_token_sees_its_future():
    config = SHAPES[0]
    parameters = random_parameters(config)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 256, (1, 128)), jnp.int32)
    changed = tokens.at[0, 70].set((tokens[0, 70] + 1) % 256)
    logits = jax.jit(partial(model.apply, config))
    before, after = logits(parameters, tokens), logits(parameters, changed)
    np.testing.assert_array_equal(before[0, :70], after[0, :70])
    assert not np.array_equal(before[0, 70:], after[0, 70:])


@pytest.mark.parametrize("config", SHAPES)
def test_parameters_are_those_of_the_model_and_of_hand_arithmetic(config):
    parameters = initial_parameters(config, 0)
    counted = count_parameters(config)
    assert counted.embedding == parameters["embedding"].size
    assert counted.unembedding == parameters["head"].size
    assert counted.non_embedding == sum(leaf.size for leaf in jax.tree.leaves(parameters["blocks"]))
    assert counted.total == sum(leaf.size for leaf in jax.tree.leaves(parameters))


def test_parameters_by_hand():
    # width 64, 3 layers, 4 heads: 3 x (12 x 64^2 + 16) = 147,504; tables 256 x 64 = 16,384 each
    config = ModelConfig(d_model=64, n_layers=3, n_heads=4, d_ff=256, vocab_size=256, sequence_length=128)
    counted = count_parameters(config)
    assert (counted.embedding, counted.non_embedding, counted.unembedding) == (16_384, 147_504, 16_384)


def test_flops_agree_with_the_compiler():
    config = ModelConfig(d_model=64, n_layers=2, n_heads=4, d_ff=256, vocab_size=256, sequence_length=128)
    parameters = initial_parameters(config, 0)
    tokens = jnp.zeros((4, 128), jnp.int32)
    analysis = jax.jit(lambda p, t: model.apply(config, p, t)).lower(parameters, tokens).compile().cost_analysis()
    ours = sum(forward_flops_per_token(config).values()) * tokens.size
    assert ours <= analysis["flops"] <= 1.06 * ours  # the compiler also counts element-wise work
    windows = jnp.zeros((4, 129), jnp.int32)
    gradient = jax.jit(jax.grad(lambda p, w: model.cross_entropy(config, p, w).mean()))
    training = gradient.lower(parameters, windows).compile().cost_analysis()
    ours = training_flops_per_token(config) * tokens.size
    assert ours <= training["flops"] <= 1.1 * ours


@pytest.mark.parametrize("width", [8, 24, 96, 128])
def test_start_is_drawn_as_jax_draws_normal_numbers_from_flax_keys(width):
    """To the last bit, below and beyond the numbers of one program."""
    config = ModelConfig(d_model=width, n_layers=2, n_heads=1, d_ff=4 * width, vocab_size=256, sequence_length=16)
    drawn, keys = initial_parameters(config, 3), nnx.Rngs(jax.random.key(3))
    blocks = [(block[name], width**0.5) for block in drawn["blocks"].values() for name in ("query_key_value", "up")]
    for matrix, scale in [(drawn["embedding"], 1.0), *blocks]:
        expected = jax.jit(lambda key, shape=matrix.shape, scale=scale: jax.random.normal(key, shape) / np.float32(scale))(keys())
        np.testing.assert_array_equal(matrix, expected)


def test_newton_schulz_maps_singular_values_by_its_polynomial_and_keeps_the_vectors():
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 16, 48)), np.float64)
    u, singular, vt = np.linalg.svd(x, full_matrices=False)
    singular = singular / np.linalg.norm(singular, axis=1, keepdims=True)
    for a, b, c in NEWTON_SCHULZ:
        singular = a * singular + b * singular**3 + c * singular**5
    np.testing.assert_allclose(orthogonalize(jnp.asarray(x, jnp.float32)), (u * singular[:, None, :]) @ vt, atol=2e-5)
    assert singular.max() < 1.3 and np.median(singular) > 0.7


def test_first_adam_direction_is_the_sign_of_the_gradient():
    config = SHAPES[1]
    rates = {"learning_rate": 1.0, "embedding_learning_rate": 1.0, "head_learning_rate": 1.0, "weight_decay": 0.0}
    transform = make_optimizer(OptimizerConfig(momentum=0.9, beta1=0.9, beta2=0.99, **rates))
    parameters = random_parameters(config)
    gradients = random_parameters(config, 5)
    directions, _ = jax.jit(lambda g, p: transform.update(g, transform.init(p), p))(gradients, parameters)
    np.testing.assert_allclose(directions["head"], np.sign(gradients["head"]), atol=1e-4)
    assert np.linalg.norm(directions["blocks"][0]["output"]) == pytest.approx(24**0.5, rel=0.2)


def test_rate_multiplier_at_its_corners():
    common = {"batch_tokens": 512.0, "warmup_steps": 50.0, "decay_power": 0.3, "decay_from_tokens": 512_000.0}
    trunk = {**common, "cooldown_start": 1e9, "cooldown_end": 2e9}
    assert float(rate_multiplier(0.0, **trunk)) == pytest.approx(1 / 50)
    assert float(rate_multiplier(49.0, **trunk)) == pytest.approx(1)
    assert float(rate_multiplier(999.0, **trunk)) == pytest.approx(1)  # 0.512M tokens
    assert float(rate_multiplier(7999.0, **trunk)) == pytest.approx(8**-0.3)
    branch = {**common, "cooldown_start": 800.0, "cooldown_end": 1000.0}
    assert float(rate_multiplier(799.0, **branch)) == pytest.approx(1)
    assert 0 < float(rate_multiplier(999.0, **branch)) < 0.01
