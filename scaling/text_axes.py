"""The axes of text in a sweep: corpora, tokenizers, mixtures and amounts of different tokens, resolved to what a run needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from scaling.config import DataConfig, Split, Sweep, UserError, parse_quantity
from scaling.tokenizer import vocab_size

Mixture = tuple[tuple[str, float], ...]
Hashes = str | Mapping[tuple[str, str], str]
"""Content hash of every (corpus, tokenizer) of a sweep, or one for all."""


@dataclass(frozen=True)
class TextChoice:
    """One point of the axes of text; `tokens_unique` None is all there is."""

    corpus: str
    corpus_hash: str
    tokenizer: str
    vocab_size: int
    mixture: Mixture | None
    tokens_unique: int | None
    is_largest: bool

    def data(self, *, batch_tokens: int, evaluation_windows: int, seed_data: int, evaluation_split: Split) -> DataConfig:
        """The data of a trunk."""
        return DataConfig(
            corpus=self.corpus,
            corpus_hash=self.corpus_hash,
            tokenizer=self.tokenizer,
            batch_tokens=batch_tokens,
            evaluation_windows=evaluation_windows,
            seed_data=seed_data,
            evaluation_split=evaluation_split,
            tokens_unique=msgspec.UNSET if self.tokens_unique is None else self.tokens_unique,
            mixture=msgspec.UNSET if self.mixture is None else self.mixture,
        )

    def has_run(self, tokens: int) -> bool:
        """Whether a run of so many tokens is one of its own: one that repeats nothing is the run with the most unique tokens."""
        return self.is_largest or self.tokens_unique is None or tokens > self.tokens_unique


def corpora(sweep: Sweep) -> list[str]:
    """Corpora of a sweep."""
    return [sweep.corpus] if isinstance(sweep.corpus, str) else list(sweep.corpus)


def tokenizers(sweep: Sweep) -> list[str]:
    """Tokenizers of a sweep."""
    return [sweep.tokenizer] if isinstance(sweep.tokenizer, str) else list(sweep.tokenizer)


def text_choices(sweep: Sweep, hashes: Hashes) -> list[TextChoice]:
    """Every point of the axes of text."""
    length = sweep.model.sequence_length
    limits: list[int | None] = [None]
    if sweep.data.tokens_unique is not None:
        wanted = [None if value == "all" else max(1, round(parse_quantity(value) / length)) * length for value in sweep.data.tokens_unique]
        limits = sorted(wanted, key=lambda limit: (limit is None, limit or 0))
    mixtures: list[Mixture | None] = [None]
    if sweep.data.mixture is not None:
        mixtures = [tuple(sorted((name, float(weight)) for name, weight in weights.items() if weight)) for weights in sweep.data.mixture]
    return [
        TextChoice(
            corpus=corpus,
            corpus_hash=hashes if isinstance(hashes, str) else hashes[corpus, tokenizer],
            tokenizer=tokenizer,
            vocab_size=vocab_size(tokenizer),
            mixture=mixture,
            tokens_unique=limit,
            is_largest=limit == limits[-1],
        )
        for corpus in corpora(sweep)
        for tokenizer in tokenizers(sweep)
        for mixture in mixtures
        for limit in limits
    ]


def only_text(sweep: Sweep, hashes: Hashes, *, what: str) -> TextChoice:
    """The one text of a sweep, for what makes sense on one text only.

    Raises
    ------
    UserError
        When the sweep has several corpora, tokenizers, mixtures or amounts of different tokens.
    """
    choices = text_choices(sweep, hashes)
    if len(choices) > 1:
        raise UserError(
            f"{what} needs a sweep of one text; corpus, tokenizer, data.mixture and data.tokens_unique give {len(choices)} here: "
            "give each one value"
        )
    return choices[0]


def group_of(sweep: Sweep, data: DataConfig) -> str:
    """Name of a run's text among those of the sweep, by what differs; empty when the sweep has one. A law is fitted to each group.

    Different amounts of unique tokens are no groups: laws of repetition are fitted across them.
    """
    parts = []
    if len(corpora(sweep)) > 1:
        parts.append(data.corpus)
    if len(tokenizers(sweep)) > 1:
        parts.append(data.tokenizer)
    if sweep.data.mixture is not None and len(sweep.data.mixture) > 1 and data.mixture is not msgspec.UNSET:
        parts.append(" + ".join(name if len(data.mixture) == 1 else f"{weight:.3g} {name}" for name, weight in data.mixture))
    return ", ".join(parts)
