"""Beam search: the likeliest beginnings side by side."""

from dataclasses import dataclass, replace

import jax
import numpy as np

from scaling.decoding.engine import Engine
from scaling.decoding.strategies import Beam, Continuation, Ended, Limits
from scaling.language_model import LanguageModel
from scaling.text_codec import TextStream


@dataclass(frozen=True)
class _Hypothesis:
    tokens: tuple[int, ...]
    total: float

    def score(self, power: float) -> float:
        return self.total / max(1, len(self.tokens)) ** power


@jax.jit
def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits)


def beam(model: LanguageModel, prompt: list[int], strategy: Beam, limits: Limits) -> Continuation:
    """The best ending found; the other endings are its `others`, best first.

    The search ends when no beginning that is still kept can beat the `width` best endings.
    """
    width, power = strategy.width, strategy.length_power
    engine = Engine(model.config, model.parameters, [prompt] * width, new_tokens=limits.tokens)
    live = [_Hypothesis((), 0.0)] + [_Hypothesis((), -np.inf)] * (width - 1)  # all rows are alike at first: only one may branch
    endings: list[tuple[_Hypothesis, Ended]] = []
    for step in range(limits.tokens):
        totals = np.asarray(_log_softmax(engine.logits), np.float64) + np.array([h.total for h in live])[:, None]
        parents, kept = [], []
        for flat in _largest(totals.reshape(-1), 2 * width):
            parent, token = divmod(int(flat), model.config.vocab_size)
            grown = _Hypothesis((*live[parent].tokens, token), float(totals[parent, token]))
            if grown.total == -np.inf:
                continue
            if (end := _ended(model, grown, limits)) is not None:
                endings.append((grown, end))
            elif len(kept) < width:
                kept.append(grown)
                parents.append(parent)
        endings = sorted(endings, key=lambda found: -found[0].score(power))[:width]
        if step == limits.tokens - 1 or not kept or _beaten(kept, endings, width=width, power=power, longest=limits.tokens):
            live = kept
            break
        spare = width - len(kept)
        live = kept + [_Hypothesis((), -np.inf)] * spare
        engine.keep(np.array(parents + [0] * spare))
        engine.advance([h.tokens[-1] if h.tokens else 0 for h in live])
    endings.extend((h, "length") for h in live)
    best, *rest = [_continuation(model, h, end, limits) for h, end in sorted(endings, key=lambda found: -found[0].score(power))[:width]]
    return replace(best, others=tuple(rest))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest values, largest first, the earlier of equals first."""
    some = np.argpartition(-values, min(count, len(values) - 1))[:count] if len(values) > count else np.arange(len(values))
    return some[np.lexsort((some, -values[some]))]


def _beaten(kept: list[_Hypothesis], endings: list[tuple[_Hypothesis, Ended]], *, width: int, power: float, longest: int) -> bool:
    """Whether the `width` best endings are better than anything the kept beginnings can become: their sums only fall."""
    if len(endings) < width:
        return False
    most = max(h.total for h in kept) / (longest if power > 0 else len(kept[0].tokens)) ** power
    return endings[width - 1][0].score(power) >= most


def _ended(model: LanguageModel, hypothesis: _Hypothesis, limits: Limits) -> Ended | None:
    if hypothesis.tokens[-1] == model.codec.end:
        return "end"
    if limits.stop and any(stop in model.codec.decode(hypothesis.tokens) for stop in limits.stop):
        return "stop"
    return None


def _continuation(model: LanguageModel, hypothesis: _Hypothesis, ended: Ended, limits: Limits) -> Continuation:
    stream = TextStream(model.codec, limits.stop)
    for token in hypothesis.tokens:
        stream.push(token)
    return Continuation(text=stream.text, tokens=hypothesis.tokens, log_probability=hypothesis.total, ended=ended)
