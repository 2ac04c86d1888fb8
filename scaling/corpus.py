"""Corpora as token arrays with a content hash: prepared once, cached, memory-mapped.

Text is cleaned and split by `scaling.prepare`; that is the corpus in bytes. Other tokenizers encode the corpus in bytes, document by
document. The content hash covers tokens, splits and documents, and is part of every `run_id`.
"""

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaling import synthetic, token_store
from scaling.config import Split, TextOptions, UserError, canonical_hash
from scaling.encoding import encode
from scaling.places import cache_folder
from scaling.prepare import Notify, clean, silent
from scaling.sealed import read_sealed, write_sealed
from scaling.sources import check_corpus, check_fetched, documents, fetch_missing, is_synthetic, parse
from scaling.token_store import PREPARATION_VERSION
from scaling.tokenizer import fingerprint

__all__ = ["Corpus", "cache_folder", "check_corpus", "data_order", "load", "prepare"]

Ranges = dict[str, dict[str, tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens of the splits, and what is known of them.

    Attributes
    ----------
    train, heldout, tune : (n,) uint8, uint16 or uint32, memory-mapped
        Settings are chosen on `tune`, so that the held-out text stays unseen.
    heldout_document, tune_document : (n_documents,) int64, first token of each document
    content_hash : str, 12 hex digits over the tokens and their splits
    facts : counts, version and licence
    domains : domain -> split -> (first token, past the last); empty when the text is of one kind
    heldout_bytes, tune_bytes : (n,) int32, bytes of text that each token stands for; None when every token is a byte
    """

    name: str
    content_hash: str
    train: np.ndarray
    heldout: np.ndarray
    heldout_document: np.ndarray
    tune: np.ndarray
    tune_document: np.ndarray
    facts: dict
    tokenizer: str = "bytes"
    domains: Ranges = field(default_factory=dict)
    heldout_bytes: np.ndarray | None = None
    tune_bytes: np.ndarray | None = None

    def windows(self, indices: np.ndarray, *, length: int) -> np.ndarray:
        """Training windows (n, length + 1): window i starts at token i * length and ends with its last target."""
        return self.train[indices[:, None] * length + np.arange(length + 1)[None, :]]

    def n_windows(self, *, length: int) -> int:
        """How many training windows of `length` tokens there are."""
        return (len(self.train) - 1) // length

    def _starts(self, count: int, *, length: int, split: Split, domain: str | None) -> np.ndarray:
        text = self.heldout if split == "heldout" else self.tune
        first, stop = (0, len(text)) if domain is None else self.domains[domain].get(split, (0, 0))
        available = (stop - first - 1) // length
        if available < count:
            words = ("held-out" if split == "heldout" else "tuning") + (f" {domain}" if domain else "")
            raise UserError(
                f"corpus {self.name}: {stop - first:,} {words} tokens hold {max(available, 0)} windows of {length}, but "
                f"evaluation.windows = {count}; use a larger corpus or evaluation.windows <= {max(available, 0)}"
            )
        return first + (np.arange(count) * available // count) * length

    def evaluation_windows(
        self, count: int, *, length: int, split: Split = "heldout", domain: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`count` evenly spread windows (count, length + 1) of a split, disjoint, and the document in which each starts.

        Raises
        ------
        UserError
            If the split's text (of the domain) is too short.
        """
        starts = self._starts(count, length=length, split=split, domain=domain)
        text, first = (self.heldout, self.heldout_document) if split == "heldout" else (self.tune, self.tune_document)
        return text[starts[:, None] + np.arange(length + 1)[None, :]], np.searchsorted(first, starts, side="right") - 1

    def bytes_per_token(self, count: int, *, length: int, split: Split = "heldout", domain: str | None = None) -> float:
        """Bytes of text per predicted token of the same windows."""
        sizes = self.heldout_bytes if split == "heldout" else self.tune_bytes
        if sizes is None:
            return 1.0
        starts = self._starts(count, length=length, split=split, domain=domain)
        return float(sizes[starts[:, None] + np.arange(1, length + 1)[None, :]].mean())

    def domain_windows(self, windows: int, *, length: int, split: Split = "heldout") -> dict[str, int]:
        """How many windows of each domain are evaluated: a quarter of the overall number, or as many as there are; none below 4."""
        counts = {}
        for domain, ranges in self.domains.items():
            first, stop = ranges.get(split, (0, 0))
            if (count := min(max(8, windows // 4), (stop - first - 1) // length)) >= 4:
                counts[domain] = count
        return counts


def data_order(n_windows: int, *, seed: int, first: int, count: int) -> np.ndarray:
    """Windows `first` to `first + count` of an endless stream: a new permutation each epoch, a prefix in D, the same for all sizes."""
    out, position = [], first
    while position < first + count:
        epoch, offset = divmod(position, n_windows)
        order = permutation(n_windows, seed, epoch)
        take = min(n_windows - offset, first + count - position)
        out.append(order[offset : offset + take])
        position += take
    return np.concatenate(out)


_LAST_PERMUTATION: dict[tuple[int, int, int], np.ndarray] = {}


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` windows in an epoch."""
    key = (n, seed, epoch)
    if key not in _LAST_PERMUTATION:
        _LAST_PERMUTATION.clear()  # one entry: a stream is read in order
        _LAST_PERMUTATION[key] = np.random.default_rng([seed, epoch, 7]).permutation(n)
    return _LAST_PERMUTATION[key]


# ---------------------------------------------------------------- preparing


def prepare(name: str, *, tokenizer: str = "bytes", options: TextOptions | None = None, notify: Notify = silent) -> Corpus:
    """Fetch, read, clean, split and encode a corpus, or find it in the cache, where it lies under its content hash.

    Raises
    ------
    UserError
        Unknown name, text that cannot be read or fetched, or too little of it.
    """
    options = options or TextOptions()
    check_corpus(name)
    key = _key(name, tokenizer, options, notify)
    index = cache_folder() / "corpora" / "index" / f"{key}.sealed"
    content_hash = read_sealed(index)
    if content_hash and (corpus := _read(content_hash.decode(), name=name)) is not None:
        return corpus
    if tokenizer != "bytes":
        corpus = _encode(prepare(name, options=options, notify=notify), tokenizer, notify)
    else:
        corpus = _generate(name) if is_synthetic(name) else _clean(name, options, notify)
    write_sealed(index, corpus.content_hash.encode())
    return corpus


def _key(name: str, tokens: str, options: TextOptions, notify: Notify) -> str:
    """Hash of all that the tokens follow from, without reading the text."""
    if is_synthetic(name):
        if tokens != "bytes":
            raise UserError(f"corpus {name} is made of symbols, not of text: tokenizer must be bytes, not {tokens}")
        state: Any = repr(synthetic.SOURCES[name])
    else:
        fetch_missing(name, notify=notify)
        state = [source.fingerprint() for source in parse(name)]
    return canonical_hash([PREPARATION_VERSION, name, fingerprint(tokens), options, state])


def _clean(name: str, options: TextOptions, notify: Notify) -> Corpus:
    check_fetched(name, notify=notify)
    with token_store.scratch() as folder:
        made = clean(name, documents(name, options), options, folder, notify=notify)
        facts = [source.facts() for source in parse(name)]
        for key in ("licence", "version"):
            made["facts"][key] = "; ".join(dict.fromkeys(fact[key] for fact in facts))
        return _stored(folder, {"name": name, "tokenizer": "bytes", "dtype": "uint8", **made})


def _generate(name: str) -> Corpus:
    with token_store.scratch() as folder:
        streams = synthetic.generate(name)
        for split, tokens in streams.items():
            (folder / f"{split}.bin").write_bytes(tokens.tobytes())
        starts = {split: array("q", range(0, len(tokens), 4096)) for split, tokens in streams.items()}  # clusters of the standard error
        facts: dict[str, Any] = {f"{split}_bytes": len(tokens) for split, tokens in streams.items()}
        facts |= {f"{split}_documents": len(starts[split]) for split in streams}
        facts |= {"licence": "none: made up", "version": synthetic.SOURCES[name].summary}
        made = {"facts": facts, "documents": starts, "domains": {}}
        return _stored(folder, {"name": name, "tokenizer": "bytes", "dtype": "uint8", **made})


def _encode(corpus: Corpus, name: str, notify: Notify) -> Corpus:
    with token_store.scratch() as folder:
        made = encode(corpus, name, folder, notify=notify)
        return _stored(folder, {"name": corpus.name, "tokenizer": name, **made})


def _stored(folder: Path, made: dict[str, Any]) -> Corpus:
    content_hash = token_store.store(folder, made)
    if (corpus := _read(content_hash, name=made["name"])) is None:
        raise OSError(f"{token_store.place(content_hash)}: what was written cannot be read back; is the disk full?")
    return corpus


def _read(content_hash: str, *, name: str) -> Corpus | None:
    """A corpus of the cache, or None when it is not there or not intact. Two names can have the same content."""
    found = token_store.read(content_hash)
    return Corpus(**{**found, "name": name, "content_hash": content_hash}) if found is not None else None


def load(name: str, *, content_hash: str, tokenizer: str = "bytes", options: TextOptions | None = None) -> Corpus:
    """The prepared corpus of a run, from the cache or prepared anew.

    Raises
    ------
    UserError
        If the text on this machine is not the one the sweep was planned with.
    """
    corpus = _read(content_hash, name=name) or prepare(name, tokenizer=tokenizer, options=options)
    if corpus.content_hash != content_hash:
        raise UserError(
            f"corpus {name}: this machine's text has hash {corpus.content_hash}, the sweep was planned with {content_hash} "
            "(another Python version, or changed files); use the same text or another sweep name"
        )
    return corpus
