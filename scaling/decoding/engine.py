"""A batch of sequences that grow by one token at a time: keys and values are kept, programs are compiled once a shape."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import UserError
from scaling.decoder import Cache, DecoderConfig, Parameters, empty_cache, forward

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

ROOM_STEP = 128
"""The cache has room for a multiple of so many tokens (at most the context), so that few shapes are compiled."""


@partial(jax.jit, static_argnums=0)
def _prefill(
    config: DecoderConfig, parameters: Parameters, tokens: Int[Array, "b t"], lengths: Int[Array, " b"]
) -> tuple[Float[Array, "b v"], Cache]:
    """Read rows of different lengths, padded behind to the length of the cache; logits after each row's last token."""
    logits, cache = forward(config, parameters, tokens, start=jnp.zeros_like(lengths), cache=empty_cache(config, *tokens.shape))
    assert cache is not None
    return jnp.take_along_axis(logits, (lengths - 1)[:, None, None], 1)[:, 0], cache


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(
    config: DecoderConfig, parameters: Parameters, cache: Cache, tokens: Int[Array, " b"], start: Int[Array, " b"]
) -> tuple[Float[Array, "b v"], Cache]:
    logits, cache = forward(config, parameters, tokens[:, None], start=start, cache=cache)  # pyright: ignore[reportAssignmentType]
    return logits[:, 0], cache


class Engine:
    """Sequences of a batch, with the logits of what comes next.

    A row that has filled the context goes on from its last half (all rows are read again): each token is predicted from at least half a
    context, and from all of the text while that fits.

    Attributes
    ----------
    logits : (batch, vocab) float32
    lengths : (batch,) tokens in view, of each row
    """

    def __init__(self, config: DecoderConfig, parameters: Parameters, prompts: Sequence[Sequence[int]], *, new_tokens: int):
        for prompt in prompts:
            if len(prompt) > config.context:
                raise UserError(
                    f"the prompt has {len(prompt)} tokens, the model's context {config.context}; keep its last {config.context} tokens"
                )
        self.config, self.parameters = config, parameters
        needed = max(len(prompt) for prompt in prompts) + new_tokens
        self._room = min(config.context, -(-needed // ROOM_STEP) * ROOM_STEP)
        self._rows = [list(prompt) for prompt in prompts]
        self._read()

    def _read(self) -> None:
        """Fill the cache from the rows."""
        tokens = np.zeros((len(self._rows), self._room), np.int32)
        for row, sequence in enumerate(self._rows):
            tokens[row, : len(sequence)] = sequence
        self.lengths = np.array([len(sequence) for sequence in self._rows], np.int32)
        self.logits, self._cache = _prefill(self.config, self.parameters, tokens, self.lengths)

    def advance(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Append one token to every row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(int(token))
        if max(len(row) for row in self._rows) > self.config.context:
            half = max(1, self.config.context // 2)
            self._rows = [row[-half:] if len(row) > self.config.context else row for row in self._rows]
            self._read()
            return
        self.logits, self._cache = _step(self.config, self.parameters, self._cache, jnp.asarray(tokens, jnp.int32), self.lengths)
        self.lengths = self.lengths + 1

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows; one may be taken several times, in any order, as many as there were."""
        self._rows = [list(self._rows[row]) for row in rows]
        self._cache = jax.tree.map(lambda stored: stored[:, rows], self._cache)
        self.lengths, self.logits = self.lengths[rows], self.logits[rows]
