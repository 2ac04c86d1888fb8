"""What a corpus's name means: a named corpus, one of its domains, a synthetic source, a local path, or several joined by ` + `."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scaling.catalogue import CORPORA, DEFAULT, Part
from scaling.config import TextOptions, UserError, canonical_hash
from scaling.documents import Document, Found, local_files, read_files, stdlib_files
from scaling.fetch import check_part, fetch, part_folder, read_manifest
from scaling.synthetic import SOURCES

FETCHED = TextOptions()
"""How fetched text is read: it is UTF-8 with one known field, whatever `[text]` says of the user's own files."""


@dataclass(frozen=True)
class Source:
    """One term of a corpus's name.

    Attributes
    ----------
    label : prefix of its domains in a joined corpus, and its only domain there when it has none
    parts : of a fetched corpus
    path : of local text
    """

    label: str
    parts: tuple[Part, ...] = ()
    path: Path | None = None

    def files(self) -> list[Path]:
        """The files that hold its text, in order."""
        if self.parts:
            return [part_folder(part) / "documents.jsonl" for part in self.parts]
        return stdlib_files() if self.path is None else local_files(self.path)

    def documents(self, options: TextOptions) -> Iterator[Found]:
        """Its documents, each with the domain it has inside this source."""
        if not self.parts:
            yield from read_files(self.files(), FETCHED if self.path is None else options)
            return
        for part in self.parts:
            domain = part.domain if len({part.domain for part in self.parts}) > 1 else ""
            for found in read_files([part_folder(part) / "documents.jsonl"], FETCHED):
                yield found._replace(domain=domain) if isinstance(found, Document) else found

    def fingerprint(self) -> str:
        """What changes when its text does: hashes of fetched parts; path, size and time of change of local files."""
        if self.parts:
            return canonical_hash([(read_manifest(part) or {}).get("sha256") for part in self.parts])
        stats = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in self.files()]
        return canonical_hash([sys.version, stats])

    def facts(self) -> dict[str, str]:
        """Its licence and version."""
        if self.parts:
            manifests = [read_manifest(part) or {} for part in self.parts]
            named = [f"{part.domain}: {manifest.get('package', '?')}" for part, manifest in zip(self.parts, manifests)]
            return {"licence": "; ".join(dict.fromkeys(part.licence for part in self.parts)), "version": "; ".join(named)}
        if self.path is None:
            return {"licence": "PSF-2.0", "version": f"CPython {sys.version.split()[0]}"}
        return {"licence": "unknown", "version": "unknown"}


def is_synthetic(name: str) -> bool:
    """Whether a corpus is made up, with a known entropy."""
    return name in SOURCES


def check_corpus(name: str) -> None:
    """Raise UserError unless every term of `name` is known or a path."""
    if not is_synthetic(name):
        parse(name)


def parse(name: str) -> list[Source]:
    """The sources of a corpus's name.

    Raises
    ------
    UserError
        An unknown name, a domain that the corpus does not have, or a path that is not there.
    """
    sources = [_parse_term(term.strip()) for term in name.split(" + ")]
    labels = [source.label for source in sources]
    if len(set(labels)) < len(labels):
        raise UserError(f"corpus `{name}` joins two sources called `{labels[0]}`; join sources of different names")
    return sources


def _parse_term(term: str) -> Source:
    head, _, domain = term.partition("/")
    if term == DEFAULT:
        return Source(label=term)
    if head in CORPORA and not os.path.exists(term):
        corpus = CORPORA[head]
        if domain and domain not in corpus.domains:
            raise UserError(f"corpus `{head}` has no domain `{domain}`; allowed: {', '.join(corpus.domains)}")
        return Source(label=term, parts=tuple(part for part in corpus.parts if not domain or part.domain == domain))
    if term in SOURCES:
        raise UserError(f"corpus `{term}` is synthetic and cannot be joined with others; use it alone")
    if not os.path.exists(term):
        allowed = ", ".join([DEFAULT, *CORPORA, *SOURCES])
        raise UserError(f"unknown corpus `{term}`; allowed: {allowed}, or the path of a folder or file of text (docs/corpora.md)")
    return Source(label=Path(term).stem or term, path=Path(term))


def fetch_missing(name: str, *, notify: Callable[[str], None]) -> None:
    """Fetch the parts of named corpora in `name` that are not in the cache."""
    for source in parse(name):
        if any(read_manifest(part) is None for part in source.parts):
            head = source.label.partition("/")[0]
            corpus = CORPORA[head]
            fetch(corpus.__class__(corpus.name, corpus.summary, corpus.megabytes, source.parts), notify=notify)


def check_fetched(name: str, *, notify: Callable[[str], None]) -> None:
    """Fetch again what is damaged of named corpora in `name`."""
    for source in parse(name):
        for part in source.parts:
            check_part(part)
    fetch_missing(name, notify=notify)


def documents(name: str, options: TextOptions) -> Iterator[Found]:
    """Documents of a corpus, source by source, with the domains they have in the whole."""
    sources = parse(name)
    for source in sources:
        for found in source.documents(options):
            if isinstance(found, Document) and len(sources) > 1:
                found = found._replace(domain=f"{source.label}/{found.domain}" if found.domain else source.label)
            yield found
