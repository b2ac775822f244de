"""Edges of each feature's bins, found from histograms of all clients' records alone.

Nobody needs to know the features' ranges: the first edges lie evenly among all float32 numbers, and each histogram moves them to where
records are. Half of a feature's edges are spread by the records, as quantiles are, and half evenly over their range, so that the edges
separate rare values, too. The same sums give the same edges, bit by bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedray.parameters import Vector

#: Histograms after which the edges stay as they are.
REFINEMENTS = 5
_COARSE = 2  # of them look for the records' order of magnitude
_LARGEST = np.finfo(np.float32).max

Floats = npt.NDArray[np.float64]


def first_edges(features: int, bins: int) -> Vector:
    """Edges that lie evenly among all float32 numbers, float32 ``[features, bins - 1]``."""
    last = float(_ranks(np.array([_LARGEST]))[0])
    return np.tile(_numbers(np.linspace(-last, last, bins + 1)[1:-1]), (features, 1))


def refined(edges: Vector, weights: Floats, refinement: int) -> Vector:
    """The edges after one more histogram.

    Args:
        edges: float32 ``[features, bins - 1]``, ascending.
        weights: of the records in each bin, 0 or above, ``[features, bins]``; a feature without records keeps its edges.
        refinement: how many there were before. The first go by the order of the float32 numbers, which is as their logarithms.
    """
    coarse, bins = refinement < _COARSE, weights.shape[1]
    found = edges.copy()
    for feature, own in enumerate(weights):
        occupied = np.flatnonzero(own)
        if not len(occupied):
            continue
        ends = np.concatenate([[-_LARGEST], edges[feature], [_LARGEST]])[occupied[0] : occupied[-1] + 2]
        at = _ranks(ends) if coarse else ends.astype(np.float64)
        share = np.concatenate([[0.0], np.cumsum(own[occupied[0] : occupied[-1] + 1])])
        share = share / share[-1] + (at - at[0]) / (at[-1] - at[0])
        # Until the last, the outermost edges hold the records between them, so that the next histogram shows where they end.
        wanted = np.linspace(0.0, 2.0, bins - 1) if refinement < REFINEMENTS - 1 else np.arange(1, bins) * (2.0 / bins)
        new = np.interp(wanted, share, at)
        found[feature] = _numbers(new) if coarse else new
    return found


def _ranks(numbers: npt.NDArray[np.floating]) -> Floats:
    """The place of float32 numbers among all of them, 0 for 0."""
    bits = numbers.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits).astype(np.float64)


def _numbers(ranks: Floats) -> Vector:
    """The float32 numbers at places among all of them, which are rounded."""
    whole = np.rint(ranks).astype(np.int64)
    return np.copysign(np.abs(whole).astype(np.int32).view(np.float32), whole.astype(np.float32))
