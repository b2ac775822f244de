"""Sums of bounded integers over records, and their noise: what queries and noised evaluations are made of.

A number is clipped to public bounds, scaled to [-1, 1] and rounded to the nearest multiple of 1 / :data:`GRID`; it enters sums as that integer
multiple. Every step is one correctly rounded operation on a single number, so a record's contribution does not depend on the records beside
it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedray.privacy.mechanisms.exactgaussian import exact_gaussian
from fedray.updates.stage import Source

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: Grid units of the number 1.
GRID = 1 << 20


def scaled(values: Floats, low: float, high: float) -> Floats:
    """Values clipped to their bounds and mapped to [-1, 1]; those that are not numbers become 0, the middle."""
    middle, half = low / 2 + high / 2, high / 2 - low / 2
    return np.nan_to_num(np.clip((np.clip(values, low, high) - middle) / half, -1.0, 1.0), nan=0.0)


def on_grid(values: Floats) -> Integers:
    """Numbers in [-1, 1] as integers in grid units, at most ``GRID`` in absolute value."""
    return np.rint(values * GRID).astype(np.int64)


def one_hot(index: Integers, size: int) -> Integers:
    """``GRID`` at each record's index and 0 elsewhere, int64 ``[n, size]``; all 0 for an index that is no position."""
    made = np.zeros((len(index), size), dtype=np.int64)
    known = np.flatnonzero((index >= 0) & (index < size))
    made[known, index[known]] = GRID
    return made


def bin_of(values: Floats, low: float, high: float, bins: int) -> Integers:
    """Index of the bin of equal width that a value lies in, by exact comparison with the bins' edges; values outside count in the outer bins, and
    what is not a number has -1."""
    inner = edges_of(low, high, bins)[1:-1]
    return np.where(np.isnan(values), -1, np.searchsorted(inner, values, side="right")).astype(np.int64)


def edges_of(low: float, high: float, bins: int) -> Floats:
    """The edges of bins of equal width, float64 ``[bins + 1]``."""
    return np.linspace(low, high, bins + 1)


def bounded_rows(rows: Integers, squared: int) -> Integers:
    """The rows, with 0 in place of those whose squared norm is above the bound, in exact arithmetic."""
    largest = max(int(rows.max(initial=0)), -int(rows.min(initial=0)))
    if largest**2 * rows.shape[1] < 1 << 63:
        kept = (rows * rows).sum(axis=1) <= squared
    else:
        kept = np.array([sum(v * v for v in row) <= squared for row in rows.tolist()])
    return np.where(kept[:, None], rows, np.int64(0))


def noised(total: Integers, variance: int, source: Source) -> Integers:
    """A sum with discrete Gaussian noise on every value, int64 ``[size]``; the only form in which it may leave the client."""
    made: Integers = total + exact_gaussian(variance, len(total), source)
    return made
