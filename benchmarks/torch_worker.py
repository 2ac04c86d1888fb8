"""Runs in .venv-torch as a child process: trains the models of torch_model.py on one core, as told by JSON lines on standard input.

Every request is one line `{"do": name, ...}` and is answered by one line. `build` makes and compiles a trainer, `steps` takes some steps on
random tokens, `train` follows a schedule over given windows and evaluates, `peak` times a matrix product. Times are CPU and wall seconds
of what the name says; compilation is told apart.

How a step is compiled was chosen by timing the alternatives in turns on an AVX2 server core (LOG.md): Inductor's C++ wrapper instead of its
Python one; one program for the whole step at small widths and two programs (model, optimizer) above; PyTorch's own attention kernel instead
of a masked softmax; memory that glibc gives back to the system at every step kept instead. Tuned product templates made no difference.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, TextIO

import numpy as np
import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch_model import AdamW, Matched, MuonAdam, NanoGPT, Optimizer, Shape, explicit_attention, fused_attention

ATTENTION = {"fused": fused_attention, "explicit": explicit_attention}
RECIPES = {"matched": (Matched, MuonAdam), "nanogpt": (NanoGPT, AdamW)}
EVALUATION_BATCH = 16

Step = Callable[[Tensor, Tensor], Tensor]
"""(windows (batch, length + 1), rate multiplier) -> loss; parameters change in place."""


def loss_of(logits: Tensor, windows: Tensor) -> Tensor:
    """Mean cross-entropy, nats."""
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


# ---------------------------------------------------------------- three ways to run one step


def eager_step(model: nn.Module, optimizer: Optimizer, parameters: dict[str, Tensor]) -> Step:
    """No compiler."""

    def step(windows: Tensor, multiplier: Tensor) -> Tensor:
        loss = loss_of(model(windows[:, :-1]), windows)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            optimizer.update(dict(zip(parameters, gradients, strict=True)), multiplier)
        return loss.detach()

    return step


def compiled_step(model: nn.Module, optimizer: Optimizer, parameters: dict[str, Tensor]) -> Step:
    """Forward and backward compiled as usual, and the optimizer's arithmetic as a program of its own."""
    loss_function = torch.compile(lambda windows: loss_of(model(windows[:, :-1]), windows))
    update = torch.compile(optimizer.update)

    def step(windows: Tensor, multiplier: Tensor) -> Tensor:
        loss = loss_function(windows)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            update(dict(zip(parameters, gradients, strict=True)), multiplier)
        return loss.detach()

    return step


def single_graph_step(model: nn.Module, optimizer: Optimizer, parameters: dict[str, Tensor]) -> Step:
    """The whole step as one program."""
    plain = {name: tensor.detach() for name, tensor in parameters.items()}

    def whole(windows: Tensor, multiplier: Tensor) -> Tensor:
        gradients, loss = grad_and_value(lambda values: loss_of(functional_call(model, values, (windows[:, :-1],)), windows))(plain)
        optimizer.update(gradients, multiplier)
        return loss

    return torch.no_grad()(torch.compile(whole))


STEPS = {"eager": eager_step, "compiled": compiled_step, "single-graph": single_graph_step}


# ---------------------------------------------------------------- requests


class Trainer:
    """One model with its optimizer and its way to take a step, compiled."""

    def __init__(self, *, model: str, shape: dict[str, Any], optimizer: dict[str, Any], step: str, attention: str, batch: int, seed: int):
        torch.manual_seed(seed)
        sizes = Shape(**{field.name: shape[field.name] for field in fields(Shape)})  # a configuration says more than its sizes
        model_type, optimizer_type = RECIPES[model]
        self.model = model_type(sizes, ATTENTION[attention])
        parameters = dict(self.model.named_parameters())
        self.parameters = {name: tensor.detach() for name, tensor in parameters.items()}
        self.optimizer = optimizer_type(self.parameters, **optimizer)
        self.initial = {name: tensor.clone() for name, tensor in self.parameters.items()}
        self.step = STEPS[step](self.model, self.optimizer, parameters)
        self.random = torch.randint(0, sizes.vocab_size, (50, batch, sizes.sequence_length + 1))
        self.steps(2)  # compiles

    def steps(self, count: int) -> None:
        """Steps on random tokens, for timing."""
        multiplier = torch.tensor(1e-3)
        for i in range(count):
            self.step(self.random[i % len(self.random)], multiplier)

    def load(self, path: str) -> None:
        """Initial parameters from a file of arrays by name."""
        with np.load(path, allow_pickle=False) as stored:
            self.initial = {name: torch.from_numpy(stored[name]) for name in self.parameters}

    def train(self, windows: np.ndarray, multipliers: list[float]) -> list[float]:
        """From the initial parameters, steps over (steps, batch, length + 1) windows; returns the loss of every step."""
        for name, tensor in self.parameters.items():
            tensor.copy_(self.initial[name])
        for tensor in self.optimizer.state():
            tensor.zero_()
        factors = torch.tensor(multipliers)
        losses = [self.step(torch.from_numpy(batch.astype(np.int64)), factor) for batch, factor in zip(windows, factors, strict=True)]
        return torch.stack(losses).tolist()

    @torch.no_grad()
    def evaluate(self, windows: np.ndarray) -> float:
        """Mean loss of (n, length + 1) windows."""
        batches = torch.from_numpy(windows.astype(np.int64)).split(EVALUATION_BATCH)
        return sum(loss_of(self.model(batch[:, :-1]), batch).item() * len(batch) for batch in batches) / len(windows)


def matrix_peak(sizes: list[int]) -> float:
    """FLOP/s of the best of some square fp32 products."""

    def speed(size: int) -> float:
        a, b = torch.rand(size, size), torch.rand(size, size)
        repeats = max(1, int(2e8 / size**3))
        began = time.process_time()
        for _ in range(repeats):
            a @ b
        return repeats * 2 * size**3 / (time.process_time() - began)

    return max(speed(size) for size in sizes for _ in range(2))


def answers(requests: TextIO) -> Iterator[dict[str, Any]]:
    """One answer a request; the times are those of the work that the request names."""
    trainer: Trainer | None = None
    for line in requests:
        request = json.loads(line)
        cpu, wall = time.process_time(), time.monotonic()
        out: dict[str, Any] = {}
        match request.pop("do"):
            case "build":
                torch.compiler.reset()
                trainer = Trainer(**request)
                out["parameters"] = sum(tensor.numel() for tensor in trainer.parameters.values())
            case "steps":
                trainer.steps(request["count"])
            case "load":
                trainer.load(request["path"])
            case "train":
                windows = np.load(request["windows"], mmap_mode="r", allow_pickle=False)
                out["losses"] = trainer.train(windows[: len(request["multipliers"])], request["multipliers"])
            case "evaluate":
                out["loss"] = trainer.evaluate(np.load(request["windows"], allow_pickle=False))
            case "peak":
                out["flops_per_second"] = matrix_peak(request["sizes"])
        yield {**out, "cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}


def main() -> None:
    """Answer until standard input closes."""
    torch.set_num_threads(1)
    inductor.cpp_wrapper = True
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    for answer in answers(sys.stdin):
        print(json.dumps(answer), file=channel)


if __name__ == "__main__":
    main()
