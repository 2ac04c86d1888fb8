"""The one-versus-rest objective: every token of the vocabulary is a yes-or-no question of its own (SCIENCE.md section 1).

With p_j = sigmoid(z_j) and one-hot targets y, the loss of a token is -sum_j [y_j log p_j + (1 - y_j) log(1 - p_j)]. For evaluation and
decoding the sigmoids are normalised to sum to one, which is a softmax of log sigmoid(z): held-out losses stay cross-entropies in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from scaling.config import ModelConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

Logits = Callable[[ModelConfig, dict, jax.Array], jax.Array]
"""(config, parameters, tokens (batch, time)) -> (batch x time, vocab)"""


def one_vs_rest(logits: Float[Array, "n v"], targets: Int[Array, " n"]) -> Float[Array, " n"]:
    """Loss of each token, nats: sum_j softplus(z_j) - z_target, which is the sum above.

    >>> [round(float(loss), 4) for loss in one_vs_rest(jnp.zeros((1, 4)), jnp.zeros(1, int))]  # four fair coins: 4 ln 2
    [2.7726]
    """
    return jnp.sum(jax.nn.softplus(logits), -1) - jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]


def normalised(logits: Float[Array, "... v"]) -> Float[Array, "... v"]:
    """Logits whose softmax is the sigmoids, normalised."""
    return jax.nn.log_sigmoid(logits)


def mean_loss(logits: Logits, config: ModelConfig, parameters: dict, windows: Int[Array, "b t1"]) -> Float[Array, ""]:
    """The objective over all predicted tokens, nats; differentiable in `parameters`."""
    return jnp.mean(one_vs_rest(logits(config, parameters, windows[:, :-1]), windows[:, 1:].reshape(-1)))


@partial(jax.jit, static_argnums=(0, 1))
def window_losses(logits: Logits, config: ModelConfig, parameters: dict, windows: Int[Array, "k b t1"]) -> Float[Array, "k b"]:
    """Mean cross-entropy of each window under the normalised sigmoids, nats."""

    def batch_losses(batch: Array) -> Array:
        log_p = jax.nn.log_softmax(normalised(logits(config, parameters, batch[:, :-1])))
        return -jnp.take_along_axis(log_p, batch[:, 1:].reshape(-1, 1), -1).reshape(batch.shape[0], -1).mean(1)

    return lax.map(batch_losses, windows.astype(jnp.int32))
