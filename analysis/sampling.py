"""Low-discrepancy points: a sample of a space that leaves no corner out, the same every time."""

from __future__ import annotations

import numpy as np


def low_discrepancy(count: int, dimensions: int) -> np.ndarray:
    """Return points of the additive recurrence on the generalised golden ratio (Roberts 2018): (count, dimensions) in (0, 1)."""
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = ratio ** -np.arange(1.0, dimensions + 1)
    return (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0
