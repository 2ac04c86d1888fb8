"""Several launchers on one folder, and claims that outlive their owners."""

import json
import os
import signal
import socket
import time

from faults.bench import Bench, Row, claimed, wait_for, workers_of
from faults.killed import kill


def launchers(bench: Bench, tries: int, count: int) -> Row:
    """Several launchers at once."""
    outcomes = []
    for _ in range(tries):
        results = bench.fresh(f"launchers{count}")
        several = [bench.start(results, "--workers", "1") for _ in range(count)]
        codes = [launcher.wait(timeout=300) for launcher in several]
        wrong = [f"a launcher ended with exit code {code}" for code in codes if code]
        outcomes.append(wrong + bench.after(results))
    return bench.row(f"{count} launchers on one folder", outcomes)


def two_launchers(bench: Bench, tries: int) -> Row:
    """Two at once."""
    return launchers(bench, tries, 2)


def four_launchers(bench: Bench, tries: int) -> Row:
    """Four at once."""
    return launchers(bench, tries, 4)


def paused_worker(bench: Bench, tries: int) -> Row:
    """A worker sleeps (SIGSTOP) until its claim is stale and another takes the trunk over; then it wakes up."""
    outcomes, woken = [], 0
    for _ in range(tries):
        results = bench.fresh("paused")
        root = results / "drill"
        first = bench.start(results, "--workers", "1")
        wait_for(lambda root=root: claimed(root) and list(root.glob("trunks/*/state-*")))
        (path, pid) = next(iter(claimed(root).items()))
        os.kill(pid, signal.SIGSTOP)
        old = time.time() - 1000
        os.utime(path, (old, old))
        second = bench.start(results, "--workers", "1")
        wait_for(lambda pid=pid, path=path, root=root: claimed(root).get(path, pid) != pid)
        os.kill(pid, signal.SIGCONT)
        wrong = [f"a launcher ended with exit code {code}" for code in (first.wait(300), second.wait(300)) if code]
        woken += "taken over by another worker" in (root / "workers.log").read_text()
        outcomes.append(wrong + bench.after(results))
    return bench.row("worker paused until its claim was taken, then woken", outcomes, seen=f"the woken one gave way: {woken} of {tries}")


def interrupted(bench: Bench, name: str):
    """A results folder whose launcher and workers died in mid-training, and a claim that was left."""
    results = bench.fresh(name)
    launcher = bench.start(results)
    wait_for(lambda: claimed(results / "drill") and list((results / "drill").glob("trunks/*/state-*")))
    kill([launcher.pid, *workers_of(launcher)])
    launcher.wait()
    path = next(iter((results / "drill").glob("trunks/*/claim")), None)
    return results, path


def dead_machine(bench: Bench, tries: int) -> Row:
    """The claim of a machine that is gone: another host, its heartbeat old."""
    outcomes = []
    for _ in range(tries):
        results, path = interrupted(bench, "machine")
        if path is None:
            outcomes.append(["no claim was left to test with"])
            continue
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "host": socket.gethostname() + "-gone", "pid": 1}))
        old = time.time() - 1000
        os.utime(path, (old, old))
        outcomes.append(bench.after(results))
    return bench.row("stale claim of a dead machine", outcomes)


def reused_pid(bench: Bench, tries: int) -> Row:
    """The claim of a dead worker whose process id another process has now: this one's."""
    outcomes = []
    for _ in range(tries):
        results, path = interrupted(bench, "pid")
        if path is None:
            outcomes.append(["no claim was left to test with"])
            continue
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "pid": os.getpid()}))
        outcomes.append(bench.after(results))
    return bench.row("stale claim whose process id is in use again", outcomes)
