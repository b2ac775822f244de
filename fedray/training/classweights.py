"""Weights of classes in a loss, for data in which some classes are rare.

Source: Cui et al. 2019, Class-Balanced Loss Based on Effective Number of Samples, equations 2 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedray.errors import ConfigError

#: In a config, weights that follow from the numbers of records of the classes.
BALANCED = "balanced"

#: A weight for each class, or those that follow from the classes' numbers of records.
ClassWeights = list[float] | Literal["balanced"] | None


def balanced(counts: Sequence[int], beta: float) -> list[float]:
    """Weights that balance classes: of each one over its effective number of records, (1 - beta^n) / (1 - beta).

    Args:
        counts: numbers of records n of the classes, 0 or more, of which one is above 0.
        beta: at least 0 and below 1. With 0 all weights are 1; the nearer to 1, the nearer they are to one over the number of records.

    Returns:
        The weights. Their mean over the classes that have records is 1, and a class without records has weight 0.
    """
    weights = [(1 - beta) / (1 - beta**n) if n else 0.0 for n in counts]
    scale = sum(n > 0 for n in counts) / sum(weights)
    return [scale * weight for weight in weights]


def weighted(losses: Tensor, targets: Tensor, weights: ClassWeights, beta: float, counts: Sequence[int] | None) -> Tensor:
    """The records' losses [n], each times the weight of its class; as they are where no weights are known.

    Args:
        losses: float [n].
        targets: classes, int64 [n].
        weights, beta, counts: as a loss takes them.
    """
    if weights == BALANCED:
        weights = None if counts is None else balanced(counts, beta)
    return losses if weights is None else losses * losses.new_tensor(weights)[targets]


def check_weights(path: str, weights: ClassWeights, given: Sequence[str], counts: Sequence[int] | None) -> int | None:
    """The number of classes that a loss's arguments are for; None where they are for any.

    Args:
        path: the config key of the weights.
        weights: as a loss takes them.
        given: the names of the keys that the config has.
        counts: the declared numbers of records.

    Raises:
        ConfigError: keys of balanced weights without them, no class, or only weights of 0.
    """
    section = path.rpartition(".")[0]
    for key in ("beta", "counts"):
        if key in given and weights != BALANCED:
            raise ConfigError(f"{section}.{key}: belongs to balanced weights; set {path}=balanced, or take it out.")
    values = counts if weights == BALANCED else weights
    if values is None:
        return None
    if len(values) < 2 or not any(values):
        key = f"{section}.counts" if weights == BALANCED else path
        raise ConfigError(f"{key}: is {list(values)}; give one number for each class, at least two numbers, of which one is above 0.")
    return len(values)


def counted(targets: Tensor) -> list[int]:
    """The number of records of each class up to the largest that occurs, of targets int64 [n]."""
    return torch.bincount(targets).tolist()
