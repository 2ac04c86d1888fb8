"""A thousand trivial runs: which share of the workers' time is training code, and where the rest goes.

Run: .venv/bin/python benchmarks/overhead.py [SEEDS]      (default 50 seeds: 1,000 runs on 100 trunks; some minutes)

A real `scaling run`; the parts are the workers' own account (provenance.json). Evaluation counts as training code: it is part of a run.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEP = """
name = "trivial"
corpus = "python-stdlib"
[model]
d_model = [8, 16]
n_layers = 1
sequence_length = 64
[data]
tokens = ["16k", "24k", "32k", "48k", "64k", "96k", "128k", "192k", "256k", "384k"]
[training]
seeds = {seeds}
batch_tokens = 512
warmup_steps = 5
[evaluation]
windows = 64
[fit]
laws = ["chinchilla"]
bootstrap = 100
"""


def main() -> None:
    """Print the account."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as home:
        sweep = Path(home, "trivial.toml")
        sweep.write_text(SWEEP.format(seeds=seeds))
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "scaling.cli.main", "run", str(sweep), "--results", home], check=True)
        seconds = time.monotonic() - began
        account = json.loads(Path(home, "trivial", "provenance.json").read_text())["worker_seconds"]
        total = sum(account.values())
        for kind, spent in sorted(account.items(), key=lambda item: -item[1]):
            print(f"{kind:14} {spent:8.1f} s  {spent / total:6.1%}")
        share = (account["training"] + account["evaluation"]) / total
        print(f"training code (training and evaluation): {share:.1%}; the command took {seconds:.0f} s")


if __name__ == "__main__":
    main()
