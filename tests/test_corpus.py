import numpy as np
import pytest

from scaling import corpus as corpora
from scaling.config import UserError
from scaling.evaluate import clustered_standard_error


def test_the_default_corpus_needs_no_download_and_is_the_same_twice():
    first, second = corpora.prepare("python-stdlib"), corpora.prepare("python-stdlib")
    assert first.content_hash == second.content_hash
    assert len(first.train) > 2_500_000 and len(first.heldout) > 200_000
    np.testing.assert_array_equal(corpora.load("python-stdlib", content_hash=first.content_hash).train, first.train)


def test_the_hash_is_that_of_the_text_on_any_machine(tmp_path):
    for number in range(100):
        (tmp_path / f"{number:03}.txt").write_text(
            f"Document {number}.\n\n" + "".join(f"{number * k % 97} bottles, \u4e2d\u6587.\n" for k in range(60))
        )
    assert corpora.prepare(str(tmp_path)).content_hash == "ac17510975be"  # pragma: allowlist secret (found on another machine)


def test_no_text_is_in_both_splits(tmp_path):
    rng = np.random.default_rng(0)
    licence = "# a licence header that every file repeats, word for word, at its top\n# second line of it"
    for number in range(200):
        body = "\n\n".join(
            f"def f{number}_{k}(): return {rng.integers(10**9)} # some text that makes a block long enough" for k in range(4)
        )
        (tmp_path / f"{number}.py").write_text(licence + "\n\n" + body)
        (tmp_path / f"copy{number}.py").write_text(licence + "\n\n" + body)
    corpus = corpora.prepare(str(tmp_path))
    assert corpus.facts["duplicate_documents"] == 200
    everything = corpus.train.tobytes() + corpus.heldout.tobytes()
    assert everything.count(b"a licence header") <= 1
    train_blocks = {block for block in corpus.train.tobytes().replace(b"\0", b"\n\n").split(b"\n\n") if len(block) >= 64}
    heldout_blocks = {block for block in corpus.heldout.tobytes().replace(b"\0", b"\n\n").split(b"\n\n") if len(block) >= 64}
    assert heldout_blocks and not train_blocks & heldout_blocks


@pytest.mark.parametrize("name", ["train.bin", "tune.bin", "corpus.sealed", "../index"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_cache_is_named_set_aside_and_prepared_again(text_folder, tmp_path, monkeypatch, caplog, name, damage):
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path))
    corpus = corpora.prepare(str(text_folder))
    train, facts = np.array(corpus.train), corpus.facts  # the corpus itself is a view of the file
    path = tmp_path / "corpora" / corpus.content_hash / name
    path = next(path.iterdir()) if path.is_dir() else path
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        middle = len(data) // 2
        path.write_bytes(data[:-5] if damage == "cut" else data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :])
    again = corpora.prepare(str(text_folder))
    np.testing.assert_array_equal(again.train, train)
    assert again.facts == facts and again.content_hash == corpus.content_hash
    np.testing.assert_array_equal(corpora.load(str(text_folder), content_hash=corpus.content_hash).train, train)
    if damage != "gone":
        assert path.name in caplog.text or corpus.content_hash in caplog.text
        assert len([*(tmp_path / "corpora").rglob("*.damaged-1")]) == 1


def test_changed_text_is_refused(text_folder):
    with pytest.raises(UserError, match="was planned with 0123456789ab"):
        corpora.load(str(text_folder), content_hash="0123456789ab")


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="0 documents"):
        corpora.prepare(str(tmp_path))


def test_data_order_is_a_prefix_and_covers_every_window_once_an_epoch():
    whole = corpora.data_order(100, seed=3, first=0, count=250)
    pieces = [corpora.data_order(100, seed=3, first=first, count=50) for first in range(0, 250, 50)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    assert sorted(whole[:100]) == sorted(whole[100:200]) == list(range(100))
    assert not np.array_equal(whole[:100], whole[100:200])
    assert not np.array_equal(whole[:100], corpora.data_order(100, seed=4, first=0, count=100))


def test_windows_overlap_by_the_target_only(text_folder):
    corpus = corpora.prepare(str(text_folder))
    windows = corpus.windows(np.array([0, 1]), length=32)
    np.testing.assert_array_equal(windows.reshape(-1)[:33], corpus.train[:33])
    assert windows[0, 32] == windows[1, 0]


def test_evaluation_windows_do_not_overlap_and_name_their_document(text_folder):
    corpus = corpora.prepare(str(text_folder))
    windows, documents = corpus.evaluation_windows(32, length=32)
    assert windows.shape == (32, 33) and len(set(documents)) >= 3
    with pytest.raises(UserError, match="evaluation.windows <="):
        corpus.evaluation_windows(10**6, length=32)


def test_clustered_standard_error():
    rng = np.random.default_rng(0)
    independent = rng.normal(size=4000)
    plain = independent.std(ddof=1) / 4000**0.5
    assert clustered_standard_error(independent, np.arange(4000)) == pytest.approx(plain, rel=1e-6)
    repeated = np.repeat(rng.normal(size=400), 10)  # ten copies of each observation carry no more information
    expected = repeated[::10].std(ddof=1) / 400**0.5
    assert clustered_standard_error(repeated, np.repeat(np.arange(400), 10)) == pytest.approx(expected, rel=1e-6)
