"""From the start of a worker's process to its first training steps: nothing compiled yet (cold), and everything in the cache (warm).

Run: .venv/bin/python benchmarks/start.py [WIDTH ...]

A real results folder, a real `scaling worker`, a compilation cache of its own; the clock stops when the trunk's log has its first line,
which is after eight steps. The parts are the worker's own account of its time until its first result, two steps and an evaluation later.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaling.corpus import prepare
from scaling.plan import resolve
from scaling.record import Folder, Resolved, write_json
from scaling.sweep_file import load_sweep

ROUNDS = 5
SWEEP = """
name = "start"
corpus = "python-stdlib"
[model]
recipe = "small"
d_model = [{width}]
[data]
tokens = [5120]
[training]
warmup_steps = 1
[evaluation]
windows = 8
"""


def results_folder(width: int, root: Path) -> Folder:
    """One run of ten steps, ready for a worker: the first eight, before its cooldown, are logged together."""
    file = root / "start.toml"
    file.write_text(SWEEP.format(width=width))
    sweep, corpus = load_sweep(file), prepare("python-stdlib")
    runs = resolve(sweep, corpus_hash=corpus.content_hash)
    folder = Folder(root / "start")
    write_json(folder.resolved, Resolved(sweep=sweep, corpus_hash=corpus.content_hash, corpus_facts=corpus.facts, runs=runs))
    return folder


def first_step(width: int, cache: Path) -> tuple[float, dict[str, float]]:
    """Seconds until the first line of the log, and the worker's account."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = results_folder(width, Path(scratch))
        began = time.monotonic()
        worker = subprocess.Popen(
            [sys.executable, "-m", "scaling.cli.main", "worker", str(folder.root), "--cpu", str(min(os.sched_getaffinity(0)))],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not any(path.stat().st_size for path in folder.root.glob("trunks/*/attempt-*/metrics.jsonl")):
            if worker.poll() is not None:
                sys.exit(f"the worker ended with exit code {worker.returncode} before its first step")
            time.sleep(0.002)
        seconds = time.monotonic() - began
        if worker.wait():
            sys.exit(f"the worker ended with exit code {worker.returncode}")
        [result] = folder.root.glob("runs/*/result.json")
        return seconds, json.loads(result.read_text())["timings"]["seconds"]


def main() -> None:
    """Print one row a width."""
    print(f"seconds from process start to the first line of the log (eight steps), one core; median of {ROUNDS};")
    print("beside it the parts of the warm worker's time until its first result")
    print("width    cold    warm   start-up  compilation  records  training  evaluation")
    for width in [int(text) for text in sys.argv[1:]] or [16, 48, 128]:
        cold, warm, parts = [], [], []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as cache:
                cold.append(first_step(width, Path(cache))[0])
                seconds, account = first_step(width, Path(cache))
                warm.append(seconds)
                parts.append(account)
        kinds = ("start-up", "compilation", "records", "training", "evaluation")
        row = "".join(f"{statistics.median(part.get(kind, 0.0) for part in parts):10.2f}" for kind in kinds)
        print(f"{width:5} {statistics.median(cold):7.2f} {statistics.median(warm):7.2f}{row}", flush=True)


if __name__ == "__main__":
    main()
