"""The known entropies, against enumeration of every window, and against what the true conditional probabilities lose on a sample."""

import itertools
import math

import numpy as np
import pytest

from scaling.config import UserError
from scaling.corpus import prepare
from scaling.synthetic import SOURCES, Grammar, Markov, Quanta, entropy_of


def window_entropy(probability_of, symbols, length):
    """(H(X_0 ... X_T) - H(X_0)) / T by listing every window: what `entropy` must equal, by the chain rule."""
    whole = {window: probability_of(window) for window in itertools.product(range(symbols), repeat=length + 1)}
    assert sum(whole.values()) == pytest.approx(1.0, abs=1e-12)
    first = np.zeros(symbols)
    for window, p in whole.items():
        first[window[0]] += p
    return (entropy_of(np.array(list(whole.values()))) - entropy_of(first)) / length


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_markov_entropy_equals_enumeration(order, length):
    chain = Markov(symbols=3, order=order, seed=4)

    def probability(window):
        size = min(order, len(window))
        context = int("".join(map(str, window[:size])), 3)
        p = chain.stationary.reshape(3**size, -1).sum(1)[context]
        for t in range(size, len(window)):
            p *= chain.table[int("".join(map(str, window[t - order : t])), 3), window[t]]
        return p

    assert chain.entropy(length) == pytest.approx(window_entropy(probability, 3, length), abs=1e-12)


def test_grammar_entropy_equals_enumeration_of_all_derivations():
    grammar = Grammar(symbols=8, rules=2, depth=2, seed=3)
    sentences: dict[tuple, float] = {}
    for root in range(8):
        for rule in range(2):
            left, right = grammar.productions[0, root, rule]
            for a in range(2):
                for b in range(2):
                    words = (*grammar.productions[1, left, a], *grammar.productions[1, right, b])
                    p = grammar.probabilities[0, root, rule] * grammar.probabilities[1, left, a] * grammar.probabilities[1, right, b] / 8
                    sentences[words] = sentences.get(words, 0.0) + p
    first = np.zeros(8)
    for words, p in sentences.items():
        first[words[0]] += p
    # a window of T = 4: words 1 to 3 of a sentence, then word 0 of the next
    by_hand = (entropy_of(np.array(list(sentences.values()))) - entropy_of(first) + entropy_of(first)) / 4
    assert grammar.entropy(4) == pytest.approx(by_hand, abs=1e-12) == grammar.entropy(128)
    assert len(sentences) == 8 * 2 * 2 * 2  # no sentence has two derivations


def test_quanta_entropy_is_that_of_keys_and_bits():
    quanta = Quanta(keys=3, exponent=1.0)
    p = np.array([6, 3, 2]) / 11
    by_hand = (-(p * np.log(p)).sum() + math.log(16)) / 8
    assert quanta.entropy(128) == pytest.approx(by_hand, abs=1e-12)
    rng = np.random.default_rng(0)
    records = quanta.sample(rng, 80_000).reshape(-1, 8)
    keys = (records[:, 0].astype(int) - 1) * 20 + records[:, 1] - 21
    np.testing.assert_allclose(np.bincount(keys, minlength=3) / len(keys), p, atol=0.02)
    question = ((records[:, 2:6].astype(int) - 41) << np.arange(4)).sum(1)
    np.testing.assert_array_equal(records[:, 6] - 43, quanta.tables[keys, question])


def test_a_sample_of_the_chain_loses_its_entropy_under_the_true_probabilities():
    chain = Markov(symbols=5, order=2, seed=2)
    tokens = chain.sample(np.random.default_rng(1), 200_000).astype(int)
    losses = -np.log(chain.table[tokens[:-2] * 5 + tokens[1:-1], tokens[2:]])
    rate = (chain.entropy(10**6) * 10**6 - chain.entropy(1)) / (10**6 - 1)
    assert losses.mean() == pytest.approx(rate, abs=4 * losses.std() / len(losses) ** 0.5)


def test_sampled_sentences_have_the_frequencies_of_their_derivations():
    grammar = Grammar(symbols=8, rules=2, depth=1, seed=3)
    pairs = grammar.sample(np.random.default_rng(0), 80_000).reshape(-1, 2)
    for symbol in range(8):
        for rule in range(2):
            share = (pairs == grammar.productions[0, symbol, rule]).all(1).mean()
            assert share == pytest.approx(0.125 * grammar.probabilities[0, symbol, rule], abs=0.01)


def test_the_shipped_sources_are_corpora_with_these_entropies():
    entropies = {"synthetic-markov": 1.883091, "synthetic-grammar": 0.710728, "synthetic-quanta": 0.737100}
    for name, value in entropies.items():
        assert SOURCES[name].entropy(128) == pytest.approx(value, abs=1e-6)
    corpus = prepare("synthetic-grammar")
    assert len(corpus.train) == 4_000_000 and corpus.train.max() < 256
    with pytest.raises(UserError, match="no multiple of 16"):
        SOURCES["synthetic-grammar"].entropy(100)
    with pytest.raises(UserError, match="made of symbols"):
        prepare("synthetic-grammar", tokenizer="bpe:300")
