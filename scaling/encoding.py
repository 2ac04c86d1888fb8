"""A corpus in bytes -> the same documents in the tokens of another tokenizer, in bounded memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.prepare import SPLITS, Notify
from scaling.tokenizer import TRAINED_ON, Encoder, make_encoder, token_dtype

if TYPE_CHECKING:
    from scaling.corpus import Corpus

_CHUNK = 1 << 22


def encode(corpus: Corpus, name: str, folder: Path, *, notify: Notify) -> dict[str, Any]:
    """Write {split}.bin, {split}.bytes and tokenizer.json into `folder`; return what `token_store.store` needs."""
    notify(f"{corpus.name}: making the tokenizer {name}")
    encoder = make_encoder(name, _training_sample(corpus.train))
    dtype = token_dtype(encoder.vocab_size)
    facts = dict(corpus.facts)
    documents: dict[str, array] = {}
    domains: dict[str, dict[str, list[int]]] = {domain: {} for domain in corpus.domains}
    for split in SPLITS:
        notify(f"{corpus.name}: {name}, {split}")
        starts, size = _encode_split(getattr(corpus, split), encoder, folder, split)
        documents[split], facts[f"{split}_tokens"] = starts, size
        _move_ranges(corpus, domains, split, starts, size)
    if name.startswith("bpe:"):
        facts["tokenizer_trained_bytes"] = min(len(corpus.train), TRAINED_ON)
    facts["tokenizer_lossless"] = all(encoder.is_lossless(text) for _, text in zip(range(20), documents_of(corpus.heldout)))
    (folder / "tokenizer.json").write_text(encoder.json(), encoding="utf-8")
    return {"dtype": dtype.__name__, "facts": facts, "documents": documents, "domains": domains}


def _encode_split(text: np.ndarray, encoder: Encoder, folder: Path, split: str) -> tuple[array, int]:
    """First tokens of the documents of a split, and how many tokens it has; the END token stands between documents."""
    dtype = token_dtype(encoder.vocab_size)
    starts, position = array("q"), 0
    with open(folder / f"{split}.bin", "wb") as out, open(folder / f"{split}.bytes", "wb") as widths_out:
        for batch in _batches(text):
            for tokens, widths in encoder.encode(batch):
                if position:
                    out.write(dtype(encoder.end).tobytes())
                    widths_out.write(np.int32(1).tobytes())
                    position += 1
                starts.append(position)
                out.write(tokens.tobytes())
                widths_out.write(widths.astype(np.int32).tobytes())
                position += len(tokens)
    if split == "train":
        (folder / f"{split}.bytes").unlink()  # no loss is reported on it
    return starts, position


def _move_ranges(corpus: Corpus, domains: dict[str, dict[str, list[int]]], split: str, starts: array, size: int) -> None:
    """Ranges of the domains in tokens: domains begin and end with documents."""
    if not domains:
        return
    first_bytes = [0, *(at + 1 for at in np.flatnonzero(np.asarray(getattr(corpus, split)) == 0).tolist())]
    token_of = dict(zip(first_bytes, starts))
    for domain, ranges in corpus.domains.items():
        if split in ranges:
            first, stop = ranges[split]
            domains[domain][split] = [token_of[first], token_of[stop + 1] - 1 if stop + 1 in token_of else size]


def documents_of(text: np.ndarray) -> Iterator[bytes]:
    """Documents of a split in bytes: they hold no NUL, and one stands between them."""
    rest = b""
    for start in range(0, len(text), _CHUNK):
        *whole, rest = (rest + text[start : start + _CHUNK].tobytes()).split(b"\0")
        yield from whole
    yield rest


def _batches(text: np.ndarray) -> Iterator[list[bytes]]:
    batch, size = [], 0
    for document in documents_of(text):
        batch.append(document)
        size += len(document)
        if size > 1 << 20:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _training_sample(train: np.ndarray) -> Iterator[bytes]:
    """Training documents spread evenly, about `TRAINED_ON` bytes of them."""
    share, due = min(1.0, TRAINED_ON / max(1, len(train))), 0.0
    for document in documents_of(train):
        due += share
        if due >= 1:
            due -= 1
            yield document
