"""First and second derivatives of losses by a record's outputs, for methods that send sums of them.

Every number of a record is computed from that record alone by operations on single numbers, in an order that does not depend on which
records stand beside it, so that any split of the records among clients gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]
#: Of a record's outputs ``[outputs, n]`` and targets ``[n]``: the first derivatives ``[outputs, n]`` and the second ``[outputs, outputs, n]``.
Derivatives = Callable[[Floats, Targets], tuple[Floats, Floats]]


def logistic(outputs: Floats, targets: Targets) -> tuple[Floats, Floats]:
    """Derivatives of binary cross-entropy by the logit."""
    small = np.exp(-np.abs(outputs))  # never overflows
    one, rest = 1 / (1 + small), small / (1 + small)
    residual = np.where(outputs >= 0, one, rest) - (targets == 1)
    return residual, (one * rest)[None]


def softmax_residual(outputs: Floats, targets: Targets) -> tuple[Floats, Floats]:
    """The first derivatives of cross-entropy by the logits, and the probabilities, both ``[outputs, n]``."""
    powers = np.exp(outputs - outputs.max(0))
    total = np.zeros(len(targets))
    for power in powers:
        total += power
    p = powers / total
    return p - (targets == np.arange(len(outputs))[:, None]), p


def softmax(outputs: Floats, targets: Targets) -> tuple[Floats, Floats]:
    """Derivatives of cross-entropy by the logits."""
    residual, p = softmax_residual(outputs, targets)
    classes = np.arange(len(outputs))
    curvature = -p[:, None] * p
    curvature[classes, classes] += p
    return residual, curvature


def squared(outputs: Floats, targets: Targets) -> tuple[Floats, Floats]:
    """Derivatives of squared error by the one output."""
    return 2 * (outputs - targets.astype(np.float64)), np.full((1, *outputs.shape), 2.0)


DERIVATIVES: dict[str, Derivatives] = {"binary_cross_entropy": logistic, "cross_entropy": softmax, "mse": squared}
