"""Tokens per CPU-second of whole training steps on one core: ours, and the same model and optimizer in PyTorch, in one run, in turns.

Run: make bench-torch                      both sides; PyTorch is installed apart, in .venv-torch
     make bench                            ours alone
     .venv/bin/python benchmarks/train_step.py --widths 64,128 --check

Ours is the compiled program that training runs (`scaling.program.program`), called as training calls it. PyTorch's side is torch_model.py
under torch.compile. In every round each side takes some steps while the other waits, on the same core, beside the matrix products that
say how fast the core is at that moment; ratios and shares are medians over rounds of what was measured in one round.

Share of peak: FLOPs a second, by `scaling.accounting.training_flops_per_token`, over the best square fp32 product of JAX. Attention counts
over the full T x T square on both sides although both skip future keys, which flatters both alike; the optimizer's products count nothing.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scaling.launch import be_a_worker, usable_cpus

be_a_worker(cpu=usable_cpus()[-1], dies_with_stdin=False)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import torch_process  # noqa: E402

from scaling.accounting import count_parameters, training_flops_per_token  # noqa: E402
from scaling.config import ModelConfig, Training  # noqa: E402
from scaling.optimizer import rate_multiplier  # noqa: E402
from scaling.parameters import initial_parameters  # noqa: E402
from scaling.plan import optimizer_of  # noqa: E402
from scaling.program import LOG_EVERY, program  # noqa: E402

SIZES = ((16, 2, 2), (32, 2, 4), (64, 3, 4), (128, 4, 4), (144, 4, 6), (192, 5, 6), (256, 6, 8))
"""(d_model, layers, heads): six sizes from 6k to 4.7M non-embedding parameters, and one of 1.0M for the share of peak."""

BATCHES = (512, 2048)
LENGTH, VOCAB = 128, 256
PEAK_SIZES = (256, 512, 1024)
ROUNDS, ROUND_SECONDS = 7, 1.0
RECIPE = Training()
SCHEDULE = {"warmup_steps": 5.0, "decay_power": 0.3, "decay_from_tokens": 5e5, "cooldown_start": 1e9, "cooldown_end": 2e9}


def model_of(d_model: int, n_layers: int, n_heads: int) -> ModelConfig:
    """Shape of a size."""
    return ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model, vocab_size=VOCAB, sequence_length=LENGTH)


def rates_of(model: ModelConfig) -> dict[str, float]:
    """The recipe's rates by group."""
    optimizer = optimizer_of(RECIPE, d_model=model.d_model)
    return {"matrix": optimizer.learning_rate, "embedding": optimizer.embedding_learning_rate, "head": optimizer.head_learning_rate}


# ---------------------------------------------------------------- the two sides


class Ours:
    """The training program of a shape on random tokens."""

    def __init__(self, model: ModelConfig, *, batch_tokens: int):
        self.program = program(model, optimizer_of(RECIPE, d_model=model.d_model).without_rates)
        self.state = self.program.start(0)
        self.windows = np.random.default_rng(0).integers(0, VOCAB, (LOG_EVERY, batch_tokens // LENGTH, LENGTH + 1)).astype(np.uint8)
        self.rates = {name: np.float32(rate) for name, rate in {**rates_of(model), "weight_decay": 0.0}.items()}
        self.schedule = {name: np.float32(value) for name, value in {"batch_tokens": batch_tokens, **SCHEDULE}.items()}

    def steps(self, count: int) -> np.ndarray:
        """Take some steps, in calls of LOG_EVERY as training does; the losses of the last call."""
        losses = np.empty(0)
        for first in range(0, count, LOG_EVERY):
            stop = min(first + LOG_EVERY, count)
            self.state, losses, _ = self.program.advance(self.state, first, stop, self.windows, self.rates, self.schedule)
            losses = np.asarray(losses)[: stop - first]
        jax.block_until_ready(self.state)
        return losses

    def cpu_seconds(self, count: int) -> float:
        """CPU seconds of some steps."""
        began = time.process_time()
        self.steps(count)
        return time.process_time() - began


def build_torch(process: torch_process.TorchProcess, model: ModelConfig, *, batch_tokens: int, step: str) -> None:
    """The same model and optimizer in the child."""
    process.ask(
        "build",
        model="matched",
        shape=msgspec.to_builtins(model),
        optimizer={"rates": rates_of(model), "momentum": RECIPE.momentum, "beta1": RECIPE.beta1, "beta2": RECIPE.beta2},
        step=step,
        attention="fused",
        batch=batch_tokens // LENGTH,
        seed=0,
    )


def matrix_peak() -> float:
    """FLOP/s of the best of some square fp32 products."""
    product = jax.jit(lambda a, b: a @ b)

    def speed(size: int) -> float:
        a = jnp.ones((size, size))
        product(a, a).block_until_ready()
        repeats = max(1, int(2e8 / size**3))
        began = time.process_time()
        for _ in range(repeats):
            product(a, a).block_until_ready()
        return repeats * 2 * size**3 / (time.process_time() - began)

    return max(speed(size) for size in PEAK_SIZES for _ in range(2))


# ---------------------------------------------------------------- speed


@dataclass(frozen=True)
class Round:
    """What was measured within some seconds: tokens per CPU-second by side, FLOP/s of matrix products."""

    speeds: dict[str, float]
    peak: float
    torch_peak: float


def measure(model: ModelConfig, *, batch_tokens: int, opponents: dict[str, torch_process.TorchProcess]) -> list[Round]:
    """All sides in turns; the number of steps is such that a turn takes about a second."""
    ours = Ours(model, batch_tokens=batch_tokens)
    ours.steps(2)
    for name, process in opponents.items():
        step = "eager" if name == "eager" else torch_process.fastest_step(model.d_model)
        build_torch(process, model, batch_tokens=batch_tokens, step=step)
    turns = {"ours": ours.cpu_seconds, **{name: _torch_turn(process) for name, process in opponents.items()}}
    counts = {name: max(2, round(ROUND_SECONDS / (turn(2) / 2))) for name, turn in turns.items()}
    rounds = []
    for _ in range(ROUNDS):
        speeds = {name: counts[name] * batch_tokens / turn(counts[name]) for name, turn in turns.items()}
        torch_peak = max(
            [process.ask("peak", sizes=PEAK_SIZES)["flops_per_second"] for process in opponents.values()], default=float("nan")
        )
        rounds.append(Round(speeds, matrix_peak(), torch_peak))
    return rounds


def _torch_turn(process: torch_process.TorchProcess):
    return lambda count: process.ask("steps", count=count)["cpu"]


def row(model: ModelConfig, batch_tokens: int, rounds: list[Round], opponents: list[str]) -> str:
    """One line of the table; medians over rounds."""

    def median(values) -> float:
        return statistics.median(values)

    flops = training_flops_per_token(model)
    size = f"d{model.d_model} L{model.n_layers}"
    cells = [f"{size:8} {count_parameters(model).non_embedding:10,} {batch_tokens:6}", f"{median(r.speeds['ours'] for r in rounds):9,.0f}"]
    cells += [
        f"{median(r.speeds[name] for r in rounds):9,.0f} {median(r.speeds['ours'] / r.speeds[name] for r in rounds):6.2f}"
        for name in opponents
    ]
    cells += [f"{median(r.speeds[name] * flops / r.peak for r in rounds):8.0%}" for name in ("ours", *opponents)]
    cells += [f"{median(r.peak for r in rounds) / 1e9:6.0f} {median(r.torch_peak for r in rounds) / 1e9:6.0f}"]
    return " ".join(cells)


# ---------------------------------------------------------------- the same arithmetic?


def check(model: ModelConfig, process: torch_process.TorchProcess, *, steps: int = 30) -> str:
    """Train both from our initial parameters plus noise (zero matrices hide mistakes) on the same windows; compare every step's loss."""
    rng = np.random.default_rng(1)
    perturbed = jax.tree.map(lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32), initial_parameters(model, 0))
    ours = Ours(model, batch_tokens=BATCHES[0])
    ours.state = {**ours.state, "parameters": perturbed}
    ours.windows %= 16  # something to learn, so that the losses depend on every part of the optimizer
    schedule = {name: float(value) for name, value in ours.schedule.items()}
    multipliers = [float(rate_multiplier(step, **schedule)) for step in range(steps)]
    build_torch(process, model, batch_tokens=BATCHES[0], step="compiled")
    with tempfile.TemporaryDirectory() as folder:
        names = {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(perturbed)}
        np.savez(Path(folder, "parameters.npz"), **names)
        np.save(Path(folder, "windows.npy"), ours.windows)
        process.ask("load", path=str(Path(folder, "parameters.npz")))
        theirs = process.ask("train", windows=str(Path(folder, "windows.npy")), multipliers=multipliers)["losses"]
    difference = np.abs(ours.steps(steps) / np.asarray(theirs) - 1)
    verdict = "agree" if difference[0] < 1e-6 and difference.max() < 1e-4 else "DIFFER"
    return f"d{model.d_model}: losses {verdict}: relative difference {difference[0]:.1e} at step 1, at most {difference.max():.1e} later"


def main() -> None:
    """Print one row a size and batch."""
    parser = argparse.ArgumentParser(description="whole training steps, ours beside PyTorch, one core")
    parser.add_argument("--widths", default=",".join(str(size[0]) for size in SIZES), help="which sizes, by width")
    parser.add_argument("--eager", action="store_true", help="PyTorch without its compiler as well")
    parser.add_argument("--check", action="store_true", help="only compare the losses of both over some steps")
    arguments = parser.parse_args()
    models = [model_of(*size) for size in SIZES if str(size[0]) in arguments.widths.split(",")]
    names = ["compile", *(["eager"] if arguments.eager else [])] if torch_process.available() else []
    if not names:
        print("PyTorch is not installed apart (`make bench-torch` does it): only our side is measured")
    opponents = {name: torch_process.TorchProcess() for name in names}
    if arguments.check:
        for model in models if opponents else []:
            print(check(model, opponents["compile"]), flush=True)
    else:
        titles = [f"torch {name:>9} ratio" for name in names]
        shares = [f"{name:>8}" for name in ("ours", *names)]
        print(f"one core, fp32, context {LENGTH}; tokens per CPU-second, medians of {ROUNDS} rounds in turns; shares of the peak; peaks")
        print(f"size     parameters  batch      ours {' '.join(titles)} {' '.join(shares)}   JAX torch GFLOP/s")
        for model in models:
            for batch_tokens in BATCHES:
                print(row(model, batch_tokens, measure(model, batch_tokens=batch_tokens, opponents=opponents), names), flush=True)
    for process in opponents.values():
        process.close()


if __name__ == "__main__":
    main()
