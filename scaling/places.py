"""Where the cache lies."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$SCALING_CACHE`, or `scaling-harness` in the user's cache folder: prepared corpora and compiled programs; safe to delete."""
    root = os.environ.get("SCALING_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling-harness"
