"""Bounds for comparing two computations of one quantity that differ in the order of their operations.

A processor, its libraries and their numbers of threads choose that order, and whether products are fused with additions, so the last
bits are theirs. What they cannot change is how large the difference may become. Each operation is exact up to a relative error of at
most u, half the distance of 1 to the next larger number (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 2.2).

A sum or inner product of n terms, in any order, differs from the exact one by at most gamma(n) = n u / (1 - n u) times the sum of its
terms' magnitudes (Higham 2002, section 3.1). Where terms have either sign, their magnitudes add up to about sqrt(n) times what is left
of them, and the error to about sqrt(n) u times the magnitudes (Higham & Mary 2019, A New Approach to Probabilistic Rounding Error
Analysis), so that gamma(n) is also relative to the norm of the result. A fault of a method is larger by orders: a step or a record
that is left out or counted twice changes one part in steps or records.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

#: Half the distance of 1 to the next larger float32.
FLOAT32 = 2.0**-24
#: A model's parameters, or numbers of any shape.
Values = nn.Module | Tensor | npt.NDArray[np.floating]


def gamma(terms: int, unit: float = FLOAT32) -> float:
    """Error of a sum of ``terms`` terms, relative to the sum of their magnitudes."""
    assert terms * unit < 0.5, "so many terms leave nothing of a number's digits"
    return terms * unit / (1 - terms * unit)


def flat(values: Values) -> npt.NDArray[np.float64]:
    """Parameters of a model, or the values of an array, one after the other."""
    if isinstance(values, nn.Module):
        values = torch.cat([p.detach().flatten() for p in values.parameters()])
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64).ravel()


def terms_of(model: nn.Module, records: int = 1) -> int:
    """Terms of the longest chain of sums in one step of training: each layer's inputs forwards, its outputs backwards, then the records.

    Args:
        model: chain of layers whose parameters are [outputs, inputs, ...].
        records: in the batch; for convolutions and sequences, times the places at which a weight is used.
    """
    shapes = [p.shape for p in model.parameters() if p.dim() > 1]
    return sum(int(np.prod(s[1:])) + int(s[0]) * int(np.prod(s[2:])) + records for s in shapes)


def steps_apart(start: Values, end: Values, terms: int, steps: int) -> float:
    """How far the float32 weights of two equal trainings may be apart, in the L2 norm.

    Each step of each training rounds each weight once, by at most u times its magnitude. What they moved by comes from sums of
    ``terms`` terms in each. Differences grow with the steps by less than twice for the learning rates that are used here.

    Args:
        start: weights before, [n].
        end: weights afterwards, of one of them, [n].
        terms: of the longest chain of sums in a step (:func:`terms_of`).
        steps: steps of a training.
    """
    before, after = flat(start), flat(end)
    size, moved = max(np.linalg.norm(before), np.linalg.norm(after)), np.linalg.norm(after - before)
    bound = float(2 * (2 * steps * FLOAT32 * size + 2 * gamma(terms) * moved))
    assert bound < 0.5 * moved / steps, "such a bound would not notice a step that is missing"
    return bound


def apart(a: Values, b: Values) -> float:
    """L2 distance of two models' parameters or of two arrays."""
    return float(np.linalg.norm(flat(a) - flat(b)))
