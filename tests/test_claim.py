import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from scaling import claim as claims
from scaling.record import Folder, write_atomic


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "sweep")


def put(folder, claim):
    write_atomic(folder.trunk("t") / "claim", json.dumps(asdict(claim)).encode())


def test_one_trunk_has_one_owner(folder):
    mine = claims.take(folder, "t")
    assert mine is not None and mine.attempt == 1
    assert claims.take(folder, "t") is None
    claims.release(folder, "t", mine)
    again = claims.take(folder, "t")
    assert again is not None and again.attempt == 2


def test_the_claim_of_a_dead_process_is_taken_over(folder):
    mine = claims.take(folder, "t")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put(folder, replace(mine, pid=dead.pid, process_start="123"))
    taken = claims.take(folder, "t")
    assert taken is not None and taken.pid == os.getpid() and taken.attempt == 2


def test_a_reused_pid_and_another_boot_do_not_keep_a_claim(folder):
    mine = claims.take(folder, "t")
    put(folder, replace(mine, process_start="1"))
    assert not claims.is_live(folder, "t")
    put(folder, replace(mine, boot_id="another boot"))
    assert not claims.is_live(folder, "t")
    put(folder, mine)
    assert claims.is_live(folder, "t")


def test_another_host_keeps_its_claim_while_its_heart_beats(folder):
    mine = claims.take(folder, "t")
    put(folder, replace(mine, host=socket.gethostname() + "-other", pid=1, boot_id="other"))
    assert claims.take(folder, "t") is None
    old = time.time() - claims.STALE_AFTER - 5
    os.utime(folder.trunk("t") / "claim", (old, old))
    assert claims.take(folder, "t") is not None


def test_a_worker_that_wakes_up_late_publishes_nothing(folder):
    first = claims.take(folder, "t")
    old = time.time() - claims.STALE_AFTER - 5
    os.utime(folder.trunk("t") / "claim", (old, old))
    second = claims.take(folder, "t")
    assert second is not None
    with pytest.raises(claims.ClaimLost), claims.owned(folder, "t", first):
        pass
    claims.release(folder, "t", first)  # not ours any more: must not free the other's claim
    assert claims.read_claim(folder, "t") == second


@pytest.mark.parametrize("content", [b"", b"{", b'{"host": 1}', b"\xff\x00", b"[]", b"null"])
def test_a_damaged_claim_counts_as_stale(folder, content):
    write_atomic(folder.trunk("t") / "claim", content)
    assert not claims.is_live(folder, "t")
    assert claims.take(folder, "t") is not None


def test_many_processes_want_one_trunk(folder):
    code = (
        "import sys, time; from pathlib import Path; from scaling import claim; from scaling.record import Folder\n"
        "got = claim.take(Folder(Path(sys.argv[1])), 't'); print('won' if got else 'lost', flush=True); time.sleep(3)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(folder.root)], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    outcomes = [process.communicate()[0].strip() for process in processes]
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
