"""Files that are cut or that rot on disk, full and read-only disks, losses that are not finite."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from faults.bench import SWEEP, Bench, Row, claimed, tables, wait_for
from faults.shared import interrupted


def cut(path: Path, chance: random.Random) -> None:
    """Leave only a random part of the front."""
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def flip(path: Path, chance: random.Random) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (cut, flip)


def records(bench: Bench, tries: int) -> Row:
    """Each try: a finished sweep in which one file of every run is damaged."""
    chance, outcomes, count, aside = random.Random(5), [], 0, 0
    for _ in range(tries):
        results = bench.fresh("records")
        shutil.copytree(bench.home / "undisturbed" / "drill", results / "drill")
        (results / "drill" / "workers.log").unlink()
        damaged = []
        for run in sorted((results / "drill" / "runs").iterdir()):
            path = chance.choice(sorted(run.iterdir()))
            chance.choice(DAMAGES)(path, chance)
            damaged.append(run.name)
        done = bench.finish(results)
        unnamed = [f"not named: {name}" for name in damaged if name not in done.stderr]
        kept = len(list((results / "drill" / "runs").glob("*.damaged-1")))
        count, aside = count + len(damaged), aside + kept
        outcomes.append(unnamed + bench.check(results, done))
    return bench.row("run records cut or bit-flipped", outcomes, tried=count, seen=f"{aside} named and set aside")


def folder_files(bench: Bench, tries: int) -> Row:
    """The sweep's own files and tables, forecasts and claims of a finished or interrupted sweep."""
    chance, outcomes, count = random.Random(6), [], 0
    for number in range(tries):
        results = bench.fresh("files")
        root = results / "drill"
        if number % 2:
            shutil.copytree(bench.home / "undisturbed" / "drill", root)
            (root / "workers.log").unlink()
            patterns = (
                "sweep.resolved.json",
                "sweep.toml",
                "provenance.json",
                "*.csv",
                "curves.parquet",
                "report.html",
                "forecasts/*.json",
            )
        else:
            shutil.rmtree(results)
            results, _ = interrupted(bench, "files")
            root = results / "drill"
            patterns = ("trunks/*/claim", "trunks/*/metrics.jsonl", "trunks/*/attempt-*/metrics.jsonl", "sweep.resolved.json")
            for trunk in list((root / "trunks").iterdir())[:1]:
                (trunk / "failure.json").write_text('{"reason": "made for this drill"}')
                cut(trunk / "failure.json", chance)
        for path in [path for pattern in patterns for path in root.glob(pattern) if path.stat().st_size]:
            chance.choice(DAMAGES)(path, chance)
            count += 1
        outcomes.append(bench.after(results))
    return bench.row("sweep file, tables, forecasts, claims, logs cut or bit-flipped", outcomes, tried=count)


def checkpoints(bench: Bench, tries: int) -> Row:
    """Every saved state of an interrupted sweep."""
    chance, outcomes, count, aside = random.Random(7), [], 0, 0
    for _ in range(tries):
        results, _ = interrupted(bench, "states")
        states = sorted((results / "drill").glob("trunks/*/*.safetensors"))
        for path in states:
            chance.choice(DAMAGES)(path, chance)
        wrong = bench.after(results)
        kept = len(list((results / "drill").glob("trunks/*/*.damaged-*")))
        named = (results / "drill" / "workers.log").read_text().count("damaged state set aside")
        count, aside = count + len(states), aside + min(kept, named)
        outcomes.append(wrong)
    return bench.row("saved states cut or bit-flipped", outcomes, tried=count, seen=f"{aside} named and set aside")


def caches(bench: Bench, tries: int) -> Row:
    """Every file in the shared cache: compiled programs, their measured times, the prepared corpus and its index."""
    chance, outcomes, count = random.Random(8), [], 0
    for _ in range(tries):
        results = bench.fresh("caches")
        cache = results / "cache"
        shutil.copytree(bench.home / "cache", cache)
        files = sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)
        for path in files:
            chance.choice(DAMAGES)(path, chance)
        count += len(files)
        done = bench.finish(results, SCALING_CACHE=str(cache))
        unnamed = [] if "damaged" in done.stderr + (results / "drill" / "workers.log").read_text() else ["nothing was named"]
        outcomes.append(unnamed + bench.check(results, done))
        shutil.rmtree(cache)
    return bench.row("compiled programs, corpus and other caches cut or bit-flipped", outcomes, tried=count)


def full_disk(bench: Bench, tries: int) -> Row:
    """A small tmpfs that fills up at different moments; then there is room."""
    outcomes, stopped = [], 0
    for number in range(tries):
        results = bench.fresh("full")
        kilobytes = 24 + 76 * number
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "drill", results], check=True)
        try:
            first = bench.finish(results)
            wrong = ["traceback: " + first.stderr.strip().splitlines()[-1]] if "Traceback" in first.stderr else []
            stopped += first.returncode != 0 and "space" in first.stderr.lower()
            subprocess.run(["mount", "-o", "remount,size=64m", results], check=True)
            outcomes.append(wrong + bench.after(results))
        finally:
            subprocess.run(["umount", results], check=True)
    return bench.row("full disk (tmpfs of 24 kB and up), then room", outcomes, seen=f"{stopped} ended with one line about space")


def read_only(bench: Bench, tries: int) -> Row:
    """A folder that becomes read-only while the sweep is trained, and is writable again later."""
    outcomes, stopped, chance = [], 0, random.Random(9)
    for _ in range(tries):
        results = bench.fresh("readonly")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "drill", results], check=True)
        try:
            launcher = bench.start(results)
            wait_for(lambda results=results: claimed(results / "drill"))
            time.sleep(chance.uniform(0, 3))
            subprocess.run(["mount", "-o", "remount,ro", results], check=False, stderr=subprocess.DEVNULL)
            subprocess.run(["mount", "-o", "bind", results, results], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", results], check=True)
            launcher.send_signal(signal.SIGSTOP)
            launcher.send_signal(signal.SIGCONT)
            launcher.wait(timeout=200)
            again = bench.finish(results)  # still read-only
            stopped += again.returncode == 1 and again.stderr.count("\n") == 1 and "Read-only" in again.stderr
            subprocess.run(["umount", results], check=True)
            subprocess.run(["mount", "-o", "remount,rw", results], check=True)
            outcomes.append(bench.after(results))
        finally:
            while os.path.ismount(results):
                subprocess.run(["umount", "-l", results], check=True)
    return bench.row(
        "folder becomes read-only in mid-sweep", outcomes, seen=f"{stopped} of {tries}: the command ends with one line while it lasts"
    )


PLUGIN = '''
import jax, jax.numpy as jnp, optax
from scaling.registry import register_optimizer

def hurt(config):
    """Adam whose update at step `at` is multiplied by `factor` (0: is NaN) in models of width 16."""
    options = dict(config.options)
    hurting = options["factor"] or jnp.nan
    def update(updates, state, parameters=None):
        wide = parameters["embedding"].shape[-1] == 16
        factor = jnp.where(state + 1 == options["at"], hurting, 1.0) if wide else 1.0
        return jax.tree.map(lambda u: u * factor, updates), state + 1
    return optax.chain(optax.scale_by_adam(), optax.GradientTransformation(lambda parameters: jnp.zeros((), jnp.int32), update))

register_optimizer("hurt", hurt)
'''


def injected(bench: Bench, tries: int) -> Row:
    """A NaN and a spike at step 700 of every run of width 16: recorded, and the other widths as if nothing had happened."""
    (bench.home / "drill_hurt.py").write_text(PLUGIN)
    outcomes, seen = [], []
    environment = {"PYTHONPATH": os.pathsep.join([str(bench.home), os.environ.get("PYTHONPATH", "")]), "SCALING_PLUGINS": "drill_hurt"}
    found = {}
    for name, factor in (("healthy", "1.0"), ("nan", "0.0"), ("spike", "300.0")):
        rates = "\n".join(f"{which}learning_rate = 0.01" for which in ("", "embedding_", "head_"))
        options = f'optimizer = "hurt"\noptions = {{ at = 700, factor = {factor} }}\n{rates}'
        sweep = bench.home / f"{name}.toml"
        text = SWEEP.format(corpus=bench.home / "text", training=options).replace('name = "drill"', f'name = "{name}"')
        sweep.write_text(text)
        results = bench.fresh(name)
        command = [sys.executable, "-m", "scaling.cli.main", "run", str(sweep), "--results", str(results)]
        done = subprocess.run(command, env=bench.environment(**environment), capture_output=True, text=True, timeout=300)
        wrong = [f"{name}: exit code {done.returncode}: {done.stderr.strip()[-300:]}"] if done.returncode else []
        found[name] = tables(results / name)
        outcomes.append(wrong)
    keys = ("d_model", "tokens", "seed_init", "status", "loss", "train_loss")
    rows = {name: [tuple(row[key] for key in keys) for row in found[name]["runs.csv"]] for name in found}
    for number, name in enumerate(("nan", "spike"), start=1):
        others = [row for row in rows[name] if row[0] == "8"]
        if others != [row for row in rows["healthy"] if row[0] == "8"]:
            outcomes[number].append(f"lost: {name}: runs of another width changed")
        hurt = [row for row in rows[name] if row[0] == "16" and int(row[1]) >= 700 * 128]
        diverged = sum(row[3] == "diverged" for row in hurt)
        listed = sum("700" in row["reason"] or "701" in row["reason"] for row in found[name]["exclusions.csv"])
        if name == "nan" and not diverged == len(hurt) == listed:
            outcomes[number].append(f"nan: {diverged} of {len(hurt)} recorded as diverged, {listed} listed with the step")
        if name == "spike" and diverged:
            outcomes[number].append(f"spike: {diverged} runs recorded as diverged")
        seen.append(f"{name}: {len(hurt)} runs hurt, {diverged} recorded as diverged with the step, {len(others)} others unchanged")
    return bench.row("injected NaN and loss spike", outcomes[1:], seen="; ".join(seen))
