"""Our end of the line to torch_worker.py, which runs in an environment of its own (.venv-torch, `make bench-torch`)."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**26), "MALLOC_ARENA_MAX": "1"}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

PYTHON = Path(__file__).resolve().parent.parent / ".venv-torch" / "bin" / "python"


def fastest_step(d_model: int) -> str:
    """How PyTorch takes a step fastest at a width, as measured in turns (torch_worker.py)."""
    return "single-graph" if d_model <= 32 else "compiled"


def available() -> bool:
    """Whether PyTorch is installed apart."""
    return PYTHON.exists()


class TorchProcess:
    """A child on one core; it idles while it is not asked, and ends when this object is closed."""

    def __init__(self, *, cpu: int | None = None):
        command = [str(PYTHON), "-W", "ignore", str(Path(__file__).with_name("torch_worker.py"))]
        pin = (lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None
        environment = {**os.environ, **_ONE_THREAD, **_KEEP_MEMORY}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment, preexec_fn=pin
        )

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """One request, one answer; `cpu` and `wall` are the seconds it took.

        Raises
        ------
        RuntimeError
            If the child has ended; its own message is on standard error.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps({"do": do, **details}), file=self.process.stdin)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the PyTorch process ended with exit code {self.process.wait()} at `{do}`; its message is above")
        return json.loads(line)

    def close(self) -> None:
        """End the child."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
