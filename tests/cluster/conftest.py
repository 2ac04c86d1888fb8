"""The small sweep of the fault drills, trained undisturbed."""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from launcher import report

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
