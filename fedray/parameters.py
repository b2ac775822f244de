"""A model's parameters as one flat float32 vector with a layout.

Clipping, sums, noise and checkpoints work on the vector, which passes through Ray's object store as a NumPy array without copies. The
layout gives each tensor's position in the vector.

torch is imported only in functions that take a model, because the command, which only passes vectors on, must start quickly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

Vector = npt.NDArray[np.float32]
#: Numbers of any type and shape.
Values = npt.NDArray[Any]
Kind = Literal["shared", "buffer"]


@dataclass(frozen=True)
class Entry:
    """One tensor in the vector: ``vector[offset : offset + size]`` reshaped to ``shape``."""

    name: str
    shape: tuple[int, ...]
    offset: int
    kind: Kind

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of a model's tensors, in ``state_dict`` order.

    Trained parameters are ``shared``, floating-point buffers ``buffer``. Frozen parameters (:mod:`fedray.frozen`) and integer buffers
    (BatchNorm's step counter) are in no layout.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, model: nn.Module, personal: Sequence[str] = ()) -> Layout:
        """The layout of what is exchanged: everything but the layers that stay with the clients, see :func:`belongs`."""
        return cls._where(model, lambda name: not belongs(name, personal))

    @classmethod
    def personal(cls, model: nn.Module, personal: Sequence[str]) -> Layout:
        """The layout of the layers that stay with the clients, see :func:`belongs`."""
        return cls._where(model, lambda name: belongs(name, personal))

    @classmethod
    def _where(cls, model: nn.Module, holds: Callable[[str], bool]) -> Layout:
        from torch import nn

        entries, offset = [], 0
        for name, tensor in model.state_dict(keep_vars=True).items():
            parameter = isinstance(tensor, nn.Parameter)
            if not tensor.is_floating_point() or (parameter and not tensor.requires_grad) or not holds(name):
                continue
            entry = Entry(name, tuple(tensor.shape), offset, "shared" if parameter else "buffer")
            entries.append(entry)
            offset += entry.size
        return cls(tuple(entries))

    def document(self) -> list[list[Any]]:
        """The layout as JSON data: name, shape, offset and kind of each entry."""
        return [[e.name, list(e.shape), e.offset, e.kind] for e in self.entries]

    @classmethod
    def read(cls, document: Sequence[Sequence[Any]]) -> Layout:
        """The layout of :meth:`document`."""
        return cls(tuple(Entry(name, tuple(shape), offset, kind) for name, shape, offset, kind in document))

    @property
    def size(self) -> int:
        """Number of float32 values in the vector."""
        return sum(e.size for e in self.entries)

    def mask(self, *kinds: Kind) -> npt.NDArray[np.bool_]:
        """True where the vector belongs to an entry of one of ``kinds``."""
        mask = np.zeros(self.size, dtype=np.bool_)
        for e in self.entries:
            mask[e.offset : e.offset + e.size] = e.kind in kinds
        return mask

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Name to a view of the vector in the entry's shape (no copies)."""
        return {e.name: vector[e.offset : e.offset + e.size].reshape(e.shape) for e in self.entries}


def belongs(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a tensor is one of ``prefixes`` or lies below one: ``fc1`` holds ``fc1.weight``, and not ``fc10.weight``."""
    return any(f"{name}.".startswith(f"{prefix.rstrip('.')}.") for prefix in prefixes)


def get_vector(model: nn.Module, layout: Layout) -> Vector:
    """Copy the model's tensors to a new vector, float32 ``[layout.size]``."""
    import torch

    vector = np.empty(layout.size, dtype=np.float32)
    state = model.state_dict(keep_vars=True)
    target = torch.from_numpy(vector)
    with torch.no_grad():
        for e in layout.entries:
            target[e.offset : e.offset + e.size].copy_(state[e.name].reshape(-1))
    return vector


def update_blocks(model: nn.Module, layout: Layout, weights: Vector, size: int) -> Iterator[tuple[int, Vector]]:
    """Yield :func:`get_vector` minus ``weights`` as pairs of position and at most ``size`` values; each block is overwritten by the next."""
    state, scratch = model.state_dict(keep_vars=True), np.empty(size, dtype=np.float32)
    for e in layout.entries:
        tensor = state[e.name].detach().cpu().float().reshape(-1).numpy()
        for start in range(0, e.size, size):
            part = tensor[start : start + size]
            at = e.offset + start
            yield at, np.subtract(part, weights[at : at + len(part)], out=scratch[: len(part)])


def set_vector(model: nn.Module, layout: Layout, vector: Vector) -> None:
    """Copy a vector into the model.

    Always copies: all processes of a node share a vector in the object store, and a tensor that used its memory would change it for all.

    Raises:
        ValueError: the vector's length is not the layout's.
    """
    import torch

    if vector.shape != (layout.size,):
        raise ValueError(f"vector of shape {vector.shape} for a layout of {layout.size}")
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for e in layout.entries:
            part, tensor = vector[e.offset : e.offset + e.size].reshape(e.shape), state[e.name]
            if tensor.device.type == "cpu":
                tensor.detach().numpy()[...] = part
            else:
                tensor.copy_(torch.from_numpy(part.copy()))


def read_only(values: Values) -> Values:
    """A view of an array that cannot be written to."""
    view = values.view()
    view.flags.writeable = False
    return view


def fingerprint(*values: Values) -> str:
    """Return the SHA-256, hexadecimal, of the values' bytes (little-endian) in order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
