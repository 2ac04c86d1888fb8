"""Where numbers come from: versions, machine, flags; and the process settings of a worker.

`numerics_id` names everything outside the config that can change bits: jaxlib, device kind, instruction set, flags, precision.
"""

import ctypes
import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

WORKER_FLAGS = "--xla_cpu_multi_thread_eigen=false"


def platform_of_workers() -> str:
    """What workers train on: what JAX_PLATFORMS says, else `cuda` where there is an NVIDIA GPU and JAX's plugin for it, else `cpu`."""
    found = visible_gpus() and any("cuda" in plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins"))
    return os.environ.get("JAX_PLATFORMS") or ("cuda" if found else "cpu")


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(devices.glob("nvidia[0-9]*"))))]


def worker_environment(*, cpu_devices: int = 1) -> dict[str, str]:
    """Environment of a worker, on top of the user's: one thread on a CPU (which may play several devices), nearly all of a GPU's memory."""
    target, flags = platform_of_workers(), os.environ.get("XLA_FLAGS", "")
    shared = {"JAX_PLATFORMS": target, "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2")}
    if target != "cpu":
        return {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95"), **shared}
    several = {"JAX_NUM_CPU_DEVICES": str(cpu_devices)} if cpu_devices > 1 else {}
    return {
        **os.environ,
        "XLA_FLAGS": flags if WORKER_FLAGS in flags else f"{flags} {WORKER_FLAGS}".strip(),
        "NPROC": "1",  # size of XLA's thread pool
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **shared,
        **several,
    }


_MALLOPT = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20)}
"""Settings of glibc's allocator: their numbers in malloc.h, and values."""


def keep_freed_memory() -> bool:
    """Let the process keep and reuse memory it has freed; whether the C library takes the settings (glibc does).

    XLA takes and frees its temporary buffer at every call. Above 32 MB glibc maps and unmaps it, and the kernel clears every page anew:
    14 % of the time of a step at width 64 with 2,048 tokens, 13 % at width 128 (LOG.md). Must come before JAX starts its threads.
    """
    try:
        taken = [ctypes.CDLL(None).mallopt(number, value) for number, value in _MALLOPT.values()]
        return all(taken)
    except (OSError, AttributeError, TypeError):  # another C library
        return False


def _cpu_facts() -> tuple[str, str]:
    """Model name and the instruction-set flags that matter for floating point."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = " ".join(sorted(flag for flag in value.split() if flag.startswith(("avx", "fma", "amx", "sse4"))))
                break
    except OSError:
        pass
    return name, flags


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions, machine and flags of this process, with `numerics_id`."""
    import jax

    cpu, instructions = _cpu_facts()
    device = jax.devices()[0]
    flags = os.environ.get("XLA_FLAGS", "")
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pandas", "safetensors", "duckdb")
    versions = {name: importlib.metadata.version(name) for name in packages}
    decisive = f"{versions['jaxlib']}|{device.device_kind}|{instructions}|{flags}|float32"
    return {
        "numerics_id": f"{device.platform}-jaxlib{versions['jaxlib']}-{hashlib.sha256(decisive.encode()).hexdigest()[:8]}",
        "device_kind": device.device_kind,
        "cpu": cpu,
        "instruction_set": instructions,
        "xla_flags": flags,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "packages": versions,
        "code_version": code_version(),
    }


def machine_facts() -> dict[str, Any]:
    """What decides how fast a worker is here; known without importing JAX."""
    cpu, instructions = _cpu_facts()
    worker = worker_environment()
    flags = {name: worker.get(name, "") for name in ("JAX_PLATFORMS", "XLA_FLAGS")}
    if flags["JAX_PLATFORMS"] != "cpu":
        flags["gpus"] = _gpu_models()
    return {"cpu": cpu, "cores": os.cpu_count(), "instruction_set": instructions, "jaxlib": importlib.metadata.version("jaxlib"), **flags}


def _gpu_models() -> str:
    """Names of the NVIDIA GPUs that the driver knows."""
    lines = [line for path in Path("/proc/driver/nvidia/gpus").glob("*/information") for line in path.read_text().splitlines()]
    return ", ".join(sorted(line.partition(":")[2].strip() for line in lines if line.startswith("Model")))


def code_version() -> str:
    """Version of the package, and the git commit (with `+changes`) when it runs from a checkout."""
    version = importlib.metadata.version("scaling-harness")
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package: a repository around its environment is another project's
        return version
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=10"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} {commit}"
