"""Records that are nobody's, on which models and losses are tried before any private record is touched."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedray.models.keywords import Keywords
from fedray.rng import generator

_HUGE = 1e4


def odd(n: int) -> tuple[int, int]:
    """Which of ``n`` synthetic records is huge and which holds a NaN."""
    return n // 2, n - 1


def synthetic_records(
    n: int, shape: tuple[int, ...], outputs: int, classes: int | None, vocabulary: int | None, target_shape: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Records and targets that are drawn at random.

    Args:
        n: how many.
        shape: of one record.
        outputs: of the model, for each record.
        classes: number of classes of the targets; None: ``outputs`` where that is above 1, else real-valued.
        vocabulary: records are token numbers below this; else normal values, one record 10,000 times as large and one with a NaN.
        target_shape: of one record's targets; several that are no classes are 0 or 1.
    """
    draws = generator(0, "preflight")
    if vocabulary is not None:
        x = torch.from_numpy(draws.integers(0, vocabulary, (n, *shape)))
    else:
        values = draws.standard_normal((n, *shape)).astype(np.float32)
        huge, nan = odd(n)
        values[huge] *= _HUGE
        values[nan].reshape(-1)[:1] = np.nan
        x = torch.from_numpy(values)
    if target_shape and classes is None:
        return x, torch.from_numpy((draws.random((n, *target_shape)) < 0.5).astype(np.float32))
    kinds = classes if classes is not None else outputs if outputs > 1 else None
    if kinds is not None:
        return x, torch.from_numpy(draws.integers(0, kinds, (n, *target_shape)))
    return x, torch.from_numpy(draws.standard_normal(n).astype(np.float32))


def with_tokens(model: nn.Module, x: Tensor) -> Tensor:
    """Put token numbers that a model of several inputs knows into those of its inputs that are tokens.

    Args:
        model: of any number of inputs.
        x: synthetic records, of :func:`synthetic_records`; changed in place. A NaN is moved to the first input that can hold it.

    Returns:
        ``x``.
    """
    if not isinstance(model, Keywords):
        return x
    draws, known, start = generator(0, "preflight", "tokens"), vocabulary_of(model) or 2, 0
    with_nan, numbers = x.isnan().any(1), list[int]()
    for one in model.inputs:
        if one.tokens:
            x[:, start : start + one.size] = torch.from_numpy(draws.integers(0, known, (len(x), one.size))).to(x.dtype)
        else:
            numbers.append(start)
        start += one.size
    if numbers:
        x[with_nan, numbers[0]] = torch.nan
    return x


def vocabulary_of(model: nn.Module) -> int | None:
    """Number of tokens that a model knows; None where it has no embedding."""
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return min(sizes) if sizes else None


def without_dropout(model: nn.Module) -> nn.Module:
    """The model itself, with the rate of each dropout layer at 0."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            setattr(module, "dropout", 0.0)  # noqa: B010 - recurrent and attention layers keep their rate as a number
    return model
