"""Held-out loss: forward only, on the same windows for every run, and its standard error."""

import math
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from scaling.architectures import architecture_of
from scaling.config import ModelConfig, Precision, Split
from scaling.corpus import Corpus
from scaling.mesh import on_host, place_state, place_text
from scaling.tokenizer import token_dtype

EVALUATION_BATCH = 8
"""Windows a batch on a CPU: 4 to 16 take the same time within noise, 64 takes a fifth more (LOG.md)."""

ACCELERATOR_TOKENS = 16_384
"""Tokens a batch on an accelerator, where a small batch leaves the device idle."""


def evaluation_batch(model: ModelConfig, mesh: Mesh | None = None) -> int:
    """Windows a batch: on a mesh so many on each of its devices."""
    each = EVALUATION_BATCH if jax.default_backend() == "cpu" else max(EVALUATION_BATCH, ACCELERATOR_TOKENS // model.sequence_length)
    return each * (1 if mesh is None else mesh.size)


def window_losses(
    model: ModelConfig, parameters: dict, windows: np.ndarray, *, precision: Precision = "float32", mesh: Mesh | None = None
) -> np.ndarray:
    """Mean loss of each window (n, length + 1), nats per token; float64. Batch by batch, so that one program serves any number."""
    count, length, batch = len(windows), model.sequence_length, evaluation_batch(model, mesh)
    padded = np.zeros((-(-count // batch) * batch, length + 1), token_dtype(model.vocab_size))
    padded[:count] = windows
    parts = [place_text(mesh, part) for part in padded.reshape(-1, 1, batch, length + 1)]
    losses = [architecture_of(model, precision).window_losses(model, parameters, part) for part in parts]
    return np.concatenate([on_host(loss)[0] for loss in losses])[:count].astype(np.float64)


def held_out_losses(
    model: ModelConfig,
    parameters: dict,
    corpus: Corpus,
    *,
    windows: int,
    split: Split = "heldout",
    precision: Precision = "float32",
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Loss on the windows of a split, nats per token, with its standard error clustered by document, and in bits per byte of text.

    `domains` holds the same for every domain of the corpus, if it has any.
    """
    length = model.sequence_length

    def loss_of(count: int, domain: str | None) -> dict[str, float]:
        tokens, documents = corpus.evaluation_windows(count, length=length, split=split, domain=domain)
        losses = window_losses(model, parameters, tokens, precision=precision, mesh=mesh)
        bits = losses.mean() / math.log(2)
        return {
            "loss": float(losses.mean()),
            "loss_se": clustered_standard_error(losses, documents),
            "bits_per_byte": float(bits / corpus.bytes_per_token(count, length=length, split=split, domain=domain)),
        }

    result: dict[str, Any] = loss_of(windows, None)
    if counts := corpus.domain_windows(windows, length=length, split=split):
        result["domains"] = {domain: loss_of(count, domain) for domain, count in counts.items()}
    return result


@lru_cache(maxsize=4)
def compile_evaluation(model: ModelConfig, precision: Precision = "float32", mesh: Mesh | None = None) -> None:
    """Compile the held-out loss of a shape by evaluating one batch of nothing, or fetch it from the shared cache."""
    shapes = jax.eval_shape(lambda: architecture_of(model).initial_parameters(model, 0))
    zeros = place_state(mesh, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    window_losses(model, zeros, np.zeros((1, model.sequence_length + 1), token_dtype(model.vocab_size)), precision=precision, mesh=mesh)


def clustered_standard_error(losses: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the mean when observations within a cluster are dependent: sqrt(G/(G-1) sum_g (sum of residuals)^2) / n.

    >>> clustered_standard_error(np.array([1.0, 3.0]), np.array([0, 1]))
    1.0
    """
    residuals = losses - losses.mean()
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, residuals)
    groups = len(sums)
    if groups < 2:
        return float("nan")
    return float(math.sqrt(groups / (groups - 1) * float(np.sum(sums**2))) / len(losses))
