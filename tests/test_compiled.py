"""The cache of compiled programs: JAX uses it, and a damaged program is named, set aside and compiled again, never run."""

import os
import subprocess
import sys

WORKER = """
from collections import Counter
from pathlib import Path
from scaling.launch import be_a_worker
be_a_worker(cpu=None, dies_with_stdin=False)
import jax, os
events = Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rpartition("/")[2]]))
folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])

def ask():
    events.clear()
    jax.clear_caches()
    answer = jax.jit(lambda x: (x * 3 + 1) @ x)(jax.numpy.arange(9.0).reshape(3, 3)).tolist()
    return answer, events["cache_hits"], events["cache_misses"]
"""
TRUTH = [[54.0, 66.0, 78.0], [135.0, 174.0, 213.0], [216.0, 282.0, 348.0]]  # 3 x@x plus the sums of x's columns, by hand


def worker(code, folder):
    """What a worker with an empty cache prints, and what it says."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", WORKER + code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_programs_come_from_the_cache_and_a_damaged_one_is_compiled_again(tmp_path):
    lines, said = worker(
        """
first, hits, misses = ask()
assert hits == 0 and misses > 0, (hits, misses)
programs = sorted(folder.glob("*.program"))
assert len(programs) == misses and {path.suffix for path in folder.iterdir()} == {".program"}
again, hits, more = ask()
assert hits == misses and not more and again == first, (hits, more)
whole = [path.read_bytes() for path in programs]
for number, path in enumerate(programs):  # in the checksum, in the program, cut
    data = bytearray(whole[number])
    data[(7, len(data) // 2)[number % 2]] ^= 4
    path.write_bytes(data[: -5 if number == 2 else None])
healed, hits, anew = ask()
assert hits == 0 and anew == misses and healed == first, (hits, anew)
assert len(list(folder.glob("*.damaged-1"))) == misses
_, hits, more = ask()
assert hits == misses and not more
print(first)
print(*[path.name for path in programs])
""",
        tmp_path,
    )
    assert lines[0] == str(TRUTH)
    for name in lines[1].split():
        assert f"damaged in the cache, set aside, to be made again: {tmp_path / name}.damaged-1" in said


def test_without_that_part_of_jax_its_own_cache_stays_and_a_note_says_so(tmp_path):
    _, said = worker(
        """
from jax._src import compilation_cache
from scaling.compiled import SealedCache, seal_compilation_cache
compilation_cache.reset_cache()
del compilation_cache.get_file_cache  # as a JAX that calls it otherwise
assert not seal_compilation_cache()
from jax._src.lru_cache import LRUCache
compilation_cache.get_file_cache = lambda path: (LRUCache(path, max_size=-1), path)
first, _, misses = ask()
again, hits, more = ask()
assert hits == misses > 0 and not more and again == first
assert not list(folder.glob("*.program"))
""",
        tmp_path,
    )
    assert "this version of JAX keeps compiled programs without checksums" in said
