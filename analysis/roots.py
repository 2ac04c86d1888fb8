"""Roots of functions of one variable, for many problems at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
TOLERANCE = 1e-10


def ridders(function: Callable[[Array], Array], low: Array, high: Array, *, steps: int = 60) -> Array:
    """Root of each element of `function` between `low` and `high`, where it has opposite signs (Ridders 1979).

    Parameters
    ----------
    function : callable
        (m,) -> (m,), element by element.
    low, high : (m,)
        Where the function has the same sign at both, or either is NaN, the result is NaN.

    Returns
    -------
    (m,), to 1e-10 (of x, where that is above 1), or as close as 60 halvings come
    """
    low, high = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    f_low, f_high = function(low), function(high)
    root = np.where(f_low == 0, low, np.where(f_high == 0, high, (low + high) / 2))
    bracketed = np.sign(f_low) * np.sign(f_high) <= 0
    done = (f_low == 0) | (f_high == 0) | ~bracketed
    for _ in range(steps):
        if done.all():
            break
        middle = (low + high) / 2
        f_middle = function(middle)
        with np.errstate(all="ignore"):
            step = (middle - low) * np.sign(f_low - f_high) * f_middle / np.sqrt(f_middle**2 - f_low * f_high)
        new = middle + np.where(np.isfinite(step), step, 0.0)
        f_new = function(new)
        near = np.sign(f_middle) != np.sign(f_new)  # the root lies between the two new points
        left = ~near & (np.sign(f_low) != np.sign(f_new))
        low, f_low, high, f_high = (
            np.where(near, middle, np.where(left, low, new)), np.where(near, f_middle, np.where(left, f_low, f_new)),
            np.where(near | left, new, high), np.where(near | left, f_new, f_high),
        )  # fmt: skip
        size = TOLERANCE * np.maximum(1.0, np.abs(new))
        finished = (f_new == 0) | (np.abs(new - root) < size) | (np.abs(high - low) < size)
        root = np.where(done, root, new)
        done = done | finished
    return np.where(bracketed, root, np.nan)


def falling_root(function: Callable[[Array], Array], grid: Array, values: Array, anchor: int) -> Array:
    """Where each of many functions falls through 0.

    From ``grid[anchor]`` on, the first such place where the function is above 0 there, otherwise the last one before it.

    Parameters
    ----------
    function : callable
        (m, 1) -> (m, 1), element by element.
    grid : (g,) increasing
    values : (m, g)
        The functions on the grid; NaN where they have no value.
    anchor : int

    Returns
    -------
    (m,), NaN where there is no such place
    """
    cells = np.arange(len(grid) - 1)
    falls = (values[:, :-1] > 0) & (values[:, 1:] <= 0)
    falls &= (cells >= anchor) == (values[:, anchor, None] > 0)
    cell = np.where(falls, np.abs(cells - anchor), len(grid)).argmin(axis=1)
    found = falls.any(axis=1)
    low, high = (np.where(found, grid[cell + i], np.nan)[:, None] for i in (0, 1))
    return ridders(function, low, high)[:, 0]
