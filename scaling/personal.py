"""Personal data in text: e-mail addresses, telephone and card numbers, IP addresses are replaced by a word for their kind, and counted."""

import re
from collections.abc import Callable

_EMAIL = re.compile(rb"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}\b")
_CARD = re.compile(rb"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d.-])")
_IPV4 = re.compile(rb"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")
_IPV6 = re.compile(rb"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?![\w:])")
_PHONE = re.compile(
    rb"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
)


def _is_card(found: bytes) -> bool:
    """Luhn's check: 9 of 10 other numbers of that length fail it."""
    digits = [int(chr(byte)) for byte in reversed(found) if 48 <= byte <= 57]
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(digits)]
    return sum(doubled) % 10 == 0 and len(set(digits)) > 1


_KINDS: tuple[tuple[str, re.Pattern[bytes], Callable[[bytes], bool] | None], ...] = (
    ("email", _EMAIL, None),
    ("card", _CARD, _is_card),
    ("ip", _IPV6, None),
    ("ip", _IPV4, None),
    ("phone", _PHONE, None),
)


def remove_personal_data(text: bytes, counts: dict[str, int]) -> bytes:
    """`text` with personal data replaced by `<email>`, `<card>`, `<ip>`, `<phone>`; adds to `counts`.

    What patterns can find, no more: names and postal addresses stay. Version numbers with four parts look like IP addresses and go too.

    >>> counts: dict[str, int] = {}
    >>> remove_personal_data(b"write to a.b@example.org or +44 20 7946 0958", counts), counts
    (b'write to <email> or <phone>', {'email': 1, 'phone': 1})
    """
    for kind, pattern, check in _KINDS:
        mark = b"<" + kind.encode() + b">"

        def replace(match: re.Match[bytes], kind: str = kind, mark: bytes = mark, check: Callable[[bytes], bool] | None = check) -> bytes:
            if check is not None and not check(match[0]):
                return match[0]
            counts[kind] = counts.get(kind, 0) + 1
            return mark

        text = pattern.sub(replace, text)
    return text
