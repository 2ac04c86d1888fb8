"""Model FLOP utilisation of one GPU from 10M to 300M parameters, beside PyTorch; and many small models as one program.

Run: .venv/bin/python benchmarks/gpu.py [--quick] [--python PYTHON_WITH_TORCH]      (where there is no GPU it says so and measures nothing)

Ours is the compiled program that training runs (`scaling.program.program`, precision bfloat16). Every part is a process of its own, so that
one that fails (memory, a missing package) takes no other along. MFU: FLOPs of `scaling.accounting` a second (backward = twice forward,
attention over the full square, the optimizer's products not counted), over the nominal dense bfloat16 peak of the card and over the best
product measured in the same run. PyTorch: torch_gpu.py, same shape, optimizer and batch.
Population: models of one shape, each with its own state, windows and rates, trained by one vmapped program; against one by one.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LENGTH, VOCAB = 1024, 8192
SIZES = {"10M": (384, 6, 6, 64), "30M": (512, 10, 8, 64), "100M": (768, 14, 6, 64), "300M": (1024, 24, 8, 32)}
"""Non-embedding parameters: (d_model, layers, heads, windows of 1,024 tokens a step)."""
POPULATION_LENGTH, POPULATION_VOCAB, POPULATION_BATCH = 128, 256, 16
POPULATION_SIZES = {"0.1M": (64, 2, 4), "1M": (144, 4, 6), "5M": (256, 6, 8)}
MEMBERS = (1, 16, 128)
NOMINAL_PEAK = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s from NVIDIA's data sheets (SXM), by a part of the device's name."""
ROUNDS = 5


def shape(d_model: int, n_layers: int, n_heads: int, *, vocab: int, length: int):
    """Model of a size."""
    from scaling.config import ModelConfig

    return ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model, vocab_size=vocab, sequence_length=length)


def optimizer_and_rates(model):
    """The recipe's optimizer for a shape, and its rates as arguments of the program."""
    import numpy as np

    from scaling.config import Training
    from scaling.plan import optimizer_of

    optimizer = optimizer_of(Training(), d_model=model.d_model, model=model, tokens=1e9)
    rates = {"matrix": optimizer.learning_rate, "embedding": optimizer.embedding_learning_rate, "head": optimizer.head_learning_rate}
    schedule = {
        "batch_tokens": 1e3,
        "warmup_steps": 50.0,
        "decay_power": 0.3,
        "decay_from_tokens": 1e9,
        "cooldown_start": 1e9,
        "cooldown_end": 2e9,
    }
    return optimizer, {k: np.float32(v) for k, v in {**rates, "weight_decay": 0.0}.items()}, {k: np.float32(v) for k, v in schedule.items()}


def median_seconds(work, *, rounds: int = ROUNDS) -> float:
    """Median of the seconds of some calls."""
    seconds = []
    for _ in range(rounds):
        began = time.monotonic()
        work()
        seconds.append(time.monotonic() - began)
    return sorted(seconds)[rounds // 2]


# ---------------------------------------------------------------- parts, each in a process of its own


def device_part() -> dict[str, Any]:
    """Name and versions, and FLOP/s of the best square bfloat16 product."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    out = {"platform": device.platform, "device": device.device_kind, "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__}}
    if device.platform == "cpu":
        return out
    n = 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in (0, 1))
    product = jax.jit(lambda a, b: jax.lax.fori_loop(0, 20, lambda _, x: (x @ b * 0.01).astype(jnp.bfloat16), a))
    jax.block_until_ready(product(a, b))
    return {**out, "product": 20 * 2 * n**3 / median_seconds(lambda: jax.block_until_ready(product(a, b)))}


def model_part(d_model: int, n_layers: int, n_heads: int, batch: int, steps: int) -> dict[str, Any]:
    """Seconds of one whole training step of ours."""
    import jax
    import numpy as np

    from scaling.accounting import count_parameters, training_flops_per_token
    from scaling.program import LOG_EVERY, program

    model = shape(d_model, n_layers, n_heads, vocab=VOCAB, length=LENGTH)
    optimizer, rates, schedule = optimizer_and_rates(model)
    compiled = program(model, optimizer.without_rates, "bfloat16")
    windows = np.random.default_rng(0).integers(0, VOCAB, (LOG_EVERY, batch, LENGTH + 1)).astype(np.uint16)
    state = compiled.start(0)

    def advance():
        nonlocal state
        state, losses, _ = compiled.advance(state, 0, steps, windows, rates, schedule)
        return np.asarray(losses)

    began = time.monotonic()
    losses = advance()
    first = time.monotonic() - began
    seconds = median_seconds(advance) / steps
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "seconds": seconds, "first": first, "memory": memory, "loss": [float(losses[0]), float(losses[steps - 1])],
        "flops": batch * LENGTH * training_flops_per_token(model), "parameters": count_parameters(model).non_embedding,
    }  # fmt: skip


def population_part(d_model: int, n_layers: int, n_heads: int, members: int, steps: int) -> dict[str, Any]:
    """Seconds of one step of all members; members of 1 by `advance`, as a single run is trained."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from scaling.program import LOG_EVERY, program

    model = shape(d_model, n_layers, n_heads, vocab=POPULATION_VOCAB, length=POPULATION_LENGTH)
    optimizer, rates, schedule = optimizer_and_rates(model)
    compiled = program(model, optimizer.without_rates, "bfloat16")
    random = np.random.default_rng(0)
    size = (members, LOG_EVERY, POPULATION_BATCH, POPULATION_LENGTH + 1)
    windows = random.integers(0, POPULATION_VOCAB, size).astype(np.uint8)
    state = [compiled.start(seed) for seed in range(members)]
    arguments = [jax.tree.map(lambda leaf: jnp.full((members,), leaf), tree) for tree in (rates, schedule)]
    first_step, last_step = np.zeros(members, np.int32), np.full(members, steps, np.int32)
    if members == 1:
        state, windows, arguments, advance = state[0], windows[0], [rates, schedule], compiled.advance
        first_step, last_step = 0, steps
    else:
        state, advance = jax.tree.map(lambda *leaves: jnp.stack(leaves), *state), compiled.advance_population

    def work():
        nonlocal state
        state, losses, _ = advance(state, first_step, last_step, windows, *arguments)
        return np.asarray(losses)

    began = time.monotonic()
    work()
    first = time.monotonic() - began
    return {"seconds": median_seconds(work, rounds=3) / steps, "first": first}


PARTS = {"device": device_part, "model": model_part, "population": population_part}


# ---------------------------------------------------------------- all parts


def part(*arguments: object, seconds: float) -> dict[str, Any]:
    """A part's answer; {"error": last line} when it failed or took too long."""
    return answer([sys.executable, __file__, "--part", *map(str, arguments)], seconds=seconds)


def answer(command: list[str], *, seconds: float, text: str = "") -> dict[str, Any]:
    """The JSON on the last line that a command prints."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {seconds:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200], "stderr": done.stderr[-3000:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def utilisation(found: dict[str, Any], flops: float, peaks: tuple[float, float]) -> str:
    """Tokens a second and shares of both peaks, or why there are none."""
    if "error" in found:
        return f"  -- {found['error']}"
    rate = flops / found["seconds"]
    shares = " ".join(f"{rate / peak:7.1%}" if peak else "      -" for peak in peaks)
    return f"{1e3 * found['seconds']:9.1f} {rate / 1e12:7.1f} {shares} {found['memory'] / 2**30:7.1f} {found['first']:7.1f}"


def main() -> None:
    """Measure what can be measured, one line at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", metavar="ARGUMENT", help="one part, as JSON (used by the benchmark itself)")
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES), metavar="SIZE")
    parser.add_argument("--populations", nargs="*", default=list(POPULATION_SIZES), choices=list(POPULATION_SIZES), metavar="SIZE")
    parser.add_argument(
        "--torch-sizes", nargs="*", choices=list(SIZES), metavar="SIZE", help="sizes to measure in PyTorch too (default: all)"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter that has PyTorch")
    parser.add_argument("--out", type=Path, help="all answers as JSON")
    arguments = parser.parse_args()
    if arguments.part:
        name, *numbers = arguments.part
        print(json.dumps(PARTS[name](*map(int, numbers))))
        return
    steps = 5 if arguments.quick else 20
    found: dict[str, Any] = {"device": part("device", seconds=120)}
    device = found["device"]
    if device.get("platform") in (None, "cpu"):
        print(f"no GPU here ({device.get('error', 'JAX sees only a CPU')}): nothing was measured")
        return
    nominal = next((peak for name, peak in NOMINAL_PEAK.items() if name in device["device"]), 0.0)
    peaks = (nominal, device["product"])
    product = f"bfloat16 product {device['product'] / 1e12:.0f} TFLOP/s, nominal {nominal / 1e12:.0f}"
    print(f"{device['device']}, {device['versions']}; {product}; {LENGTH} tokens a window, vocabulary {VOCAB}")
    print("columns: ms a step, TFLOP/s, MFU of the nominal peak and of the product, GiB, s to the first result", flush=True)
    for name in arguments.sizes:
        d_model, n_layers, n_heads, batch = SIZES[name]
        ours = part("model", d_model, n_layers, n_heads, batch, steps, seconds=200)
        found[name] = ours
        flops = ours.get("flops", 0.0)
        print(f"{name:6} d{d_model} x {n_layers}, {batch} windows  ours   {utilisation(ours, flops, peaks)}", flush=True)
        if name not in (arguments.sizes if arguments.torch_sizes is None else arguments.torch_sizes):
            continue
        found[f"{name} torch"] = theirs = answer(
            [arguments.python, str(Path(__file__).with_name("torch_gpu.py"))],
            seconds=200,
            text=torch_job(d_model, n_layers, n_heads, batch, steps),
        )
        print(f"{name:6} {'':28}  torch  {utilisation(theirs, flops, peaks)}", flush=True)
    for name in arguments.populations:
        alone = None
        for members in MEMBERS:
            found[f"{name} x {members}"] = answer_ = part("population", *POPULATION_SIZES[name], members, 50, seconds=120)
            if "error" in answer_:
                print(f"{name:6} x {members:4}  -- {answer_['error']}", flush=True)
                continue
            each = answer_["seconds"] / members
            alone = alone or each
            print(f"{name:6} x {members:4}  {1e3 * answer_['seconds']:9.2f} ms a step, {alone / each:6.1f} times one by one", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))


def torch_job(d_model: int, n_layers: int, n_heads: int, batch: int, steps: int) -> str:
    """What torch_gpu.py reads."""
    import msgspec

    model = shape(d_model, n_layers, n_heads, vocab=VOCAB, length=LENGTH)
    optimizer, rates, _ = optimizer_and_rates(model)
    settings = {
        "rates": {name: float(rates[name]) for name in ("matrix", "embedding", "head")},
        "momentum": optimizer.momentum, "beta1": optimizer.beta1, "beta2": optimizer.beta2,
    }  # fmt: skip
    fields = {k: v for k, v in msgspec.to_builtins(model).items() if k not in ("kind", "options")}
    return json.dumps({"shape": fields, "batch": batch, "optimizer": settings, "steps": steps, "rounds": ROUNDS}) + "\n"


if __name__ == "__main__":
    main()
