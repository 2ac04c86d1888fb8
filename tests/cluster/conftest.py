"""A small sweep, what it comes to undisturbed, and how it is run on a cluster (the sweep and the comparison are those of `faults`)."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from faults.bench import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    """The sweep of the fault drills, trained once by local workers."""
    os.environ.pop("SCALING_CACHE", None)  # the bench has a cache of its own, with which its workers are started
    made = Bench(tmp_path_factory.mktemp("bench"))
    began = time.monotonic()
    made.set_up()
    report(f"undisturbed, local workers: {time.monotonic() - began:.0f} s")
    return made


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
