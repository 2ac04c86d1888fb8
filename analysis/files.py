"""Writing a table or a record so that a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from analysis.errors import UserError


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text under a temporary name in the same folder, then rename.

    Raises
    ------
    UserError
        When the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder with --out") from error
    return path


def write_table(path: Path, frame: pd.DataFrame) -> Path:
    """Write a CSV with a header; floats with the digits that give the same float back."""
    return write_text(path, frame.to_csv(index=False, lineterminator="\n"))
