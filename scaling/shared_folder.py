"""What a shared results folder must offer, tried out: locks that exclude, replacement as a whole, clocks that agree (docs/clusters.md).

Two processes on each of several machines meet in the folder, count together under the lock of `scaling.record`, and look at the
common number without it. A lock that does not reach other machines, or a cache that shows old content under it, loses counts.
"""

import json
import multiprocessing
import os
import shutil
import socket
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from scaling.claim import HEARTBEAT_SECONDS, STALE_AFTER
from scaling.config import UserError
from scaling.record import folder_lock, write_atomic

PROCESSES = 2
"""On each machine, so that a single machine is a test too."""
ROUNDS = 50
PADDING = "x" * 20_000
"""A torn file would end within it."""
PAUSE_SECONDS = 0.002
"""Between reading and writing, with the lock: who is not kept out gets in between."""
MEETING_SECONDS = 120.0
LARGEST_SKEW = STALE_AFTER / 5
"""Seconds; a heartbeat is some `HEARTBEAT_SECONDS` old when it is read, and stale after `STALE_AFTER`."""


class Seen(msgspec.Struct, frozen=True):
    """What one process saw."""

    host: str
    skew_seconds: float
    write_seconds: float
    looks: int
    torn: int
    backwards: int


@dataclass(frozen=True)
class Finding:
    """One thing that was tried."""

    good: bool
    what: str


@dataclass
class Meeting:
    """The folder in which processes meet: `NAME.here` while they are there, `NAME.json` what they saw."""

    root: Path
    machines: int
    seconds: float = MEETING_SECONDS
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")

    @property
    def folder(self) -> Path:
        """Gone when the last one has left."""
        return self.root / ".meeting"

    @property
    def people(self) -> int:
        """How many processes there are in all."""
        return self.machines * PROCESSES

    def enter(self) -> None:
        """Be there; what an older meeting left is removed."""
        with folder_lock(self.root, "meeting"):
            times = [path.stat().st_mtime for path in self.folder.glob("*")]
            if times and time.time() - max(times) > 2 * MEETING_SECONDS:
                shutil.rmtree(self.folder)
            write_atomic(self.folder / f"{self.name}.here", b"")

    def leave(self) -> None:
        """Go; the last one tidies up."""
        with folder_lock(self.root, "meeting"):
            (self.folder / f"{self.name}.here").unlink(missing_ok=True)
            if not list(self.folder.glob("*.here")):
                shutil.rmtree(self.folder, ignore_errors=True)
                (self.root / ".count.lock").unlink(missing_ok=True)

    def wait(self, ending: str) -> None:
        """Wait until everybody has left a file with this ending.

        Raises
        ------
        UserError
            They have not come in time.
        """
        deadline = time.monotonic() + self.seconds
        while (there := len(list(self.folder.glob(f"*{ending}")))) < self.people:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{there} of {self.people} processes met in {self.root} within {self.seconds:.0f} s: start "
                    f"`scaling check` on {self.machines} machines at once; if you did, they do not see the same folder"
                )
            time.sleep(0.05)

    def count(self) -> Seen:
        """Count under the lock, `ROUNDS` times, and look without it in between."""
        path, last, torn, backwards, seconds = self.folder / "number", 0, 0, 0, []
        for _ in range(ROUNDS):
            with folder_lock(self.root, "count"):
                number = json.loads(path.read_bytes())["number"] if path.exists() else 0
                time.sleep(PAUSE_SECONDS)
                began = time.perf_counter()
                write_atomic(path, json.dumps({"number": number + 1, "padding": PADDING, "end": number + 1}).encode())
                seconds.append(time.perf_counter() - began)
                skew = path.stat().st_mtime - time.time()
            try:
                value = json.loads(path.read_bytes())
                torn += value["number"] != value["end"]
                backwards += value["number"] < last
                last = max(last, value["number"])
            except (OSError, ValueError, KeyError):
                torn += 1
        return Seen(socket.gethostname(), skew, statistics.median(seconds), ROUNDS, torn, backwards)

    def attend(self) -> list[Finding]:
        """The whole meeting, as one of its processes."""
        self.enter()
        try:
            self.wait(".here")
            write_atomic(self.folder / f"{self.name}.json", msgspec.json.encode(self.count()))
            self.wait(".json")
            everyone = [msgspec.json.decode(path.read_bytes(), type=Seen) for path in sorted(self.folder.glob("*.json"))]
            return findings(everyone, json.loads((self.folder / "number").read_bytes())["number"])
        finally:
            self.leave()


def findings(everyone: list[Seen], number: int) -> list[Finding]:
    """What the processes saw, summed up; `number` is what they counted to."""
    expected, torn = sum(seen.looks for seen in everyone), sum(seen.torn for seen in everyone)
    backwards, skew = sum(seen.backwards for seen in everyone), max((seen.skew_seconds for seen in everyone), key=abs)
    hosts = len({seen.host for seen in everyone})
    slow = max(seen.write_seconds for seen in everyone)
    return [
        Finding(number == expected, f"locks exclude: {len(everyone)} processes ({hosts} hosts) counted to {number} of {expected}"),
        Finding(torn == 0, f"files are replaced as a whole: {torn} of {expected} looks saw a torn or missing file"),
        Finding(backwards == 0, f"what was new stays new: {backwards} of {expected} looks saw older content than before"),
        Finding(
            abs(skew) <= LARGEST_SKEW,
            f"clocks agree: the file system's is {skew:+.1f} s from this one's at most ({LARGEST_SKEW:.0f} s may be; heartbeats "
            f"come every {HEARTBEAT_SECONDS:.0f} s)",
        ),
        Finding(slow < 1.0, f"writing is quick: a small file takes {1000 * slow:.1f} ms to be safe on disk (1 s may be)"),
    ]


def check(root: Path, *, machines: int) -> list[Finding]:
    """Meet with as many machines in `root`, with two processes on each.

    Raises
    ------
    UserError
        They do not meet, or the file system has no locks.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; make it first, on the shared file system")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_attend, args=(root, machines)) for _ in range(PROCESSES - 1)]
    for process in others:
        process.start()
    try:
        return Meeting(root, machines).attend()
    except OSError as error:
        raise UserError(f"{root}: {error}; a results folder needs a file system with locks (flock) and atomic replacement") from None
    finally:
        for process in others:
            process.join(timeout=MEETING_SECONDS)


def _attend(root: Path, machines: int) -> None:
    Meeting(root, machines).attend()
