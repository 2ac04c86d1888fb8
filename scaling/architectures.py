"""Which functions train and evaluate a model: those that ship with the project, or registered ones."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from scaling import accelerated, accounting, fast, model
from scaling.config import ModelConfig, Precision
from scaling.optimizer import GROUPS
from scaling.registry import MODELS, Architecture, architecture


def _counts(config: ModelConfig) -> tuple[int, int, int]:
    counted = accounting.count_parameters(config)
    return counted.embedding, counted.non_embedding, counted.unembedding


def _transformer(mean_loss: Callable, window_losses: Callable) -> Architecture:
    return Architecture(
        initial_parameters=model.initial_parameters,
        mean_loss=mean_loss,
        window_losses=window_losses,
        count_parameters=_counts,
        forward_flops_per_token=accounting.forward_flops_per_token,
        group_of=lambda name: GROUPS.get(name, "matrix"),
    )


_FAST = _transformer(fast.mean_loss, fast.window_losses)
_ACCELERATED = {
    name: _transformer(partial(accelerated.mean_loss, dtype=dtype), partial(accelerated.window_losses, dtype=dtype))
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16))
}


def architecture_of(config: ModelConfig, precision: Precision = "float32") -> Architecture:
    """Functions of a model by its kind, the precision of its products, and the device that JAX has."""
    if config.kind not in MODELS:
        return architecture(config.kind)
    if precision == "float32" and jax.default_backend() == "cpu":
        return _FAST
    return _ACCELERATED[precision]
