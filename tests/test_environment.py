"""Process settings of a worker."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
from scaling.environment import keep_freed_memory
import numpy as np
kept = KEEP and keep_freed_memory()
np.ones(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(12_000_000)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> tuple[bool, int]:
    """Whether the settings were taken, and page faults of ten buffers of 96 MB, taken and freed one after the other."""
    script = FAULTS.replace("KEEP", str(keep))
    kept, count = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    return kept == "1", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_freed_memory_is_kept_and_used_again() -> None:
    kept, count = faults(keep=True)
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert count < 100 < faults(keep=False)[1]
