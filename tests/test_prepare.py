"""Cleaning: what is dropped, what is replaced, what is counted."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from scaling.config import TextOptions
from scaling.corpus import prepare
from scaling.personal import remove_personal_data


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def prose(rng, words=120):
    return " ".join(rng.choice(VOCABULARY, size=words))


VOCABULARY = ["".join(np.random.default_rng(5).choice(list("abcdefghijklmno"), size=6)) + str(i) for i in range(400)]


def test_near_duplicates_are_dropped_and_other_texts_are_not(tmp_path):
    rng = np.random.default_rng(0)
    originals = [prose(rng) for _ in range(150)]
    copies = [" ".join([*text.split()[:60], "changed", *text.split()[61:]]) for text in originals[:40]]  # Jaccard 111 / 121
    halves = [" ".join(text.split()[:60]) + " " + prose(rng, 60) for text in originals[40:60]]  # Jaccard about a third
    path = write(tmp_path / "a.jsonl", originals + copies + halves)
    facts = prepare(path, options=TextOptions(near_duplicates=0.8)).facts
    assert facts["near_duplicate_documents"] == 40
    assert sum(facts[f"{split}_documents"] for split in ("train", "heldout", "tune")) == 170
    assert "near_duplicate_documents" not in prepare(path).facts


def test_near_duplicates_are_found_in_scripts_without_spaces(tmp_path):
    rng = np.random.default_rng(0)
    poems = ["".join(chr(0x4E00 + c) for c in rng.integers(0, 3000, 100)) for _ in range(100)]
    path = write(tmp_path / "a.jsonl", poems + [poem[:50] + "新" + poem[51:] for poem in poems[:20]])
    assert prepare(path, options=TextOptions(near_duplicates=0.7)).facts["near_duplicate_documents"] == 20


PERSONAL = {
    "Mail jane.doe+x@mail.example.co.uk, now": ("Mail <email>, now", {"email": 1}),
    "call +1 (212) 555-0100 or (212) 555-0100": ("call <phone> or <phone>", {"phone": 2}),
    "card 4111 1111 1111 1111 and 4111111111111112": ("card <card> and 4111111111111112", {"card": 1}),
    "from 192.168.1.254 and 2001:0db8:85a3:0000:0000:8a2e:0370:7334": ("from <ip> and <ip>", {"ip": 2}),
    "pi 3.14159265, year 1984, 10-12 and 999.1.1.1, x@y, 2024-01-02 12:30:59": (None, {}),
    "numbers 0000000000000000 and 1234567": (None, {}),
}


@pytest.mark.parametrize("text", PERSONAL)
def test_personal_data_is_replaced_and_counted(text):
    expected, counts = PERSONAL[text]
    found: dict[str, int] = {}
    assert remove_personal_data(text.encode(), found).decode() == (expected or text)
    assert found == counts


def test_personal_data_counts_are_in_the_record(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.jsonl", [f"{prose(rng, 30)} user{i}@example.org" for i in range(100)])
    corpus = prepare(path, options=TextOptions(personal_data="remove"))
    assert corpus.facts["personal_data_removed"] == {"email": 100}
    assert b"@" not in corpus.train.tobytes() + corpus.heldout.tobytes() + corpus.tune.tobytes()
    assert b"@" in prepare(path).train.tobytes()


def test_no_document_is_in_two_splits_and_the_split_follows_from_the_content(tmp_path):
    rng = np.random.default_rng(0)
    texts = [prose(rng) for _ in range(300)]
    corpus = prepare(write(tmp_path / "a.jsonl", texts + texts[::-1]))
    splits = {name: set(getattr(corpus, name).tobytes().split(b"\0")) for name in ("train", "heldout", "tune")}
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 300
    other = prepare(write(tmp_path / "b.jsonl", texts[100:]))
    assert set(other.heldout.tobytes().split(b"\0")) <= splits["heldout"]


def test_a_corpus_of_many_megabytes_is_prepared_in_bounded_memory(tmp_path):
    """120 MB of text; the process may grow by what it must remember of documents and blocks, not by the text."""
    path = tmp_path / "big.jsonl"
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     ", np.uint8)
    with open(path, "wb") as out:
        for _ in range(1200):
            out.write(b'{"text": "' + letters[rng.integers(0, len(letters), 100_000)].tobytes() + b'"}\n')
    code = """
        import resource, sys
        from scaling.corpus import prepare
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        corpus = prepare(sys.argv[1])
        print(len(corpus.train) + len(corpus.heldout) + len(corpus.tune), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, check=True)
    tokens, grown = map(int, done.stdout.split())
    assert tokens > 119_000_000 and grown < 40_000  # kB
