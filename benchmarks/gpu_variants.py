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
    *[(size, "main", 1) for size in gpu.SIZES],
    *[(size, "head", 1) for size in gpu.SIZES],
    *[(size, "head,residual", 1) for size in gpu.SIZES],
    *[(size, "head,residual,split", 1) for size in gpu.SIZES],
    ("10M", "logits16", 1),
    ("100M", "logits16", 1),
    ("10M", "head,residual,lookup", 1),
    ("10M", "head,residual,split", 2),
    ("100M", "head,residual,split,keep", 1),
    ("300M", "head,residual,split", 2),
]
"""(size, variant, factor on the windows of a step)."""

SMALL = [
    *[(size, windows, members, "main") for windows in (16, 4) for size in gpu.POPULATION_SIZES for members in (1, 128)],
    *[(size, windows, 128, "head,lookup,residual") for windows in (16, 4) for size in gpu.POPULATION_SIZES],
    *[(size, windows, 128, "head,lookup,residual,plain") for windows in (16, 4) for size in gpu.POPULATION_SIZES],
    *[(size, 16, 32, "head,lookup,residual,plain") for size in gpu.POPULATION_SIZES],
    *[(size, windows, 1, "head,lookup,residual,plain") for windows in (16, 4) for size in gpu.POPULATION_SIZES],
]
"""(size, windows of 128 tokens a step, members, variant)."""

FLAGS = {
    "triton any": "--xla_gpu_triton_gemm_any=true",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "cudnn gemm fusion": "--xla_gpu_cudnn_gemm_fusion_level=2",
    "no triton": "--xla_gpu_enable_triton_gemm=false",
}
FLAGGED = [("10M", "head,residual", 1), ("100M", "head,residual", 1)]
FLAGGED_SMALL = [("0.1M", 16, 128, "head,lookup,residual"), ("1M", 16, 1, "head,lookup,residual")]


# ---------------------------------------------------------------- variants


def apply_variant(names: str) -> None:
    """Put the functions of a variant into `scaling.accelerated`."""
    import jax
    import jax.numpy as jnp

    import scaling.accelerated as a

    for name, function in ORIGINAL.items():
        setattr(a, name, function)
    chosen = set(names.split(","))

    @jax.custom_vjp
    def token_losses(x, head, targets):
        return forward(x, head, targets)[0]

    def forward(x, head, targets):
        scores = jnp.matmul(x, head.T, preferred_element_type=jnp.float32)
        total = jax.nn.logsumexp(scores, axis=-1)
        picked = jnp.sum(jnp.where(targets[..., None] == jnp.arange(head.shape[0]), scores, 0.0), -1)
        return total - picked, (x, head, targets, scores, total)

    def backward(saved, g):
        x, head, targets, scores, total = saved
        hit = targets[..., None] == jnp.arange(head.shape[0])
        d = ((jnp.exp(scores - total[..., None]) - hit) * g[..., None]).astype(x.dtype)
        return d @ head, jnp.einsum("btv,btd->vd", d, x), None

    token_losses.defvjp(forward, backward)

    @jax.custom_vjp
    def look_up(table, tokens):
        return table[tokens]

    def look_up_backward(saved, g):
        table_shape, tokens = saved
        hit = (tokens[..., None] == jnp.arange(table_shape.shape[0])).astype(jnp.bfloat16)
        return jnp.einsum("btv,btd->vd", hit, g.astype(jnp.bfloat16), preferred_element_type=jnp.float32), None

    look_up.defvjp(lambda table, tokens: (table[tokens], (table[:, :0], tokens)), look_up_backward)

    def trunk(config, parameters, tokens, dtype):
        rows = look_up(parameters["embedding"], tokens) if "lookup" in chosen else parameters["embedding"][tokens]
        x = a._norm(rows, dtype if "residual" in chosen else jnp.float32)
        for index in range(config.n_layers):
            x = block(config, x, jax.tree.map(lambda leaf: leaf.astype(dtype), parameters["blocks"][index]), dtype)
        return a._norm(x, dtype)

    def block(config, x, weights, dtype):
        batch, length, d = x.shape
        heads, head_dim = config.n_heads, d // config.n_heads
        if "split" in chosen:
            qk = a._normed_product(x, weights["query_key_value"][: 2 * d], dtype).reshape(batch, length, 2, heads, head_dim)
            value = a._normed_product(x, weights["query_key_value"][2 * d :], dtype).reshape(batch, length, heads, head_dim)
        else:
            qkv = a._normed_product(x, weights["query_key_value"], dtype).reshape(batch, length, 3, heads, head_dim)
            qk, value = qkv[:, :, :2], qkv[:, :, 2]
        query, key = a._query_and_key(qk, weights["query_gain"], config.rope_base, dtype)
        if "plain" in chosen:
            mixed = plain_attention(query, key, value)
        else:
            fused = "cudnn" if jax.default_backend() == "gpu" else None
            mixed = jax.nn.dot_product_attention(query, key, value, scale=1.0, is_causal=True, implementation=fused)
        x = x + mixed.reshape(batch, length, d) @ weights["output"].T
        up = a._norm(x, dtype) @ weights["up"].T if "keep" in chosen else a._normed_product(x, weights["up"], dtype)
        return x + a._squared_relu_product(up, weights["down"])

    @jax.checkpoint
    def plain_attention(query, key, value):
        scores = jnp.einsum("bthc,bshc->bhts", query, key, preferred_element_type=jnp.float32)
        length = query.shape[1]
        causal = jnp.arange(length)[:, None] >= jnp.arange(length)
        weights = jax.nn.softmax(jnp.where(causal[None, None], scores, -1e30), -1).astype(query.dtype)
        return jnp.einsum("bhts,bshc->bthc", weights, value)

    def losses_head(config, parameters, windows, dtype):
        return token_losses(trunk(config, parameters, windows[:, :-1], dtype), parameters["head"].astype(dtype), windows[:, 1:])

    def losses_logits16(config, parameters, windows, dtype):
        x = trunk(config, parameters, windows[:, :-1], dtype)
        scores = (x @ parameters["head"].T.astype(dtype)).astype(jnp.float32)
        picked = jnp.sum(jnp.where(windows[:, 1:, None] == jnp.arange(config.vocab_size), scores, 0.0), -1)
        return jax.nn.logsumexp(scores, axis=-1) - picked

    if chosen != {"main"}:
        a._token_losses = losses_logits16 if "logits16" in chosen else losses_head


ORIGINAL: dict = {}


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
    if variant == "main":
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

    import scaling.accelerated as a

    ORIGINAL.update({name: getattr(a, name) for name in ("_token_losses", "_block", "logits")})
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
    "big": lambda: (big_jobs(BIG), {0, 2, 12}),
    "small": lambda: (small_jobs(SMALL), {1, 3, 12, 13}),
    "flagged": lambda: (big_jobs(FLAGGED) + small_jobs(FLAGGED_SMALL), set()),
    "check": lambda: ([tiny(job) for job in big_jobs(BIG[::4] + BIG[-3:]) + small_jobs(SMALL[::5])], {0}),
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
    print(gpu.part("device", seconds=90), flush=True)
    environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    group(["--group", "big"], arguments, deadline, environment, limit=190)
    group(["--group", "small"], arguments, deadline, environment, limit=170)
    for size in ("10M", "100M"):
        if deadline - time.monotonic() > 40:
            d_model, n_layers, n_heads, batch = gpu.SIZES[size]
            command = [sys.executable, str(Path(__file__).with_name("torch_gpu.py"))]
            found = gpu.answer(command, seconds=45, text=gpu.torch_job(d_model, n_layers, n_heads, batch, 5))
            print(json.dumps({"torch": size, **{name: value for name, value in found.items() if name != "stderr"}}), flush=True)
    for name, flag in FLAGS.items():
        print(f"# {name}: {flag}", flush=True)
        group(["--group", "flagged"], arguments, deadline, {**environment, "XLA_FLAGS": flag}, limit=60)


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
