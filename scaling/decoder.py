"""One decoder for every family that is generated from, evaluated and exchanged: ours, Llama's and GPT-2's.

A `DecoderConfig` says which parts a model has; what is only a tensor (a gain, a bias, a norm of queries) is there when its tensor is.
`forward` serves a whole window and, with a cache of keys and values, one token more. Training uses `scaling.fast` for our own family; tests
hold both to the readable model.

Parameters: `embedding` (vocab, d), `position` (context, d; GPT-2), `norm` (d), `norm_bias`, `head` (vocab, d); in each of `blocks`:
`attention_norm`, `query` (heads x head_dim, d), `key`, `value` (kv_heads x head_dim, d), `query_norm`, `key_norm` (head_dim),
`output` (d, heads x head_dim), `mlp_norm`, `gate`, `up` (d_ff, d), `down` (d, d_ff), each with a `_bias` where the family has one.
Matrices are (out, in).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from msgspec import UNSET

from scaling.config import ModelConfig, Positive, Struct, UserError
from scaling.objective import normalised
from scaling.parameters import EPSILON

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

Family = Literal["transformer", "llama", "gpt2"]
Activation = Literal["relu2", "relu", "silu", "gelu", "gelu_tanh"]
Parameters = dict[str, Any]
Cache = dict[str, jax.Array]
"""Keys and values so far: `key` and `value`, each (layers, batch, kv_heads, room, head_dim)."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class DecoderConfig(Struct, frozen=True):
    """Shape and kind of parts; hashable, so that a program is compiled once for each.

    `normalised_sigmoids`: trained one-versus-rest, so probabilities are sigmoids that are normalised to sum to one (`scaling.objective`).
    """

    family: Family
    d_model: Positive
    n_layers: Positive
    n_heads: Positive
    n_kv_heads: Positive
    head_dim: Positive
    d_ff: Positive
    vocab_size: Positive
    context: Positive
    activation: Activation
    norm: Literal["rms", "layer"] = "rms"
    epsilon: float = EPSILON
    positions: Literal["rotary", "learned"] = "rotary"
    rope_base: float = 10_000.0
    normalised_sigmoids: bool = False


def decoder_config(model: ModelConfig) -> DecoderConfig:
    """The decoder of a trained model's shape.

    Raises
    ------
    UserError
        For a registered model: only its own module knows how it predicts.
    """
    parts: dict[str, dict[str, Any]] = {
        "transformer": {"activation": "relu2"},
        "llama": {"activation": "silu"},
        "gpt2": {"activation": "gelu_tanh", "norm": "layer", "epsilon": 1e-5, "positions": "learned"},
    }
    if model.kind not in parts:
        raise UserError(f"model.kind = `{model.kind}` cannot be generated from, evaluated or exported; kinds that can: {', '.join(parts)}")
    return DecoderConfig(
        family=model.kind,  # pyright: ignore[reportArgumentType]
        d_model=model.d_model,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_heads,
        head_dim=model.d_model // model.n_heads,
        d_ff=model.d_ff,
        vocab_size=model.vocab_size,
        context=model.sequence_length,
        rope_base=model.rope_base,
        normalised_sigmoids=model.objective is not UNSET,
        **parts[model.kind],
    )


def from_transformer(config: DecoderConfig, weights: Parameters) -> Parameters:
    """Parameters of `scaling.model.Transformer` as a decoder's, exactly: rows of the embedding are normed ahead, q, k and v split."""
    blocks = []
    for index in range(config.n_layers):
        block = weights["blocks"][index]
        query, key, value = jnp.split(block["query_key_value"], 3)
        blocks.append(
            {
                "query": query,
                "key": key,
                "value": value,
                "query_norm": block["query_gain"],
                "key_norm": jnp.ones_like(block["query_gain"]),
                **{name: block[name] for name in ("output", "up", "down")},
            }
        )
    return {"embedding": _rms(weights["embedding"], None, config.epsilon), "blocks": blocks, "head": weights["head"]}


def _rms(x: Float[Array, "... d"], gain: Array | None, epsilon: float) -> Float[Array, "... d"]:
    normed = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon)
    return normed if gain is None else normed * _last_axis(gain, x.ndim)


def _last_axis(vector: Float[Array, " d"], ndim: int) -> Array:
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


def _norm(config: DecoderConfig, parameters: Parameters, name: str, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    gain = parameters.get(name)
    if config.norm == "rms":
        return _rms(x, gain, config.epsilon)
    centred = x - jnp.mean(x, -1, keepdims=True)
    return _rms(centred, gain, config.epsilon) + _last_axis(parameters[f"{name}_bias"], 3)


def _linear(parameters: Parameters, name: str, x: Float[Array, "b t i"]) -> Float[Array, "b t o"]:
    product = x @ parameters[name].T
    bias = parameters.get(f"{name}_bias")
    return product if bias is None else product + _last_axis(bias, 3)


def _rotate(x: Float[Array, "b t h c"], places: Int[Array, "b t"], base: float) -> Float[Array, "b t h c"]:
    half = x.shape[-1] // 2
    frequencies = jnp.asarray(base ** (-np.arange(half) / half), jnp.float32)
    angles = places[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * jnp.cos(angles) - second * jnp.sin(angles), first * jnp.sin(angles) + second * jnp.cos(angles)], -1)


def _attention(config: DecoderConfig, block: Parameters, x: Array, places: Array, layer_cache: Cache | None) -> tuple[Array, Cache | None]:
    batch, length, _ = x.shape
    query = _linear(block, "query", x).reshape(batch, length, config.n_heads, config.head_dim)
    key = _linear(block, "key", x).reshape(batch, length, config.n_kv_heads, config.head_dim)
    value = _linear(block, "value", x).reshape(batch, length, config.n_kv_heads, config.head_dim)
    if "query_norm" in block:
        query, key = _rms(query, block["query_norm"], config.epsilon), _rms(key, block["key_norm"], config.epsilon)
    if config.positions == "rotary":
        query, key = _rotate(query, places, config.rope_base), _rotate(key, places, config.rope_base)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # (batch, kv_heads, time, head_dim)
    if layer_cache is None:
        key_places = places
    else:
        write = jax.vmap(lambda old, new, start: lax.dynamic_update_slice(old, new, (0, start, 0)))
        key, value = write(layer_cache["key"], key, places[:, 0]), write(layer_cache["value"], value, places[:, 0])
        layer_cache = {"key": key, "value": value}
        key_places = jnp.arange(key.shape[2])[None]
    grouped = query.reshape(batch, length, config.n_kv_heads, config.n_heads // config.n_kv_heads, config.head_dim)
    scores = jnp.einsum("btkgc,bksc->bkgts", grouped, key) / np.float32(config.head_dim) ** 0.5
    visible = key_places[:, None, :] <= places[:, :, None]
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf), -1)
    mixed = jnp.einsum("bkgts,bksc->btkgc", weights, value).reshape(batch, length, config.n_heads * config.head_dim)
    return _linear(block, "output", mixed), layer_cache


def _mlp(config: DecoderConfig, block: Parameters, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    act = ACTIVATIONS[config.activation]
    hidden = act(_linear(block, "gate", x)) * _linear(block, "up", x) if "gate" in block else act(_linear(block, "up", x))
    return _linear(block, "down", hidden)


def forward(
    config: DecoderConfig,
    parameters: Parameters,
    tokens: Int[Array, "b t"],
    *,
    start: Int[Array, " b"] | None = None,
    cache: Cache | None = None,
) -> tuple[Float[Array, "b t v"], Cache | None]:
    """Logits of the next token at every position, and the cache with these tokens in it.

    With a cache, `start` is the position of each row's first token; keys at later positions are never seen, so what lies there is
    overwritten unseen.
    """
    batch, length = tokens.shape
    places = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    if start is not None:
        places = places + start[:, None]
    x = parameters["embedding"][tokens]
    if config.positions == "learned":
        x = x + parameters["position"][places]
    layers = []
    for index in range(config.n_layers):
        block = parameters["blocks"][index]
        layer_cache = None if cache is None else {name: stored[index] for name, stored in cache.items()}
        attended, layer_cache = _attention(config, block, _norm(config, block, "attention_norm", x), places, layer_cache)
        x = x + attended
        x = x + _mlp(config, block, _norm(config, block, "mlp_norm", x))
        layers.append(layer_cache)
    logits = _norm(config, parameters, "norm", x) @ parameters["head"].T
    if config.normalised_sigmoids:
        logits = normalised(logits)
    return logits, None if cache is None else {name: jnp.stack([layer[name] for layer in layers]) for name in cache}


def empty_cache(config: DecoderConfig, batch: int, room: int) -> Cache:
    """A cache of zeros for so many rows and tokens."""
    shape = (config.n_layers, batch, config.n_kv_heads, room, config.head_dim)
    return {"key": jnp.zeros(shape, jnp.float32), "value": jnp.zeros(shape, jnp.float32)}


def count_parameters(parameters: Parameters) -> dict[str, int]:
    """Parameters by group, as runs.csv counts them; a tied head counts once, with the embedding."""
    tied = parameters["head"] is parameters["embedding"]
    embedding = sum(parameters[name].size for name in ("embedding", "position") if name in parameters)
    head = 0 if tied else parameters["head"].size
    rest = {name: value for name, value in parameters.items() if name not in ("embedding", "position", "head")}
    non_embedding = sum(leaf.size for leaf in jax.tree.leaves(rest))
    return {"params_non_embedding": non_embedding, "params_total": embedding + head + non_embedding}


@partial(jax.jit, static_argnums=0)
def token_losses(config: DecoderConfig, parameters: Parameters, windows: Int[Array, "b t1"]) -> tuple[Array, Array]:
    """Loss of each predicted token (batch, time), nats, and whether it was the likeliest."""
    logits, _ = forward(config, parameters, windows[:, :-1])
    targets = windows[:, 1:]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    return losses, jnp.argmax(logits, -1) == targets
