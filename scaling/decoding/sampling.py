"""Which next tokens are allowed, and with which probability: temperature, top-k, top-p, min-p."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from scaling.config import NonNegative, Positive, Struct, UserError

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray


class Sampling(Struct, frozen=True):
    """Filters in the order in which they are applied; each works on what the one before left, renormalised. Off by default.

    `temperature`: logits are divided by it. `top_k`: the k likeliest tokens (ties stay). `top_p`: the smallest set of likeliest tokens that
    holds at least this probability (Holtzman et al. 2020). `min_p`: tokens at least this likely relative to the likeliest one (Nguyen
    et al. 2024).
    """

    temperature: float = 1.0
    top_k: Positive | None = None
    top_p: float = 1.0
    min_p: NonNegative = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no filter.

        Raises
        ------
        UserError
            One line: the setting, its value, what is allowed.
        """
        if not 0 < self.temperature < 1e6:
            raise UserError(f"temperature = {self.temperature:g} is not positive; use a number such as 0.8, or the strategy greedy")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k = {self.top_k} keeps no token; use a whole number from 1")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p = {self.top_p:g} is no probability to keep; use a number above 0 and up to 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min-p = {self.min_p:g} is no share of the largest probability; use a number from 0 to 1")


def filtered(logits: Float[Array, "b v"], *, temperature: Array, top_k: Array, top_p: Array, min_p: Array) -> Float[Array, "b v"]:
    """Log-probabilities after all filters, -inf where a token is out; settings are arrays, so that one program serves all values."""
    logits = logits / temperature
    ordered = jnp.sort(logits, -1)[:, ::-1]
    kth = jnp.take_along_axis(ordered, jnp.broadcast_to(top_k - 1, (logits.shape[0], 1)), -1)
    logits = jnp.where(logits < kth, -jnp.inf, logits)
    descending = jax.nn.softmax(jnp.where(ordered < kth, -jnp.inf, ordered), -1)
    before = jnp.cumsum(descending, -1) - descending  # probability of all likelier tokens: a token stays while it is below top_p
    last = jnp.sum(jnp.where(before < top_p, 1, 0), -1, keepdims=True) - 1
    logits = jnp.where(logits < jnp.take_along_axis(ordered, jnp.maximum(last, 0), -1), -jnp.inf, logits)
    highest = jnp.max(logits, -1, keepdims=True)
    return jax.nn.log_softmax(jnp.where(logits - highest < jnp.log(min_p), -jnp.inf, logits), -1)


def settings(sampling: Sampling, vocab_size: int) -> dict[str, Array]:
    """The filters as arguments of `filtered`."""
    return {
        "temperature": jnp.float32(sampling.temperature),
        "top_k": jnp.int32(min(sampling.top_k or vocab_size, vocab_size)),
        "top_p": jnp.float32(sampling.top_p),
        "min_p": jnp.float32(sampling.min_p),
    }


@jax.jit
def draw(
    key: PRNGKeyArray, rows: Int[Array, " b"], step: Array, logits: Float[Array, "b v"], filters: dict[str, Array]
) -> Int[Array, " b"]:
    """A token of each row. Its chance depends on seed, row and step only, so that a row draws the same in any batch."""
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), step))(rows)
    return jax.vmap(jax.random.categorical)(keys, filtered(logits, **filters))
