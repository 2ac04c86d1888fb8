"""Files of the cache that carry their checksum: what was cut or rotted on disk is set aside, named and made again."""

import contextlib
import hashlib
import logging
from pathlib import Path

from scaling.record import set_aside, write_atomic

_LOG = logging.getLogger(__name__)  # without a handler of the program's own, warnings go to stderr as they are


def write_sealed(path: Path, data: bytes) -> None:
    """Write the SHA-256 of `data` (hexadecimal, one line) and `data`, atomically."""
    write_atomic(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def read_sealed(path: Path, *, part_of: Path | None = None) -> bytes | None:
    """What was written, or None: the file is not there, or it was damaged and is set aside now, with the folder that it is part of."""
    try:
        checksum, _, data = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if checksum == hashlib.sha256(data).hexdigest().encode():
        return data
    give_up(part_of or path)
    return None


def give_up(path: Path) -> None:
    """Set aside and name a file or folder of the cache that is damaged."""
    with contextlib.suppress(FileNotFoundError):  # another process was first
        _LOG.warning("damaged in the cache, set aside, to be made again: %s", set_aside(path))
