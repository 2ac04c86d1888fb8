"""JAX's cache of compiled programs, with checksums.

JAX believes what lies in its cache: its entries carry no checksum, and a program with a flipped bit would be run. It also writes them in
place, so that a worker that dies leaves half of one. There is no public way to give JAX another cache; `get_file_cache` makes its own.
"""

import logging
from pathlib import Path

from scaling.sealed import read_sealed, write_sealed

_LOG = logging.getLogger(__name__)


class SealedCache:
    """One file a program, with its checksum, complete or not there: what JAX asks of a cache."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder)

    def get(self, key: str) -> bytes | None:
        """The program of a key, or None."""
        return read_sealed(self._path / f"{key}.program")

    def put(self, key: str, value: bytes) -> None:
        """Keep a program."""
        write_sealed(self._path / f"{key}.program", value)


def seal_compilation_cache() -> bool:
    """Let JAX use this cache, before it compiles anything; False if this JAX has no such part: its own cache stays, with a note."""
    try:
        from jax._src import compilation_cache
        from jax._src.compilation_cache import get_file_cache  # noqa: F401  # replaced below; without it there is nothing to replace
    except ImportError:
        _LOG.warning("this version of JAX keeps compiled programs without checksums: damaged ones are not noticed (scaling/compiled.py)")
        return False
    compilation_cache.get_file_cache = lambda path: (SealedCache(path), path)
    return True
