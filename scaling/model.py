"""The decoder-only transformer, readable: Flax NNX, row-major. The oracle that `scaling.fast` is checked against.

Pre-norm blocks with gainless RMSNorm (also on the embeddings), causal attention with rotary positions (Su et al. 2021) and QK-norm with
a learned gain on the query (Henry et al. 2020), ReLU^2 MLP (So et al. 2021), untied head. Matrices are stored (out, in).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scaling.config import ModelConfig
from scaling.parameters import EPSILON, rotary_tables

if TYPE_CHECKING:  # 60 ms of a worker's start
    from jaxtyping import Array, Float, Int


def rms_norm(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Divide by the root mean square over the last axis (Zhang & Sennrich 2019), without a gain."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON)


def _rotate(x: Float[Array, "b h t c"], cos: np.ndarray, sin: np.ndarray) -> Float[Array, "b h t c"]:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos.T - second * sin.T, first * sin.T + second * cos.T], -1)


class Block(nnx.Module):
    """Attention and MLP with residual connections."""

    def __init__(self, config: ModelConfig, parameters: dict):
        self.config = config
        self.query_key_value = nnx.Param(parameters["query_key_value"])
        self.query_gain = nnx.Param(parameters["query_gain"])
        self.output = nnx.Param(parameters["output"])
        self.up = nnx.Param(parameters["up"])
        self.down = nnx.Param(parameters["down"])

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
    """Tokens (batch, time) -> logits (batch, time, vocab), with the given parameters (`scaling.parameters`)."""

    def __init__(self, config: ModelConfig, parameters: dict):
        self.embedding = nnx.Param(parameters["embedding"])
        self.blocks = nnx.List([Block(config, parameters["blocks"][index]) for index in range(config.n_layers)])
        self.head = nnx.Param(parameters["head"])

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t v"]:
        """Logits of the next token at every position."""
        x = rms_norm(self.embedding[...][tokens])
        for block in self.blocks:
            x = block(x)
        return rms_norm(x) @ self.head[...].T


def apply(config: ModelConfig, parameters: dict, tokens: Int[Array, "b t"]) -> Float[Array, "b t v"]:
    """Logits of the reference model with the given parameters."""
    return Transformer(config, parameters)(tokens)


def cross_entropy(config: ModelConfig, parameters: dict, windows: Int[Array, "b t1"]) -> Float[Array, "b t"]:
    """Loss of each predicted token, nats: -log softmax(logits)[next token]; windows carry one token more than the context."""
    log_probability = jax.nn.log_softmax(apply(config, parameters, windows[:, :-1]))
    return -jnp.take_along_axis(log_probability, windows[:, 1:, None], -1)[..., 0]
