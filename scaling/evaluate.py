"""Held-out loss: forward only, on the same windows for every run, and its standard error."""

import math
from functools import lru_cache

import jax
import numpy as np

from scaling.architectures import architecture_of
from scaling.config import ModelConfig, Precision

EVALUATION_BATCH = 8
"""Windows a batch: 4 to 16 take the same time within noise, 64 takes a fifth more (LOG.md)."""


def window_losses(model: ModelConfig, parameters: dict, windows: np.ndarray, *, precision: Precision = "float32") -> np.ndarray:
    """Mean loss of each window (n, length + 1), nats per token; float64. Batch by batch, so that one program serves any number."""
    count, length = len(windows), model.sequence_length
    padded = np.zeros((-(-count // EVALUATION_BATCH) * EVALUATION_BATCH, length + 1), np.uint8)
    padded[:count] = windows
    batches = padded.reshape(-1, 1, EVALUATION_BATCH, length + 1)
    losses = [architecture_of(model, precision).window_losses(model, parameters, batch) for batch in batches]
    return np.concatenate([np.asarray(loss)[0] for loss in losses])[:count].astype(np.float64)


@lru_cache(maxsize=4)
def compile_evaluation(model: ModelConfig, precision: Precision = "float32") -> None:
    """Compile the held-out loss of a shape by evaluating one batch of nothing, or fetch it from the shared cache."""
    shapes = jax.eval_shape(lambda: architecture_of(model).initial_parameters(model, 0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    window_losses(model, zeros, np.zeros((1, model.sequence_length + 1), np.uint8), precision=precision)


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
