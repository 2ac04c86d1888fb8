"""The decoder-only transformer, readable: Flax NNX, row-major. The oracle that `scaling.fast` is checked against.

Pre-norm blocks with gainless RMSNorm (also on the embeddings), causal attention with rotary positions (Su et al. 2021) and QK-norm with
a learned gain on the query (Henry et al. 2020), ReLU^2 MLP (So et al. 2021), untied head. Matrices are stored (out, in).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scaling.config import ModelConfig

if TYPE_CHECKING:  # 60 ms of a worker's start
    from jaxtyping import Array, Float, Int

EPSILON = 1e-6
QUERY_GAIN = 1.5


def rms_norm(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Divide by the root mean square over the last axis (Zhang & Sennrich 2019), without a gain."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON)


def rotary_tables(head_dim: int, length: int, *, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, each (head_dim / 2, length) float32, of position x base^(-i / (head_dim / 2))."""
    half = head_dim // 2
    angles = np.outer(base ** (-np.arange(half) / half), np.arange(length))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotate(x: Float[Array, "b h t c"], cos: np.ndarray, sin: np.ndarray) -> Float[Array, "b h t c"]:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos.T - second * sin.T, first * sin.T + second * cos.T], -1)


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


class Block(nnx.Module):
    """Attention and MLP with residual connections; the matrices that write into the residual stream start at zero."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        d, f = config.d_model, config.d_ff
        self.config = config
        self.query_key_value = nnx.Param(_normal(rngs(), shape=(3 * d, d), scale=d**0.5))
        self.query_gain = nnx.Param(np.full((d // config.n_heads,), QUERY_GAIN, np.float32))
        self.output = nnx.Param(np.zeros((d, d), np.float32))
        self.up = nnx.Param(_normal(rngs(), shape=(f, d), scale=d**0.5))
        self.down = nnx.Param(np.zeros((d, f), np.float32))

    def attention(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Causal self-attention."""
        batch, length, d = x.shape
        heads, head_dim = self.config.n_heads, d // self.config.n_heads
        qkv = (x @ self.query_key_value[...].T).reshape(batch, length, 3, heads, head_dim)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)
        cos, sin = rotary_tables(head_dim, length, base=self.config.rope_base)
        query = _rotate(rms_norm(query) * self.query_gain[...][None, None, None, :] / np.float32(head_dim) ** 0.5, cos, sin)
        key = _rotate(rms_norm(key), cos, sin)
        scores = jnp.einsum("bhtc,bhsc->bhts", query, key)
        causal = np.tril(np.ones((length, length), bool))[None, None]
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), -1)
        mixed = jnp.einsum("bhts,bhsc->bhtc", weights, value).transpose(0, 2, 1, 3).reshape(batch, length, d)
        return mixed @ self.output[...].T

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Residual stream in, residual stream out."""
        x = x + self.attention(rms_norm(x))
        return x + jnp.square(jax.nn.relu(rms_norm(x) @ self.up[...].T)) @ self.down[...].T


class Transformer(nnx.Module):
    """Tokens (batch, time) -> logits (batch, time, vocab)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(_normal(rngs(), shape=(config.vocab_size, config.d_model), scale=1.0))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layers)])
        self.head = nnx.Param(np.zeros((config.vocab_size, config.d_model), np.float32))

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t v"]:
        """Logits of the next token at every position."""
        x = rms_norm(self.embedding[...][tokens])
        for block in self.blocks:
            x = block(x)
        return rms_norm(x) @ self.head[...].T


def initial_parameters(config: ModelConfig, seed: int) -> dict:
    """Parameters as a plain nested dict (the form that training, checkpoints and `scaling.fast` use)."""
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(jax.random.key(seed))), nnx.Param))


def apply(config: ModelConfig, parameters: dict, tokens: Int[Array, "b t"]) -> Float[Array, "b t v"]:
    """Logits of the reference model with the given parameters."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, parameters)
    return nnx.merge(graph, state)(tokens)


def cross_entropy(config: ModelConfig, parameters: dict, windows: Int[Array, "b t1"]) -> Float[Array, "b t"]:
    """Loss of each predicted token, nats: -log softmax(logits)[next token]; windows carry one token more than the context."""
    log_probability = jax.nn.log_softmax(apply(config, parameters, windows[:, :-1]))
    return -jnp.take_along_axis(log_probability, windows[:, 1:, None], -1)[..., 0]
