"""Text to tokens and back, for models that read and write: bytes, or a tokenizer.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scaling.tokenizer import make_encoder

BYTES_END = 0
"""The NUL between documents of the corpora in bytes."""

UNFINISHED = "�"
"""What incomplete UTF-8 decodes to."""


@dataclass(frozen=True)
class TextCodec:
    """Tokens of a text and text of tokens; `library` is a tokenizer of the package `tokenizers`, or None for bytes.

    Attributes
    ----------
    end : the token between documents, which also begins one
    """

    name: str
    end: int
    library: Any = None

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; an empty one is the beginning of a document."""
        tokens = list(text.encode("utf-8")) if self.library is None else self.library.encode(text, add_special_tokens=False).ids
        return tokens or [self.end]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without the ends of documents; bytes that are no UTF-8 become U+FFFD."""
        kept = [int(token) for token in tokens if token != self.end]
        if self.library is None:
            return bytes(token for token in kept if token < 256).decode("utf-8", "replace")
        return self.library.decode(kept, skip_special_tokens=False)


def make_codec(tokenizer: str) -> TextCodec:
    """The codec of `bytes` or of the path of a tokenizer.json.

    Raises
    ------
    UserError
        A file that is no tokenizer, or the package `tokenizers` is missing.
    """
    if tokenizer == "bytes":
        return TextCodec("bytes", BYTES_END)
    encoder = make_encoder(tokenizer, [])
    return TextCodec(tokenizer, encoder.end, encoder.made)


class TextStream:
    """Text of a growing list of tokens: what may still change (half a character, the beginning of a stop string) is held back."""

    def __init__(self, codec: TextCodec, stops: Sequence[str] = ()):
        self.codec, self.stops = codec, [stop for stop in stops if stop]
        self.tokens: list[int] = []
        self.text, self.stopped = "", False
        self._shown = 0

    def push(self, token: int) -> str:
        """Take a token; return the text that is certain now and was not before. `stopped` tells that a stop string came: it is cut off."""
        self.tokens.append(token)
        self.text = self.codec.decode(self.tokens)
        found = [at for stop in self.stops if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
            return self.close()
        certain = len(self.text.rstrip(UNFINISHED))
        begun = [size for stop in self.stops for size in range(1, len(stop)) if self.text[:certain].endswith(stop[:size])]
        return self._show(certain - max(begun, default=0))

    def close(self) -> str:
        """The rest of the text."""
        return self._show(len(self.text))

    def _show(self, stop: int) -> str:
        shown, self._shown = self._shown, max(stop, self._shown)
        return self.text[shown : self._shown]
