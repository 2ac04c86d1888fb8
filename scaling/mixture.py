"""Which training windows a run sees, in which order: the whole text, a limited number of different tokens, a mixture of domains.

Every order is a prefix in D: a longer run sees what a shorter one saw, and then more. Fewer unique tokens are a prefix too: a run that
repeats begins with the very windows of one that does not, and sees those again, in a new order each epoch.
"""

from functools import lru_cache

import msgspec
import numpy as np

from scaling.config import DataConfig, UserError
from scaling.corpus import Corpus, data_order, permutation

BLOCK = 1024
"""Windows in which a mixture's shares are exact to one window; inside a block the domains come in a random order."""


def training_windows(corpus: Corpus, data: DataConfig, *, seed: int, first: int, count: int, length: int) -> np.ndarray:
    """Windows `first` to `first + count` of a run's stream: (count, length + 1) tokens."""
    starts = training_starts(corpus, data, seed=seed, first=first, count=count, length=length)
    return corpus.train[starts[:, None] + np.arange(length + 1)[None, :]]


def training_starts(corpus: Corpus, data: DataConfig, *, seed: int, first: int, count: int, length: int) -> np.ndarray:
    """Where those windows begin in the training text: (count,) int64."""
    unique = None if data.tokens_unique is msgspec.UNSET else data.tokens_unique // length
    if data.mixture is msgspec.UNSET:
        return limited_order(corpus.n_windows(length=length), unique, seed=seed, first=first, count=count) * length
    return _mixed_starts(corpus, data.mixture, unique, seed=seed, first=first, count=count, length=length)


def limited_order(n_windows: int, unique: int | None, *, seed: int, first: int, count: int) -> np.ndarray:
    """`data_order` of all windows, or of the first `unique` of its first epoch, again and again."""
    if unique is None or unique >= n_windows:
        return data_order(n_windows, seed=seed, first=first, count=count)
    pool = permutation(n_windows, seed, 0)[:unique]
    positions = np.arange(first, first + count)
    out = np.empty(count, np.int64)
    for epoch in range(first // unique, (first + count - 1) // unique + 1):
        inside = positions // unique == epoch
        order = np.arange(unique) if epoch == 0 else np.random.default_rng([seed, epoch, 8]).permutation(unique)
        out[inside] = pool[order[positions[inside] % unique]]
    return out


def _mixed_starts(
    corpus: Corpus, mixture: tuple[tuple[str, float], ...], unique: int | None, *, seed: int, first: int, count: int, length: int
) -> np.ndarray:
    """First tokens of windows: each block of `BLOCK` holds every domain's share; each domain has an order of its own."""
    weights = domain_weights(corpus, mixture)
    domains = list(weights)
    shares = _largest_remainder(np.array([weights[domain] for domain in domains]), BLOCK)
    base = np.repeat(np.arange(len(domains)), shares)
    starts = np.empty(count, np.int64)
    for block in range(first // BLOCK, (first + count - 1) // BLOCK + 1):
        order = _block_order(seed, block)
        wanted = np.arange(max(first, block * BLOCK), min(first + count, (block + 1) * BLOCK))
        chosen = base[order]
        for index, domain in enumerate(domains):
            here = np.flatnonzero(chosen == index)  # places of this block that are the domain's
            inside = np.isin(here, wanted - block * BLOCK, assume_unique=True)
            if inside.any():
                begin, stop = corpus.domains[domain]["train"]
                n_windows = (stop - begin - 1) // length
                limit = None if unique is None else max(1, round(unique * weights[domain]))
                at = block * shares[index] + int(np.argmax(inside))
                own = limited_order(n_windows, limit, seed=seed * 1009 + index + 1, first=int(at), count=int(inside.sum()))
                starts[here[inside] + block * BLOCK - first] = begin + own * length
    return starts


@lru_cache(maxsize=4)
def _block_order(seed: int, block: int) -> np.ndarray:
    return np.random.default_rng([seed, block, 9]).permutation(BLOCK)


def _largest_remainder(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to `weights` that sum to `total`.

    >>> _largest_remainder(np.array([0.5, 0.3, 0.2]), 4).tolist()
    [2, 1, 1]
    """
    exact = weights / weights.sum() * total
    whole = np.floor(exact).astype(int)
    for index in np.argsort(whole - exact, kind="stable")[: total - whole.sum()]:
        whole[index] += 1
    return whole


def domain_weights(corpus: Corpus, mixture: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """Share of each domain; a name that stands for several domains (`english` for `english/...`) is shared by their training tokens.

    Raises
    ------
    UserError
        A name that is no domain of the corpus.
    """
    sizes = {domain: stop - first for domain, (first, stop) in ((d, r.get("train", (0, 0))) for d, r in corpus.domains.items())}
    for name, _ in mixture:
        if not any(size for domain, size in sizes.items() if _stands_for(name, domain)):
            allowed = ", ".join(sizes) or "none: the corpus has one kind of text"
            raise UserError(f"data.mixture: `{name}` is no domain of corpus {corpus.name} with training text; allowed: {allowed}")
    return _weights(sizes, mixture)


def _stands_for(name: str, domain: str) -> bool:
    return domain == name or domain.startswith(f"{name}/")


def _weights(sizes: dict[str, int], mixture: tuple[tuple[str, float], ...]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for name, weight in mixture:
        inside = {domain: size for domain, size in sizes.items() if _stands_for(name, domain)}
        for domain, size in inside.items():
            if weight * size > 0:
                weights[domain] = weights.get(domain, 0.0) + weight * size / sum(inside.values())
    return weights


def domain_shares(sizes: dict[str, int], data: DataConfig) -> dict[str, float]:
    """Share of each domain in what a run is trained on, from the training tokens of the domains."""
    if data.mixture is msgspec.UNSET:
        total = sum(sizes.values())
        return {domain: size / total for domain, size in sizes.items()} if total else {}
    return _weights(sizes, data.mixture)


def check_enough(corpus: Corpus, data: DataConfig, *, length: int) -> None:
    """Refuse more unique tokens than the corpus, or a domain of the mixture, has.

    Raises
    ------
    UserError
        Which text is too small, and the largest value that is possible.
    """
    limit = None if data.tokens_unique is msgspec.UNSET else data.tokens_unique
    if data.mixture is msgspec.UNSET:
        have = {"": (corpus.n_windows(length=length) * length, 1.0)}
    else:
        weights = domain_weights(corpus, data.mixture)
        have = {name: ((np.diff(corpus.domains[name]["train"])[0] - 1) // length * length, weight) for name, weight in weights.items()}
    for name, (tokens, weight) in have.items():
        if tokens < length:
            raise UserError(f"corpus {corpus.name}: domain {name} has {tokens} training tokens, fewer than one window of {length}")
        if limit is not None and limit * weight > tokens:
            where = f"domain {name} of corpus {corpus.name}" if name else f"corpus {corpus.name}"
            raise UserError(
                f"data.tokens_unique = {limit:,} needs {round(limit * weight):,} tokens of {where}, which has {tokens:,}; "
                f"use at most {int(tokens / weight):,}, a larger corpus, or `all`"
            )


def unique_tokens(corpus_tokens: int, sizes: dict[str, int], data: DataConfig, *, tokens: int) -> int:
    """Different tokens among the `tokens` that a run sees, of a text of `corpus_tokens` and of domains of `sizes` tokens."""
    limit = corpus_tokens if data.tokens_unique is msgspec.UNSET else data.tokens_unique
    if data.mixture is msgspec.UNSET:
        return min(tokens, limit)
    seen = tokens if data.tokens_unique is msgspec.UNSET else min(tokens, limit)
    return round(sum(min(seen * share, sizes[domain]) for domain, share in _weights(sizes, data.mixture).items()))
