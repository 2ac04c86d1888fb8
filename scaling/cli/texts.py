"""The texts of a sweep, prepared before anything is written; and how their preparation is told."""

import sys
from typing import Any

from scaling.config import RunConfig, Split, Sweep
from scaling.corpus import Corpus, prepare
from scaling.mixture import check_enough
from scaling.sources import check_corpus, is_synthetic
from scaling.synthetic import SOURCES
from scaling.text_axes import corpora, only_text, tokenizers
from scaling.tokenizer import vocab_size


def tell(text: str) -> None:
    """Say on stderr what a long preparation is at."""
    print(text, file=sys.stderr, flush=True)


def check_texts(sweep: Sweep) -> None:
    """Raise UserError for names that mean nothing, or too many texts for [tune] or [holdout], before any text is read."""
    for name in corpora(sweep):
        check_corpus(name)
    for name in tokenizers(sweep):
        vocab_size(name)
    for what, part in (("[tune]", sweep.tune), ("[holdout]", sweep.holdout)):
        if part is not None:
            only_text(sweep, "unknown", what=what)


def prepare_texts(sweep: Sweep, runs: list[RunConfig]) -> tuple[dict[tuple[str, str], str], dict[str, dict[str, Any]]]:
    """Prepare every (corpus, tokenizer) of a sweep; return their content hashes, and what is known of each, by hash.

    `runs` are the sweep's with any hash: their texts must hold enough tokens, unique ones and domains for them.

    Raises
    ------
    UserError
        Text that cannot be had or read, or too little of it.
    """
    hashes: dict[tuple[str, str], str] = {}
    facts: dict[str, dict[str, Any]] = {}
    length, windows = sweep.model.sequence_length, sweep.evaluation.windows
    splits: set[Split] = {sweep.evaluation.split, *(("tune",) if sweep.tune else ())}
    for name in corpora(sweep):
        for tokenizer in tokenizers(sweep):
            corpus = prepare(name, tokenizer=tokenizer, options=sweep.text, notify=tell)
            for split in splits:
                corpus.evaluation_windows(windows, length=length, split=split)
            for data in {run.trunk.data for run in runs if (run.trunk.data.corpus, run.trunk.data.tokenizer) == (name, tokenizer)}:
                check_enough(corpus, data, length=length)
            hashes[name, tokenizer] = corpus.content_hash
            facts[corpus.content_hash] = _facts(corpus, name, tokenizer, windows=windows, length=length, split=sweep.evaluation.split)
    return hashes, facts


def _facts(corpus: Corpus, name: str, tokenizer: str, *, windows: int, length: int, split: Split) -> dict[str, Any]:
    facts = {**corpus.facts, "corpus": name, "tokenizer": tokenizer, "train_tokens": len(corpus.train)}
    facts["bytes_per_token"] = corpus.bytes_per_token(windows, length=length, split=split)
    if corpus.domains:
        sizes = {domain: ranges.get("train", (0, 0)) for domain, ranges in corpus.domains.items()}
        facts["domain_tokens"] = {domain: stop - first for domain, (first, stop) in sizes.items()}
    if is_synthetic(name):
        facts["entropy"] = SOURCES[name].entropy(length)
    return facts
