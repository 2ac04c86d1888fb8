"""Parameters by group and FLOPs by part, from the config alone.

Conventions: a multiply-add is 2 FLOPs; the backward pass costs twice the forward pass of every matrix product; element-wise work
(norms, activations, softmax) is not counted. Attention is counted over the full T x T square, as the readable model computes it and as in
PaLM (Chowdhery et al. 2022, appendix B); what the fast path saves by skipping future keys is not credited.
"""

from dataclasses import dataclass

from scaling.config import ModelConfig
from scaling.registry import MODELS, architecture


@dataclass(frozen=True)
class Parameters:
    """Number of trainable parameters by group."""

    embedding: int
    non_embedding: int
    unembedding: int

    @property
    def total(self) -> int:
        """Sum of the groups (the head is untied)."""
        return self.embedding + self.non_embedding + self.unembedding


def count_parameters(model: ModelConfig) -> Parameters:
    """Parameters of `scaling.model.Transformer`: per block 4 d^2 (attention), 2 d d_ff (MLP), head_dim (query gain).

    >>> m = ModelConfig(d_model=16, n_layers=3, n_heads=2, d_ff=64, vocab_size=256, sequence_length=128)
    >>> count_parameters(m).non_embedding  # 3 * (4 * 16**2 + 2 * 16 * 64 + 8)
    9240
    """
    if model.kind not in MODELS:
        return Parameters(*architecture(model.kind).count_parameters(model))
    block = 4 * model.d_model**2 + 2 * model.d_model * model.d_ff + model.d_model // model.n_heads
    table = model.vocab_size * model.d_model
    return Parameters(embedding=table, non_embedding=model.n_layers * block, unembedding=table)


def forward_flops_per_token(model: ModelConfig) -> dict[str, int]:
    """FLOPs of one forward pass per token, by part."""
    if model.kind not in MODELS:
        return architecture(model.kind).forward_flops_per_token(model)
    d, layers, context = model.d_model, model.n_layers, model.sequence_length
    return {
        "attention_projections": layers * 8 * d * d,
        "attention_scores": layers * 4 * d * context,
        "mlp": layers * 4 * d * model.d_ff,
        "head": 2 * d * model.vocab_size,
    }


def training_flops_per_token(model: ModelConfig) -> int:
    """FLOPs of one training token: forward plus backward (twice the forward)."""
    return 3 * sum(forward_flops_per_token(model).values())
