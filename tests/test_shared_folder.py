"""`scaling check`: what a shared folder must offer is seen where it is there, and missed where it is not."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling.config import UserError
from scaling.shared_folder import Meeting, Seen, findings


def start(folder: Path, *more: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "scaling.cli.main", "check", str(folder), *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=pipe, stderr=pipe, text=True)


def test_a_local_folder_is_good(tmp_path):
    out, err = (process := start(tmp_path)).communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "2 processes (1 hosts) counted to 100 of 100" in out
    assert out.count("\n") == out.count("ok ") == 5
    assert {path.name for path in tmp_path.iterdir()} == {".meeting.lock"}


def test_two_meet(tmp_path):
    both = [start(tmp_path, "--machines", "2") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all("4 processes (1 hosts) counted to 200 of 200" in out for out, _ in outputs)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_locks_that_exclude_nobody_are_found(tmp_path):
    """As on a network file system mounted without locks: flock says yes to everybody."""
    source, library = tmp_path / "flock.c", tmp_path / "flock.so"
    source.write_text("int flock(int descriptor, int how) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    (tmp_path / "shared").mkdir()
    process = start(tmp_path / "shared", LD_PRELOAD=str(library))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "FAILED  locks exclude" in out


def test_nobody_else_comes(tmp_path):
    with pytest.raises(UserError, match="1 of 4 processes met"):
        Meeting(tmp_path, machines=2, seconds=0.3).attend()
    assert {path.name for path in tmp_path.iterdir()} == {".meeting.lock"}


def test_leftovers_of_a_meeting_that_was_killed(tmp_path):
    old = tmp_path / ".meeting" / "gone-1.here"
    old.parent.mkdir()
    old.write_bytes(b"")
    os.utime(old, (time.time() - 1000, time.time() - 1000))
    process = start(tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_folder_that_is_not_there(tmp_path):
    process = start(tmp_path / "nowhere")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no such folder" in err
    assert err.count("\n") == 1


def test_what_is_not_as_it_must_be():
    good = Seen("a", 0.1, 0.01, 50, 0, 0)
    assert all(finding.good for finding in findings([good, good], 100))
    bad = Seen("b", -90.0, 2.0, 50, 1, 1)
    assert not any(finding.good for finding in findings([good, bad], 99))
