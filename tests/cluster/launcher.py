"""How the small sweep is started on a cluster, waited for and compared with the undisturbed one."""

import subprocess
import sys
from pathlib import Path

from faults.bench import Bench


def report(line: str) -> None:
    """A figure of this run, for docs/clusters.md."""
    print(f"\n  {line}", file=sys.__stderr__, flush=True)


def ended(bench: Bench, results: Path, launcher: subprocess.Popen) -> list[str]:
    """Wait for a launcher and return what is wrong with its tables."""
    output = launcher.communicate(timeout=400)[1]
    return bench.check(results, subprocess.CompletedProcess(launcher.args, launcher.returncode, "", output))


def start(bench: Bench, results: Path, *more: str, environment: dict[str, str]) -> subprocess.Popen:
    """Begin `scaling run` of the sweep."""
    whole = {**bench.environment(), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(bench.command(results, *more), cwd=bench.home, env=whole, stdout=subprocess.DEVNULL, stderr=pipe, text=True)
