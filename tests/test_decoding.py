"""Decoding against brute force: every sequence of a small vocabulary, full forward passes, closed-form distributions."""

import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_model

from scaling import model as readable
from scaling.cli.main import main
from scaling.config import ModelConfig, UserError
from scaling.decoder import empty_cache, forward
from scaling.decoding import engine
from scaling.decoding.sampling import Sampling, draw, filtered, settings
from scaling.decoding.strategies import Beam, Greedy, Limits, Rank, Sample, choice_probabilities, generate
from scaling.text_codec import TextCodec, TextStream

SHAPE = ModelConfig(d_model=16, n_layers=2, n_heads=2, d_ff=24, vocab_size=256, sequence_length=24)
SMALL = ModelConfig(d_model=8, n_layers=1, n_heads=1, d_ff=16, vocab_size=5, sequence_length=8)


class Letters:
    """Five tokens: an end and four letters."""

    name, end = "letters", 0

    def encode(self, text):
        return [" abcd".index(letter) for letter in text] or [0]

    def decode(self, tokens):
        return "".join(" abcd"[token] for token in tokens if token)


@partial(jax.jit, static_argnums=0)
def reference(shape, weights, tokens):
    """Log-probabilities of the next tokens by a full forward pass of the readable model."""
    return jax.nn.log_softmax(readable.apply(shape, weights, tokens))


def last_log_p(weights, tokens):
    """Those after a list of at most 24 tokens."""
    return np.asarray(reference(SHAPE, weights, jnp.asarray([[*tokens, *[0] * 24][:24]], jnp.int32))[0, len(tokens) - 1])


@pytest.fixture(scope="module")
def small():
    return random_model(SMALL, Letters(), sharper=2.0)


@pytest.fixture(scope="module")
def in_bytes():
    return random_model(SHAPE, TextCodec("bytes", 256))  # no end of documents


@pytest.fixture(scope="module")
def sequence_logits(small):
    """Log-probabilities of all sequences of 4 tokens after `ab`: (5, 5, 5, 5) totals, by one full forward pass of the readable model."""
    _, weights = small
    tails = np.array(list(itertools.product(range(5), repeat=4)))
    tokens = np.concatenate([np.tile([1, 2], (len(tails), 1)), tails], 1)
    log_p = reference(SMALL, weights, jnp.asarray(tokens[:, :-1]))
    return np.asarray(jnp.take_along_axis(log_p[:, 1:], jnp.asarray(tails)[..., None], -1)[..., 0], np.float64).reshape(5, 5, 5, 5, 4)


def test_decoder_is_the_readable_model_and_its_cache_changes_nothing(in_bytes):
    model, weights = in_bytes
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 24)), jnp.int32)
    expected = np.concatenate([reference(SHAPE, weights, row[None]) for row in tokens])

    @jax.jit
    def run(*arguments, **options):
        logits, cache = forward(model.config, *arguments, **options)
        return jax.nn.log_softmax(logits), cache

    whole, _ = run(model.parameters, tokens)
    np.testing.assert_allclose(whole, expected, atol=2e-5 * np.abs(expected).max())
    # rows begin at different lengths: 5, 9 and 2 tokens read at once, the rest one by one
    lengths = np.array([5, 9, 2], np.int32)
    _, cache = run(
        model.parameters,
        jnp.where(jnp.arange(24)[None] < lengths[:, None], tokens, 7),
        start=jnp.zeros(3, jnp.int32),
        cache=empty_cache(model.config, 3, 24),
    )
    for _ in range(15):
        log_p, cache = run(
            model.parameters, jnp.take_along_axis(tokens, jnp.asarray(lengths)[:, None], 1), start=jnp.asarray(lengths), cache=cache
        )
        np.testing.assert_allclose(log_p[:, 0], expected[np.arange(3), lengths], atol=2e-5 * np.abs(expected).max())
        lengths = lengths + 1


def test_greedy_takes_the_likeliest_of_a_full_forward_pass(in_bytes):
    model, weights = in_bytes
    (found,) = generate(model, ["abc"], Greedy(), limits=Limits(tokens=18))
    tokens = list(b"abc")
    total = 0.0
    for token in found.tokens:
        log_p = last_log_p(weights, tokens)
        assert token == int(np.argmax(log_p))
        total += float(log_p[token])
        tokens.append(token)
    assert found.log_probability == pytest.approx(total, rel=1e-5) and len(found.tokens) == 18


def test_past_its_context_a_row_goes_on_from_the_last_half_of_it(in_bytes):
    model, weights = in_bytes
    (found,) = generate(model, ["x" * 20], Greedy(), limits=Limits(tokens=10))
    assert found.ended == "length"
    seen = (list(b"x" * 20) + list(found.tokens[:5]))[-12:]  # 25 tokens are one too many for a context of 24
    assert found.tokens[5] == int(np.argmax(last_log_p(weights, seen)))
    together = generate(model, ["x" * 20, "ab"], Greedy(), limits=Limits(tokens=10))
    assert (
        together[0].tokens == found.tokens and together[1].tokens == generate(model, ["ab"], Greedy(), limits=Limits(tokens=10))[0].tokens
    )


def _complete(totals):
    """Every sequence that ends at 0 or has 4 tokens, with its log-probability."""
    for tail in itertools.product(range(5), repeat=4):
        if 0 in tail[:-1]:
            first = tail.index(0)
            if any(tail[first + 1 :]):
                continue
            yield tail[: first + 1], totals[tail][: first + 1].sum()
        else:
            yield tail, totals[tail].sum()


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_wide_beam_is_exhaustive_search(small, sequence_logits, power):
    model, _ = small
    ranked = sorted(_complete(sequence_logits), key=lambda found: -found[1] / len(found[0]) ** power)
    assert sum(np.exp(total) for _, total in ranked) == pytest.approx(1, abs=1e-5)
    (found,) = generate(model, ["ab"], Beam(width=125, length_power=power), limits=Limits(tokens=4))
    assert found.tokens == ranked[0][0] and found.log_probability == pytest.approx(ranked[0][1], abs=1e-4)
    assert [other.tokens for other in found.others[:20]] == [tail for tail, _ in ranked[1:21]]
    (narrow,) = generate(model, ["ab"], Beam(width=1), limits=Limits(tokens=4))
    assert narrow.tokens == generate(model, ["ab"], Greedy(), limits=Limits(tokens=4))[0].tokens


def test_samples_have_the_models_distribution(small, sequence_logits):
    """Chi-square over all first two tokens of 4000 draws."""
    model, _ = small
    pairs = np.exp(sequence_logits[..., 0][:, 0, 0, 0][:, None] + sequence_logits[:, :, 0, 0, 1])
    counts = np.zeros((5, 5))
    rows = generate(model, ["ab"] * 4000, Sample(), limits=Limits(tokens=2, seed=1))
    for row in rows:
        counts[row.tokens[0], row.tokens[1] if len(row.tokens) > 1 else 0] += 1
    expected = pairs * 4000
    expected[0], counts[0] = [expected[0].sum(), 0, 0, 0, 0], [counts[0].sum(), 0, 0, 0, 0]
    cells = expected > 5
    assert ((counts - expected)[cells] ** 2 / expected[cells]).sum() < 2 * cells.sum() + 10


def test_filters_against_distributions_worked_out_by_hand():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.07, 0.03]]))

    def kept(**options):
        return np.exp(np.asarray(filtered(logits, **settings(Sampling(**options), 5))))[0]

    np.testing.assert_allclose(kept(), [0.5, 0.25, 0.15, 0.07, 0.03], rtol=1e-5)
    np.testing.assert_allclose(kept(temperature=0.5), np.array([25, 6.25, 2.25, 0.49, 0.09]) / 34.08, rtol=1e-5)
    np.testing.assert_allclose(kept(top_k=2), [2 / 3, 1 / 3, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(kept(top_p=0.75 - 1e-5), [2 / 3, 1 / 3, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(kept(top_p=0.76), np.array([50, 25, 15, 0, 0]) / 90, rtol=1e-5)
    np.testing.assert_allclose(kept(top_p=0.01), [1, 0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(kept(min_p=0.29), np.array([50, 25, 15, 0, 0]) / 90, rtol=1e-5)
    np.testing.assert_allclose(kept(min_p=1.0), [1, 0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(kept(top_k=3, top_p=0.8), [2 / 3, 1 / 3, 0, 0, 0], rtol=1e-5)  # 75 of 90 is already .833
    tokens = draw(jax.random.key(0), jnp.arange(4000), jnp.int32(0), jnp.tile(logits, (4000, 1)), settings(Sampling(top_k=2), 5))
    assert np.bincount(tokens, minlength=5)[2:].sum() == 0 and abs((np.asarray(tokens) == 0).mean() - 2 / 3) < 4 * (2 / 9 / 4000) ** 0.5


def test_same_seed_same_text_whatever_the_batch(in_bytes):
    model, _ = in_bytes
    limits = Limits(tokens=15, seed=5)
    alone = generate(model, ["hello"], Sample(), limits=limits)[0]
    again = generate(model, ["hello", "a"], Sample(), limits=limits)[0]
    other = generate(model, ["hello"], Sample(), limits=Limits(tokens=15, seed=6))[0]
    assert alone.tokens == again.tokens != other.tokens


def test_a_program_is_compiled_once_a_shape(in_bytes):
    model, _ = in_bytes
    programs = (engine._prefill, engine._step)
    generate(model, ["ab"], Greedy(), limits=Limits(tokens=3))
    before = [program._cache_size() for program in programs]
    generate(model, ["abcdef"], Sample(Sampling(temperature=0.5, top_k=9)), limits=Limits(tokens=9, seed=4))
    assert [program._cache_size() for program in programs] == before


def test_ranking_chooses_by_the_candidates_own_probabilities(small, sequence_logits):
    np.testing.assert_allclose(
        choice_probabilities(np.log([0.02, 0.06, 0.02]), np.array([1, 2, 4]), length_normalised=False), [0.2, 0.6, 0.2]
    )
    means = np.array([0.02, 0.06**0.5, 0.02**0.25])
    np.testing.assert_allclose(
        choice_probabilities(np.log([0.02, 0.06, 0.02]), np.array([1, 2, 4]), length_normalised=True), means / means.sum()
    )
    model, _ = small
    totals = dict(_complete(sequence_logits))
    counts = [0, 0]
    for seed in range(40):
        (found,) = generate(model, ["ab"], Rank(candidates=3), limits=Limits(tokens=4, seed=seed))
        everyone = [found, *found.others]
        for one in everyone:
            assert one.log_probability == pytest.approx(totals[one.tokens], abs=1e-4)
        weights = np.exp([totals[one.tokens] for one in everyone])
        np.testing.assert_allclose([one.chance for one in everyone], weights / weights.sum(), rtol=1e-3)
        most = max(one.chance for one in everyone)  # of alike candidates any
        counts[0] += found.chance == most
        counts[1] += sum(one.chance for one in everyone if one.chance == most)
    assert abs(counts[0] - counts[1]) < 4 * 10**0.5  # as often the likeliest as its chance says


def test_streams_show_only_what_is_certain():
    codec = TextCodec("bytes", 0)
    stream = TextStream(codec, ["\n\n", "END"])
    shown = [stream.push(byte) for byte in "aé\nbE".encode()]
    assert shown == ["a", "", "é", "", "\nb", ""]
    assert [stream.push(byte) for byte in b"ND"] == ["", ""] and stream.stopped and stream.text == "aé\nb"
    assert "".join([*shown, stream.close()]) == "aé\nb"


def test_stop_strings_and_listeners(in_bytes):
    model, _ = in_bytes
    (free,) = generate(model, ["hello"], Sample(), limits=Limits(tokens=15, seed=5))
    stop = free.text[4:6]
    heard = []
    (stopped,) = generate(
        model, ["hello"], Sample(), limits=Limits(tokens=15, seed=5, stop=(stop,)), listen=lambda row, text: heard.append(text)
    )
    assert stopped.ended == "stop" and stopped.text == free.text[: free.text.index(stop)] == "".join(heard)


def test_bad_settings_and_long_prompts_get_one_line(in_bytes):
    model, _ = in_bytes
    for options in ({"temperature": 0.0}, {"top_p": 0.0}, {"min_p": 2.0}, {"top_k": 0}, {"temperature": float("nan")}):
        with pytest.raises(UserError):
            Sampling(**options)
    with pytest.raises(UserError, match="the prompt has 25 tokens, the model's context 24"):
        generate(model, ["x" * 25], Greedy(), limits=Limits())


def test_the_command(finished_tiny, capsys):
    root = str(finished_tiny)

    def scaling(*arguments):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    sampled = ("generate", root, "--prompt", "ab", "--tokens", 40, "--seed", 3)
    code, one, said = scaling(*sampled, "--strategy", "sample")
    assert code == 0 and one.startswith("ab") and len(one.encode("utf-8")) > 30, said
    code, made, _ = scaling(*sampled, "--prompt", "cd", "--json")
    assert code == 0 and "ab" + json.loads(made)[0]["text"] + "\n" == one
    code, ranked, _ = scaling("generate", root, "--prompt", "ab", "--strategy", "rank", "--candidates", 2, "--tokens", 10, "--all")
    assert code == 0 and ranked.count("chosen with probability") == 2
    for arguments, words in [
        ((finished_tiny / "runs",), "neither a sweep's results folder"),
        ((finished_tiny / "nowhere",), "does not exist"),
        ((root, "--run", "nobody"), "is no run of"),
        ((root, "--run", "d16"), "is the beginning of several runs"),
        ((root, "--prompt", "x" * 100), "the prompt has 100 tokens, the model's context 32"),
        ((root, "--temperature", "-1"), "temperature = -1 is not positive"),
        ((root, "--seed", "-1"), "'-1' is not a whole number from 0"),
        ((root, "--strategy", "beam", "--length-power", "nan"), "length-power = nan is none"),
        ((root, "--strategy", "rank", "--candidates", "1"), "ranking chooses among 2 to 1000"),
    ]:
        code, _, said = scaling("generate", *arguments)
        assert code == 2 and words in said and said.count("\n") <= 2, said
