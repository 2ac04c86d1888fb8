"""Prepared corpora on disk: raw little-endian token files under their content hash, memory-mapped, checked whenever they are opened."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scaling.places import cache_folder
from scaling.prepare import SPLITS
from scaling.sealed import give_up, read_sealed, write_sealed

PREPARATION_VERSION = 2
"""Raised whenever the same text would give other tokens; part of the content hash, so of every `run_id`."""

META = "corpus.sealed"
"""JSON under its checksum: what `store` is given, but the tokens."""

_CHUNK = 1 << 22


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder beside the corpora that is gone afterwards, unless it was renamed into place."""
    parent = cache_folder() / "corpora"
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=parent, prefix=".preparing-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def place(content_hash: str) -> Path:
    """Folder of a prepared corpus."""
    return cache_folder() / "corpora" / content_hash


def store(folder: Path, made: dict[str, Any]) -> str:
    """Complete a folder of {split}.bin files with corpus.sealed and rename it to its content hash, which is returned.

    Parameters
    ----------
    made : name, tokenizer, dtype, facts, `documents` (split -> first tokens) and `domains` (domain -> split -> first, past the last)
    """
    documents = {split: [int(at) for at in made["documents"][split]] for split in ("heldout", "tune")}
    meta = {**{key: made[key] for key in ("name", "tokenizer", "dtype", "facts", "domains")}, "documents": documents}
    meta["files"] = {path.name: _sha256(path) for path in sorted(folder.glob("*.json"))}  # a tokenizer; the content hash holds the rest
    content_hash = _content_hash(folder, meta)
    target = place(content_hash)
    if read(content_hash) is not None:
        return content_hash
    write_sealed(folder / META, json.dumps(meta).encode())
    shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process was first: its folder holds the same content
        os.replace(folder, target)
    return content_hash


def _content_hash(folder: Path, meta: dict[str, Any]) -> str:
    """Hash over sizes, documents and tokens; over type, domains and bytes a token where the corpus is not one kind of bytes."""
    itemsize = np.dtype(meta["dtype"]).itemsize
    sizes = [(folder / f"{split}.bin").stat().st_size // itemsize for split in SPLITS]
    header = f"preparation {PREPARATION_VERSION} {sizes} {sorted(meta['documents'].items())}"
    names = [f"{split}.bin" for split in SPLITS]
    if meta["domains"] or meta["tokenizer"] != "bytes":
        header += f" {meta['dtype']} {[(name, sorted(ranges.items())) for name, ranges in meta['domains'].items()]}"
        names += [f"{split}.bytes" for split in SPLITS if (folder / f"{split}.bytes").exists()]
    digest = hashlib.sha256(header.encode())
    for name in names:
        with open(folder / name, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:12]


def read(content_hash: str) -> dict[str, Any] | None:
    """Fields of a `scaling.corpus.Corpus`, memory-mapped, or None: it is not there, or it was damaged and is set aside now."""
    folder = place(content_hash)
    try:
        sealed = read_sealed(folder / META, part_of=folder)
        if sealed is None:
            return None
        meta = json.loads(sealed)
        tokenizer_intact = all(_sha256(folder / name) == digest for name, digest in meta["files"].items())
        if not tokenizer_intact or _content_hash(folder, meta) != content_hash:
            give_up(folder)
            return None
        dtype = np.dtype(meta["dtype"])
        fields: dict[str, Any] = {split: _mapped(folder / f"{split}.bin", dtype) for split in SPLITS}
        for split in ("heldout", "tune"):
            fields[f"{split}_document"] = np.asarray(meta["documents"][split], np.int64)
            if (path := folder / f"{split}.bytes").exists():
                fields[f"{split}_bytes"] = _mapped(path, np.dtype(np.int32))
        domains = {name: {split: (int(a), int(b)) for split, (a, b) in ranges.items()} for name, ranges in meta["domains"].items()}
        return {**fields, "tokenizer": meta["tokenizer"], "facts": meta["facts"], "domains": domains}
    except FileNotFoundError:
        give_up(folder)
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
