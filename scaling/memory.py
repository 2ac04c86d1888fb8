"""How much memory of a device a training run takes, before it starts; the micro-batches and populations that fit.

The counts are those of `scaling.accelerated` with fused attention. Against what a GPU reported: docs/gpu.md and tests/test_memory.py.
"""

from dataclasses import dataclass

from scaling.accounting import count_parameters
from scaling.config import ModelConfig, Precision

USABLE = 0.9
"""Share of a device's memory that is planned for; the rest is left to libraries, fragmentation and the error of the estimate."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device by what they hold."""

    parameters: float
    optimizer: float
    gradients: float
    activations: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.parameters + self.optimizer + self.gradients + self.activations

    def __str__(self) -> str:
        """The sum and its parts in GB."""
        parts = ", ".join(f"{name} {getattr(self, name) / 1e9:.3g}" for name in ("parameters", "optimizer", "gradients", "activations"))
        return f"{self.total / 1e9:.3g} GB ({parts})"


def training_memory(
    model: ModelConfig, *, optimizer: str, precision: Precision, windows: int, lanes: int = 1, parameter_shards: int = 1
) -> Memory:
    """Memory of training on `windows` windows at a time, for each of `lanes` models.

    Parameters: float32, and once more in the precision of the products. Optimizer: Muon one float32 for each entry of a matrix and two
    copies while it orthogonalises; Adam two. Gradients: float32. `parameter_shards` devices hold a part of these each; of what is gathered
    for a layer's products only the activations' device pays, which is neglected.

    Activations of a token, in bytes, with p = 2 or 4 bytes a number in products: each layer 8 d (the residual stream in float32, twice),
    13 p d (queries, keys and values, the first two once more normed and turned, what attention gives, what the MLP's ReLU sees, and the
    transients of one backward pass, measured) and, without fused attention (float32), 3 x 4 x heads x context for scores; the logits
    12 x vocabulary: themselves, their exponentials and their gradient, float32.
    """
    counted, width = count_parameters(model), 2 if precision == "bfloat16" else 4
    matrices, rest = counted.non_embedding, counted.embedding + counted.unembedding
    share = lanes / parameter_shards
    in_optimizer = (4 + 2 * width) * matrices + 8 * rest if optimizer == "muon" else 8 * counted.total
    layer = (8 + 13 * width) * model.d_model + (12 * model.n_heads * model.sequence_length if precision == "float32" else 0)
    token = model.n_layers * layer + 12 * model.vocab_size
    return Memory(
        parameters=share * counted.total * (4 + (width if precision == "bfloat16" else 0)),
        optimizer=share * in_optimizer,
        gradients=share * 4 * counted.total,
        activations=float(lanes * windows * model.sequence_length * token),
    )
