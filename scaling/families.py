"""Models of the Llama and GPT-2 kind that a sweep can train: `model.kind = "llama"` or `"gpt2"`, `training.optimizer = "adamw"`.

Llama (Touvron et al. 2023): RMSNorm with gains, rotary positions, gated SiLU MLP, no biases. GPT-2 (Radford et al. 2019): LayerNorm,
learned positions, GELU MLP, biases. Both with a head of their own (untied). They are registered like a user's model (`scaling.registry`),
compute with `scaling.decoder`, and are exported to Hugging Face as `LlamaForCausalLM` and `GPT2LMHeadModel`. Start: embedding of unit
variance, matrices of variance 1 / inputs, those that write into the residual stream zero, as in `scaling.parameters`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scaling.config import ModelConfig
from scaling.decoder import Parameters, decoder_config, forward
from scaling.registry import Architecture, register_model

POSITION_SCALE = 0.1
"""Standard deviation of GPT-2's positions at the start."""


def initial_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Parameters of `scaling.decoder`, jittable in `seed`."""
    d, f, vocab = config.d_model, config.d_ff, config.vocab_size
    embedding, position, *keys = jax.random.split(jax.random.key(seed), 2 + 5 * config.n_layers)

    def matrix(key: jax.Array, outputs: int, inputs: int) -> jax.Array:
        return jax.random.normal(key, (outputs, inputs)) / np.float32(inputs**0.5)

    def norm(name: str) -> dict[str, jax.Array]:
        return {name: jnp.ones(d)} | ({f"{name}_bias": jnp.zeros(d)} if config.kind == "gpt2" else {})

    blocks = []
    for layer in range(config.n_layers):
        query, key, value, up, gate = keys[5 * layer : 5 * layer + 5]
        block: dict[str, Any] = {**norm("attention_norm"), **norm("mlp_norm")}
        block |= {"query": matrix(query, d, d), "key": matrix(key, d, d), "value": matrix(value, d, d), "up": matrix(up, f, d)}
        block |= {"output": jnp.zeros((d, d)), "down": jnp.zeros((d, f))}
        if config.kind == "llama":
            block["gate"] = matrix(gate, f, d)
        else:
            sizes = {"query": d, "key": d, "value": d, "output": d, "up": f, "down": d}
            block |= {f"{name}_bias": jnp.zeros(size) for name, size in sizes.items()}
        blocks.append(block)
    parameters = {"embedding": jax.random.normal(embedding, (vocab, d)), **norm("norm"), "head": jnp.zeros((vocab, d)), "blocks": blocks}
    if config.kind == "gpt2":
        parameters["position"] = POSITION_SCALE * jax.random.normal(position, (config.sequence_length, d))
    return parameters


def window_losses(config: ModelConfig, parameters: Parameters, windows: jax.Array) -> jax.Array:
    """Mean cross-entropy of each window, nats: (k, b, t + 1) -> (k, b)."""
    return lax.map(lambda batch: _token_losses(config, parameters, batch).mean(1), windows)


def _token_losses(config: ModelConfig, parameters: Parameters, windows: jax.Array) -> jax.Array:
    windows = windows.astype(jnp.int32)
    logits, _ = forward(decoder_config(config), parameters, windows[:, :-1])
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), windows[:, 1:, None], -1)[..., 0]


def count_parameters(config: ModelConfig) -> tuple[int, int, int]:
    """(embedding, non-embedding, unembedding); GPT-2's positions count as embedding.

    Llama, per block 4 d^2 + 3 d d_ff + 2 d, and d for the last norm; GPT-2, per block 4 d^2 + 2 d d_ff + 9 d + d_ff, and 2 d.
    """
    d, f, table = config.d_model, config.d_ff, config.vocab_size * config.d_model
    if config.kind == "llama":
        return table, config.n_layers * (4 * d * d + 3 * d * f + 2 * d) + d, table
    return table + config.sequence_length * d, config.n_layers * (4 * d * d + 2 * d * f + 9 * d + f) + 2 * d, table


def forward_flops_per_token(config: ModelConfig) -> dict[str, int]:
    """FLOPs of one forward pass per token, by part (conventions of `scaling.accounting`)."""
    d, layers = config.d_model, config.n_layers
    return {
        "attention_projections": layers * 8 * d * d,
        "attention_scores": layers * 4 * d * config.sequence_length,
        "mlp": layers * (6 if config.kind == "llama" else 4) * d * config.d_ff,
        "head": 2 * d * config.vocab_size,
    }


MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


def group_of(name: str) -> str:
    """Rate group: matrices, the head, and everything else (gains, biases, positions) with the embedding."""
    return "matrix" if name in MATRICES else "head" if name == "head" else "embedding"


for _kind in ("llama", "gpt2"):
    register_model(
        _kind,
        Architecture(
            initial_parameters=initial_parameters,
            mean_loss=lambda config, parameters, windows: _token_losses(config, parameters, windows).mean(),
            window_losses=jax.jit(window_losses, static_argnums=0),
            count_parameters=count_parameters,
            forward_flops_per_token=forward_flops_per_token,
            group_of=group_of,
        ),
    )
