"""Writing a table or a record so that a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pandas as pd

from analysis.errors import UserError

ABANDONED = 60.0  # seconds after which a temporary file of the same name belongs to nobody: they live for the time of one write


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file under a temporary name in the same folder, then rename; temporary files that a killed process left of it go.

    Raises
    ------
    UserError
        When the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a folder that can be written") from error
    return path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text as `write_bytes` does."""
    return write_bytes(path, text.encode())


def write_table(path: Path, frame: pd.DataFrame) -> Path:
    """Write a CSV with a header; floats with the digits that give the same float back."""
    return write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.suffix == ".tmp" and time.time() - left.stat().st_mtime > ABANDONED:
            left.unlink(missing_ok=True)
