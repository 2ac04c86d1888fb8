"""What all fuzz tests share: how many inputs, what counts as well behaved, and inputs that are nearly right.

The suite tries a few inputs of every kind, always the same ones. `make fuzz` (SCALING_FUZZ=full) tries more than 100,000 new ones.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

FULL = os.environ.get("SCALING_FUZZ") == "full"
LONGEST = 20.0  # seconds that one input may take; more is a hang


def inputs(*, quick: int, full: int) -> Callable[[Any], Any]:
    """How many inputs a test tries: the same `quick` ones in the suite, `full` new ones under `make fuzz`."""
    return settings(
        max_examples=full if FULL else quick,
        derandomize=not FULL,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


class Hang(Exception):
    """One input took longer than `LONGEST`."""


@contextlib.contextmanager
def well_behaved(*refusals: type[Exception]) -> Iterator[None]:
    """Let the block end well or be refused in one line within the time; anything else is a failure of the test."""

    def stop(*_: object) -> None:
        raise Hang(f"more than {LONGEST:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
        event("accepted")
    except refusals as error:
        text = str(error)
        assert text.strip(), "a refusal without a word"
        assert len(text) < 20_000, f"a refusal of {len(text)} characters"
        event("refused")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def only(folder: Path, *names: str) -> None:
    """Hold that a folder holds these and nothing else: no temporary file stays behind."""
    found = {path.name for path in folder.rglob("*") if path.is_file()}
    assert found <= set(names), f"left behind: {sorted(found - set(names))}"


# ---------------------------------------------------------------- values

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 8, 16, 64, 128, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, 10**400]),
    st.sampled_from([0.0, -0.0, 0.5, 1e-300, 5e-324, 1e300, 1.7e308, math.inf, -math.inf, math.nan]),
    st.integers(),
    st.floats(),
)
WORDS = st.one_of(
    st.sampled_from(["", " ", "1M", "1e400", "-1", "0", "1e-320", "0x10", "nan", "inf", "all", "../..", "/", "a/b", "\x00", "\x1b[2J", "‮", "\ud7ff"]),
    st.sampled_from(["python-stdlib", "english", "bytes", "bpe:512", "chinchilla", "E + A/N^a", "<script>", "x" * 5000, "1" * 400, "٣", "１M"]),
    st.text(max_size=20),
)  # fmt: skip
VALUES = st.recursive(
    NUMBERS | WORDS | st.booleans(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were whole: cut, with bits flipped, pieces doubled, or replaced."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["cut", "flip", "double", "drop", "put"])):
            case "cut":
                del data[at:]
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "drop":
                del data[at : at + draw(st.integers(1, 40))]
            case "put":
                data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """A tree of dicts and lists (as TOML or JSON gives) with a few values replaced, keys dropped or added."""
    tree = _copy(whole)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        places = list(_places(tree))
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(["replace"] * 6 + ["drop", "add", "repeat"])):
            case "replace":
                parent[key] = draw(VALUES if draw(st.integers(0, 3)) == 0 else _alike(parent[key]))
            case "drop":
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=8))] = draw(VALUES)
            case "repeat" if isinstance(parent, list):
                parent.append(parent[key])
        if not isinstance(tree, dict) or not tree:
            break
    return tree


def _alike(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type: what passes the types reaches the rules behind them."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int | float):
        return NUMBERS | st.integers(1, 2000) | st.floats(0, 2)
    if isinstance(value, str):
        return WORDS
    if isinstance(value, list):
        return st.lists(st.one_of(map(_alike, value)) if value else VALUES, max_size=4)
    return VALUES


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


# ---------------------------------------------------------------- TOML


def to_toml(tree: dict[str, Any]) -> str:
    """TOML of a tree: tables inline, so that any nesting can be written."""
    return "".join(f"{_string(key)} = {_toml(value)}\n" for key, value in tree.items())


def _string(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text) + '"'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_string(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return repr(value)
