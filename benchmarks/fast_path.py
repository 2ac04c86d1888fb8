"""Gradients of the fast path beside those of the readable model, one core, in turns: is a second implementation worth its lines?

Run: .venv/bin/python benchmarks/fast_path.py [WIDTH ...]
"""

import statistics
import sys
import time

from train_step import LENGTH, VOCAB, matrix_peak  # first: it makes this process a worker before JAX is imported

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import numpy as np  # isort: skip

from scaling import fast, model
from scaling.accounting import training_flops_per_token
from scaling.config import ModelGrid
from scaling.parameters import initial_parameters
from scaling.plan import small_recipe

BATCH, STEPS, ROUNDS = 4, 20, 7


def _seconds(function) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def gradient_steps(loss, config):
    """A compiled loop of gradient steps (no optimizer), as a function of nothing."""
    parameters = initial_parameters(config, 0)
    windows = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1)), jnp.int32)
    gradient = jax.grad(lambda p: loss(config, p, windows).mean())
    loop = jax.jit(lambda p: jax.lax.fori_loop(0, STEPS, lambda _, p: jax.tree.map(lambda a, g: a - 1e-4 * g, p, gradient(p)), p))
    jax.block_until_ready(loop(parameters))
    return lambda: jax.block_until_ready(loop(parameters))


def main() -> None:
    """Print one row a width."""
    peak = matrix_peak()
    print(f"one core, {BATCH} x {LENGTH} tokens a step, fp32; matrix peak {peak / 1e9:.0f} GFLOP/s; median of {ROUNDS} rounds in turns")
    print("width   readable tok/s    fast tok/s   ratio   share of matrix peak")
    for width in [int(text) for text in sys.argv[1:]] or [16, 32, 64, 128]:
        config = small_recipe(width, grid=ModelGrid(d_model=[width]), vocab_size=VOCAB)
        runs = {"readable": gradient_steps(model.cross_entropy, config), "fast": gradient_steps(fast.mean_loss, config)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                times[name].append(_seconds(run))
        speed = {name: STEPS * BATCH * LENGTH / statistics.median(values) for name, values in times.items()}
        ratio = statistics.median(a / b for a, b in zip(times["readable"], times["fast"], strict=True))
        share = speed["fast"] * training_flops_per_token(config) / peak
        print(f"{width:5} {speed['readable']:16,.0f} {speed['fast']:13,.0f} {ratio:7.2f} {share:12.0%}", flush=True)


if __name__ == "__main__":
    main()
