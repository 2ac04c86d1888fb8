"""Documents out of packages: one small reader a layout. Members are read in name order from memory; nothing is unpacked to disk or run."""

import bz2
import fnmatch
import gzip
import html
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

Member = tuple[str, bytes]
Reader = Callable[[Iterator[Member]], Iterator[str]]


def extract(layout: str, members: Iterator[Member], *, language: str) -> Iterator[str]:
    """Documents of a package's members, by the layout's reader; empty ones are left out, and paragraphs that were not translated."""
    for text in LAYOUTS[layout](members):
        if layout in TRANSLATED:
            text = "\n\n".join(line for line in text.split("\n") if is_in_language(line, language))
        if text.strip():
            yield text


def matches(name: str, pattern: str) -> bool:
    """Whether a member is one of those that a part asks for."""
    return fnmatch.fnmatchcase(name.removeprefix("./"), pattern)


def _json(data: bytes) -> Any:
    return json.loads(data.decode("utf-8-sig"))


def _json_texts(members: Iterator[Member]) -> Iterator[str]:
    for _, data in members:
        record = _json(data)
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            yield record["text"]


def _wordnet(members: Iterator[Member]) -> Iterator[str]:
    """Glosses and examples, a hundred to a document: a single gloss is too short to be one."""
    glosses: list[str] = []
    for name, data in members:
        if name.rsplit(".", 1)[1] in ("noun", "verb", "adj", "adv"):
            for line in data.decode("utf-8").splitlines():
                if not line.startswith("  ") and " | " in line:
                    words = line.split(" | ", 1)
                    fields = words[0].split()
                    names = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
                    glosses.append(f"{', '.join(names)}: {words[1].strip()}")
    for start in range(0, len(glosses), 100):
        yield "\n".join(glosses[start : start + 100])


def _wiki_summaries(members: Iterator[Member]) -> Iterator[str]:
    for _, data in members:
        for entry in _json(data).values():
            yield f"{entry['title']}\n{entry['extract']}"


def _wiki_dump(members: Iterator[Member]) -> Iterator[str]:
    """Articles of a MediaWiki export, without markup; redirects and stubs are left out."""
    for _, data in members:
        for found in re.finditer(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", bz2.decompress(data).decode(), re.S):
            text = _plain_wiki(html.unescape(found[2]))
            if ":" not in found[1] and len(text) > 2000:
                yield f"{html.unescape(found[1])}\n{text}"


def _plain_wiki(text: str) -> str:
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<math.*?</math>|<gallery.*?</gallery>", "", text, flags=re.S)
    for _ in range(6):  # innermost first: templates and tables are nested
        text = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*?\|\}", "", text)
    text = re.sub(r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?:\S* ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>|'{2,}|^[*#:;|!].*$|^=+.*=+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _recipes(members: Iterator[Member]) -> Iterator[str]:
    for _, data in members:
        for entry in _json(data).values():
            lines = [entry["title"], *(f"- {item}" for item in entry["ingredients"] or ()), *(entry["steps"] or ())]
            yield "\n".join(lines)


def _python(members: Iterator[Member]) -> Iterator[str]:
    for name, data in members:
        if not {"tests", "test", "testing", "conf", "locale"} & set(name.split("/")[:-1]):
            yield data.decode("utf-8", "replace")


class _Text(HTMLParser):
    """Words of HTML, a line a block; nothing of what `hidden` or a head, script or style holds."""

    BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "li", "td", "th", "div", "br", "tr", "dt", "dd", "pre"})
    SILENT = frozenset({"script", "style", "head", "nav", "aside", "title"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.silent = 0
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SILENT:
            self.silent += 1
        elif self.hidden or any(name == "hidden" for name, _ in attrs):
            if tag not in ("br", "img", "hr", "input", "meta", "link"):
                self.hidden.append(tag)
        elif tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SILENT:
            self.silent = max(0, self.silent - 1)
        elif self.hidden:
            if tag in self.hidden:
                while self.hidden.pop() != tag:
                    pass
        elif tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent and not self.hidden:
            self.parts.append(data)


def plain_text(source: str) -> str:
    """Words of an HTML text.

    >>> plain_text("<p>a <b>b</b></p><p hidden>c</p><script>d</script><p>e &amp; f</p>").split(chr(10))
    ['a b', 'e & f']
    """
    parser = _Text()
    parser.feed(source)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


def _aws(members: Iterator[Member]) -> Iterator[str]:
    """Documentation strings, a service to a document; each string once."""
    for _, data in members:
        yield _strings(_json(gzip.decompress(data)), "documentation")


def _google(members: Iterator[Member]) -> Iterator[str]:
    for _, data in members:
        yield _strings(_json(data), "description")


def _strings(record: Any, key: str) -> str:
    found: dict[str, None] = {}
    stack = [record]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get(key), str):
                found.setdefault(plain_text(value[key]) if "<" in value[key] else value[key].strip())
            stack += reversed(list(value.values()))
        elif isinstance(value, list):
            stack += reversed(value)
    return "\n\n".join(text for text in found if text)


def _poems(members: Iterator[Member]) -> Iterator[str]:
    for _, data in members:
        for poem in _json(data):
            title = poem.get("title") or poem.get("rhythmic") or ""
            yield "\n".join([title, poem.get("author") or "", *poem.get("paragraphs", ())]).strip()


def _help(members: Iterator[Member]) -> Iterator[str]:
    """The text of a help page: what stands in its display area."""
    for _, data in members:
        page = data.decode("utf-8", "replace")
        at = page.find('<div id="DisplayArea"')
        if at >= 0:
            yield plain_text(page[at:])


def _handbook(members: Iterator[Member]) -> Iterator[str]:
    for _, data in members:
        yield plain_text(data.decode("utf-8", "replace"))


_SCRIPTS = {
    "ar": ("\u0600", "\u06ff"),
    "hi": ("\u0900", "\u097f"),
    "ru": ("\u0400", "\u04ff"),
    "ja": ("\u3040", "\u9fff"),
    "zh": ("\u4e00", "\u9fff"),
    "ko": ("\uac00", "\ud7a3"),
}
_ENGLISH = re.compile(r"\b(?:the|and|of|is|with|this|you|to)\b", re.I)


def is_in_language(line: str, language: str) -> bool:
    """Whether a line of translated software text is in its language: by its script, or by the lack of English function words.

    >>> is_in_language("The value of the cell", "de"), is_in_language("Der Wert der Zelle", "de"), is_in_language("Value", "hi")
    (False, True, False)
    """
    if language in _SCRIPTS:
        low, high = _SCRIPTS[language]
        letters = [char for char in line if char.isalpha()]
        return sum(low <= char <= high for char in letters) > 0.3 * len(letters)
    return language == "en" or len(_ENGLISH.findall(line)) < 2


def _quran(members: Iterator[Member]) -> Iterator[str]:
    for name, data in members:
        chapter = _json(data)
        if name.count("/") == 3 and isinstance(chapter, dict):  # package/dist/chapters/N.json: the Arabic text
            verses = [verse["text"] for verse in chapter["verses"]]
            for start in range(0, len(verses), 40):
                yield "\n".join([chapter["name"], *verses[start : start + 40]])


TRANSLATED = ("help", "handbook")
LAYOUTS: dict[str, Reader] = {
    "json-texts": _json_texts,
    "wordnet": _wordnet,
    "wiki-summaries": _wiki_summaries,
    "wiki-dump": _wiki_dump,
    "recipes": _recipes,
    "python": _python,
    "aws-documentation": _aws,
    "google-documentation": _google,
    "poems": _poems,
    "help": _help,
    "handbook": _handbook,
    "quran": _quran,
}
