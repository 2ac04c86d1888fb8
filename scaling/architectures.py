"""Which functions train and evaluate a model: those that ship with the project, or registered ones."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from msgspec import UNSET

from scaling import accelerated, accounting, fast, objective
from scaling.config import ModelConfig, Precision
from scaling.optimizer import GROUPS
from scaling.parameters import initial_parameters
from scaling.registry import MODELS, Architecture, architecture


def _counts(config: ModelConfig) -> tuple[int, int, int]:
    counted = accounting.count_parameters(config)
    return counted.embedding, counted.non_embedding, counted.unembedding


def _transformer(mean_loss: Callable, window_losses: Callable) -> Architecture:
    return Architecture(
        initial_parameters=initial_parameters,
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


def _fast_rows(config: ModelConfig, parameters: dict, tokens: jax.Array) -> jax.Array:
    return fast.logits(config, parameters, tokens).T


def _accelerated_rows(dtype: jnp.dtype, config: ModelConfig, parameters: dict, tokens: jax.Array) -> jax.Array:
    return accelerated.logits(config, parameters, tokens, dtype).reshape(-1, config.vocab_size)


def _one_vs_rest(logits: objective.Logits) -> Architecture:
    return _transformer(partial(objective.mean_loss, logits), partial(objective.window_losses, logits))


_ONE_VS_REST = {
    "cpu": _one_vs_rest(_fast_rows),
    **{name: _one_vs_rest(partial(_accelerated_rows, jnp.dtype(name))) for name in ("float32", "bfloat16")},
}


def architecture_of(config: ModelConfig, precision: Precision = "float32") -> Architecture:
    """Functions of a model by its kind, the precision of its products, and the device that JAX has."""
    if config.kind not in MODELS:
        return architecture(config.kind)
    on_cpu = precision == "float32" and jax.default_backend() == "cpu"
    if config.objective is not UNSET:
        return _ONE_VS_REST["cpu" if on_cpu else precision]
    return _FAST if on_cpu else _ACCELERATED[precision]
