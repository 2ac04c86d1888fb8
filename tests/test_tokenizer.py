"""Tokenizers: lossless, comparable in bytes, the same twice."""

import json
import math

import numpy as np
import pytest

from scaling.config import UserError
from scaling.corpus import prepare
from scaling.encoding import documents_of
from scaling.tokenizer import make_encoder, token_dtype, vocab_size

SCRIPTS = [
    "中文和日本語",
    "العربية",
    "हिन्दी",
    "русский",
    "emoji 🧪\U0001f468‍\U0001f469",
    "\x07control",
    "a  b\t\nc",
    "ﬁ ligature",
    "\ufffd",
]


@pytest.fixture(scope="module")
def english():
    return make_encoder("bpe:400", [b"the cat sat on the mat and the dog sat on the log " * 20])


def test_unseen_scripts_come_back_byte_for_byte_and_bytes_add_up(english):
    texts = [text.encode() for text in SCRIPTS]
    for text, (tokens, widths) in zip(texts, english.encode(texts), strict=True):
        assert english.made.decode(tokens.tolist(), skip_special_tokens=False).encode() == text
        assert widths.sum() == len(text) and (widths >= 0).all() and tokens.max() < 400
        assert english.is_lossless(text)


def test_bytes_that_are_no_text_do_not_fail(english):
    ((tokens, widths),) = english.encode([b"\xff\xfe text \x80"])
    assert len(tokens) == len(widths) > 0


def test_seen_words_are_single_tokens(english):
    ((tokens, widths),) = english.encode([b"the cat sat on the mat"])
    assert len(tokens) == 6 and widths.tolist() == [3, 4, 4, 3, 4, 4]


def test_the_corpus_in_bpe_is_the_corpus_in_bytes(text_folder):
    plain, corpus = prepare(str(text_folder)), prepare(str(text_folder), tokenizer="bpe:300")
    assert corpus.content_hash != plain.content_hash and corpus.train.dtype == np.uint16 and len(corpus.train) < len(plain.train)
    encoder = json.loads((_place(corpus) / "tokenizer.json").read_text())
    assert len(encoder["model"]["vocab"]) <= 300
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(json.dumps(encoder))
    end = made.token_to_id("<|end|>")
    text = made.decode(corpus.heldout.tolist(), skip_special_tokens=False)
    assert text.encode().split(b"<|end|>") == list(documents_of(plain.heldout))
    np.testing.assert_array_equal(corpus.heldout_document[1:] - 1, np.flatnonzero(corpus.heldout == end))
    assert corpus.heldout_bytes.sum() == len(plain.heldout)


def _place(corpus):
    from scaling.token_store import place

    return place(corpus.content_hash)


def test_bits_per_byte_of_a_uniform_guess_follow_from_bytes_per_token(text_folder):
    corpus = prepare(str(text_folder), tokenizer="bpe:300")
    assert prepare(str(text_folder)).bytes_per_token(32, length=32) == 1.0
    starts = (np.arange(32) * ((len(corpus.heldout) - 1) // 32) // 32) * 32
    expected = np.mean([corpus.heldout_bytes[start + 1 : start + 33].mean() for start in starts])
    assert corpus.bytes_per_token(32, length=32) == pytest.approx(expected) and expected > 1.3
    bits = math.log(300) / math.log(2) / expected
    assert bits < 8  # a uniform guess over 300 tokens of more than a byte each costs fewer bits a byte than one over bytes


def test_domains_keep_their_text_in_other_tokens(tmp_path):
    for name, word in (("one", "alpha"), ("two", "omega")):
        (tmp_path / name).mkdir()
        for number in range(60):
            (tmp_path / name / f"{number}.txt").write_text(f"{word} {number} " + f"{word} says {number * 3} " * 20)
    corpus = prepare(f"{tmp_path / 'one'} + {tmp_path / 'two'}", tokenizer="bpe:280")
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(_place(corpus) / "tokenizer.json"))
    for domain, word, other in (("one", "alpha", "omega"), ("two", "omega", "alpha")):
        for split in ("train", "heldout", "tune"):
            first, stop = corpus.domains[domain][split]
            text = made.decode(getattr(corpus, split)[first:stop].tolist(), skip_special_tokens=False)
            assert text.startswith(word) and other not in text and not text.endswith("<|end|>")


def test_any_tokenizer_json_can_be_used_and_says_when_it_loses_text(tmp_path, text_folder):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "abc": 1, "</s>": 2}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    words.save(str(path))
    assert vocab_size(str(path)) == 3 and token_dtype(3) is np.uint8
    corpus = prepare(str(text_folder), tokenizer=str(path))
    assert corpus.facts["tokenizer_lossless"] is False
    assert corpus.heldout_bytes.sum() == len(prepare(str(text_folder)).heldout)
    assert corpus.train.dtype == np.uint8


def test_bpe_is_the_same_twice():
    texts = [f"{word} and {word[::-1]} again".encode() for word in ("stone", "river", "cloud", "ember") for _ in range(9)]
    assert make_encoder("bpe:300", texts).json() == make_encoder("bpe:300", texts).json()


@pytest.mark.parametrize(
    ("name", "words"), [("bpe:100", "from 258 to 65536"), ("bpe:many", "from 258"), ("sentencepiece", "allowed are bytes")]
)
def test_unknown_tokenizers_are_refused(name, words):
    with pytest.raises(UserError, match=words):
        vocab_size(name)


def test_a_broken_tokenizer_file_is_one_line(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": 3}')
    with pytest.raises(UserError, match="no tokenizer of the library"):
        vocab_size(str(path))
