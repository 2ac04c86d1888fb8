"""Fuzz: corpus files and record folders that are damaged are read, set aside or refused in one line; nothing half-written is left."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import shutil
from pathlib import Path

import pytest
from fuzzing import changed, damaged, inputs, well_behaved
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import UserError as AnalysisError
from analysis.query import query
from analysis.runs import read_curves, read_runs
from scaling.config import TextOptions, UserError
from scaling.documents import Skipped, local_files, read_files

# ---------------------------------------------------------------- corpus files

TEXT = ("A first paragraph of words, ünïcode too.\n\nA second one.\n" * 8).encode()
LINES = b"".join(json.dumps({"text": f"document {i}", "domain": "a"}).encode() + b"\n" for i in range(5))
PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
OPTIONS = st.builds(
    TextOptions,
    encoding=st.sampled_from(["utf-8", "latin-1", "utf-16", "ascii", "gb18030", "utf-7", "cp1252"]),
    encoding_errors=st.sampled_from(["error", "replace", "skip"]),
    field=st.sampled_from(["text", "domain", "x"]),
)


def _parquet() -> bytes:
    import duckdb

    with duckdb.connect() as connection:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a.parquet")
            connection.execute(f"COPY (SELECT 'document ' || range AS text FROM range(5)) TO '{path}' (FORMAT parquet)")
            return path.read_bytes()


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name and its bytes: damaged before or after it was compressed, sometimes under the wrong name."""
    kind, whole = draw(st.sampled_from([(".txt", TEXT), (".jsonl", LINES), (".ndjson", LINES), (".txt", b"\xff\xfea\0b\0")]))
    packed = draw(st.sampled_from(list(PACK)))
    inner = draw(st.one_of(damaged(whole), st.just(whole), st.binary(max_size=60)))
    data = PACK[packed](inner)
    if draw(st.booleans()):
        data = draw(damaged(data))
    suffix = draw(st.sampled_from([kind + packed] * 6 + [".txt", ".jsonl.gz", ".zst", ".parquet", ".arrow", ".txt.xz"]))
    return f"a{suffix}", data


@inputs(quick=150, full=18_000)
@given(file=files(), options=OPTIONS, beside=st.booleans())
def test_corpus_files(tmp_path_factory: pytest.TempPathFactory, file: tuple[str, bytes], options: TextOptions, beside: bool) -> None:
    folder = tmp_path_factory.getbasetemp() / "corpus"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / file[0]).write_bytes(file[1])
    if beside:
        (folder / "b.txt").write_bytes(b"beside")
    with well_behaved(UserError):
        for found in read_files(local_files(folder), options):
            if not isinstance(found, Skipped):
                found.text.decode("utf-8")


@pytest.mark.parametrize(("name", "data"), [("a.txt.gz", gzip.compress(TEXT)[:10] + b"\xff" * 20), ("a.txt.zst", b"no frame")])
def test_damaged_compression_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("zstandard", reason="the extra `text-files` is not installed")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="damaged compressed file"):
        list(read_files([tmp_path / name], TextOptions()))


@inputs(quick=20, full=1_500)
@given(data=damaged(_parquet()))
def test_parquet_files(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "a.parquet"
    path.write_bytes(data)
    with well_behaved(UserError):
        list(read_files([path], TextOptions()))


# ---------------------------------------------------------------- record folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished sweep in the real format, with its tables."""
    from synthetic import write_records

    return write_records(tmp_path_factory.mktemp("records") / "tiny")


def look(root: Path) -> None:
    """What `scaling status`, the tables and a query do with a folder."""
    from scaling.forecasts import forecast_of
    from scaling.launch import check_results, pending_trunks
    from scaling.record import Folder, read_resolved
    from scaling.tables import write_tables

    resolved, folder = read_resolved(root), Folder(root)
    check_results(folder, resolved, notify=lambda said: None)
    pending_trunks(folder, resolved)
    rows = write_tables(root, resolved)
    assert {row["status"] for row in rows} <= {"done", "diverged", "failed", "running", "missing"}
    assert len(rows) == len(resolved.runs)
    for run in resolved.runs:
        forecast_of(folder, run.run_id)
    assert query(root, "SELECT count(*) AS n FROM runs").n[0] == len(rows)
    read_curves(root)
    read_runs(root)


PARTS = [
    "sweep.resolved.json",
    "runs.csv",
    "curves.parquet",
    "result.json",
    "metrics.jsonl",
    "config.json",
    "claim",
    "failure.json",
    "forecast",
]


def place_of(root: Path, part: str) -> Path:
    """Where that file of a folder lies, of its first run and trunk."""
    if part in ("result.json", "metrics.jsonl", "config.json"):
        return sorted((root / "runs").iterdir())[0] / part
    if part in ("claim", "failure.json"):
        return sorted((root / "trunks").iterdir())[0] / part
    return root / ("forecasts/0123456789ab.json" if part == "forecast" else part)


@inputs(quick=40, full=10_000)
@given(part=st.sampled_from(PARTS), data=st.data())
def test_record_folders(whole: Path, tmp_path_factory: pytest.TempPathFactory, part: str, data: st.DataObject) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged" / "tiny"
    shutil.rmtree(root.parent, ignore_errors=True)
    shutil.copytree(whole, root)
    path = place_of(root, part)
    before = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(changed(json.loads(before)))))
    elif data.draw(st.integers(0, 9)) == 0:
        path.unlink()
        if data.draw(st.booleans()):
            path.mkdir()
    else:
        path.write_bytes(data.draw(damaged(before)))
    with well_behaved(UserError, AnalysisError):
        look(root)
    assert not [found for found in root.rglob("*") if found.name.endswith(".tmp") or found.name.startswith(".curves-")]


@pytest.mark.parametrize(("part", "name"), [("sweep.resolved.json", b"train_tokens"), ("metrics.jsonl", b"phase"), ("claim", b"pid")])
def test_names_that_are_no_utf8(whole: Path, tmp_path: Path, part: str, name: bytes) -> None:
    """Found by fuzzing: msgspec says UnicodeDecodeError of such a name, and its own error of such a value."""
    root = tmp_path / "tiny"
    shutil.copytree(whole, root)
    path = place_of(root, part)
    assert name in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(name, b"\xf4" + name, 1))
    with contextlib.suppress(UserError, AnalysisError):
        look(root)


@pytest.mark.parametrize("value", [[], "many", -1, 10**400, None])
def test_facts_of_another_type(whole: Path, tmp_path: Path, value: object) -> None:
    """Found by fuzzing: tables are computed with the text's facts, which were read without a look at their types."""
    root = tmp_path / "tiny"
    shutil.copytree(whole, root)
    path = root / "sweep.resolved.json"
    resolved = json.loads(path.read_bytes())
    path.write_text(json.dumps({**resolved, "corpus_facts": {**resolved["corpus_facts"], "train_tokens": value}}))
    with pytest.raises(UserError, match="damaged or from another version"):
        look(root)
