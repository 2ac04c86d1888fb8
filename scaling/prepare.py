"""Preparation: documents -> cleaned text of three splits on disk, in one pass and bounded memory.

The same for every source: documents in order; exact duplicates dropped; blocks of lines (separated by blank lines, at least 64 bytes) that
occurred before dropped, in whatever document, so that no licence header or table is in two splits; optionally near duplicates and personal
data; documents assigned to `train`, `tune` or `heldout` by the hash of their content. Documents are joined by one NUL byte.
"""

import hashlib
import importlib
import re
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from scaling.config import TextOptions, UserError
from scaling.documents import Document, Found
from scaling.personal import remove_personal_data

SPLITS = ("train", "heldout", "tune")
_SPLIT_PERCENT = (("heldout", 10), ("tune", 16), ("train", 100))  # cumulative
_MIN_BLOCK = 64
_SHINGLE = 5
_PERMUTATIONS = 128
NOTICE_SECONDS = 5.0

Notify = Callable[[str], None]


def silent(text: str) -> None:
    """Say nothing."""


class Spool:
    """The growing text of every split and domain, and where its documents begin."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder, self.stack = folder, stack
        self.files: dict[tuple[str, str], BinaryIO] = {}
        self.starts: dict[tuple[str, str], array] = {}
        self.sizes: dict[tuple[str, str], int] = {}
        self.domains: dict[str, int] = {}

    def path(self, split: str, domain: str) -> Path:
        """File of one split of one domain."""
        return self.folder / f"{split}.{self.domains[domain]}.text"

    def add(self, split: str, domain: str, text: bytes) -> None:
        """Append a document."""
        key = split, domain
        if key not in self.files:
            self.domains.setdefault(domain, len(self.domains))
            self.files[key] = self.stack.enter_context(open(self.path(split, domain), "wb"))  # noqa: SIM115 - closed by the stack
            self.starts[key], self.sizes[key] = array("q"), 0
        file = self.files[key]
        if self.starts[key]:
            file.write(b"\0")
            self.sizes[key] += 1
        self.starts[key].append(self.sizes[key])
        file.write(text)
        self.sizes[key] += len(text)


def clean(name: str, found: Iterator[Found], options: TextOptions, folder: Path, *, notify: Notify = silent) -> dict[str, Any]:
    """Clean and split documents into `folder`: {split}.bin, and the facts with `documents` and `domains` (byte ranges).

    Raises
    ------
    UserError
        When a split that is needed gets no text.
    """
    facts: dict[str, Any] = {"documents_read": 0, "bytes_read": 0, "duplicate_documents": 0, "duplicate_block_bytes": 0}
    seen_documents: set[bytes] = set()
    seen_blocks: set[bytes] = set()
    near = _NearDuplicates(options.near_duplicates) if options.near_duplicates else None
    personal: dict[str, int] = {}
    began = said = time.monotonic()
    with ExitStack() as stack:
        spool = Spool(folder, stack)
        for document in found:
            if not isinstance(document, Document):
                facts[document.fact] = facts.get(document.fact, 0) + 1
                continue
            text = document.text
            facts["documents_read"] += 1
            facts["bytes_read"] += len(text)
            if (now := time.monotonic()) - said > NOTICE_SECONDS:
                said = now
                notify(f"preparing {name}: {facts['bytes_read'] / 1e6:,.0f} MB in {now - began:.0f} s")
            digest = hashlib.sha256(text).digest()
            if digest[:16] in seen_documents:
                facts["duplicate_documents"] += 1
                continue
            seen_documents.add(digest[:16])
            kept = drop_seen_blocks(text.replace(b"\r\n", b"\n").replace(b"\0", b""), seen_blocks)
            facts["duplicate_block_bytes"] += len(text) - len(kept)
            if not kept.strip():
                continue
            if near is not None and near.is_copy(kept):
                facts["near_duplicate_documents"] = facts.get("near_duplicate_documents", 0) + 1
                continue
            if options.personal_data == "remove":
                kept = remove_personal_data(kept, personal)
            percent = int.from_bytes(digest[:8], "big") % 100
            spool.add(next(split for split, limit in _SPLIT_PERCENT if percent < limit), document.domain, kept)
    if options.personal_data == "remove":
        facts["personal_data_removed"] = dict(sorted(personal.items()))
    documents, domains = _join(spool, folder)
    for split in SPLITS:
        facts[f"{split}_documents"] = len(documents[split])
        facts[f"{split}_bytes"] = (folder / f"{split}.bin").stat().st_size - max(0, len(documents[split]) - 1)
    if not facts["train_bytes"] or not facts["heldout_bytes"]:
        raise UserError(
            f"corpus {name}: {facts['documents_read']} documents give no text for training and held-out evaluation "
            "(a tenth of the documents is held out); use a folder with at least some dozens of text files"
        )
    return {"facts": facts, "documents": documents, "domains": domains}


def drop_seen_blocks(text: bytes, seen: set[bytes]) -> bytes:
    """`text` without the blocks that are in `seen`; adds the others."""
    kept = []
    for block in text.split(b"\n\n"):
        if len(block) >= _MIN_BLOCK:
            digest = hashlib.blake2b(block.strip(), digest_size=12).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(block)
    return b"\n\n".join(kept)


def _join(spool: Spool, folder: Path) -> tuple[dict[str, array], dict[str, dict[str, list[int]]]]:
    """One file a split, domain after domain in order of appearance; first bytes of documents, and byte ranges of named domains."""
    documents = {split: array("q") for split in SPLITS}
    domains: dict[str, dict[str, list[int]]] = {domain: {} for domain in spool.domains} if set(spool.domains) != {""} else {}
    for split in SPLITS:
        position = 0
        with open(folder / f"{split}.bin", "wb") as out:
            for domain in spool.domains:
                if (split, domain) not in spool.sizes:
                    continue
                if position:
                    out.write(b"\0")
                    position += 1
                start, path = position, spool.path(split, domain)
                documents[split].extend(start + at for at in spool.starts[split, domain])
                with open(path, "rb") as part:
                    while chunk := part.read(1 << 22):
                        out.write(chunk)
                        position += len(chunk)
                path.unlink()
                if domains:
                    domains[domain][split] = [start, position]
    return documents, domains


class _NearDuplicates:
    """Documents whose sets of 5-word shingles resemble an earlier document's (Jaccard similarity by MinHash, Broder 1997)."""

    def __init__(self, threshold: float):
        try:
            rensa = importlib.import_module("rensa")
        except ImportError:
            raise UserError("text.near_duplicates needs the package rensa: pip install 'scaling-harness[text]', or leave it out") from None
        self.rensa = rensa
        self.known = rensa.RMinHashDeduplicator(threshold=threshold, num_perm=_PERMUTATIONS, use_lsh=True, num_bands=32)
        self.count = 0

    def is_copy(self, text: bytes) -> bool:
        """Whether a document resembles one that came before; otherwise it is remembered."""
        words = re.findall(r"\w+", text.decode("utf-8", "replace").lower())
        if len(words) < len(text) / 40:  # scripts without spaces: characters are the words
            words = list("".join(words))
        shingles = {" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
        sketch = self.rensa.RMinHash(num_perm=_PERMUTATIONS, seed=42)
        sketch.update(sorted(shingles))
        self.count += 1
        return not self.known.add(str(self.count), sketch)
