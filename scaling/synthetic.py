"""Synthetic sources with an exactly known entropy: what the irreducible loss E of a fit can be checked against.

The truth for a model that sees windows of T + 1 tokens, cut at multiples of T from the stream, and predicts tokens 1 to T of each from
those before it *in the window*, is (1 / T) sum_t H(X_t | X_0 ... X_{t-1}) = (H(X_0 ... X_T) - H(X_0)) / T, by the chain rule: a bit above
the entropy rate, because the first tokens of a window have little context. Each source computes it exactly.
"""

import bisect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from scaling.config import UserError

SIZES = {"train": 4_000_000, "heldout": 400_000, "tune": 200_000}
"""Tokens of each split."""


class Source(Protocol):
    """A stationary stream of symbols below 256."""

    @property
    def summary(self) -> str:
        """One line for `scaling corpus list`."""
        ...

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` tokens (count,) uint8."""
        ...

    def entropy(self, length: int) -> float:
        """Conditional entropy, nats per token, averaged over the targets of windows of `length`."""
        ...


def entropy_of(p: np.ndarray) -> float:
    """-sum p log p of a distribution, nats.

    >>> round(entropy_of(np.array([0.5, 0.5, 0.0])), 6)
    0.693147
    """
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


@dataclass(frozen=True)
class Markov:
    """A chain of order k: the next symbol depends on the last k through a table drawn once from a Dirichlet distribution."""

    symbols: int = 16
    order: int = 2
    concentration: float = 0.3
    seed: int = 1

    @property
    def summary(self) -> str:
        """One line."""
        return f"Markov chain of order {self.order} over {self.symbols} symbols"

    @cached_property
    def table(self) -> np.ndarray:
        """Probability of the next symbol by context: (symbols^order, symbols)."""
        rng = np.random.default_rng([self.seed, 101])
        drawn = rng.dirichlet(np.full(self.symbols, self.concentration), size=self.symbols**self.order)
        return 0.98 * drawn + 0.02 / self.symbols  # every symbol can follow, so that the chain has one stationary distribution

    @cached_property
    def stationary(self) -> np.ndarray:
        """Probability of each context (symbols^order,), first symbol of it most significant."""
        p = np.full(self.symbols**self.order, 1.0 / self.symbols**self.order)
        for _ in range(100_000):
            joint = p[:, None] * self.table  # (context, next); the first symbol of the context is forgotten
            new = joint.reshape(self.symbols, -1).sum(0)
            if np.abs(new - p).max() < 1e-16:
                break
            p = new
        return p

    def entropy(self, length: int) -> float:
        """Positions t < k have a shorter context: H(X_t | X_0 ... X_{t-1}) = H_{t+1} - H_t, from entropies H of blocks of the chain."""
        blocks = [0.0]
        for size in range(1, self.order + 1):
            blocks.append(entropy_of(self.stationary.reshape(self.symbols**size, -1).sum(1)))
        rate = float(sum(p * entropy_of(row) for p, row in zip(self.stationary, self.table)))
        short = [blocks[t + 1] - blocks[t] for t in range(1, min(self.order, length + 1))]
        return (sum(short) + (length - len(short)) * rate) / length

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Walk the chain from its stationary distribution."""
        cumulative = [row.tolist() for row in np.cumsum(self.table, 1)]
        context = int(rng.choice(len(self.stationary), p=self.stationary))
        high = self.symbols ** (self.order - 1)
        out = bytearray(count)
        for i, u in enumerate(rng.random(count).tolist()):
            symbol = min(bisect.bisect_right(cumulative[context], u), self.symbols - 1)
            context = context % high * self.symbols + symbol
            out[i] = symbol
        return np.frombuffer(bytes(out), np.uint8)


@dataclass(frozen=True)
class Grammar:
    """Sentences of 2^depth words from a probabilistic context-free grammar: symbol -> (left, right) at every level.

    Left and right symbols are of different halves of the alphabet, and no pair has two parents, so that a sentence has one derivation and
    its entropy is that of its derivation: H(root) + sum over nodes of H(rules of the node's symbol). After the random hierarchy model of
    Cagnetta et al. 2024 (arXiv:2307.02129), with unequal probabilities.
    """

    symbols: int = 16
    rules: int = 2
    depth: int = 4
    seed: int = 1

    @property
    def summary(self) -> str:
        """One line."""
        return f"probabilistic grammar, sentences of {2**self.depth} words, {self.symbols} symbols a level"

    @cached_property
    def productions(self) -> np.ndarray:
        """Children (depth, symbols, rules, 2) of each symbol by level, root first."""
        rng = np.random.default_rng([self.seed, 102])
        half = self.symbols // 2
        levels = []
        for _ in range(self.depth):
            pairs = rng.permutation(half * half)[: self.symbols * self.rules].reshape(self.symbols, self.rules)
            levels.append(np.stack([pairs // half, half + pairs % half], -1))
        return np.stack(levels)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probability of each rule (depth, symbols, rules)."""
        return np.random.default_rng([self.seed, 103]).dirichlet(np.full(self.rules, 1.0), size=(self.depth, self.symbols))

    @cached_property
    def sentence_entropy(self) -> float:
        """Entropy of a sentence, nats."""
        expected = np.full(self.symbols, 1.0 / self.symbols)  # how many nodes of a level carry each symbol
        total = entropy_of(expected)
        for children, p in zip(self.productions, self.probabilities):
            total += float(sum(n * entropy_of(row) for n, row in zip(expected, p)))
            below = np.zeros(self.symbols)
            for child in (0, 1):
                np.add.at(below, children[:, :, child], expected[:, None] * p)
            expected = below
        return total

    def entropy(self, length: int) -> float:
        """Sentences are independent and windows begin with one: the first word that is no target is made up for by the last target."""
        _check_aligned(length, 2**self.depth, "sentences")
        return self.sentence_entropy / 2**self.depth

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Expand all sentences level by level."""
        level = rng.integers(0, self.symbols, -(-count // 2**self.depth))[:, None]
        for children, p in zip(self.productions, self.probabilities):
            rule = (rng.random(level.shape)[..., None] > np.cumsum(p, 1)[level]).sum(-1).clip(max=self.rules - 1)
            level = children[level, rule].reshape(len(level), -1)
        return level.reshape(-1)[:count].astype(np.uint8)


@dataclass(frozen=True)
class Quanta:
    """Records of 8 tokens: a key (2), four random bits, the answer that the key's table gives for them, an end.

    Keys follow Zipf's law, so a model gains by learning one table after the other: the quantization model of Michaud et al. 2023
    (arXiv:2303.13506), with its multitask sparse functions as plain tables.
    """

    keys: int = 400
    exponent: float = 1.4
    answers: int = 16
    seed: int = 1
    record: int = field(default=8, init=False)

    @property
    def summary(self) -> str:
        """One line."""
        return f"{self.keys} small tables to be learnt, used with Zipfian frequencies (exponent {self.exponent})"

    @cached_property
    def frequencies(self) -> np.ndarray:
        """Probability of each key."""
        p = np.arange(1, self.keys + 1) ** -self.exponent
        return p / p.sum()

    @cached_property
    def tables(self) -> np.ndarray:
        """Answer of each key to each of 16 questions (keys, 16)."""
        return np.random.default_rng([self.seed, 104]).integers(0, self.answers, (self.keys, 16))

    def entropy(self, length: int) -> float:
        """Key and bits are all that is random in a record."""
        _check_aligned(length, self.record, "records")
        return (entropy_of(self.frequencies) + 4 * float(np.log(2))) / self.record

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Independent records. Symbols: 0 end; 1 to 20 and 21 to 40 the key; 41, 42 bits; from 43 answers."""
        n = -(-count // self.record)
        key, question = rng.choice(self.keys, size=n, p=self.frequencies), rng.integers(0, 16, n)
        base = 20
        bits = [41 + (question >> i & 1) for i in range(4)]
        columns = [1 + key // base, 1 + base + key % base, *bits, 43 + self.tables[key, question], np.zeros(n, int)]
        return np.stack(columns, 1).reshape(-1)[:count].astype(np.uint8)


def _check_aligned(length: int, unit: int, what: str) -> None:
    if length % unit:
        raise UserError(
            f"model.sequence_length = {length} is no multiple of {unit}, the length of this source's {what}; use one, such as 128"
        )


SOURCES: dict[str, Source] = {"synthetic-markov": Markov(), "synthetic-grammar": Grammar(), "synthetic-quanta": Quanta()}


def generate(name: str) -> dict[str, np.ndarray]:
    """The splits of a source: independent streams from fixed seeds."""
    source = SOURCES[name]
    return {split: source.sample(np.random.default_rng([7, index]), size) for index, (split, size) in enumerate(SIZES.items())}
