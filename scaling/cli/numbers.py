"""Whole numbers of the command line."""

import argparse


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    return _whole(text, lowest=1)


def not_negative(text: str) -> int:
    """Parse a whole number from 0: a seed, or a count that may be none."""
    return _whole(text, lowest=0)


def _whole(text: str, *, lowest: int) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if value < lowest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {lowest} to 999999999")
    return value
