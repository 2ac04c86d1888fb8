"""Workers that die: replaced, until a trunk has killed several of them without getting further."""

import json
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from scaling import claim as claims
from scaling.plan import Trunk, group_trunks
from scaling.record import Folder, Resolved, path_step, set_aside, write_json

MAX_DEATHS = 3
"""A trunk whose worker died this often under one parent, without progress in between, has failed until the next `scaling run`."""


class WorkersFailed(Exception):
    """Workers end before they can claim anything."""


@dataclass
class Deaths:
    """Workers that died, by the trunk they were at, since that trunk last got further."""

    folder: Folder
    count: Counter[str] = field(default_factory=Counter)
    seen: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def record(self, pending: list[Trunk], process: subprocess.Popen) -> None:
        """Note which trunk a dead worker was at; after `MAX_DEATHS` the trunk counts as failed.

        Raises
        ------
        WorkersFailed
            If workers die at no trunk, and nothing gets further.
        """
        code = process.returncode
        cause = f"{'signal' if code < 0 else 'exit code'} {abs(code)}"
        held = [trunk for trunk in pending if (claim := claims.read_claim(self.folder, trunk.trunk_id)) and claim.pid == process.pid]
        if not held and self._again("", pending) >= MAX_DEATHS:
            log = self.folder.root / "workers.log"
            raise WorkersFailed(f"workers end at once with {cause}; {log} says: {last_line(log)}")
        for trunk in held:
            if self._again(trunk.trunk_id, [trunk]) >= MAX_DEATHS:
                reason = f"worker died {MAX_DEATHS} times (last: {cause}); out of memory?"
                write_json(self.folder.failure(trunk.trunk_id), {"reason": reason, "died": True})

    def give_up(self, free: list[Trunk], why: Exception) -> None:
        """Record trunks as failed that workers elsewhere have begun and left, again and again.

        Raises
        ------
        Exception
            `why`, if none was ever begun: then it is not a trunk's fault.
        """
        begun = [trunk for trunk in free if any(self.folder.trunk(trunk.trunk_id).glob("attempt-*"))]
        if not begun:
            raise why
        for trunk in begun:
            write_json(self.folder.failure(trunk.trunk_id), {"reason": str(why), "died": True})

    def _again(self, name: str, trunks: list[Trunk]) -> int:
        """Count one more death, from 1 again if the trunks got further since the last."""
        now = [reached(self.folder, trunk) for trunk in trunks]
        self.count[name] = self.count[name] + 1 if self.seen.get(name) == now else 1
        self.seen[name] = now
        return self.count[name]


def reached(folder: Folder, trunk: Trunk) -> tuple[int, int]:
    """How far a trunk has come: finished runs, and steps in its saved states."""
    finished = sum(folder.run(run.run_id).exists() for run in trunk.runs)
    return finished, sum(path_step(path) for path in folder.trunk(trunk.trunk_id).glob("*.safetensors"))


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "nothing (is the disk full?)")


def forget_deaths(folder: Folder, resolved: Resolved) -> list[str]:
    """Let trunks be tried again whose workers died (it need not have been their fault) or whose record of failure is damaged.

    Returns what to say about the latter.
    """
    said = []
    for trunk in group_trunks(resolved.runs):
        path = folder.failure(trunk.trunk_id)
        if not path.exists():
            continue
        try:
            if json.loads(path.read_bytes())["reason"] and json.loads(path.read_bytes()).get("died"):
                path.unlink()
        except (ValueError, KeyError, TypeError, AttributeError):
            said.append(f"damaged record of a failure set aside: {set_aside(path)}")
    return said
