"""Variants of the GPU's training program beside the program as it is, in one run of at most `--seconds`; for choosing, not for keeping.

Run: python benchmarks/gpu_variants.py --seconds 450 --out FOLDER

A variant replaces functions of `scaling.accelerated` before the program is traced. Programs are traced one after the other, compiled by
several threads, and timed one after the other when all are compiled. Every group is a process of its own; lines are printed as they come.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu

BIG = [
    *[(size, "as it is", 1) for size in gpu.SIZES],
    ("100M", "as it is", 2),
    ("300M", "as it is", 2),
    ("300M", "no barriers", 1),
]
"""(size, variant, factor on the windows of a step)."""

SMALL = [
    *[(size, 4, members, "as it is") for members in (1, 128) for size in gpu.POPULATION_SIZES],
    ("1M", 4, 128, "no barriers"),
    ("0.1M", 4, 512, "as it is"),
]
"""(size, windows of 128 tokens a step, members, variant)."""


# ---------------------------------------------------------------- variants


def apply_variant(name: str) -> None:
    """Put the functions of a variant in their places."""
    from jax import lax

    import scaling.optimizer

    class WithoutBarriers:
        einsum, optimization_barrier = None, staticmethod(lambda x: x)

    scaling.optimizer.lax = WithoutBarriers if name == "no barriers" else lax


# ---------------------------------------------------------------- measuring


def build(model, *, windows: int, members: int, variant: str, length: int, steps: int):
    """Lowered program, and what makes its arguments."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from scaling.program import LOG_EVERY, Resident, program

    apply_variant(variant)
    optimizer, rates, schedule = gpu.optimizer_and_rates(model)
    made = program.__wrapped__(model, optimizer.without_rates, "bfloat16")
    lanes = (members,) if members > 1 else ()
    random = np.random.default_rng(0)
    kind = np.uint16 if model.vocab_size > 256 else np.uint8
    if False:
        text = random.integers(0, model.vocab_size, (*lanes, LOG_EVERY, windows, length + 1)).astype(kind)
    else:
        tokens = random.integers(0, model.vocab_size, 1 << 22).astype(kind)
        starts = random.integers(0, (1 << 22) - length - 1, (*lanes, LOG_EVERY, windows)).astype(np.int32)
        text = Resident(jnp.asarray(tokens), starts)
    first, last = (np.zeros(members, np.int32), np.full(members, steps, np.int32)) if lanes else (0, steps)
    many = (lambda tree: {name: np.full(lanes, value) for name, value in tree.items()}) if lanes else (lambda tree: tree)

    def state():
        one = made.start(0)
        return jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * members), tree))(one) if lanes else one

    shapes = jax.eval_shape(state)
    function = made.advance_population if lanes else made.advance
    arguments = (first, last, text, many(rates), many(schedule))
    return function.lower(shapes, *arguments), state, arguments


def measure(jobs: list[dict], *, deadline: float, threads: int, profiled: set[int]) -> None:
    """Compile all, then time each; one JSON line a job."""
    import numpy as np

    pending, compile_until = [], time.monotonic() + 0.55 * (deadline - time.monotonic())

    def compiled(lowered):
        began = time.monotonic()
        return lowered.compile(), time.monotonic() - began

    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            settings = job["settings"]
            model = gpu.shape(*job["shape"], vocab=job["vocab"], length=settings["length"])
            lowered, state, arguments = build(model, **settings)
            pending.append((job, pool.submit(compiled, lowered), state, arguments))
        for number, (job, future, state, arguments) in enumerate(pending):
            pending[number] = None
            line = {**job["label"]}
            try:
                program, line["compile"] = future.result(timeout=max(1.0, deadline - time.monotonic()))
            except Exception as error:
                print(json.dumps({**line, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}), flush=True)
                continue
            if number == 0:
                for other in pending[1:]:
                    with contextlib.suppress(Exception):  # said when its turn comes
                        other[1].result(timeout=max(0.0, compile_until - time.monotonic()))
            if time.monotonic() > deadline:
                print(json.dumps({**line, "error": "no time left"}), flush=True)
                continue
            try:
                now, seconds = state(), []
                for _ in range(1 + job["rounds"]):
                    began = time.monotonic()
                    now, losses, _ = program(now, *arguments)
                    losses = np.asarray(losses)
                    seconds.append(time.monotonic() - began)
                steps = job["settings"]["steps"]
                last = losses[..., steps - 1]
                line["ms"] = 1e3 * sorted(seconds[1:])[job["rounds"] // 2] / steps
                line["spread"] = (max(seconds[1:]) - min(seconds[1:])) / min(seconds[1:])
                line["loss"] = float(np.mean(last))
                memory = program.memory_analysis()
                line["GiB"] = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30
                if number in profiled:
                    line["kernels"], now = kernels(program, now, arguments, steps)
                del now, program, losses
            except Exception as error:
                line["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(json.dumps(line), flush=True)


def kernels(program, state, arguments, steps: int):
    """The kernels that take longest, ms a step; and the state."""
    import jax
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            state, losses, _ = program(state, *arguments)
            np.asarray(losses)
        total: dict[str, list[float]] = {}
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                if "GPU" not in plane.name:
                    continue
                for line in plane.lines:
                    if not line.name.startswith("Stream"):
                        continue
                    for event in line.events:
                        entry = total.setdefault(event.name[:90], [0.0, 0])
                        entry[0] += event.duration_ns / 1e6 / steps
                        entry[1] += 1
    ordered = sorted(total.items(), key=lambda item: -item[1][0])
    everything = {"all": [sum(entry[0] for _, entry in ordered), sum(entry[1] for _, entry in ordered)]}
    return {**everything, **dict(ordered[:25])}, state


# ---------------------------------------------------------------- groups


def big_jobs(wanted, *, steps: int = 5, rounds: int = 3) -> list[dict]:
    """Jobs of whole models."""
    return [
        {
            "label": {"size": size, "variant": variant, "windows": gpu.SIZES[size][3] * factor},
            "shape": gpu.SIZES[size][:3],
            "vocab": gpu.VOCAB,
            "rounds": rounds,
            "settings": {
                "windows": gpu.SIZES[size][3] * factor, "members": 1, "variant": variant, "length": gpu.LENGTH, "steps": steps,
            },
        }
        for size, variant, factor in wanted
    ]  # fmt: skip


def small_jobs(wanted, *, rounds: int = 3) -> list[dict]:
    """Jobs of populations."""
    return [
        {
            "label": {"size": size, "variant": variant, "windows": windows, "members": members},
            "shape": gpu.POPULATION_SIZES[size],
            "vocab": gpu.POPULATION_VOCAB,
            "rounds": rounds,
            "settings": {
                "windows": windows, "members": members, "variant": variant, "length": gpu.POPULATION_LENGTH,
                "steps": 50 if size != "5M" or members == 1 else 15,
            },
        }
        for size, windows, members, variant in wanted
    ]  # fmt: skip


def tiny(job: dict) -> dict:
    """A job's program for a CPU."""
    members = min(3, job["settings"]["members"])
    return {**job, "shape": (32, 2, 2), "settings": {**job["settings"], "windows": 2, "length": 16, "steps": 2, "members": members}}


GROUPS = {
    "all": lambda: (big_jobs(BIG) + small_jobs(SMALL), {2, 3, 11}),
    "check": lambda: ([tiny(job) for job in big_jobs(BIG[-2:]) + small_jobs(SMALL[1::3])], {0}),
}
"""Jobs of a process, and the numbers of those whose kernels are listed. `check`: tiny, for a CPU."""


def main() -> None:
    """Start the groups one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=list(GROUPS), help="one group, in this process")
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    if arguments.group:
        jobs, profiled = GROUPS[arguments.group]()
        measure(jobs, deadline=deadline, threads=arguments.threads, profiled=profiled)
        return
    group(["--group", "all"], arguments, deadline, {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}, limit=arguments.seconds)


def group(command: list[str], arguments, deadline: float, environment: dict[str, str], *, limit: float) -> None:
    """One group in a process of its own; its lines go through, and what went wrong into a file."""
    seconds = min(limit, deadline - time.monotonic())
    if seconds < 15:
        print("no time left", flush=True)
        return
    began = time.monotonic()
    command = [sys.executable, __file__, *command, "--seconds", str(seconds - 5), "--threads", str(arguments.threads)]
    with open(arguments.out / "errors.log", "ab") as errors:
        try:
            subprocess.run(command, timeout=seconds + 5, env=environment, stderr=errors, check=False)
        except subprocess.TimeoutExpired:
            print("stopped", flush=True)
    print(f"# {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
