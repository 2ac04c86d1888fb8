"""Who pays more for the same text? Bytes, characters, tokens and bits of the same help paragraphs in 13 languages.

    python benchmarks/same_text.py [RESULTS]          (needs apt-get; by default results/multilingual, after its sweep)

Paragraphs of the software help carry identifiers that are the same in every language. Each language is compared with English on the
paragraphs that both have (untranslated ones are left out), so that thin languages do not shrink the comparison of the others. Tokens are
those of one BPE trained on all languages together. Bits: the sweep's lowest loss in bits per byte times the bytes. Writes same_text.csv
into the results.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import pandas as pd

from analysis.files import write_table
from scaling.catalogue import CORPORA
from scaling.cli.texts import tell
from scaling.corpus import prepare
from scaling.extract import is_in_language, plain_text
from scaling.fetch import download, members
from scaling.token_store import place
from scaling.tokenizer import make_encoder

TOKENIZER = "bpe:4096"
_PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*\bid="((?:par|hd)_id[^"]*)"[^>]*>(.*?)</\1>', re.S)


def paragraphs(folder: Path, part) -> dict[tuple[str, str], str]:
    """Text of every paragraph of a language's help by page and identifier."""
    tell(f"{part.domain}: {part.package}")
    corpus = CORPORA["multilingual"]
    found = {}
    for name, data in members(download(corpus, part, Path(tempfile.mkdtemp(dir=folder))), part):
        page = re.split(r"/help/[^/]+/", name, maxsplit=1)[1]
        for _, identifier, inside in _PARAGRAPH.findall(data.decode("utf-8", "replace")):
            text = plain_text(inside).replace("\n", " ")
            if text and is_in_language(text, part.domain):
                found[page, identifier] = text
    return found


def main() -> int:
    """Compare every language with English and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results/multilingual"))
    arguments = parser.parse_args()
    groups = arguments.results / "groups.csv"
    if not groups.is_file():
        sys.exit(f"{groups}: not there; `scaling run sweeps/multilingual.toml` makes it")
    lowest = pd.read_csv(groups).set_index("group")["lowest_bits_per_byte"]
    parts = [part for part in CORPORA["multilingual"].parts if part.layout == "help"]
    with tempfile.TemporaryDirectory() as folder:
        texts = {part.domain: paragraphs(Path(folder), part) for part in parts}
    encoded = prepare("multilingual", tokenizer=TOKENIZER, notify=tell)
    encoder = make_encoder(str(place(encoded.content_hash) / "tokenizer.json"), [])

    def size(rows: list[str]) -> tuple[int, int, int]:
        raw = [row.encode() for row in rows]
        return sum(map(len, raw)), sum(map(len, rows)), sum(len(tokens) for tokens, _ in encoder.encode(raw))

    rows = []
    for language, own in texts.items():
        english = texts["en"]
        both = [key for key in own if key in english and (language == "en" or own[key] != english[key])]
        counts, base = size([own[key] for key in both]), size([english[key] for key in both])
        bits, bits_base = counts[0] * lowest[f"multilingual/{language}"], base[0] * lowest["multilingual/en"]
        row = {"language": language, "paragraphs": len(both), "bytes": counts[0]}
        row |= {f"{name}_to_english": count / other for name, count, other in zip(("bytes", "characters", "tokens"), counts, base)}
        row |= {"tokens_per_byte": counts[2] / counts[0], "bits_per_byte": lowest[f"multilingual/{language}"]}
        rows.append({**row, "bits_to_english": bits / bits_base})
    table = pd.DataFrame(rows)
    write_table(arguments.results / "same_text.csv", table)
    print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
