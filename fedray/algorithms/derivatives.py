"""First and second derivatives of losses by a record's outputs, for methods that send sums of them.

Every number of a record is computed from that record alone by operations on single numbers, in an order that does not depend on which
records stand beside it, so that any split of the records among clients gives the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def logistic(logit: Floats, labels: Labels) -> tuple[Floats, Floats]:
    """Derivatives of binary cross-entropy by the logit ``[n]``: the first ``[1, n]`` and the second ``[1, 1, n]``."""
    small = np.exp(-np.abs(logit))  # never overflows
    one, rest = 1 / (1 + small), small / (1 + small)
    residual = np.where(logit >= 0, one, rest) - (labels == 1)
    return residual[None], (one * rest)[None, None]


def softmax_residual(logits: Floats, labels: Labels) -> tuple[Floats, Floats]:
    """The first derivatives of cross-entropy by the logits ``[outputs, n]``, and the probabilities, both ``[outputs, n]``."""
    powers = np.exp(logits - logits.max(0))
    total = np.zeros(len(labels))
    for power in powers:
        total += power
    p = powers / total
    return p - (labels == np.arange(len(logits))[:, None]), p


def softmax(logits: Floats, labels: Labels) -> tuple[Floats, Floats]:
    """Derivatives of cross-entropy by the logits ``[outputs, n]``: the first ``[outputs, n]`` and the second ``[outputs, outputs, n]``."""
    residual, p = softmax_residual(logits, labels)
    classes = np.arange(len(logits))
    curvature = -p[:, None] * p
    curvature[classes, classes] += p
    return residual, curvature
