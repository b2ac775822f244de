"""Transforms of features before training.

A transform is a function ``transform(**arguments) -> Transform``. It declares whether it computes statistics over records, because through
such statistics one record's gradient depends on all others, which record-level differential privacy does not cover.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from fedray.components import nearest
from fedray.errors import DataError, blaming
from fedray.rng import generator

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Apply = Callable[[Floats], Floats]
_BLOCK = 8192
_TRIED = 4  # records that show whether one changes another


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
        named: takes the names of the features, empty where they have none, and returns the transform for them; it is used in place of
            this one, whose ``fit`` and ``in_torch`` do not count then. None if names do not matter.
    """

    fit: Callable[[Floats], Apply]
    private_statistics: bool = False
    in_torch: Callable[[Tensor], Tensor] | None = None
    named: Callable[[Sequence[str]], Transform] | None = None

    def of(self, columns: Sequence[str]) -> Transform:
        """The transform for features with these names."""
        return self if self.named is None else self.named(columns)


def checked(transform: Transform, where: str) -> Transform:
    """Return a transform of the user's own, each result of which is checked.

    Args:
        transform: the user's.
        where: beginning of its errors, such as ``data.normalize.kind: 'python:mine:logs'``.

    Raises:
        DataError: by ``fit`` and what that returns: they fail, return anything but features of the same shape, or records change each other.
    """

    def fit(train: Floats) -> Apply:
        with blaming(f"{where}: fit", DataError):
            apply: Any = transform.fit(train)
        if not callable(apply):
            raise DataError(f"{where}: fit returned a {type(apply).__name__}; return the function that is applied to features.")
        return partial(_apply_checked, apply, where)

    if transform.private_statistics and transform.in_torch is not None:
        raise DataError(f"{where}: has private_statistics and in_torch, but one graph cannot hold each client's statistics; leave one out.")
    named = transform.named
    return replace(transform, fit=fit, named=None if named is None else lambda columns: checked(named(columns), where))


def check_in_torch(transform: Transform, shape: tuple[int, ...], where: str) -> None:
    """Compare ``in_torch`` of the user's own transform with what it applies, on random features of records of ``shape``.

    Args:
        transform: from :func:`checked`.
        shape: of one record's features.
        where: as for :func:`checked`.

    Raises:
        DataError: ``in_torch`` fails, or is another function.
    """
    if transform.in_torch is None:
        return
    import torch

    x = generator(0, "in_torch").standard_normal((_TRIED, *shape)).astype(np.float32)
    try:
        expected = transform.fit(x[:0])(x.copy())
    except DataError:  # it need not stand random features
        return
    with blaming(f"{where}: in_torch", DataError):
        found = transform.in_torch(torch.from_numpy(x))
        same = found.dtype == torch.float32 and found.shape == expected.shape and np.allclose(found.numpy(), expected, rtol=1e-3, atol=1e-5)
    if not same:
        raise DataError(
            f"{where}: in_torch gives other features than the function that fit returns; make it the same, for float32 tensors."
        )


def _apply_checked(apply: Apply, where: str, x: Floats) -> Floats:
    some = x[:_TRIED].copy()
    with blaming(where, DataError):
        result: Any = apply(x)
    if not isinstance(result, np.ndarray) or result.shape != x.shape or result.dtype.kind != "f":
        what = f"{result.dtype} {list(result.shape)}" if isinstance(result, np.ndarray) else f"a {type(result).__name__}"
        raise DataError(f"{where}: returned {what} for features float32 {list(x.shape)}; return the same shape, as floats.")
    for start in range(0, len(result), _BLOCK):
        if not np.isfinite(result[start : start + _BLOCK]).all():
            raise DataError(f"{where}: gave a feature that is NaN or infinite; treat such values before.")
    if len(some) > 1:
        with blaming(where, DataError):
            same = np.allclose(apply(some[:1].copy()), result[:1], rtol=1e-4, atol=1e-6)
        if not same:
            raise DataError(
                f"{where}: gives a record other values beside other records; compute statistics in fit, with private_statistics=True."
            )
    return cast(Floats, result.astype(np.float32, copy=False))


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


Constants = float | Sequence[float] | Mapping[str, float]


def constants(*, mean: Constants = 0.0, std: Constants = 1.0, queried: Mapping[str, Any] | None = None) -> Transform:
    """Minus a mean, divided by a standard deviation, both public constants.

    With `from: QUERY_DIR` in place of them, both are the answers of a query (`fedray query`) of kind variance; columns that it was not asked
    for stay as they are.

    Args:
        mean: one number, or one for each channel (feature, for flat records): a list in the features' order, or a mapping of all their names.
        std: the same, above 0.
        queried: which query the numbers come from; written by `from`.

    Raises:
        DataError: a std that is not above 0, not one value for each channel, or names that are not those of the features.
    """
    shift, scale = (np.asarray([*v.values()] if isinstance(v, Mapping) else v, dtype=np.float32) for v in (mean, std))
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise DataError(f"data.normalize.std: should be above 0, but is {std}.")
    if not np.isfinite(shift).all():
        raise DataError(f"data.normalize.mean: should be finite, but is {mean}.")
    if isinstance(mean, Mapping) or isinstance(std, Mapping):

        def named(columns: Sequence[str]) -> Transform:
            return constants(mean=_in_order(mean, columns, "mean"), std=_in_order(std, columns, "std"), queried=queried)

        return Transform(lambda train: lambda x: x, named=named)

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


def _in_order(values: Constants, columns: Sequence[str], which: str) -> float | Sequence[float]:
    """Constants that are given by name in the order of the features; others as they are."""
    if not isinstance(values, Mapping):
        return values
    where = f"data.normalize.{which}"
    if not columns:
        raise DataError(
            f"{where}: names features, but those of these records have no names; give one number, or a list of one for each channel."
        )
    listed = f"the features are {', '.join(columns)}"
    for name in values:
        if name not in columns:
            raise DataError(f"{where}: there is no feature '{name}'; {listed}.{nearest(name, columns)}")
    missing = [name for name in columns if name not in values]
    if missing:
        raise DataError(f"{where}: has no value for {', '.join(map(repr, missing))}; {listed}: name each of them.")
    return [values[name] for name in columns]


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
