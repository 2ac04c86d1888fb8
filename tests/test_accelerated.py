"""The GPU's model on this device: float32 products equal the readable model to rounding, bfloat16 ones to theirs; populations; precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import accelerated, model
from scaling.architectures import architecture_of
from scaling.config import ModelConfig, OptimizerConfig
from scaling.parameters import initial_parameters
from scaling.program import LOG_EVERY, Resident, program

CONFIG = ModelConfig(d_model=32, n_layers=2, n_heads=4, d_ff=128, vocab_size=300, sequence_length=32)
OPTIMIZER = OptimizerConfig(
    learning_rate=0, embedding_learning_rate=0, head_learning_rate=0, momentum=0.85, beta1=0.9, beta2=0.99, weight_decay=0
)
SCHEDULE = {
    "batch_tokens": 128,
    "warmup_steps": 2,
    "decay_power": 0.3,
    "decay_from_tokens": 5e5,
    "cooldown_start": 1e9,
    "cooldown_end": 2e9,
}


def _perturbed(seed: int = 0) -> tuple[dict, jax.Array]:
    """Parameters away from the zeros of the start, and windows."""
    rng = np.random.default_rng(seed)
    parameters = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32)), initial_parameters(CONFIG, seed)
    )
    return parameters, jnp.asarray(rng.integers(0, CONFIG.vocab_size, (4, CONFIG.sequence_length + 1)), jnp.int32)


@pytest.mark.parametrize(("dtype", "loss_error", "gradient_error"), [(jnp.float32, 1e-6, 3e-6), (jnp.bfloat16, 1e-3, 0.05)])
def test_loss_and_gradients_are_those_of_the_readable_model(dtype, loss_error: float, gradient_error: float) -> None:
    parameters, windows = _perturbed()
    expected, wanted = jax.value_and_grad(lambda p: model.cross_entropy(CONFIG, p, windows).mean())(parameters)
    loss, gradients = jax.value_and_grad(lambda p: accelerated.mean_loss(CONFIG, p, windows, dtype=dtype))(parameters)
    assert float(loss) == pytest.approx(float(expected), rel=loss_error)
    for gradient, reference in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert gradient.dtype == jnp.float32
        assert float(jnp.linalg.norm(gradient - reference)) < gradient_error * float(jnp.linalg.norm(reference))
    each = accelerated.window_losses(CONFIG, parameters, windows[None].astype(jnp.uint16), dtype=dtype)
    assert np.asarray(each)[0] == pytest.approx(np.asarray(model.cross_entropy(CONFIG, parameters, windows).mean(1)), rel=loss_error)


def test_precision_chooses_the_functions() -> None:
    assert architecture_of(CONFIG).mean_loss is not architecture_of(CONFIG, "bfloat16").mean_loss


def _members(count: int, rates: list[float]) -> tuple:
    compiled = program(CONFIG, OPTIMIZER, "bfloat16")
    windows = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (count, LOG_EVERY, 4, CONFIG.sequence_length + 1)).astype(np.uint16)
    rate = [{"matrix": r, "embedding": 2 * r, "head": r, "weight_decay": 0.0} for r in rates]
    return compiled, windows, [{name: np.float32(value) for name, value in member.items()} for member in rate]


def test_a_population_trains_like_its_members_and_a_diverging_one_harms_no_other() -> None:
    steps, schedule = 12, {name: np.float32(value) for name, value in SCHEDULE.items()}
    compiled, windows, rates = _members(3, [0.02, np.nan, 0.005])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(compiled.start(seed) for seed in range(3)))
    members = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *rates), jax.tree.map(lambda leaf: jnp.full(3, leaf), schedule)]
    _, together, _ = compiled.advance_population(stacked, np.zeros(3, np.int32), np.full(3, steps), windows, *members)
    for member in (0, 2):
        _, alone, _ = compiled.advance(compiled.start(member), 0, steps, windows[member], rates[member], schedule)
        assert np.isfinite(np.asarray(together)[member, :steps]).all()
        assert np.asarray(together)[member, :steps] == pytest.approx(np.asarray(alone)[:steps], rel=2e-3)
    assert not np.isfinite(np.asarray(together)[1, 1:steps]).any()


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    """Within float32 rounding: the same steps in 1, 2 and 4 parts."""
    _, windows, rates = _members(1, [0.02])
    schedule = {name: np.float32(value) for name, value in SCHEDULE.items()}
    losses = []
    for parts in (1, 2, 4):
        compiled = program(CONFIG, OPTIMIZER, "float32", parts)
        losses.append(np.asarray(compiled.advance(compiled.start(0), 0, 8, windows[0], rates[0], schedule)[1])[:8])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_text_on_the_device_gives_the_same_steps_as_windows() -> None:
    rng, length = np.random.default_rng(2), CONFIG.sequence_length
    tokens = rng.integers(0, CONFIG.vocab_size, 5000).astype(np.uint16)
    starts = rng.integers(0, len(tokens) - length - 1, (LOG_EVERY, 4)).astype(np.int32)
    windows = tokens[starts[..., None] + np.arange(length + 1)]
    compiled, (_, _, rates) = program(CONFIG, OPTIMIZER, "bfloat16"), _members(1, [0.02])
    schedule = {name: np.float32(value) for name, value in SCHEDULE.items()}
    _, expected, _ = compiled.advance(compiled.start(0), 0, 5, windows, rates[0], schedule)
    _, found, _ = compiled.advance(compiled.start(0), 0, 5, Resident(jnp.asarray(tokens), starts), rates[0], schedule)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
