"""Local text in every form, and what is wrong with it."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pytest

from scaling.cli.main import main
from scaling.config import TextOptions, UserError
from scaling.corpus import prepare
from scaling.documents import Document, read_files
from scaling.sources import documents, parse

TEXTS = [f"document {number}: " + " ".join(f"word{number * 7 % 31}x{i}" for i in range(40)) for number in range(120)]


def texts_of(path, **options) -> list[str]:
    return [found.text.decode() for found in documents(str(path), TextOptions(**options)) if isinstance(found, Document)]


def lines(records) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def test_the_same_text_in_every_format_gives_the_same_tokens(tmp_path):
    import duckdb
    import pandas as pd

    records = lines({"text": text} for text in TEXTS)
    (tmp_path / "a.jsonl").write_bytes(records)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(records))
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(records))
    (tmp_path / "a.ndjson.xz").write_bytes(lzma.compress(records))
    frame = pd.DataFrame({"text": TEXTS})
    with duckdb.connect() as connection:
        connection.register("frame", frame)
        connection.execute(f"COPY (SELECT * FROM frame) TO '{tmp_path / 'a.parquet'}' (FORMAT parquet, ROW_GROUP_SIZE 2048)")
    hashes = {prepare(str(path)).content_hash for path in sorted(tmp_path.iterdir())}
    assert len(hashes) == 1
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:03}.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert prepare(str(folder)).content_hash in hashes


def test_a_saved_hugging_face_dataset_is_read_and_its_test_split_is_not(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="the extra `text-files` is not installed")
    for split, texts in (("train", TEXTS), ("test", ["of the test split"] * 3)):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        table = arrow.table({"text": texts})
        with arrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as out, arrow.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts_of(tmp_path / "saved") == TEXTS


def test_long_files_are_cut_into_documents_without_loss_of_words(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {number} " + "of words, ünïcode too. " * 30 for number in range(3000)))
    found = texts_of(path)
    assert len(found) > 50 and max(map(len, found)) < 100_000
    assert "".join("".join(found).split()) == "".join(path.read_text().split())
    endless = tmp_path / "endless.txt"
    endless.write_text("é" * 1_500_000)
    assert sum(text.count("é") for text in texts_of(endless)) == 1_500_000


def test_domains_come_from_joined_sources_and_from_records(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(60):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number} " + f"{name} says {number * 3} " * 20)
    corpus = prepare(f"{tmp_path / 'one'} + {tmp_path / 'two'}")
    assert list(corpus.domains) == ["one", "two"]
    for domain, ranges in corpus.domains.items():
        for split in ("train", "heldout"):
            first, stop = ranges[split]
            text = getattr(corpus, split)[first:stop].tobytes().decode()
            assert text.startswith(domain) and {"one": "two", "two": "one"}[domain] not in text
    (tmp_path / "r.jsonl").write_bytes(lines({"text": text, "domain": f"d{i % 2}"} for i, text in enumerate(TEXTS)))
    assert list(prepare(str(tmp_path / "r.jsonl")).domains) == ["d0", "d1"]
    with pytest.raises(UserError, match="joins two sources called `one`"):
        parse(f"{tmp_path / 'one'} + {tmp_path / 'one'}")


BAD = {
    "latin-1": (b"caf\xe9 au lait", {}, "byte 3 is not utf-8 text; set text.encoding"),
    "later than a megabyte": (b"plain text\n" * 120_000 + b"\xff", {}, f"byte {11 * 120_000} is not utf-8"),
    "binary": (b"\x7fELF\x00\x00", {}, "a binary file (NUL byte 4)"),
    "damaged gzip": (b"\x1f\x8b\x08\x00garbage", {"name": "a.txt.gz"}, "damaged compressed file"),
    "not JSON": (b'{"text": "x"}\nplain\n', {"name": "a.jsonl"}, "a.jsonl:2: not JSON"),
    "no text field": (b'{"body": "x"}\n', {"name": "a.jsonl"}, "no text in field `text` (found: body str)"),
    "not Parquet": (b"PAR0", {"name": "a.parquet"}, "cannot be read as Parquet"),
    "empty": (b"", {}, "0 documents give no text"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_one_line_with_file_place_and_remedy(case, tmp_path, capsys):
    raw, options, expected = BAD[case]
    path = tmp_path / options.get("name", "a.txt")
    path.write_bytes(raw)
    assert main(["corpus", "info", str(path)]) == 2
    error = capsys.readouterr().err
    assert expected in error and str(path) in error and error.count("\n") == 1


def test_encodings_and_what_to_do_with_errors_are_chosen(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("café\n".encode("latin-1") * 10)
    assert "café" in texts_of(path, encoding="latin-1")[0]
    assert "caf\ufffd" in texts_of(path, encoding_errors="replace")[0]
    assert texts_of(path, encoding_errors="skip") == []
    (tmp_path / "wide.txt").write_bytes("日本語のテキスト\n".encode("utf-16"))
    assert "日本語" in texts_of(tmp_path / "wide.txt", encoding="utf-16")[0]
    bom = tmp_path / "bom"
    bom.mkdir()
    (bom / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (bom / "b.bin").write_bytes(b"\0\1")
    assert texts_of(bom) == ["hello"]


def test_records_are_read_by_their_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"content": text} for text in TEXTS))
    assert texts_of(path, field="content") == TEXTS
    (found,) = list(read_files([tmp_path / "a.jsonl"], TextOptions(field="content")))[:1]
    assert isinstance(found, Document) and found.where.endswith("a.jsonl:1")


def test_unknown_names_are_refused_with_what_is_allowed():
    with pytest.raises(UserError, match="unknown corpus `no-such`; allowed: python-stdlib, english, code"):
        parse("no-such")
    with pytest.raises(UserError, match="has no domain `poems`; allowed: sotu"):
        parse("english/poems")


def test_preparing_again_reads_nothing_and_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": text} for text in TEXTS))
    first = prepare(str(path))
    assert prepare(str(path)).content_hash == first.content_hash
    path.write_bytes(lines({"text": text + "!"} for text in TEXTS))
    second = prepare(str(path))
    assert second.content_hash != first.content_hash and not np.array_equal(second.heldout, first.heldout)
