"""Documents of local text: folders, .txt, .jsonl, .parquet, .arrow, compressed or not, one after the other in bounded memory."""

import bz2
import gzip
import importlib
import json
import lzma
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

from scaling.config import TextOptions, UserError

LONGEST = 1 << 20
"""A text file of more bytes, or one that is a corpus by itself, is cut into documents at blank lines."""
CUT = 16 << 10
"""Bytes of such a document, about."""

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_RECORDS = {".jsonl", ".ndjson", ".parquet", ".arrow"}
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}


class Document(NamedTuple):
    """One document: its text in UTF-8, the domain it belongs to ("" when there is none), and where it was found."""

    text: bytes
    domain: str
    where: str


class Skipped(NamedTuple):
    """A file or document that is left out, and the fact that counts it."""

    fact: str
    where: str


Found = Document | Skipped


def files_under(root: Path, *, leave_out: Callable[[str], bool]) -> list[Path]:
    """Files under `root` in path order; `leave_out` says which names of folders and files are not looked at."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not leave_out(name)]  # not entered: site-packages alone can hold ten thousand files
        found += [Path(folder, name) for name in files if not leave_out(name)]
    return sorted(found)


def stdlib_files() -> list[Path]:
    """The .py files of the running interpreter's standard library, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [path for path in files_under(root, leave_out=lambda name: name in _NOT_LIBRARY) if path.suffix == ".py"]


def local_files(path: Path) -> list[Path]:
    """Files of a local corpus in path order: the file itself, or all of a folder but hidden ones and a datasets library's left-overs.

    Of a saved `DatasetDict` (Hugging Face datasets) only the split `train` is read, so that no test text is trained on.
    """
    if path.is_file():
        return [path]
    root = path / "train" if (path / "dataset_dict.json").is_file() and (path / "train").is_dir() else path
    saved = (root / "state.json").is_file()  # `Dataset.save_to_disk`
    found = files_under(root, leave_out=lambda name: name.startswith("."))
    return [file for file in found if file.is_file() and (not saved or (file.suffix == ".arrow" and not file.name.startswith("cache-")))]


def read_files(files: list[Path], options: TextOptions) -> Iterator[Found]:
    """Documents of files: one a text file (long files are cut), one a line or row of .jsonl, .parquet and .arrow.

    Raises
    ------
    UserError
        A damaged file, a record without text, or text in another encoding: the file, the place and the remedy.
    """
    for file in files:
        suffix, packed = _kind(file)
        try:
            if suffix in (".jsonl", ".ndjson"):
                yield from _read_lines(file, packed, options)
            elif suffix == ".parquet":
                yield from _read_parquet(file, options)
            elif suffix == ".arrow":
                yield from _read_arrow(file, options)
            else:
                yield from _read_text(file, packed, options, alone=len(files) == 1)
        except _damage(packed) as error:
            raise UserError(f"{file}: damaged compressed file ({error}); fetch or compress it again") from None
        except OSError as error:
            if packed and not error.errno:  # bz2 says so without a number
                raise UserError(f"{file}: damaged compressed file ({error}); fetch or compress it again") from None
            raise UserError(f"{file}: cannot be read ({error.strerror or error}); check its permissions, or move it away") from None


def _damage(packed: str) -> tuple[type[Exception], ...]:
    """What the readers of compressed files raise when a file is damaged."""
    known = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)
    return (*known, importlib.import_module("zstandard").ZstdError) if packed == ".zst" and find_spec("zstandard") else known


def _kind(file: Path) -> tuple[str, str]:
    """Suffix of what is inside, and that of the compression ("" when there is none)."""
    packed = file.suffix.lower() if file.suffix.lower() in (*_OPENERS, ".zst") else ""
    inner = Path(file.stem) if packed else file
    return inner.suffix.lower(), packed


def _open(file: Path, packed: str) -> IO[bytes]:
    if packed == ".zst":
        return _optional("zstandard", f"{file}: a .zst file").open(file, "rb")
    return _OPENERS[packed](file, "rb") if packed else open(file, "rb")


def _optional(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{what} needs the package {module.split('.')[0]}: pip install 'scaling-harness[text-files]'") from None


# ---------------------------------------------------------------- text files


def _read_text(file: Path, packed: str, options: TextOptions, *, alone: bool) -> Iterator[Found]:
    with _open(file, packed) as stream:
        head = stream.read(LONGEST + 1)
        wide = options.encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
        if b"\0" in head[:8192] and not wide:
            if alone:
                raise UserError(f"{file}: a binary file (NUL byte {head.index(0)}); give text, or set text.encoding if it is UTF-16")
            yield Skipped("binary_files", str(file))
            return
        if len(head) <= LONGEST and not alone:
            yield _decoded(head, str(file), 0, options)
            return
        if wide or options.encoding.lower() not in ("utf-8", "utf8", "latin-1", "ascii"):
            whole = _decoded(head + stream.read(), str(file), 0, options)  # other encodings cannot be cut at a byte
            yield from [whole] if isinstance(whole, Skipped) else _cut(whole.text, file)
            return
        rest, at = head, 0
        while rest:
            more = stream.read(LONGEST)
            end = len(rest) if not more else _last_break(rest)
            piece = _decoded(rest[:end], str(file), at, options)
            yield from [piece] if isinstance(piece, Skipped) else _cut(piece.text, file)
            rest, at = rest[end:] + more, at + end


def _last_break(text: bytes) -> int:
    """Where to cut a chunk: after its last blank line, its last line, or (one endless line) its last whole character."""
    for mark in (b"\n\n", b"\n", b" "):
        if (at := text.rfind(mark)) > 0:
            return at + len(mark)
    end = len(text)
    while end > 1 and text[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 or len(text)


def _cut(text: bytes, file: Path) -> Iterator[Document]:
    start = 0
    while start < len(text):
        end = text.find(b"\n\n", start + CUT)
        if end < 0 or end > start + 4 * CUT:  # no blank line near: any line end, or as it is
            end = text.find(b"\n", start + CUT)
        end = len(text) if end < 0 else end
        yield Document(text[start:end].strip(b"\n"), "", str(file))
        start = end + 1


def _decoded(raw: bytes, where: str, at: int, options: TextOptions) -> Found:
    """Text of bytes that begin at offset `at` of a file, in UTF-8; what is no text in that encoding goes by `text.encoding_errors`."""
    try:
        if options.encoding.lower() in ("utf-8", "utf8"):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if at == 0 else raw
            raw.decode("utf-8")
            return Document(raw, "", where)
        return Document(raw.decode(options.encoding).removeprefix("\ufeff").encode(), "", where)
    except UnicodeDecodeError as error:
        if options.encoding_errors == "skip":
            return Skipped("undecodable_documents", where)
        if options.encoding_errors == "replace":
            return Document(raw.decode(options.encoding, "replace").encode(), "", where)
        raise UserError(
            f"{where}: byte {at + error.start} is not {options.encoding} text; set text.encoding to the file's encoding, or "
            'text.encoding_errors to "replace" or "skip"'
        ) from None


# ---------------------------------------------------------------- records


def _read_lines(file: Path, packed: str, options: TextOptions) -> Iterator[Found]:
    with _open(file, packed) as stream:
        at = 0
        for number, line in enumerate(stream, 1):
            found = _decoded(line, str(file), at, options)
            at += len(line)
            if isinstance(found, Skipped):
                yield found
            elif found.text.strip():
                where = f"{file}:{number}"
                try:
                    record = json.loads(found.text)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where}: not JSON ({str(error)[:80]}); a .jsonl file holds one object a line") from None
                yield _record(record, where, options)


def _record(record: Any, where: str, options: TextOptions) -> Document:
    text = record.get(options.field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        fields = list(record.items())[:12] if isinstance(record, dict) else [("no object but", record)]
        found = ", ".join(f"{name} {type(value).__name__}" for name, value in fields)
        raise UserError(f"{where}: no text in field `{options.field}` (found: {found}); set text.field to the one that holds it")
    domain = record.get("domain", "")
    return Document(text.encode("utf-8", "replace"), domain if isinstance(domain, str) else "", where)


def _read_parquet(file: Path, options: TextOptions) -> Iterator[Document]:
    """Rows of a Parquet file, a few thousand at a time (DuckDB skips the row groups outside)."""
    import duckdb

    step = 4096
    with duckdb.connect() as connection:
        try:
            columns = [row[0] for row in connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(file)]).fetchall()]
            if options.field not in columns:
                raise UserError(f"{file}: no column `{options.field}` (found: {', '.join(columns[:12])}); set text.field")
            quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in (options.field, "domain") if name in columns)
            (count,) = connection.execute("SELECT count(*) FROM read_parquet(?)", [str(file)]).fetchall()[0]
            query = f"SELECT {quoted} FROM read_parquet(?, file_row_number=true) WHERE file_row_number >= ? AND file_row_number < ?"
            for start in range(0, count, step):
                rows = connection.execute(f"{query} ORDER BY file_row_number", [str(file), start, start + step]).fetchall()
                for number, row in enumerate(rows, start + 1):
                    record = dict(zip((options.field, "domain"), row))
                    yield _record(record, f"{file}:{number}", options)
        except duckdb.Error as error:
            raise UserError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0][:120]})") from None


def _read_arrow(file: Path, options: TextOptions) -> Iterator[Document]:
    """Rows of an Arrow stream as the Hugging Face library `datasets` saves them."""
    arrow = _optional("pyarrow", f"{file}: an .arrow file")
    number = 0
    with arrow.memory_map(str(file)) as source:
        try:
            for batch in arrow.ipc.open_stream(source):
                for record in batch.to_pylist():
                    number += 1
                    yield _record(record, f"{file}:{number}", options)
        except arrow.ArrowInvalid as error:
            raise UserError(f"{file}: cannot be read as an Arrow stream ({str(error)[:120]})") from None
