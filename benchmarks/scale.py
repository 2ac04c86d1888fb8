"""Ten thousand runs and ten million curve points: what every command takes, and how that grows.

Run: .venv/bin/python benchmarks/scale.py [RUNS ...]      (default 2500 5000 10000; 10,000 runs need 2 GB of disk)

The records are made up (losses of a known law with the noise of trunks and branches) and written in the real format, with real configs and
checksums. Each command is a process of its own; seconds are wall time, memory is the process's largest resident set.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from scaling.accounting import count_parameters, training_flops_per_token
from scaling.corpus import prepare
from scaling.plan import group_trunks, resolve
from scaling.record import Folder, Resolved, write_json
from scaling.sweep_file import load_sweep

POINTS = 1000  # of each run's curve
WIDTHS, TOKENS = 10, 10
SWEEP = """
name = "scale"
corpus = "python-stdlib"
[model]
d_model = {widths}
head_dim = 8
[data]
tokens = {tokens}
[training]
seeds = {seeds}
[fit]
laws = ["chinchilla"]
"""
QUERY = "SELECT r.d_model, count(*) AS points, min(c.train_loss) FROM curves c JOIN runs r USING (run_id) GROUP BY ALL ORDER BY ALL"


def write_folder(root: Path, runs: int) -> Path:
    """A finished sweep of so many runs; returns its sweep file."""
    widths = [16 * (i + 1) for i in range(WIDTHS)]
    tokens = [round(512 * 1000 * 1.4**i) for i in range(TOKENS)]
    file = root / "scale.toml"
    file.write_text(SWEEP.format(widths=widths, tokens=tokens, seeds=runs // (WIDTHS * TOKENS)))
    sweep, corpus = load_sweep(file), prepare("python-stdlib")
    facts = {**corpus.facts, "train_tokens": len(corpus.train)}
    text = corpus.content_hash
    resolved = Resolved(sweep=sweep, corpus_hash=text, corpus_facts=facts, runs=resolve(sweep, corpus_hash=text))
    folder, rng = Folder(root / "scale"), np.random.default_rng(0)
    write_json(folder.resolved, resolved)
    shutil.copy(file, folder.root / "sweep.toml")
    for trunk in group_trunks(resolved.runs):
        wobble = rng.normal(0, 0.002)
        n, batch = count_parameters(trunk.config.model).non_embedding, trunk.config.data.batch_tokens
        for run in trunk.runs:
            loss = (0.8 + 15 * n**-0.35 + 100 * run.tokens**-0.4) * math.exp(wobble + rng.normal(0, 0.002))
            steps = np.unique(np.geomspace(8, run.steps, 6 * POINTS).astype(int))
            steps = steps[np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).astype(int)]
            losses = loss * (1 + 2 / np.sqrt(steps)) * np.exp(rng.normal(0, 0.01, len(steps)))
            lines = [
                f'{{"step": {step}, "tokens": {step * batch}, "train_loss": {value:.6f}, "learning_rate": 0.01, "grad_norm": 0.5, '
                f'"phase": "{"cooldown" if step > run.branch_step else "trunk"}"}}\n'
                for step, value in zip(steps.tolist(), losses.tolist())
            ]
            _write_run(folder.run(run.run_id), run, trunk.trunk_id, loss, "".join(lines).encode())
    return file


def _write_run(path: Path, run, trunk_id: str, loss: float, metrics: bytes) -> None:
    files = {"config.json": msgspec.json.encode(run), "environment.json": b'{"numerics_id": "made-up"}', "metrics.jsonl": metrics}
    result = {
        "run_id": run.run_id, "trunk_id": trunk_id, "attempt": 1, "numerics_id": "made-up", "host": "nowhere", "status": "done",
        "finished_at": "2026-01-02T03:04:05Z", "loss": loss, "loss_se": 0.004, "bits_per_byte": loss / math.log(2), "train_loss": loss,
        "flops": run.tokens * training_flops_per_token(run.trunk.model),
        "timings": {"seconds": {"training": 9.0}, "steps": run.steps, "compiled": 0},
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }  # fmt: skip
    checksum = hashlib.sha256(msgspec.json.encode(result, order="sorted")).hexdigest()
    path.mkdir(parents=True)
    for name, data in {**files, "result.json": json.dumps({**result, "checksum": checksum}).encode()}.items():
        (path / name).write_bytes(data)


def commands(file: Path) -> dict[str, list[str]]:
    """What a user would type, by name."""
    scaling, folder = [sys.executable, "-m", "scaling.cli.main"], str(file.parent / "scale")
    tables = "from pathlib import Path; import sys; from scaling.record import read_resolved; from scaling.tables import write_tables; "
    return {
        "plan": [*scaling, "plan", str(file), "--results", str(file.parent)],
        "status": [*scaling, "status", folder],
        "tables": [sys.executable, "-c", tables + "root = Path(sys.argv[1]); write_tables(root, read_resolved(root))", folder],
        "fit": [*scaling, "fit", folder, "--no-plots"],
        "plot": [*scaling, "plot", folder],
        "report": [*scaling, "report", folder],
        "query": [*scaling, "query", folder, QUERY],
    }


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and GB of a command that must succeed."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        if process.returncode:
            said.seek(0)
            print(f"  {' '.join(command[1:5])} ended with exit code {process.returncode}: {said.read()[-2000:]}", flush=True)
    return seconds, usage.ru_maxrss / 1e6


def main() -> None:
    """Print a table of seconds and GB by number of runs."""
    sizes = [int(size) for size in sys.argv[1:]] or [2500, 5000, 10_000]
    found: dict[str, list[str]] = {}
    for runs in sizes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("SCALE_DIR")) as scratch:
            file = write_folder(Path(scratch), runs)
            for name, command in commands(file).items():
                seconds, memory = measure(command)
                print(f"{runs} runs: {name} {seconds:.1f} s, {memory:.2f} GB", flush=True)
                found.setdefault(name, []).append(f"{seconds:.1f} s, {memory:.2f} GB")
    print(f"\n| | {' | '.join(f'{runs:,} runs' for runs in sizes)} |\n|---|{'---|' * len(sizes)}")
    for name, cells in found.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
