"""The opponents: two nanoGPT-style decoders in PyTorch, row-major, with the optimizers they are trained with.

`Matched` and `MuonAdam` are the architecture and the optimizer of scaling/model.py and scaling/optimizer.py, written as a PyTorch user
would write them: what differs from ours is the arrangement, not the arithmetic (`train_step.py --check` holds the two together).
`NanoGPT` and `AdamW` are nanoGPT's own recipe (Karpathy 2022): LayerNorm with a gain, GELU, learned positions, tied head, AdamW.
This file runs in .venv-torch (`make bench-torch`) and imports nothing of ours. Optimizers are plain tensor arithmetic on named tensors, so
that the compiler sees all of a step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6
QUERY_GAIN = 1.5
NEWTON_SCHULZ = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037))

Tensors = dict[str, Tensor]
"""Parameters or gradients by name, as `nn.Module.named_parameters` names them."""

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(query, key, value, scale) -> mixed values, causal; all (batch, head, time, head_dim)."""


@dataclass(frozen=True)
class Shape:
    """The fields of `scaling.config.ModelConfig`."""

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    vocab_size: int
    sequence_length: int
    rope_base: float


def fused_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """PyTorch's own kernel: no scores in memory, future keys skipped."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Masked softmax written out, for the compiler to fuse."""
    length = query.shape[-2]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(-2, -1) * scale).masked_fill(future, -math.inf)
    return torch.softmax(scores, -1) @ value


def heads_of(x: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, time, 3 d) -> query, key, value, each (batch, head, time, head_dim)."""
    batch, length, width = x.shape
    query, key, value = x.view(batch, length, 3, n_heads, width // 3 // n_heads).permute(2, 0, 3, 1, 4)
    return query, key, value


class Optimizer(Protocol):
    """Changes parameters in place."""

    def update(self, gradients: Tensors, multiplier: Tensor) -> None:
        """One step; `multiplier` is the schedule's factor on every rate."""

    def state(self) -> list[Tensor]:
        """All that is remembered between steps; it starts as zeros."""


class Adam:
    """Bias-corrected moments of some tensors and the direction they give."""

    def __init__(self, tensors: Tensors, *, beta1: float, beta2: float, epsilon: float):
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.count = torch.zeros(())
        self.first = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}

    def state(self) -> list[Tensor]:
        """The moments and the number of steps."""
        return [self.count, *self.first.values(), *self.second.values()]

    def directions(self, gradients: Tensors) -> Tensors:
        """Update the moments; directions to be subtracted."""
        self.count.add_(1)
        out = {}
        for name, first in self.first.items():
            first.lerp_(gradients[name], 1 - self.beta1)
            second = self.second[name].lerp_(gradients[name].square(), 1 - self.beta2)
            root = (second / (1 - self.beta2**self.count)).sqrt() + self.epsilon
            out[name] = first / (1 - self.beta1**self.count) / root
        return out


# ---------------------------------------------------------------- our architecture and optimizer


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last axis."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPSILON)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, the two halves of a head as the two coordinates."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class MatchedBlock(nn.Module):
    """`scaling.model.Block`."""

    def __init__(self, shape: Shape, attention: Attention):
        super().__init__()
        d, f = shape.d_model, shape.d_ff
        self.n_heads, self.attention = shape.n_heads, attention
        self.query_key_value = nn.Parameter(torch.randn(3 * d, d) / d**0.5)
        self.query_gain = nn.Parameter(torch.full((d // shape.n_heads,), QUERY_GAIN))
        self.output = nn.Parameter(torch.zeros(d, d))
        self.up = nn.Parameter(torch.randn(f, d) / d**0.5)
        self.down = nn.Parameter(torch.zeros(d, f))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = heads_of(F.linear(rms_norm(x), self.query_key_value), self.n_heads)
        query, key = rotate(rms_norm(query) * self.query_gain, cos, sin), rotate(rms_norm(key), cos, sin)
        mixed = self.attention(query, key, value, query.shape[-1] ** -0.5)
        x = x + F.linear(mixed.transpose(1, 2).reshape(x.shape), self.output)
        return x + F.linear(F.relu(F.linear(rms_norm(x), self.up)).square(), self.down)


class Matched(nn.Module):
    """`scaling.model.Transformer`: (batch, time) tokens -> (batch, time, vocab) logits."""

    def __init__(self, shape: Shape, attention: Attention):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.d_model))
        self.blocks = nn.ModuleList(MatchedBlock(shape, attention) for _ in range(shape.n_layers))
        self.head = nn.Parameter(torch.zeros(shape.vocab_size, shape.d_model))
        half = shape.d_model // shape.n_heads // 2
        angles = torch.outer(torch.arange(shape.sequence_length).double(), shape.rope_base ** (-torch.arange(half).double() / half))
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = rms_norm(F.embedding(tokens, self.embedding))
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(rms_norm(x), self.head)


def orthogonalize(x: Tensor) -> Tensor:
    """Newton-Schulz on a batch of (m, n) matrices, m <= n, as `scaling.optimizer.orthogonalize`."""
    x = x / (x.square().sum((1, 2), keepdim=True).sqrt() + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonAdam:
    """`scaling.optimizer.make_optimizer`: Muon for the matrices of the blocks, Adam for embedding, head and query gains."""

    def __init__(self, parameters: Tensors, *, rates: dict[str, float], momentum: float, beta1: float, beta2: float):
        self.parameters, self.rates, self.decay = parameters, rates, 1 - momentum
        self.matrices = [name for name, tensor in parameters.items() if name.startswith("blocks.") and tensor.ndim == 2]
        self.average = {name: torch.zeros_like(parameters[name]) for name in self.matrices}
        others = {name: tensor for name, tensor in parameters.items() if name not in self.average}
        self.adam = Adam(others, beta1=beta1, beta2=beta2, epsilon=1e-10)

    def state(self) -> list[Tensor]:
        """Averages of the gradients, and Adam's moments."""
        return [*self.average.values(), *self.adam.state()]

    def update(self, gradients: Tensors, multiplier: Tensor) -> None:
        """One step."""
        momenta = {}
        for name, average in self.average.items():
            average.lerp_(gradients[name], self.decay)
            momenta[name] = torch.lerp(average, gradients[name], self.decay)  # Nesterov
        for name, direction in self._orthogonal(momenta).items():
            self.parameters[name].sub_(direction * (multiplier * self.rates["matrix"]))
        for name, direction in self.adam.directions(gradients).items():
            group = "head" if name == "head" else "embedding"
            self.parameters[name].sub_(direction * (multiplier * self.rates[group]))

    def _orthogonal(self, momenta: Tensors) -> Tensors:
        """Matrices of one shape in one batch; q, k and v apart; the update of `up` grows by sqrt(f / d)."""
        blocks = [name.removesuffix("down") for name in self.matrices if name.endswith("down")]
        d, f = momenta[blocks[0] + "down"].shape
        square = [part for b in blocks for part in (*momenta[b + "query_key_value"].chunk(3), momenta[b + "output"])]
        wide = [part for b in blocks for part in (momenta[b + "up"].mT, momenta[b + "down"])]
        squares, wides = orthogonalize(torch.stack(square)), orthogonalize(torch.stack(wide))
        out = {}
        for i, b in enumerate(blocks):
            out[b + "query_key_value"] = squares[4 * i : 4 * i + 3].reshape(3 * d, d)
            out[b + "output"] = squares[4 * i + 3]
            out[b + "up"] = wides[2 * i].mT * (f / d) ** 0.5
            out[b + "down"] = wides[2 * i + 1]
        return out


# ---------------------------------------------------------------- nanoGPT's own recipe


class NanoGPTBlock(nn.Module):
    """Pre-norm block; no bias anywhere; the matrices that write into the residual stream start smaller."""

    def __init__(self, shape: Shape, attention: Attention):
        super().__init__()
        d, f = shape.d_model, shape.d_ff
        self.n_heads, self.attention = shape.n_heads, attention
        self.norm_attention = nn.LayerNorm(d, bias=False)
        self.query_key_value = nn.Linear(d, 3 * d, bias=False)
        self.output = nn.Linear(d, d, bias=False)
        self.norm_mlp = nn.LayerNorm(d, bias=False)
        self.up = nn.Linear(d, f, bias=False)
        self.down = nn.Linear(f, d, bias=False)
        for layer in (self.query_key_value, self.up):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.output, self.down):
            nn.init.normal_(layer.weight, std=0.02 / (2 * shape.n_layers) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = heads_of(self.query_key_value(self.norm_attention(x)), self.n_heads)
        mixed = self.attention(query, key, value, query.shape[-1] ** -0.5)
        x = x + self.output(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class NanoGPT(nn.Module):
    """Tokens (batch, time) -> logits (batch, time, vocab) with learned positions and the embedding as the head."""

    def __init__(self, shape: Shape, attention: Attention):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.position = nn.Embedding(shape.sequence_length, shape.d_model)
        self.blocks = nn.ModuleList(NanoGPTBlock(shape, attention) for _ in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.d_model, bias=False)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


class AdamW:
    """AdamW as nanoGPT sets it: gradients clipped to norm 1, weight decay 0.1 on everything that is not a vector.

    There is one rate and it is the multiplier, so that one compilation serves every rate.
    """

    def __init__(self, parameters: Tensors, *, beta1: float, beta2: float, weight_decay: float):
        self.parameters, self.weight_decay = parameters, weight_decay
        self.adam = Adam(parameters, beta1=beta1, beta2=beta2, epsilon=1e-8)

    def state(self) -> list[Tensor]:
        """Adam's moments."""
        return self.adam.state()

    def update(self, gradients: Tensors, multiplier: Tensor) -> None:
        """One step."""
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        factor = (1 / (norm + 1e-6)).clamp(max=1.0)
        clipped = {name: gradient * factor for name, gradient in gradients.items()}
        for name, direction in self.adam.directions(clipped).items():
            parameter = self.parameters[name]
            decay = self.weight_decay if parameter.ndim >= 2 else 0.0
            parameter.mul_(1 - multiplier * decay).sub_(direction * multiplier)
