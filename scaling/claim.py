"""Claims: which process trains which trunk. A claim is a small file; all decisions about it are taken under one lock of the folder.

A claim holds host, pid, the process's start time, boot id and attempt. It is stale when its process is gone (same host: pid and start
time; another boot: always) or when its heartbeat, the file's modification time, is older than `STALE_AFTER` seconds (other hosts, paused
workers). Whoever takes over counts one attempt more; the old owner, should it wake, no longer owns the claim and publishes nothing.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from scaling.record import Folder, folder_lock, write_atomic

HEARTBEAT_SECONDS = 10.0
STALE_AFTER = 300.0


@dataclass(frozen=True)
class Claim:
    """Contents of a claim file."""

    host: str
    pid: int
    process_start: str
    boot_id: str
    attempt: int


class ClaimLost(Exception):
    """Another worker has taken this trunk over; nothing more may be published for it."""


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, or None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:  # no /proc: existence is all that can be known
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def read_claim(folder: Folder, trunk_id: str) -> Claim | None:
    """The claim on a trunk, live or stale; None when there is none or it is damaged (then it counts as stale)."""
    try:
        return Claim(**json.loads((folder.trunk(trunk_id) / "claim").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def is_live(folder: Folder, trunk_id: str) -> bool:
    """Whether somebody is training this trunk now."""
    claim = read_claim(folder, trunk_id)
    if claim is None:
        return False
    try:
        age = time.time() - (folder.trunk(trunk_id) / "claim").stat().st_mtime
    except OSError:
        return False
    if age > STALE_AFTER:
        return False
    if claim.host != socket.gethostname():
        return True
    return claim.boot_id == _boot_id() and _process_start(claim.pid) == claim.process_start


def take(folder: Folder, trunk_id: str, *, allowed: Callable[[], bool] = lambda: True) -> Claim | None:
    """Claim a trunk for this process, or None when somebody else is at it or it is not `allowed` (asked under the lock)."""
    with folder_lock(folder.root, "claims"):
        if is_live(folder, trunk_id) or not allowed():
            return None
        trunk = folder.trunk(trunk_id)
        attempts = [int(path.name.removeprefix("attempt-")) for path in trunk.glob("attempt-*") if path.name[8:].isdigit()]
        old = read_claim(folder, trunk_id)
        attempt = 1 + max([*attempts, old.attempt if old else 0])
        claim = Claim(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()) or "unknown",
            boot_id=_boot_id(),
            attempt=attempt,
        )
        (trunk / f"attempt-{attempt}").mkdir(parents=True, exist_ok=True)
        write_atomic(trunk / "claim", json.dumps(asdict(claim)).encode())
        return claim


@contextmanager
def owned(folder: Folder, trunk_id: str, claim: Claim):
    """Hold the claims lock while publishing.

    Raises
    ------
    ClaimLost
        If the trunk has been taken over.
    """
    with folder_lock(folder.root, "claims"):
        if read_claim(folder, trunk_id) != claim:
            raise ClaimLost(trunk_id)
        yield


def release(folder: Folder, trunk_id: str, claim: Claim) -> None:
    """Give the trunk back, if it is still ours."""
    with suppress(ClaimLost), owned(folder, trunk_id, claim):
        (folder.trunk(trunk_id) / "claim").unlink(missing_ok=True)


@contextmanager
def heartbeat(folder: Folder, *trunk_ids: str):
    """Touch the claims every `HEARTBEAT_SECONDS` while the block runs."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            for trunk_id in trunk_ids:
                with suppress(OSError):
                    os.utime(folder.trunk(trunk_id) / "claim")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
