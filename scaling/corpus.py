"""Text sources -> token arrays with a content hash: documents, duplicates removed, split by document, cached.

Preparation (the same for every source): documents in path order; exact duplicate documents dropped; blocks of lines (separated by blank
lines, at least 64 bytes) that occurred before are dropped, in whatever document, so that no licence header or table is in both splits;
documents are assigned to `train`, `tune` or `heldout` by the hash of their content. Documents are joined by one NUL byte.
"""

import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.config import Split, UserError

PREPARATION_VERSION = 2
NAMES = {"python-stdlib": "the .py sources of the running interpreter's standard library, without its tests (PSF licence, no download)"}
_SPLIT_PERCENT = (("heldout", 10), ("tune", 16), ("train", 100))  # cumulative
_MIN_BLOCK = 64
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}


@dataclass(frozen=True)
class Corpus:
    """Byte tokens of the splits, and what is known of them.

    Attributes
    ----------
    train, heldout, tune : (n,) uint8
        Settings are chosen on `tune`, so that the held-out text stays unseen.
    heldout_document, tune_document : (n_documents,) int64, first token of each document
    content_hash : str, 12 hex digits over the prepared text and its split
    facts : counts, version and licence
    """

    name: str
    content_hash: str
    train: np.ndarray
    heldout: np.ndarray
    heldout_document: np.ndarray
    tune: np.ndarray
    tune_document: np.ndarray
    facts: dict

    def windows(self, indices: np.ndarray, *, length: int) -> np.ndarray:
        """Training windows (n, length + 1) uint8: window i starts at token i * length and ends with its last target."""
        return self.train[indices[:, None] * length + np.arange(length + 1)[None, :]]

    def n_windows(self, *, length: int) -> int:
        """How many training windows of `length` tokens there are."""
        return (len(self.train) - 1) // length

    def evaluation_windows(self, count: int, *, length: int, split: Split = "heldout") -> tuple[np.ndarray, np.ndarray]:
        """`count` evenly spread windows (count, length + 1) of a split, disjoint, and the document in which each starts.

        Raises
        ------
        UserError
            If the split's text is too short.
        """
        text, first = (self.heldout, self.heldout_document) if split == "heldout" else (self.tune, self.tune_document)
        available = (len(text) - 1) // length
        if available < count:
            words = "held-out" if split == "heldout" else "tuning"
            raise UserError(
                f"corpus {self.name}: {len(text):,} {words} tokens hold {max(available, 0)} windows of {length}, but "
                f"evaluation.windows = {count}; use a larger corpus or evaluation.windows <= {available}"
            )
        starts = (np.arange(count) * available // count) * length
        documents = np.searchsorted(first, starts, side="right") - 1
        return text[starts[:, None] + np.arange(length + 1)[None, :]], documents


def data_order(n_windows: int, *, seed: int, first: int, count: int) -> np.ndarray:
    """Windows `first` to `first + count` of an endless stream: a new permutation each epoch, a prefix in D, the same for all sizes."""
    out, position = [], first
    while position < first + count:
        epoch, offset = divmod(position, n_windows)
        permutation = _permutation(n_windows, seed, epoch)
        take = min(n_windows - offset, first + count - position)
        out.append(permutation[offset : offset + take])
        position += take
    return np.concatenate(out)


_LAST_PERMUTATION: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    key = (n, seed, epoch)
    if key not in _LAST_PERMUTATION:
        _LAST_PERMUTATION.clear()  # one entry: a stream is read in order
        _LAST_PERMUTATION[key] = np.random.default_rng([seed, epoch, 7]).permutation(n)
    return _LAST_PERMUTATION[key]


# ---------------------------------------------------------------- sources


def _files(root: Path, *, leave_out: Callable[[str], bool]) -> list[Path]:
    """Files under `root` in path order; `leave_out` says which names of folders and files are not looked at."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not leave_out(name)]  # not entered: site-packages alone can hold ten thousand files
        found += [Path(folder, name) for name in files if not leave_out(name)]
    return sorted(found)


def _stdlib_documents() -> Iterator[bytes]:
    for path in _files(Path(sysconfig.get_paths()["stdlib"]), leave_out=lambda name: name in _NOT_LIBRARY):
        if path.suffix == ".py":
            yield path.read_bytes()


def _folder_documents(root: Path) -> Iterator[bytes]:
    for path in _files(root, leave_out=lambda name: name.startswith(".")):
        if path.is_file():
            text = path.read_bytes()
            if b"\0" not in text[:8192]:  # binary files are left out
                yield text


def check_corpus(name: str) -> None:
    """Raise UserError unless `name` is a known corpus or a folder."""
    if name not in NAMES and not Path(name).is_dir():
        raise UserError(f"unknown corpus `{name}`; allowed: {', '.join(NAMES)}, or the path of a folder of text files")


def prepare(name: str) -> Corpus:
    """Read, clean and split a corpus; put it into the cache under its content hash.

    Raises
    ------
    UserError
        Unknown name, or a folder without usable text.
    """
    check_corpus(name)
    documents = _stdlib_documents() if name in NAMES else _folder_documents(Path(name))
    facts: dict[str, Any] = {"documents_read": 0, "bytes_read": 0, "duplicate_documents": 0, "duplicate_block_bytes": 0}
    seen_documents: set[bytes] = set()
    seen_blocks: set[bytes] = set()
    splits: dict[str, list[bytes]] = {split: [] for split, _ in _SPLIT_PERCENT}
    for text in documents:
        facts["documents_read"] += 1
        facts["bytes_read"] += len(text)
        digest = hashlib.sha256(text).digest()
        if digest in seen_documents:
            facts["duplicate_documents"] += 1
            continue
        seen_documents.add(digest)
        kept = _drop_seen_blocks(text.replace(b"\r\n", b"\n").replace(b"\0", b""), seen_blocks)
        facts["duplicate_block_bytes"] += len(text) - len(kept)
        if kept.strip():
            percent = int.from_bytes(digest[:8], "big") % 100
            split = next(split for split, limit in _SPLIT_PERCENT if percent < limit)
            splits[split].append(kept)
    for split in splits:
        facts[f"{split}_documents"] = len(splits[split])
        facts[f"{split}_bytes"] = sum(map(len, splits[split]))
    if not splits["train"] or not splits["heldout"]:
        raise UserError(
            f"corpus {name}: {facts['documents_read']} documents give no text for training and held-out evaluation "
            "(a tenth of the documents is held out); use a folder with at least some dozens of text files"
        )
    facts["licence"] = "PSF-2.0" if name in NAMES else "unknown"
    facts["version"] = f"CPython {sys.version.split()[0]}" if name in NAMES else "unknown"
    documents_of = {split: _offsets(splits[split]) for split in ("heldout", "tune")}
    return _store(name, {split: b"\0".join(texts) for split, texts in splits.items()}, documents_of, facts)


def _drop_seen_blocks(text: bytes, seen: set[bytes]) -> bytes:
    kept = []
    for block in text.split(b"\n\n"):
        if len(block) >= _MIN_BLOCK:
            digest = hashlib.blake2b(block.strip(), digest_size=12).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(block)
    return b"\n\n".join(kept)


def _offsets(texts: list[bytes]) -> list[int]:
    starts, position = [], 0
    for text in texts:
        starts.append(position)
        position += len(text) + 1
    return starts


# ---------------------------------------------------------------- cache


def cache_folder() -> Path:
    """`$SCALING_CACHE`, or `scaling-harness` in the user's cache folder: prepared corpora and compiled programs; safe to delete."""
    root = os.environ.get("SCALING_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling-harness"


def _store(name: str, splits: dict[str, bytes], documents: dict[str, list[int]], facts: dict) -> Corpus:
    content_hash = _content_hash(splits, documents)
    target = cache_folder() / "corpora" / content_hash
    if (stored := _read(target, content_hash)) is not None:
        return stored
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent))
    for split, text in splits.items():
        (folder / f"{split}.bin").write_bytes(text)
    meta = {"name": name, "documents": documents, "facts": facts}
    (folder / "corpus.json").write_text(json.dumps(meta, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    try:
        os.replace(folder, target)
    except OSError:  # another process was first: its folder holds the same content
        shutil.rmtree(folder, ignore_errors=True)
    if (corpus := _read(target, content_hash)) is None:
        raise OSError(f"{target}: what was written cannot be read back; is the disk full?")
    return corpus


def load(name: str, *, content_hash: str) -> Corpus:
    """The prepared corpus of a run, from the cache or prepared anew.

    Raises
    ------
    UserError
        If the text on this machine is not the one the sweep was planned with.
    """
    corpus = _read(cache_folder() / "corpora" / content_hash, content_hash) or prepare(name)
    if corpus.content_hash != content_hash:
        raise UserError(
            f"corpus {name}: this machine's text has hash {corpus.content_hash}, the sweep was planned with {content_hash} "
            "(another Python version, or changed files); use the same text or another sweep name"
        )
    return corpus


def _content_hash(splits: dict[str, bytes], documents: dict[str, list[int]]) -> str:
    sizes = [len(splits[split]) for split in ("train", "heldout", "tune")]
    digest = hashlib.sha256(f"preparation {PREPARATION_VERSION} {sizes} {sorted(documents.items())}".encode())
    for split in ("train", "heldout", "tune"):
        digest.update(splits[split])
    return digest.hexdigest()[:12]


def _read(target: Path, content_hash: str) -> Corpus | None:
    """A corpus of the cache, or None when it is not there or not intact."""
    try:
        meta = json.loads((target / "corpus.json").read_text())
        documents, name, facts = meta["documents"], meta["name"], meta["facts"]
        splits = {split: (target / f"{split}.bin").read_bytes() for split in ("train", "heldout", "tune")}
        starts = {split: np.asarray(documents[split], np.int64) for split in ("heldout", "tune")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if _content_hash(splits, documents) != content_hash:
        return None
    return Corpus(
        name=name,
        content_hash=content_hash,
        train=np.frombuffer(splits["train"], np.uint8),
        heldout=np.frombuffer(splits["heldout"], np.uint8),
        heldout_document=starts["heldout"],
        tune=np.frombuffer(splits["tune"], np.uint8),
        tune_document=starts["tune"],
        facts=facts,
    )
