"""From a prompt to its continuation: greedy, sampling, beam search, and ranking of candidates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import Positive, Struct, UserError
from scaling.decoding.engine import Engine
from scaling.decoding.sampling import Sampling, draw, settings
from scaling.language_model import LanguageModel
from scaling.text_codec import TextStream

Ended = Literal["length", "stop", "end"]
Listen = Callable[[int, str], None]
"""Called with (number of the prompt, text that follows), as text comes."""
MOST_BEAMS, MOST_CANDIDATES = 256, 1000


class Greedy(Struct, frozen=True, tag="greedy"):
    """The likeliest token, always."""


class Sample(Struct, frozen=True, tag="sample"):
    """Tokens drawn from the model's (filtered) distribution."""

    sampling: Sampling = Sampling()


class Rank(Struct, frozen=True, tag="rank"):
    """Draw candidates, then choose one with probability exp(sum log p_k) / sum_z exp(sum log p_z).

    log p is the model's own (before any filter), over every token of the candidate, the end included; `length_normalised` divides
    the sum by the number of tokens.
    """

    candidates: Positive = 8
    sampling: Sampling = Sampling()
    length_normalised: bool = False

    def __post_init__(self) -> None:
        """Refuse a choice among one, or too many for one batch.

        Raises
        ------
        UserError
            One line: the value, what is allowed.
        """
        if not 2 <= self.candidates <= MOST_CANDIDATES:
            raise UserError(f"candidates = {self.candidates}: ranking chooses among 2 to {MOST_CANDIDATES}; use a number such as 8")


class Beam(Struct, frozen=True, tag="beam"):
    """The `width` likeliest beginnings are kept; the best ending has the highest sum log p / length^`length_power`."""

    width: Positive = 4
    length_power: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no search.

        Raises
        ------
        UserError
            One line: the setting, its value, what is allowed.
        """
        if self.width > MOST_BEAMS:
            raise UserError(f"beams = {self.width}: at most {MOST_BEAMS} beginnings are kept side by side; use a number such as 4")
        if not 0 <= self.length_power <= 10:
            raise UserError(f"length-power = {self.length_power:g} is none; use 0 (the likeliest text) to 1 (the likeliest per token)")


Strategy = Greedy | Sample | Rank | Beam


class Limits(Struct, frozen=True):
    """When to stop: after `tokens`, at a stop string (cut off), or at the end of the document. `seed` decides every draw."""

    tokens: Positive = 200
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Continuation:
    """What was generated.

    Attributes
    ----------
    log_probability : sum of the model's log p over `tokens`, nats
    ended : `length`, `stop` or `end`
    chance : probability with which ranking chooses this candidate; 1 otherwise
    others : the candidates or beams that were not chosen
    """

    text: str
    tokens: tuple[int, ...]
    log_probability: float
    ended: Ended
    chance: float = 1.0
    others: tuple["Continuation", ...] = ()


def generate(
    model: LanguageModel, prompts: Sequence[str], strategy: Strategy, *, limits: Limits, listen: Listen | None = None
) -> list[Continuation]:
    """The continuation of each prompt.

    Raises
    ------
    UserError
        A prompt longer than the context.
    """
    from scaling.decoding.beam import beam

    encoded = [model.codec.encode(prompt) for prompt in prompts]
    match strategy:
        case Greedy():
            return _grow(model, encoded, None, limits, listen)
        case Sample():
            return _grow(model, encoded, strategy.sampling, limits, listen)
        case Rank():
            return [_rank(model, prompt, strategy, limits, number) for number, prompt in enumerate(encoded)]
        case Beam():
            return [beam(model, prompt, strategy, limits) for prompt in encoded]


@jax.jit
def _log_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], -1)[:, 0]


def _grow(
    model: LanguageModel,
    prompts: list[list[int]],
    sampling: Sampling | None,
    limits: Limits,
    listen: Listen | None = None,
    *,
    first_row: int = 0,
) -> list[Continuation]:
    """Continue every prompt by greedy choice or by draws; rows that have ended wait for the others."""
    engine = Engine(model.config, model.parameters, prompts, new_tokens=limits.tokens)
    key, rows = jax.random.key(limits.seed), jnp.arange(first_row, first_row + len(prompts))
    filters = settings(sampling, model.config.vocab_size) if sampling else None
    streams = [TextStream(model.codec, limits.stop) for _ in prompts]
    ended: list[Ended | None] = [None] * len(prompts)
    log_probability = np.zeros(len(prompts))
    for step in range(limits.tokens):
        tokens = jnp.argmax(engine.logits, -1) if filters is None else draw(key, rows, jnp.int32(step), engine.logits, filters)
        gained, chosen = np.asarray(_log_probability(engine.logits, tokens)), np.asarray(tokens)
        for row, stream in enumerate(streams):
            if ended[row] is not None:
                continue
            log_probability[row] += gained[row]
            new = stream.push(int(chosen[row]))
            if chosen[row] == model.codec.end:
                ended[row], new = "end", new + stream.close()
            elif stream.stopped:
                ended[row] = "stop"
            elif step == limits.tokens - 1:
                new += stream.close()
            if listen and new:
                listen(row, new)
        if all(ended):
            break
        if step < limits.tokens - 1:
            engine.advance(chosen)
    return [
        Continuation(text=stream.text, tokens=tuple(stream.tokens), log_probability=float(total), ended=end or "length")
        for stream, total, end in zip(streams, log_probability, ended, strict=True)
    ]


def _rank(model: LanguageModel, prompt: list[int], strategy: Rank, limits: Limits, number: int) -> Continuation:
    """Candidates of one prompt side by side, then one draw among them."""
    count = strategy.candidates
    drawn = _grow(model, [prompt] * count, strategy.sampling, limits, first_row=number * count)
    chances = choice_probabilities(
        np.array([found.log_probability for found in drawn]),
        np.array([len(found.tokens) for found in drawn]),
        length_normalised=strategy.length_normalised,
    )
    chosen = int(np.random.default_rng([limits.seed, number]).choice(count, p=chances))
    found = [replace(candidate, chance=float(chance)) for candidate, chance in zip(drawn, chances, strict=True)]
    return replace(found[chosen], others=tuple(candidate for index, candidate in enumerate(found) if index != chosen))


def choice_probabilities(log_probabilities: np.ndarray, lengths: np.ndarray, *, length_normalised: bool) -> np.ndarray:
    """exp(s_k) / sum_z exp(s_z) with s the sums of log p, or their means per token.

    >>> choice_probabilities(np.log([0.1, 0.3]), np.array([1, 1]), length_normalised=False).round(6).tolist()
    [0.25, 0.75]
    """
    scores = log_probabilities / lengths if length_normalised else log_probabilities
    weights = np.exp(scores - scores.max())
    return weights / math.fsum(weights)
