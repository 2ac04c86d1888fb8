"""Parameters of the transformer as they are drawn, and what its arrangements (`model`, `fast`, `accelerated`, `decoder`) share.

Apart from the Flax model: importing Flax would take a third of a second of a worker's start.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from scaling.config import ModelConfig

if TYPE_CHECKING:  # 60 ms of a worker's start
    from jaxtyping import Array, Float

EPSILON = 1e-6
QUERY_GAIN = 1.5


def rotary_tables(head_dim: int, length: int, *, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, each (head_dim / 2, length) float32, of position x base^(-i / (head_dim / 2))."""
    half = head_dim // 2
    angles = np.outer(base ** (-np.arange(half) / half), np.arange(length))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@partial(jax.jit, static_argnames="count")
def _drawn(key: Array, *, count: int) -> Float[Array, " count"]:
    """Normal numbers over sqrt(2), by the formula of `jax.random.normal`; each depends on key and place alone, not on `count`."""
    uniform = jax.random.uniform(key, (count,), minval=np.nextafter(np.float32(-1), np.float32(0)), maxval=1)
    return jax.lax.erf_inv(uniform)


@partial(jax.jit, static_argnames=("shape", "scale"))
def _matrix(drawn: Float[Array, " count"], *, shape: tuple[int, int], scale: float) -> Float[Array, "o i"]:
    return np.float32(2**0.5) * drawn[: shape[0] * shape[1]].reshape(shape) / np.float32(scale)


def _normal(key: Array, *, shape: tuple[int, int], scale: float) -> Float[Array, "o i"]:
    """Normal numbers over `scale`, the first of 4^k: one compiled program (a quarter of a second) serves all shapes of about a size."""
    count = 4**7
    while count < shape[0] * shape[1]:
        count *= 4
    return _matrix(_drawn(key, count=count), shape=shape, scale=scale)


def initial_parameters(config: ModelConfig, seed: int) -> dict:
    """A plain nested dict: the form that training, checkpoints and all arrangements use.

    The n-th matrix that is drawn has the key `fold_in(key(seed), n)`; matrices that write into the residual stream, and the head, are zero.
    """
    key, d, f = jax.random.key(seed), config.d_model, config.d_ff

    def matrix(number: int, *, shape: tuple[int, int], scale: float) -> Float[Array, "o i"]:
        return _normal(jax.random.fold_in(key, np.uint32(number)), shape=shape, scale=scale)

    def block(index: int) -> dict:
        return {
            "query_key_value": matrix(2 * index + 1, shape=(3 * d, d), scale=d**0.5),
            "query_gain": np.full((d // config.n_heads,), QUERY_GAIN, np.float32),
            "output": np.zeros((d, d), np.float32),
            "up": matrix(2 * index + 2, shape=(f, d), scale=d**0.5),
            "down": np.zeros((d, f), np.float32),
        }

    return {
        "embedding": matrix(0, shape=(config.vocab_size, d), scale=1.0),
        "blocks": {index: block(index) for index in range(config.n_layers)},
        "head": np.zeros((config.vocab_size, d), np.float32),
    }
