"""The same transformer for a GPU: row-major, products in bfloat16 (or float32), fused attention.

Parameters stay float32 (they are cast once a step); products take and give bfloat16 and accumulate in float32 inside; the residual
stream, the norms' means, the softmax and the loss are float32. The seam is that of `scaling.fast`: `mean_loss` and `window_losses`. On a
CPU the same code runs with XLA's own attention, which is how the tests hold it to the readable model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from scaling.config import ModelConfig
from scaling.parameters import EPSILON, rotary_tables

if TYPE_CHECKING:  # 60 ms of a worker's start
    from jaxtyping import Array, Float, Int


def _norm(x: Float[Array, "... d"], dtype: DTypeLike) -> Float[Array, "... d"]:
    """RMSNorm without a gain: means in float32, result in the dtype of products."""
    x = x.astype(jnp.float32)
    return (x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON)).astype(dtype)


def _rotate(x: Float[Array, "b t h c"], cos: np.ndarray, sin: np.ndarray) -> Float[Array, "b t h c"]:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


_again = partial(jax.checkpoint, prevent_cse=False)  # the backward pass computes element-wise work again instead of reading it from memory


@partial(_again, static_argnums=2)
def _normed_product(x: Float[Array, "b t d"], weight: Float[Array, "o d"], dtype: DTypeLike) -> Float[Array, "b t o"]:
    return _norm(x, dtype) @ weight.T


@partial(_again, static_argnums=(2, 3))
def _query_and_key(query_key: Float[Array, "b t 2 h c"], gain: Float[Array, " c"], base: float, dtype: DTypeLike) -> tuple[Array, Array]:
    """Normed, scaled and turned; for attention without a scale of its own."""
    length, head_dim = query_key.shape[1], query_key.shape[-1]
    cos, sin = (table.T[None, :, None] for table in rotary_tables(head_dim, length, base=base))
    query = _norm(query_key[:, :, 0], jnp.float32) * gain.astype(jnp.float32) / np.float32(head_dim) ** 0.5
    return _rotate(query, cos, sin).astype(dtype), _rotate(_norm(query_key[:, :, 1], jnp.float32), cos, sin).astype(dtype)


@_again
def _squared_relu_product(x: Float[Array, "b t f"], weight: Float[Array, "d f"]) -> Float[Array, "b t d"]:
    return jnp.square(jax.nn.relu(x)) @ weight.T


def _block(config: ModelConfig, x: Float[Array, "b t d"], block: dict, dtype: DTypeLike) -> Float[Array, "b t d"]:
    batch, length, d = x.shape
    heads, head_dim = config.n_heads, d // config.n_heads
    # apart from queries and keys, values lie as attention reads them
    of_query_key, of_value = jnp.split(block["query_key_value"], [2 * d])
    query_key = _normed_product(x, of_query_key, dtype).reshape(batch, length, 2, heads, head_dim)
    value = _normed_product(x, of_value, dtype).reshape(batch, length, heads, head_dim)
    query, key = _query_and_key(query_key, block["query_gain"], config.rope_base, dtype)
    fused = "cudnn" if jax.default_backend() == "gpu" and dtype == jnp.bfloat16 and head_dim % 8 == 0 else None
    mixed = jax.nn.dot_product_attention(query, key, value, scale=1.0, is_causal=True, implementation=fused)
    x = x + mixed.reshape(batch, length, d) @ block["output"].T
    return x + _squared_relu_product(_normed_product(x, block["up"], dtype), block["down"])


def _features(config: ModelConfig, parameters: dict, tokens: Int[Array, "b t"], dtype: DTypeLike) -> Float[Array, "b t d"]:
    """What the head reads."""
    x = _norm(parameters["embedding"][tokens], jnp.float32)
    for index in range(config.n_layers):
        x = _block(config, x, jax.tree.map(lambda leaf: leaf.astype(dtype), parameters["blocks"][index]), dtype)
    return _norm(x, dtype)


def logits(config: ModelConfig, parameters: dict, tokens: Int[Array, "b t"], dtype: DTypeLike) -> Float[Array, "b t v"]:
    """Logits, float32."""
    head = parameters["head"].T.astype(dtype)
    return jnp.matmul(_features(config, parameters, tokens, dtype), head, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _cross_entropy(x: Float[Array, "b t d"], head: Float[Array, "v d"], targets: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """Loss of each token from float32 logits; the gradient of the logits is rounded to the dtype of `x`.

    Without that the two products of the backward pass would take float32 logits, at the speed of float32.
    """
    return _cross_entropy_forward(x, head, targets)[0]


def _cross_entropy_forward(x, head, targets):
    scores = jnp.matmul(x, head.T, preferred_element_type=jnp.float32)
    normaliser = jax.nn.logsumexp(scores, axis=-1)
    chosen = jnp.sum(jnp.where(_is_target(targets, head), scores, 0.0), -1)  # a gather's backward pass is a slow scatter
    return normaliser - chosen, (x, head, targets, scores, normaliser)


def _cross_entropy_backward(saved, gradient):
    x, head, targets, scores, normaliser = saved
    of_scores = ((jnp.exp(scores - normaliser[..., None]) - _is_target(targets, head)) * gradient[..., None]).astype(x.dtype)
    return of_scores @ head, jnp.einsum("btv,btd->vd", of_scores, x), None


def _is_target(targets: Int[Array, "b t"], head: Float[Array, "v d"]) -> Array:
    return targets[..., None] == jnp.arange(len(head))


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _token_losses(config: ModelConfig, parameters: dict, windows: Int[Array, "b t1"], dtype: DTypeLike) -> Float[Array, "b t"]:
    return _cross_entropy(_features(config, parameters, windows[:, :-1], dtype), parameters["head"].astype(dtype), windows[:, 1:])


def mean_loss(config: ModelConfig, parameters: dict, windows: Int[Array, "b t1"], *, dtype: DTypeLike) -> Float[Array, ""]:
    """Mean cross-entropy over all predicted tokens, nats; differentiable in `parameters`."""
    return jnp.mean(_token_losses(config, parameters, windows, dtype))


@partial(jax.jit, static_argnums=0, static_argnames="dtype")
def window_losses(config: ModelConfig, parameters: dict, windows: Int[Array, "k b t1"], *, dtype: DTypeLike) -> Float[Array, "k b"]:
    """Mean cross-entropy of each window, nats, forward only; k batches of b windows, one after the other."""
    return lax.map(lambda batch: jnp.mean(_token_losses(config, parameters, batch, dtype), 1), windows.astype(jnp.int32))
