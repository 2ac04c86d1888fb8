"""Tokenizers: bytes, BPE trained on the corpus, or any tokenizer.json of the Hugging Face library `tokenizers`.

A tokenizer's name says all: `bytes`, `bpe:4096` (vocabulary), or the path of a tokenizer.json.
"""

import hashlib
import importlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from scaling.config import UserError

END = "<|end|>"
"""The token between documents where the vocabulary is our own; it stands for one byte, like the NUL between documents of bytes."""

TRAINED_ON = 16_000_000
"""Bytes of training text that BPE is trained on at most, documents spread evenly over the corpus."""

SMALLEST = 257 + 1
LARGEST = 65_536


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """Smallest unsigned type that holds every token."""
    return np.uint8 if vocab_size <= 256 else np.uint16 if vocab_size <= 65_536 else np.uint32


def vocab_size(name: str) -> int:
    """Size of a tokenizer's vocabulary.

    Raises
    ------
    UserError
        A name that is none, a vocabulary out of range, or a file that is no tokenizer.
    """
    if name == "bytes":
        return 256
    if name.startswith("bpe:"):
        text = name.removeprefix("bpe:")
        size = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0
        if not SMALLEST <= size <= LARGEST:
            raise UserError(
                f"tokenizer = `{name}`: the vocabulary of a BPE is a whole number from {SMALLEST} to {LARGEST}, such as bpe:4096"
            )
        return size
    return _load_file(name)[1]


def fingerprint(name: str) -> str:
    """What changes when the tokenizer does."""
    return name if name == "bytes" or name.startswith("bpe:") else _load_file(name)[2]


@lru_cache(maxsize=4)
def _load_file(name: str) -> tuple[Any, int, str]:
    """Tokenizer, vocabulary size (the largest id decides) and content hash of a tokenizer.json."""
    path = Path(name)
    if not os.path.isfile(path):  # False also where the name is too long for a path
        raise UserError(f"tokenizer = `{name}`: allowed are bytes, bpe:SIZE (such as bpe:4096), or the path of a tokenizer.json")
    raw = path.read_bytes()
    try:
        made = _library(name).Tokenizer.from_str(raw.decode("utf-8"))
    except UserError:
        raise
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"tokenizer = `{name}`: no tokenizer of the library `tokenizers` ({str(error)[:120]})") from None
    return made, max(made.get_vocab(with_added_tokens=True).values()) + 1, hashlib.sha256(raw).hexdigest()[:16]


def _library(name: str) -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise UserError(f"tokenizer = `{name}` needs the package tokenizers: pip install 'scaling-harness[text]', or use bytes") from None


@dataclass(frozen=True)
class Encoder:
    """Text -> tokens, with the number of bytes that each token stands for, so that losses are comparable between tokenizers."""

    name: str
    made: Any
    end: int
    vocab_size: int

    def encode(self, texts: list[bytes]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens and their bytes (both (n,)) of each document.

        A token's bytes are those from where it begins to where the next begins, so that they sum to the document's whatever the tokenizer
        drops, merges or does not know.
        """
        strings = [text.decode("utf-8", "replace") for text in texts]
        dtype = token_dtype(self.vocab_size)
        for text, string, encoding in zip(texts, strings, self.made.encode_batch(strings, add_special_tokens=False)):
            starts = np.array([start for start, _ in encoding.offsets], np.int64)
            if len(text) != len(string):  # offsets count characters: to bytes
                points = np.frombuffer(string.encode("utf-32-le"), np.uint32)
                widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
                starts = np.concatenate([[0], np.cumsum(widths)])[starts]
            edges = np.concatenate([starts, [len(text)]])
            edges[:1] = 0
            yield np.array(encoding.ids, dtype), np.diff(edges)

    def is_lossless(self, text: bytes) -> bool:
        """Whether a text comes back byte for byte."""
        string = text.decode("utf-8", "replace")
        return self.made.decode(self.made.encode(string, add_special_tokens=False).ids, skip_special_tokens=False) == string

    def json(self) -> str:
        """The tokenizer.json."""
        return self.made.to_str()


def make_encoder(name: str, texts: Iterable[bytes]) -> Encoder:
    """The encoder of a name; BPE is trained on `texts` (documents), byte level, so that no script is ever unknown."""
    if not name.startswith("bpe:"):
        made, size, _ = _load_file(name)
        end = next((id for token in (END, "<|endoftext|>", "</s>", "[SEP]") if (id := made.token_to_id(token)) is not None), 0)
        made.no_padding()
        made.no_truncation()
        return Encoder(name, made, end, size)
    library, size = _library(name), vocab_size(name)
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    made.train_from_iterator((text.decode("utf-8", "replace") for text in texts), trainer)
    return Encoder(name, made, made.token_to_id(END), size)
