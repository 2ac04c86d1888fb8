"""JAX's cache of compiled programs, with checksums.

JAX believes what lies in its cache: its entries carry no checksum, and a program with a flipped bit would be run. It also writes them in
place, so that a worker that dies leaves half of one. There is no public way to give JAX another cache; `get_file_cache` makes its own.
"""

from pathlib import Path

from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface

from scaling.sealed import read_sealed, write_sealed


class SealedCache(CacheInterface):
    """One file a program, with its checksum, complete or not there."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder)

    def get(self, key: str) -> bytes | None:
        """The program of a key, or None."""
        return read_sealed(self._path / f"{key}.program")

    def put(self, key: str, value: bytes) -> None:
        """Keep a program."""
        write_sealed(self._path / f"{key}.program", value)


def seal_compilation_cache() -> None:
    """Let JAX use this cache; before it compiles anything."""
    compilation_cache.get_file_cache = lambda path: (SealedCache(path), path)
