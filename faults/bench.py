"""The sweep that every drill disturbs, and the check that follows: tables as undisturbed, nothing trained twice or left over."""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TIMING = {"train_seconds", "eval_seconds", "overhead_seconds", "host", "finished_at", "attempts"}
"""Columns of runs.csv that hold when, where and in how many attempts (docs/tables.md)."""

SWEEP = """
name = "drill"
corpus = "{corpus}"
[model]
d_model = [8, 16]
n_layers = 1
sequence_length = 32
[data]
tokens = ["80k", "160k", "240k", "400k"]
[training]
seeds = 2
data_order = "shared"
batch_tokens = 128
warmup_steps = 5
{training}
[evaluation]
windows = 32
[holdout]
d_model = [24]
tokens = ["400k"]
threshold = 0.5
[fit]
laws = ["chinchilla"]
bootstrap = 100
[records]
checkpoint_seconds = 0.1
"""
"""17 runs on 5 trunks, 0.8 to 4 thousand steps each, that last seconds: most of a worker's life is inside training code."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `recovered`: tries after which the sweep was finished and equal; `lost`: runs missing or different then."""

    fault: str
    tried: int
    recovered: int
    lost: int
    seen: str = ""


@dataclass(frozen=True)
class Bench:
    """A scratch folder with the text, the sweep file, the shared cache and the results that nobody disturbed."""

    home: Path

    @property
    def sweep(self) -> Path:
        """The sweep file."""
        return self.home / "drill.toml"

    def set_up(self) -> None:
        """Write text and sweep file, and train the sweep once, undisturbed (also fills the caches)."""
        text, rng = self.home / "text", np.random.default_rng(0)
        text.mkdir(parents=True)
        words = ["".join(rng.choice(list("abcdefghij"), size=rng.integers(2, 7))) for _ in range(200)]
        for number in range(80):
            (text / f"{number:03}.txt").write_text("\n".join(" ".join(rng.choice(words, size=9)) for _ in range(60)))
        self.sweep.write_text(SWEEP.format(corpus=text, training=""))
        done = self.finish(self.home / "undisturbed")
        if done.returncode:
            raise SystemExit(f"the undisturbed sweep did not finish:\n{done.stderr}")

    def environment(self, **more: str) -> dict[str, str]:
        """Environment of a command: the shared cache, and what a drill adds."""
        return {**os.environ, "SCALING_CACHE": str(self.home / "cache"), "MPLBACKEND": "agg", **more}

    def fresh(self, name: str) -> Path:
        """A results root for one try."""
        number = len(list(self.home.glob(f"{name}-*"))) + 1
        path = self.home / f"{name}-{number}"
        path.mkdir()
        return path

    def command(self, results: Path, *more: str) -> list[str]:
        """`scaling run` of the sweep."""
        return [sys.executable, "-m", "scaling.cli.main", "run", str(self.sweep), "--results", str(results), *more]

    def start(self, results: Path, *more: str, **environment: str) -> subprocess.Popen:
        """Begin a run in the background; what it says goes to launcher.log."""
        with open(self.home / "launcher.log", "ab") as log:
            return subprocess.Popen(self.command(results, *more), cwd=ROOT, env=self.environment(**environment), stdout=log, stderr=log)

    def finish(self, results: Path, *more: str, **environment: str) -> subprocess.CompletedProcess:
        """Run to the end."""
        done = self.command(results, *more)
        return subprocess.run(done, cwd=ROOT, env=self.environment(**environment), capture_output=True, text=True, timeout=300)

    # ------------------------------------------------------------ what must hold afterwards

    def after(self, results: Path, *more: str) -> list[str]:
        """Run the sweep again to its end and return what is wrong then; empty: recovered, and nothing lost."""
        return self.check(results, self.finish(results, *more))

    def check(self, results: Path, done: subprocess.CompletedProcess) -> list[str]:
        """What is wrong with a sweep that has ended."""
        root, wrong = results / "drill", []
        if done.returncode:
            wrong.append(f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ''}")
        if "Traceback" in done.stderr:
            wrong.append("traceback: " + done.stderr.strip().splitlines()[-1])
        wrong += differences(root, self.home / "undisturbed" / "drill")
        for trunk_id, times in completions(root).items():
            if times > 1:
                wrong.append(f"{trunk_id} was trained to the end {times} times")
        wrong += [f"left over: {path.relative_to(root)}" for pattern in LEFT_OVER for path in root.glob(pattern)]
        return wrong

    def row(self, fault: str, outcomes: list[list[str]], *, tried: int | None = None, seen: str = "") -> Row:
        """Sum up the outcomes of a fault's sweeps; `tried`: moments, when one sweep had several."""
        good = sum(not wrong for wrong in outcomes)
        for wrong in outcomes:
            for line in wrong:
                print(f"  {fault}: {line}", file=sys.stderr, flush=True)
        tried = len(outcomes) if tried is None else tried
        lost = sum(line.startswith("lost") for wrong in outcomes for line in wrong)
        return Row(fault, tried, tried if good == len(outcomes) else tried * good // len(outcomes), lost, seen)


LEFT_OVER = ("**/.*.tmp", "trunks/*/claim", "trunks/*/attempt-*", "trunks/*/branch-*")


def tables(root: Path) -> dict[str, list]:
    """Every table of a results folder without timing columns."""
    found: dict[str, list] = {}
    for path in sorted(root.glob("*.csv")):
        with open(path, newline="", errors="replace") as file:
            found[path.name] = [{key: value for key, value in row.items() if key not in TIMING} for row in csv.DictReader(file)]
    if (root / "curves.parquet").exists():
        found["curves.parquet"] = duckdb.sql(f"SELECT * FROM '{root}/curves.parquet' ORDER BY ALL").fetchall()
    return found


def differences(root: Path, truth: Path) -> list[str]:
    """One line a table that differs from the undisturbed one, and one a run that is missing or different (`lost`)."""
    ours, theirs = tables(root), tables(truth)
    wrong = [f"{name} differs" for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    rows = {row["run_id"]: row for row in ours.get("runs.csv", [])}
    return wrong + [f"lost: {row['run_id']}" for row in theirs["runs.csv"] if rows.get(row["run_id"]) != row]


def completions(root: Path) -> Counter[str]:
    """How often each trunk was trained to its end, by what workers logged."""
    log = root / "workers.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return Counter(line.partition(":")[0] for line in lines if ": complete after step " in line)


def workers_of(launcher: subprocess.Popen) -> list[int]:
    """Process ids of a launcher's workers."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    try:
        pids = [int(pid) for pid in children.read_text().split()]
        return [pid for pid in pids if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except OSError:
        return []


def claimed(root: Path) -> dict[Path, int]:
    """Claim files and the process ids in them."""
    found = {}
    for path in root.glob("trunks/*/claim"):
        try:
            found[path] = int(json.loads(path.read_bytes())["pid"])
        except (OSError, ValueError, KeyError):
            continue
    return found


def wait_for(condition, *, seconds: float = 60.0) -> bool:
    """Wait until something holds; whether it came to hold."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
