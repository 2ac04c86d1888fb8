"""A ceiling on the memory of a block, for work on data or statements that others wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such limits: only those of the libraries hold there
    resource = None


@contextlib.contextmanager
def at_most_more(memory: int) -> Iterator[None]:
    """Let this process have at most `memory` bytes more address space than now, while the block runs; then allocations fail.

    Holds on Linux; elsewhere the block runs as it is. The limit is the process's: other threads feel it too.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        pages = 0
    if resource is None or not pages:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = pages * resource.getpagesize() + memory
    limits = [ceiling, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
