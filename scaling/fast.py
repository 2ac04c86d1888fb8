"""The same transformer, arranged for XLA on a CPU: feature-major activations (d, batch x time), and backward passes written out.

Why it exists: the ratios of benchmarks/train_step.py (LOG.md). Products with activations as (features, positions) keep all three matrix
products of a layer (forward, input gradient, weight gradient) in a layout that XLA's CPU products are fast in, and attention keeps
exp(scores) from the forward pass. The seam is two functions that take what `scaling.model.cross_entropy` takes: `mean_loss` and
`window_losses`; tests hold losses and gradients together.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scaling.config import ModelConfig
from scaling.parameters import EPSILON, rotary_tables

if TYPE_CHECKING:  # 60 ms of a worker's start
    from jaxtyping import Array, Float, Int

_pin = lax.optimization_barrier  # keeps XLA from fusing across it: what is behind it is computed once and stored
_ATTENTION_CHUNK = 64  # queries per chunk; keys beyond a chunk's last query are skipped (causal)


@jax.custom_vjp
def linear(weight: Float[Array, "o i"], x: Float[Array, "i n"]) -> Float[Array, "o n"]:
    """W x."""
    return weight @ x


def _linear_forward(weight, x):
    return weight @ x, (weight, x)


def _linear_backward(saved, gradient):
    weight, x = saved
    gradient = _pin(gradient)
    return lax.dot_general(gradient, x, (((1,), (1,)), ((), ()))), weight.T @ gradient


linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def rms_norm(x: Float[Array, "d n"]) -> Float[Array, "d n"]:
    """Divide by the root mean square over the features (first axis)."""
    return _rms_norm_forward(x)[0]


def _rms_norm_forward(x):
    scale = lax.rsqrt(jnp.mean(x * x, 0, keepdims=True) + EPSILON)
    return _pin(x * scale), (x, scale)


def _rms_norm_backward(saved, gradient):
    x, scale = saved
    normed = x * scale
    return (scale * (gradient - normed * jnp.mean(gradient * normed, 0, keepdims=True)),)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


@jax.custom_vjp
def squared_relu(x: Array) -> Array:
    """max(x, 0)^2."""
    return jnp.square(jnp.maximum(x, 0))


def _squared_relu_forward(x):
    positive = jnp.maximum(x, 0)
    return positive * positive, positive


squared_relu.defvjp(_squared_relu_forward, lambda positive, gradient: (2 * positive * gradient,))


def _chunks(length: int) -> list[tuple[int, int]]:
    size = _ATTENTION_CHUNK if length % _ATTENTION_CHUNK == 0 else length
    return [(start, start + size) for start in range(0, length, size)]


def _attention_forward(query, key, value):
    """Softmax(K^T Q) V per chunk of queries; scores are (keys, queries), exp(scores) is kept for the backward pass."""
    outputs, exponentials, scales = [], [], []
    for start, stop in _chunks(query.shape[-1]):
        visible = np.arange(stop)[:, None] <= np.arange(start, stop)[None, :]
        mask = np.where(visible, np.float32(0), np.float32(-1e30))[None, None]
        scores = jnp.einsum("bhcs,bhct->bhst", key[..., :stop], query[..., start:stop]) + mask
        exponential = _pin(jnp.exp(scores - jnp.max(scores, -2, keepdims=True)))
        scale = 1 / jnp.sum(exponential, -2, keepdims=True)
        outputs.append(jnp.einsum("bhcs,bhst->bhct", value[..., :stop], exponential) * scale)
        exponentials.append(exponential)
        scales.append(scale)
    output = jnp.concatenate(outputs, -1)
    return output, (query, key, value, exponentials, scales, output)


@jax.custom_vjp
def attention(query: Float[Array, "b h c t"], key: Float[Array, "b h c t"], value: Float[Array, "b h c t"]) -> Array:
    """Causal attention over (batch, heads, head_dim, time); the query is already scaled."""
    return _attention_forward(query, key, value)[0]


def _attention_backward(saved, gradient):
    query, key, value, exponentials, scales, output = saved
    length = query.shape[-1]
    query_gradients, key_gradient, value_gradient = [], jnp.zeros_like(key), jnp.zeros_like(value)
    for (start, stop), exponential, scale in zip(_chunks(length), exponentials, scales, strict=True):
        scaled = _pin(gradient[..., start:stop] * scale)
        centre = jnp.sum(scaled * output[..., start:stop], -2, keepdims=True)
        score_gradient = _pin(exponential * (jnp.einsum("bhcs,bhct->bhst", value[..., :stop], scaled) - centre))
        query_gradients.append(jnp.einsum("bhcs,bhst->bhct", key[..., :stop], score_gradient))
        pad = ((0, 0), (0, 0), (0, 0), (0, length - stop))
        key_gradient += jnp.pad(jnp.einsum("bhct,bhst->bhcs", query[..., start:stop], score_gradient), pad)
        value_gradient += jnp.pad(jnp.einsum("bhct,bhst->bhcs", scaled, exponential), pad)
    return jnp.concatenate(query_gradients, -1), key_gradient, value_gradient


attention.defvjp(_attention_forward, _attention_backward)


@jax.custom_vjp
def _mean_loss(logits: Float[Array, "v n"], targets: Int[Array, " n"]) -> Float[Array, ""]:
    return _mean_loss_forward(logits, targets)[0]


def _mean_loss_forward(logits, targets):
    highest = jnp.max(logits, 0, keepdims=True)
    exponential = _pin(jnp.exp(logits - highest))
    total = jnp.sum(exponential, 0, keepdims=True)
    chosen = jnp.take_along_axis(logits, targets[None], 0)
    return jnp.mean(jnp.log(total) + highest - chosen), (exponential, total, targets)


def _mean_loss_backward(saved, gradient):
    exponential, total, targets = saved
    vocab, n = exponential.shape
    one_hot = targets[None] == jnp.arange(vocab)[:, None]
    return exponential * (gradient / n / total) - jnp.where(one_hot, gradient / n, 0.0), None


_mean_loss.defvjp(_mean_loss_forward, _mean_loss_backward)


def _rotate(x: Float[Array, "b h c t"], cos: np.ndarray, sin: np.ndarray) -> Float[Array, "b h c t"]:
    half = x.shape[-2] // 2
    first, second = x[..., :half, :], x[..., half:, :]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -2)


def _head_norm(x: Float[Array, "b h c t"]) -> Float[Array, "b h c t"]:
    return x * lax.rsqrt(jnp.mean(x * x, -2, keepdims=True) + EPSILON)


@partial(jax.jit, static_argnames=("config", "batch"), inline=True)  # traced once, not once a layer; the program is the same
def _block(block: dict, x: Float[Array, "d n"], *, config: ModelConfig, batch: int) -> Float[Array, "d n"]:
    d, n = x.shape
    heads, head_dim, length = config.n_heads, d // config.n_heads, n // batch
    qkv = linear(block["query_key_value"], rms_norm(x)).reshape(3, heads, head_dim, batch, length)
    query, key, value = _pin(qkv.transpose(0, 3, 1, 2, 4))
    cos, sin = (table[None, None] for table in rotary_tables(head_dim, length, base=config.rope_base))
    gain = block["query_gain"][None, None, :, None] / np.float32(head_dim) ** 0.5
    query, key = _rotate(_head_norm(query) * gain, cos, sin), _rotate(_head_norm(key), cos, sin)
    mixed = attention(_pin(query), _pin(key), value)
    x = x + linear(block["output"], _pin(mixed.transpose(1, 2, 0, 3)).reshape(d, n))
    return x + linear(block["down"], squared_relu(linear(block["up"], rms_norm(x))))


def logits(config: ModelConfig, parameters: dict, tokens: Int[Array, "b t"]) -> Float[Array, "v n"]:
    """Logits, feature-major: (vocab, batch x time)."""
    x = rms_norm(_pin(parameters["embedding"][tokens].reshape(tokens.size, config.d_model)).T)
    for index in range(config.n_layers):
        x = _block(parameters["blocks"][index], x, config=config, batch=tokens.shape[0])
    return linear(parameters["head"], rms_norm(x))


def mean_loss(config: ModelConfig, parameters: dict, windows: Int[Array, "b t1"]) -> Float[Array, ""]:
    """Mean cross-entropy over all predicted tokens, nats; differentiable in `parameters`."""
    return _mean_loss(logits(config, parameters, windows[:, :-1]), windows[:, 1:].reshape(-1))


@partial(jax.jit, static_argnums=0)
def window_losses(config: ModelConfig, parameters: dict, windows: Int[Array, "k b t1"]) -> Float[Array, "k b"]:
    """Mean cross-entropy of each window, nats, forward only; k batches of b windows, one after the other."""

    def batch_losses(batch):
        scores, targets = logits(config, parameters, batch[:, :-1]), batch[:, 1:].reshape(-1)
        highest = jnp.max(scores, 0)
        log_total = jnp.log(jnp.sum(jnp.exp(scores - highest[None]), 0)) + highest
        losses = log_total - jnp.take_along_axis(scores, targets[None], 0)[0]
        return jnp.mean(losses.reshape(batch.shape[0], -1), 1)

    return lax.map(batch_losses, windows.astype(jnp.int32))
