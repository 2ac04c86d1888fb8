"""The tokenizer.json of bytes: what `AutoTokenizer` reads, written out without the package `tokenizers`."""

from typing import Any

from scaling.text_codec import BYTES_END
from scaling.tokenizer import END


def byte_letters() -> list[str]:
    """A printable letter for each byte, as GPT-2 writes them: printable bytes are themselves, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_tokenizer() -> dict[str, Any]:
    """Token i is byte i; token 0, the NUL between documents, is the special token `<|end|>` (texts hold no NUL)."""
    vocabulary = {letter: byte for byte, letter in enumerate(byte_letters()) if byte != BYTES_END}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": BYTES_END, "content": END, **special}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {END: BYTES_END, **vocabulary},
            "merges": [],
        },
    }
