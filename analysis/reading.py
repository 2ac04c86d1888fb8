"""Reading a table of text cells, plain or compressed, with every mistake in one line."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from pathlib import Path

import pandas as pd

from analysis.errors import UserError
from analysis.frames import Column, Frame

MISSING = ("", "nan", "na", "n/a", "none", "null")


def read_bytes(source: Path) -> bytes:
    """Read a file, decompressed where it is gzip.

    Raises
    ------
    UserError
        When it cannot be read.
    """
    try:
        data = source.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError:
        raise UserError(f"{source}: no such file; give a results folder or a CSV of runs") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"{source}: is a damaged gzip file; copy it again") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); give a results folder or a CSV of runs") from None


def read_table(source: Path) -> Frame:
    """Read a table as text cells: UTF-8, a header, separated by commas (or tabs, or semicolons), plain or compressed by gzip.

    Raises
    ------
    UserError
        When the file cannot be read, or is no such table; the line names the row.
    """
    data = read_bytes(source)
    try:
        text = data.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: is no UTF-8 text (byte {error.start}); give a CSV of runs") from None
    if "\0" in text:
        raise UserError(f"{source}: is a binary file; give a CSV of runs")
    separator = max(",\t;", key=text.partition("\n")[0].count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=separator) if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise UserError(f"{source}: is no CSV ({error}); give a CSV of runs") from None
    if not lines:
        raise UserError(f"{source}: is empty; a header and at least one row are needed")
    header = [name.strip() for name in lines[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{source}: column {twice[0]!r} appears twice in the header; names must be unique")
    if len(lines) == 1:
        raise UserError(f"{source}: has a header but no rows; at least one run is needed")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise UserError(f"{source}: row {number} has {len(line)} cells, the header has {len(header)}; make them equal")
    return pd.DataFrame([[cell.strip() for cell in line] for line in lines[1:]], columns=header, dtype=object)


def is_blank(column: Column) -> Column:
    """Cells of a column of text that hold no value."""
    return column.str.lower().isin(MISSING)
