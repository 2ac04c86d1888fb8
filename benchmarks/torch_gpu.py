"""The model of torch_model.py on one GPU, for gpu.py: bfloat16 by autocast, torch.compile, PyTorch's fused attention, Muon and Adam.

Reads one JSON line {"shape", "batch", "optimizer", "steps", "rounds"}, prints one: seconds of a step, each round. Imports nothing of ours.
"""

import json
import statistics
import sys
import time

import torch
from torch_model import Matched, MuonAdam, Shape, fused_attention
from torch_worker import loss_of


def main() -> None:
    """Time whole training steps on random tokens."""
    job = json.loads(sys.stdin.readline())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    shape = Shape(**job["shape"])
    model = Matched(shape, fused_attention)
    parameters = dict(model.named_parameters())
    plain = {name: tensor.detach() for name, tensor in parameters.items()}
    optimizer = MuonAdam(plain, **job["optimizer"])
    windows = torch.randint(0, shape.vocab_size, (8, job["batch"], shape.sequence_length + 1))
    multiplier = torch.tensor(1e-3)

    @torch.compile
    def loss_function(batch):
        with torch.autocast(device, dtype=torch.bfloat16):
            return loss_of(model(batch[:, :-1]), batch)

    @torch.compile
    def update(gradients):
        with torch.autocast(device, dtype=torch.bfloat16):
            optimizer.update(gradients, multiplier)

    def steps(count: int) -> float:
        loss = torch.zeros(())
        for i in range(count):
            loss = loss_function(windows[i % len(windows)])
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                update(dict(zip(parameters, gradients, strict=True)))
        return loss.item()

    began = time.monotonic()
    steps(3)
    compiled = time.monotonic() - began
    seconds = []
    for _ in range(job["rounds"]):
        began = time.monotonic()
        steps(job["steps"])
        seconds.append((time.monotonic() - began) / job["steps"])
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    print(
        json.dumps({"seconds": statistics.median(seconds), "first": compiled, "memory": memory, "versions": {"torch": torch.__version__}})
    )


if __name__ == "__main__":
    main()
