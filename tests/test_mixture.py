"""Orders of training windows: prefixes, epochs, shares."""

import msgspec
import numpy as np
import pytest

from scaling import mixture
from scaling.cli.main import main
from scaling.config import DataConfig, UserError
from scaling.corpus import data_order, prepare
from scaling.plan import group_trunks, resolve
from scaling.sweep_file import load_sweep
from scaling.text_axes import group_of


def data(**changes):
    base = DataConfig(corpus="x", corpus_hash="0", tokenizer="bytes", batch_tokens=512, evaluation_windows=32, seed_data=0)
    return msgspec.structs.replace(base, **changes)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three domains of different sizes; every byte of a domain tells which it is."""
    root = tmp_path_factory.mktemp("three")
    for name, letter, count in (("one", "a", 150), ("two", "b", 120), ("small", "c", 60)):
        (root / name).mkdir()
        rng = np.random.default_rng(ord(letter))
        for number in range(count):
            (root / name / f"{number}.txt").write_text("".join(letter if bit else letter.upper() for bit in rng.integers(0, 2, 2000)))
    return prepare(" + ".join(str(root / name) for name in ("one", "two", "small")))


def test_no_limit_is_the_order_of_old():
    for first in (0, 77, 150, 390):
        np.testing.assert_array_equal(
            mixture.limited_order(100, None, seed=3, first=first, count=60), data_order(100, seed=3, first=first, count=60)
        )


def test_unique_tokens_are_a_prefix_and_every_epoch_sees_them_all_in_a_new_order():
    free = data_order(1000, seed=3, first=0, count=1000)
    limited = mixture.limited_order(1000, 80, seed=3, first=0, count=400)
    np.testing.assert_array_equal(limited[:80], free[:80])
    epochs = limited.reshape(5, 80)
    assert all(sorted(epoch) == sorted(free[:80]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    pieces = [mixture.limited_order(1000, 80, seed=3, first=first, count=37) for first in range(0, 370, 37)]
    np.testing.assert_array_equal(np.concatenate(pieces), limited[:370])


def kinds(windows):
    return ["abc".index(bytes(window).replace(b"\0", b"").decode().lower()[0]) for window in windows]


def test_a_mixture_has_its_shares_and_is_a_prefix(three):
    mixed = data(mixture=(("one", 0.7), ("two", 0.2), ("small", 0.1)))
    whole = mixture.training_windows(three, mixed, seed=1, first=0, count=5000, length=32)
    np.testing.assert_allclose(np.bincount(kinds(whole)) / 5000, [0.7, 0.2, 0.1], atol=0.005)
    pieces = [mixture.training_windows(three, mixed, seed=1, first=first, count=501, length=32) for first in range(0, 4509, 501)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[: 9 * 501])
    other = mixture.training_windows(three, mixed, seed=2, first=0, count=500, length=32)
    assert not np.array_equal(other, whole[:500])
    (first, stop) = three.domains["one"]["train"]
    n_windows = (stop - first - 1) // 32
    own = [window.tobytes() for window, kind in zip(whole, kinds(whole), strict=True) if kind == 0]
    assert n_windows > len(own) == len(set(own))  # none is seen twice before all have been seen
    small = [window.tobytes() for window, kind in zip(whole, kinds(whole), strict=True) if kind == 2]
    assert len(set(small)) == len(small) == pytest.approx(500, abs=25)


def test_one_domain_alone_sees_nothing_else_and_unique_tokens_are_shared_out(three):
    alone = mixture.training_windows(three, data(mixture=(("two", 1.0),)), seed=1, first=0, count=300, length=32)
    assert set(kinds(alone)) == {1}
    limited = data(mixture=(("one", 0.5), ("two", 0.5)), tokens_unique=32 * 100)
    windows = mixture.training_windows(three, limited, seed=1, first=0, count=2048, length=32)
    distinct = [{w.tobytes() for w, kind in zip(windows, kinds(windows), strict=True) if kind == k} for k in (0, 1)]
    assert [len(d) for d in distinct] == [50, 50]


def test_a_name_stands_for_all_its_domains(three):
    domains = {f"english/{name}": ranges for name, ranges in three.domains.items()}
    from dataclasses import replace

    corpus = replace(three, domains=domains)
    weights = mixture.domain_weights(corpus, (("english", 1.0),))
    sizes = {name: np.diff(ranges["train"])[0] for name, ranges in domains.items()}
    assert weights == pytest.approx({name: size / sum(sizes.values()) for name, size in sizes.items()})
    with pytest.raises(UserError, match="`french` is no domain .* allowed: english/one"):
        mixture.domain_weights(corpus, (("french", 1.0),))


def test_too_little_text_is_refused_with_what_is_possible(three):
    with pytest.raises(UserError, match=r"data.tokens_unique = 99,999,968 needs .* use at most"):
        mixture.check_enough(three, data(tokens_unique=99_999_968), length=32)
    with pytest.raises(UserError, match="of domain small"):
        mixture.check_enough(three, data(tokens_unique=300_000, mixture=(("small", 1.0),)), length=32)
    mixture.check_enough(three, data(tokens_unique=32_000), length=32)


def test_unique_tokens_of_a_run():
    assert mixture.unique_tokens(1000, {}, data(), tokens=700) == 700
    assert mixture.unique_tokens(1000, {}, data(), tokens=7000) == 1000
    assert mixture.unique_tokens(1000, {}, data(tokens_unique=300), tokens=7000) == 300
    sizes = {"a": 100, "b": 900}
    assert mixture.unique_tokens(1000, sizes, data(mixture=(("a", 0.5), ("b", 0.5))), tokens=1000) == 600
    assert mixture.unique_tokens(1000, sizes, data(mixture=(("b", 1.0),), tokens_unique=50), tokens=1000) == 50


SWEEP = """
name = "t"
corpus = "{corpus}"
[model]
d_model = [16]
sequence_length = 32
[data]
tokens = ["8k", "32k"]
{more}
[training]
batch_tokens = 128
[evaluation]
windows = 32
"""


def runs_of(tmp_path, text_folder, more):
    path = tmp_path / "t.toml"
    path.write_text(SWEEP.format(corpus=text_folder, more=more))
    sweep = load_sweep(path)
    return sweep, resolve(sweep, corpus_hash="0")


def test_runs_that_repeat_nothing_are_trained_once(tmp_path, text_folder):
    _, runs = runs_of(tmp_path, text_folder, 'tokens_unique = ["4k", "16k", "all"]')
    found = sorted((run.tokens, run.trunk.data.tokens_unique) for run in runs if run.trunk.data.tokens_unique is not msgspec.UNSET)
    assert [(t, u) for t, u in found] == [(7936, 4000), (32000, 4000), (32000, 16000)]
    assert len(runs) == 5 and len(group_trunks(runs)) == 3


def test_mixtures_and_tokenizers_are_axes_with_groups_of_their_own(tmp_path, text_folder):
    sweep, runs = runs_of(tmp_path, text_folder, "mixture = [{a = 1.0}, {a = 0.25, b = 0.75}]")
    assert {group_of(sweep, run.trunk.data) for run in runs} == {"a", "0.25 a + 0.75 b"}
    assert len({run.trunk_id for run in runs}) == 2


BAD = {
    "sums": ("mixture = [{one = 0.5, two = 0.4}]", "sums to 0.9; the weights of a mixture sum to 1"),
    "negative": ("mixture = [{one = 1.5, two = -0.5}]", "data.mixture[0]"),
    "not a domain": ("mixture = [{one = 1.0}]", "`one` is no domain of corpus"),
    "too many": ('tokens_unique = ["9M"]', "data.tokens_unique = 9,000,000 needs"),
    "no amounts": ("tokens_unique = []", "data.tokens_unique is empty"),
    "no mixtures": ("mixture = []", "data.mixture is empty"),
    "twice": ('tokens_unique = ["4k", 4000]', "names a value twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_axes_are_one_line_and_leave_nothing_behind(case, tmp_path, text_folder, capsys):
    more, expected = BAD[case]
    path = tmp_path / "t.toml"
    path.write_text(SWEEP.format(corpus=text_folder, more=more))
    assert main(["run", str(path), "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and not (tmp_path / "results").exists()
