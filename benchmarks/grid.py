"""A 4 x 4 grid (widths x tokens) by trunk and branch on two workers, against separate cosine runs in PyTorch: time to equal losses.

Run: .venv/bin/python benchmarks/grid.py [--quick]          (PyTorch is installed apart by `make bench-torch`)

Ours is a real `scaling run` into an empty folder with an empty compilation cache, and everything up to the last result is billed:
start-up, compilation, evaluation, records. The opponents (torch_model.py) train every cell as a run of its own with a cosine schedule
that ends with the run:

- same recipe: our architecture, Muon, our batch and rates (or these times a factor, where that is better);
- nanoGPT: its architecture and AdamW at the best rate of a sweep per width.

How many tokens a cell costs an opponent is found per width: runs of growing length give loss against tokens, and a line between
neighbours (log loss against log tokens) says where our loss of the cell is reached. That many tokens are billed at the measured seconds
per token; the runs that fell short, rate sweeps, compilation, start-up and evaluation are not billed. Where even the longest run stays
above our loss, its length is billed and the cell counts as a lower bound (>=). Windows, their order and the held-out windows are the same.

Both sides have two processes, one core each. Wall time of ours is until the last result; the opponents' is their sum divided by two, as if
two processes packed perfectly. CPU seconds are of all processes; analysis (measured by running `scaling run` again) is taken off ours.
"""

import argparse
import csv
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
import torch_process

from scaling.config import ModelGrid, Sweep
from scaling.corpus import data_order, prepare
from scaling.launch import usable_cpus
from scaling.plan import optimizer_of, small_recipe
from scaling.sweep_file import load_sweep

WORKERS = 2
WARMUP_STEPS = 50
NANOGPT_FLOOR = 0.1


@dataclass(frozen=True)
class Grid:
    """What is trained. `rates` are the first guesses of a sweep, which goes on while its best is at an edge."""

    widths: tuple[int, ...]
    tokens: tuple[int, ...]
    longest: int = 8
    evaluation_windows: int = 1024


FULL = Grid(widths=(16, 24, 32, 48), tokens=(200_000, 320_000, 500_000, 800_000))
QUICK = Grid(widths=(8, 16, 24, 32), tokens=(64_000, 100_000, 160_000, 256_000), longest=6)


@dataclass(frozen=True)
class Recipe:
    """An opponent: what it trains, the rates to try first, and where its cosine ends (as a part of the peak)."""

    model: str
    rates: tuple[float, ...]
    floor: float


SAME = Recipe(model="matched", rates=(0.7, 1.0, 1.4), floor=0.0)
NANOGPT = Recipe(model="nanogpt", rates=(4e-3, 8e-3, 1.6e-2), floor=NANOGPT_FLOOR)


@dataclass(frozen=True)
class Curve:
    """One width of an opponent: held-out loss by run length, and what a token costs."""

    rate: float
    steps: list[int]
    losses: list[float]
    cpu_per_step: float
    wall_per_step: float

    def steps_to(self, loss: float) -> tuple[float, bool]:
        """Length of the cosine run that ends at `loss`, and whether any run got there; below the shortest run the first line goes on."""
        x, y = np.log(self.steps), np.log(self.losses)
        if min(self.losses) > loss:
            return float(self.steps[-1]), False
        right = max(1, next(i for i, reached in enumerate(self.losses) if reached <= loss))
        slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
        return math.exp(x[right - 1] + (math.log(loss) - y[right - 1]) / slope), True


# ---------------------------------------------------------------- ours


@dataclass(frozen=True)
class OurGrid:
    """Losses by (width, tokens), and what the whole grid cost until its last result."""

    losses: dict[tuple[int, int], float]
    wall: float
    cpu: float
    worker_seconds: dict[str, float]


def sweep_text(grid: Grid) -> str:
    """The grid as a sweep file without a hold-out."""
    return (
        f'name = "grid"\ncorpus = "python-stdlib"\n[model]\nd_model = {list(grid.widths)}\n[data]\ntokens = {list(grid.tokens)}\n'
        f"[training]\nwarmup_steps = {WARMUP_STEPS}\n[evaluation]\nwindows = {grid.evaluation_windows}\n[fit]\nbootstrap = 100\n"
    )


def run_ours(sweep: Path) -> OurGrid:
    """`scaling run` twice: the second has nothing to train and shows what the analysis costs."""
    command = [sys.executable, "-m", "scaling.cli.main", "run", str(sweep), "--workers", str(WORKERS), "--results", str(sweep.parent)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(sweep.parent / "compiled")}

    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    whole = cpu_seconds()
    provenance = json.loads((sweep.parent / "grid" / "provenance.json").read_bytes())
    analysis = cpu_seconds()
    with open(sweep.parent / "grid" / "runs.csv", newline="") as file:
        losses = {(int(row["d_model"]), int(row["tokens"])): float(row["loss"]) for row in csv.DictReader(file)}
    return OurGrid(losses, provenance["training_wall_seconds"], whole - analysis, provenance["worker_seconds"])


# ---------------------------------------------------------------- the opponents


def cosine(steps: int, *, peak: float, floor: float) -> list[float]:
    """Linear warm-up (at most a tenth of the run), then half a cosine from `peak` to `floor * peak`."""
    warmup = min(WARMUP_STEPS, steps // 10)
    fractions = [(step + 1 - warmup) / (steps - warmup) for step in range(warmup, steps)]
    decay = [floor + (1 - floor) * (1 + math.cos(math.pi * fraction)) / 2 for fraction in fractions]
    return [peak * (step + 1) / warmup for step in range(warmup)] + [peak * value for value in decay]


@dataclass(frozen=True)
class Opponent:
    """One recipe at one width, in one process."""

    recipe: Recipe
    process: torch_process.TorchProcess
    windows: Path
    evaluation: Path

    def train(self, steps: int, rate: float) -> tuple[float, dict[str, Any]]:
        """Held-out loss of a cosine run (infinite when it diverged), and the answer with its times."""
        multipliers = cosine(steps, peak=rate, floor=self.recipe.floor)
        answer = self.process.ask("train", windows=str(self.windows), multipliers=multipliers)
        loss = self.process.ask("evaluate", windows=str(self.evaluation))["loss"]
        return (loss if math.isfinite(loss) else math.inf), answer

    def best_rate(self, steps: int) -> float:
        """The rate that ends lowest; the sweep goes on beyond an edge."""
        losses = {rate: self.train(steps, rate)[0] for rate in self.recipe.rates}
        ratio = self.recipe.rates[1] / self.recipe.rates[0]
        while (best := min(losses, key=losses.__getitem__)) in (min(losses), max(losses)):
            beyond = best / ratio if best == min(losses) else best * ratio
            losses[beyond] = self.train(steps, beyond)[0]
        return best

    def curve(self, lengths: list[int], targets: list[float]) -> Curve:
        """Runs of growing length (two at least) until the lowest target is reached, at the rate that is best for the longest cell."""
        rate = self.best_rate(lengths[len(targets) - 1])
        losses, answers = [], []
        for steps in lengths:
            loss, answer = self.train(steps, rate)
            losses.append(loss)
            answers.append(answer)
            if len(losses) > 1 and loss <= min(targets):
                break
        trained = lengths[: len(losses)]
        cpu, wall = (sum(answer[kind] for answer in answers) / sum(trained) for kind in ("cpu", "wall"))
        return Curve(rate, trained, losses, cpu, wall)


def build(process: torch_process.TorchProcess, recipe: Recipe, sweep: Sweep, width: int) -> None:
    """Make and compile a model of a width in the child."""
    training = sweep.training
    rates = optimizer_of(training, d_model=width)
    ours = {"matrix": rates.learning_rate, "embedding": rates.embedding_learning_rate, "head": rates.head_learning_rate}
    optimizers = {
        "matched": {"rates": ours, "momentum": training.momentum, "beta1": training.beta1, "beta2": training.beta2},
        "nanogpt": {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1},
    }
    process.ask(
        "build",
        model=recipe.model,
        shape=msgspec.to_builtins(small_recipe(width, grid=ModelGrid(d_model=[width]), vocab_size=256)),
        optimizer=optimizers[recipe.model],
        step=torch_process.fastest_step(width),
        attention="fused",
        batch=training.batch_tokens // sweep.model.sequence_length,
        seed=0,
    )


def run_opponents(grid: Grid, sweep: Sweep, ours: OurGrid, *, folder: Path) -> dict[tuple[str, int], Curve]:
    """Every recipe at every width, dearest first, on two processes."""
    corpus, length, batch_tokens = prepare(sweep.corpus), sweep.model.sequence_length, sweep.training.batch_tokens
    batch = batch_tokens // length
    lengths = [round(tokens / batch_tokens) for tokens in grid.tokens]
    factor = 2
    while factor <= grid.longest:
        lengths.append(factor * round(grid.tokens[-1] / batch_tokens))
        factor *= 2
    order = data_order(corpus.n_windows(length=length), seed=0, first=0, count=lengths[-1] * batch)
    windows, evaluation = folder / "windows.npy", folder / "evaluation.npy"
    np.save(windows, corpus.windows(order, length=length).reshape(-1, batch, length + 1))
    np.save(evaluation, corpus.evaluation_windows(grid.evaluation_windows, length=length)[0])
    cpus = usable_cpus()
    idle: SimpleQueue[torch_process.TorchProcess] = SimpleQueue()
    processes = [torch_process.TorchProcess(cpu=cpus[i % len(cpus)]) for i in range(WORKERS)]
    for process in processes:
        idle.put(process)

    def one(job: tuple[Recipe, int]) -> Curve:
        recipe, width = job
        process = idle.get()
        try:
            build(process, recipe, sweep, width)
            targets = [ours.losses[width, _steps(tokens, sweep) * batch_tokens] for tokens in grid.tokens]
            curve = Opponent(recipe, process, windows, evaluation).curve(lengths, targets)
        finally:
            idle.put(process)
        print(f"  {recipe.model} d{width}: rate {curve.rate:.3g}; loss by run length: {describe(curve, batch_tokens)}", flush=True)
        return curve

    jobs = [(recipe, width) for recipe in (NANOGPT, SAME) for width in sorted(grid.widths, reverse=True)]
    with ThreadPoolExecutor(WORKERS) as pool:
        curves = dict(zip(((recipe.model, width) for recipe, width in jobs), pool.map(one, jobs), strict=True))
    for process in processes:
        process.close()
    return curves


def _steps(tokens: int, sweep: Sweep) -> int:
    return round(tokens / sweep.training.batch_tokens)


def describe(curve: Curve, batch_tokens: int) -> str:
    """Loss against tokens, in a line."""
    return ", ".join(f"{steps * batch_tokens / 1e6:.3g}M {loss:.3f}" for steps, loss in zip(curve.steps, curve.losses, strict=True))


# ---------------------------------------------------------------- the table


def report(recipe: Recipe, grid: Grid, sweep: Sweep, ours: OurGrid, curves: dict[tuple[str, int], Curve]) -> str:
    """Cells of one opponent and the totals."""
    lines = [f"\n{recipe.model}: width  tokens  our loss  tokens needed / ours   CPU seconds"]
    cpu = wall = 0.0
    bound = False
    for width in grid.widths:
        curve = curves[recipe.model, width]
        for tokens in grid.tokens:
            steps = _steps(tokens, sweep)
            loss = ours.losses[width, steps * sweep.training.batch_tokens]
            needed, reached = curve.steps_to(loss)
            sign, bound = ("" if reached else ">= "), bound or not reached
            cost = needed * curve.cpu_per_step
            lines.append(
                f"{width:>{len(recipe.model) + 7}} {tokens:7,} {loss:9.3f} {sign + format(needed / steps, '.2f'):>21} {cost:13.1f}"
            )
            cpu, wall = cpu + cost, wall + needed * curve.wall_per_step / WORKERS
    sign = ">= " if bound else ""
    lines.append(
        f"total: {sign}{cpu:.0f} CPU seconds, {sign}{wall:.0f} s on {WORKERS} processes; ours {ours.cpu:.0f} CPU seconds, {ours.wall:.0f} s"
    )
    lines.append(
        f"time to equal losses: {sign}{wall / ours.wall:.1f} times ours by wall time, {sign}{cpu / ours.cpu:.1f} times by CPU seconds"
    )
    return "\n".join(lines)


def main() -> None:
    """Train both sides and print the tables."""
    parser = argparse.ArgumentParser(description="a 4 x 4 grid, time to equal losses against PyTorch")
    parser.add_argument("--quick", action="store_true", help="smaller widths and fewer tokens: a few minutes")
    grid = QUICK if parser.parse_args().quick else FULL
    if not torch_process.available():
        print("PyTorch is not installed apart: `make bench-torch` does it; only our side is trained")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "grid.toml")
        path.write_text(sweep_text(grid))
        sweep = load_sweep(path)
        ours = run_ours(path)
        kinds = ", ".join(f"{kind} {seconds:.0f}" for kind, seconds in ours.worker_seconds.items())
        print(
            f"ours: {ours.wall:.0f} s, {ours.cpu:.0f} CPU seconds from an empty compilation cache; seconds of {WORKERS} workers: {kinds}",
            flush=True,
        )
        if torch_process.available():
            curves = run_opponents(grid, sweep, ours, folder=Path(name))
            for recipe in (SAME, NANOGPT):
                print(report(recipe, grid, sweep, ours, curves), flush=True)
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
