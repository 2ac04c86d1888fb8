"""A thousand trivial runs: which share of the workers' time is training code, and where the rest goes.

Run: .venv/bin/python benchmarks/overhead.py [SEEDS [LONGER]]

Default 50 seeds: 1,000 runs on 100 trunks, some minutes. LONGER multiplies the tokens of every run (default 1).

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
tokens = {tokens}
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
    seeds, longer = (int(text) for text in [*sys.argv[1:], *("50", "1")[len(sys.argv) - 1 :]])
    tokens = [longer * 1000 * thousands for thousands in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)]
    with tempfile.TemporaryDirectory() as home:
        sweep = Path(home, "trivial.toml")
        sweep.write_text(SWEEP.format(seeds=seeds, tokens=tokens))
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
