"""Transforms of features before training.

A transform is a function ``transform(**arguments) -> Transform``. It declares whether it computes statistics over records, because through
such statistics one record's gradient depends on all others, which record-level differential privacy does not cover.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Apply = Callable[[Floats], Floats]
_BLOCK = 8192


@dataclass(frozen=True)
class Transform:
    """A transform of features ``[n, *shape]`` float32.

    Attributes:
        fit: takes a client's training features and returns the function to apply, which may change its argument in place and must
            treat each record separately.
        private_statistics: whether ``fit`` uses the client's records. If not, it gets an empty array, and the same function is applied to
            all clients' records.
        in_torch: the same function for a float32 tensor ``[n, *shape]``, with operations that ``torch.export`` can trace, so that the
            registered model can take records before the transform; None if it does not exist.
    """

    fit: Callable[[Floats], Apply]
    private_statistics: bool = False
    in_torch: Callable[[Tensor], Tensor] | None = None


def none() -> Transform:
    """Features as they come from the source."""
    return Transform(lambda train: lambda x: x, in_torch=lambda x: x)


def unit_norm() -> Transform:
    """Each record scaled to L2 norm 1 (all-zero records stay); looks at one record at a time."""

    def apply(x: Floats) -> Floats:
        flat = x.reshape(len(x), -1)
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK]
            norms = np.sqrt(np.square(block, dtype=np.float64).sum(axis=1, keepdims=True))
            np.divide(block, norms, out=block, where=norms > 0, casting="same_kind")
        return x

    def in_torch(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        norms = flat.double().square().sum(1, keepdim=True).sqrt()
        return (flat / norms.where(norms > 0, norms.new_ones(()))).to(x.dtype).reshape(x.shape)

    return Transform(lambda train: apply, in_torch=in_torch)


def constants(*, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0) -> Transform:
    """Minus a mean, divided by a standard deviation, both public constants.

    Args:
        mean: one number, or one for each channel (feature, for flat records).
        std: the same, above 0.

    Raises:
        DataError: a std that is not above 0, or not one value a channel.
    """
    shift, scale = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise DataError(f"data.normalize.std: should be above 0, but is {std}.")
    if not np.isfinite(shift).all():
        raise DataError(f"data.normalize.mean: should be finite, but is {mean}.")

    def apply(x: Floats) -> Floats:
        for name, values in (("mean", shift), ("std", scale)):
            if values.ndim and len(values) != x.shape[1]:
                raise DataError(
                    f"data.normalize.{name}: has {len(values)} values, but records of shape {x.shape[1:]} have {x.shape[1]} channels."
                )
        trailing = (1,) * (x.ndim - 2)
        np.subtract(x, shift.reshape(-1, *trailing) if shift.ndim else shift, out=x)
        np.divide(x, scale.reshape(-1, *trailing) if scale.ndim else scale, out=x)
        return x

    def in_torch(x: Tensor) -> Tensor:
        import torch

        trailing = (1,) * (x.ndim - 2)
        minus, over = (torch.from_numpy(v.reshape(-1, *trailing) if v.ndim else v) for v in (shift, scale))
        return (x - minus) / over

    return Transform(lambda train: apply, in_torch=in_torch)


def standardize_client() -> Transform:
    """Each feature to mean 0 and standard deviation 1 over the client's own training records.

    The test records of the client use the same statistics; features that are constant at a client become 0.
    Private statistics: not under record-level differential privacy.
    """

    def fit(train: Floats) -> Apply:
        mean = train.mean(axis=0, dtype=np.float64)
        std = train.std(axis=0, dtype=np.float64)
        # Rounding leaves a constant column with a standard deviation of about 1e-16 of its size.
        constant = std <= 1e-7 * np.abs(mean)
        shift = mean.astype(np.float32)
        scale = np.where(constant, 1.0, std).astype(np.float32)

        def apply(x: Floats) -> Floats:
            np.subtract(x, shift, out=x)
            np.divide(x, scale, out=x)
            return x

        return apply

    return Transform(fit, private_statistics=True)


TRANSFORMS = {"none": none, "unit_norm": unit_norm, "constants": constants, "standardize_client": standardize_client}
