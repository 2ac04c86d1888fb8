"""Memorisation: made-up secrets planted in the training text, and how far a model prefers them to codes it never saw.

A canary is a line "# the code of NAME is 4831" with a random name and code. Its exposure (Carlini et al. 2019) is log2 of the number of
codes minus log2 of its rank among them by the model's probability, here among itself and `OTHERS` random other codes: 0 to 10 bits. A
canary that was never planted has a random rank, whose mean exposure is about 1/ln 2 = 1.44 bits.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import msgspec
import numpy as np

from scaling.config import RunConfig, Struct, TextOptions, UserError
from scaling.corpus import Corpus
from scaling.decoder import token_losses
from scaling.documents import Document
from scaling.language_model import LanguageModel
from scaling.mixture import training_windows
from scaling.sources import documents
from scaling.text_codec import TextCodec

OTHERS = 1023
DIGITS = 4
_BATCH = 128


class Canary(Struct, frozen=True):
    """A secret and how often it was planted."""

    name: str
    code: str
    planted: int

    @property
    def prefix(self) -> str:
        """The line up to the code."""
        return f"# the code of {self.name} is "


class Exposure(Struct, frozen=True):
    """What a model knows of a canary. `seen`: whole occurrences in the windows it was trained on; `bits`: its exposure."""

    name: str
    planted: int
    seen: int
    rank: int
    bits: float


def make_canaries(repeats: Sequence[int], *, each: int, seed: int) -> list[Canary]:
    """`each` canaries for every number of repeats."""
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return [
        Canary("".join(rng.choice(letters, 8)), f"{rng.integers(10**DIGITS):0{DIGITS}}", count) for count in repeats for _ in range(each)
    ]


def plant(corpus: str, folder: Path, canaries: Sequence[Canary], *, most_bytes: int, seed: int) -> int:
    """Write `text.jsonl`, documents of a corpus up to so many bytes with the canaries in it, and `canaries.json`; returns the bytes.

    A canary goes in as a line of its own after a random line of a random document, in the midst of a block of lines, so that preparation
    does not take it for a repeated block.

    Raises
    ------
    UserError
        If the folder holds a planted text already.
    """
    if (folder / "canaries.json").exists():
        raise UserError(f"--to {folder} holds a planted text already; name another folder")
    found = [one.text.decode("utf-8", "replace") for one in documents(corpus, TextOptions()) if isinstance(one, Document)]
    rng = np.random.default_rng(seed)
    texts, size = [], 0
    for index in rng.permutation(len(found)):
        if size >= most_bytes:
            break
        texts.append(found[index].splitlines())
        size += len(found[index])
    weights = np.array([len(lines) for lines in texts], np.float64)
    for canary in canaries:
        for at in rng.choice(len(texts), canary.planted, p=weights / weights.sum()):
            lines = texts[at]
            filled = [number for number, line in enumerate(lines[:-1]) if line.strip() and lines[number + 1].strip()] or [0]
            lines.insert(int(rng.choice(filled)) + 1, canary.prefix + canary.code)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for lines in texts:
            file.write(json.dumps({"text": "\n".join(lines)}, ensure_ascii=False) + "\n")
    (folder / "canaries.json").write_bytes(msgspec.json.format(msgspec.json.encode(list(canaries)), indent=1))
    return size


def read_canaries(path: Path) -> list[Canary]:
    """The canaries of a planted text.

    Raises
    ------
    UserError
        If the file is none that `scaling corpus plant` wrote.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Canary])
    except (OSError, ValueError) as error:
        raise UserError(f"--canaries {path}: {error}; `scaling corpus plant` writes canaries.json") from None


def exposures(model: LanguageModel, corpus: Corpus, run: RunConfig, canaries: Sequence[Canary], *, seed: int = 0) -> list[Exposure]:
    """Exposure of every canary in a run, bits, with how often the run saw it."""
    counts = _seen(corpus, run, [canary.prefix + canary.code for canary in canaries], model.codec)
    found = []
    for number, canary in enumerate(canaries):
        rng = np.random.default_rng([seed, number])
        others = rng.choice([code for code in range(10**DIGITS) if code != int(canary.code)], OTHERS, replace=False)
        totals = _code_losses(model, canary.prefix, [canary.code, *(f"{code:0{DIGITS}}" for code in others)])
        rank = 1 + int((totals[1:] < totals[0]).sum())
        found.append(Exposure(canary.name, canary.planted, counts[number], rank, math.log2(OTHERS + 1) - math.log2(rank)))
    return found


def _seen(corpus: Corpus, run: RunConfig, lines: list[str], codec: TextCodec) -> list[int]:
    """Whole occurrences of lines in the windows that a run was trained on."""
    data, length = run.trunk.data, run.trunk.model.sequence_length
    windows = training_windows(corpus, data, seed=data.seed_data, first=0, count=run.tokens // length, length=length)
    text = "\x01".join(codec.decode(row) for row in windows) if codec.library is not None else None
    raw = text.encode() if text is not None else np.pad(windows, ((0, 0), (0, 1)), constant_values=1).astype(np.uint8).tobytes()
    return [raw.count(line.encode()) for line in lines]


def _code_losses(model: LanguageModel, prefix: str, codes: list[str]) -> np.ndarray:
    """Minus log p of each code after the prefix (and a line's beginning), nats."""
    start = len(model.codec.encode("\n" + prefix))
    rows = [model.codec.encode("\n" + prefix + code) for code in codes]
    longest = max(map(len, rows))
    tokens = np.zeros((-(-len(rows) // _BATCH) * _BATCH, longest), np.int32)
    for at, row in enumerate(rows):
        tokens[at, : len(row)] = row
    losses = np.concatenate(
        [
            np.asarray(token_losses(model.config, model.parameters, jnp.asarray(tokens[at : at + _BATCH]))[0])
            for at in range(0, len(tokens), _BATCH)
        ]
    )
    inside = np.arange(1, longest)[None] < np.array([len(row) for row in rows])[:, None]
    return (losses[: len(rows)] * inside)[:, start - 1 :].sum(1)
