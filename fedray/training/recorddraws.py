"""Random numbers that belong to a record, and not to its position in a batch.

What a private step draws besides its noise (dropout's masks, say) is independent of the data and secret. One record's influence on
the step is therefore measured with everybody else's draws held fixed: leaving the record out must not give the others new ones. torch
draws for a batch at once, by position; here every operation of torch that draws is run for each record by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedray.training.engine import seed_torch, seeded_torch

Shape = tuple[int, ...]
#: A shape with 0 where the records are, which axis that is, and how many entries of it a record has.
Pattern = tuple[Shape, int, int]

_KEYS = 2**62


class RecordDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it lasts, each record of a batch is given its own draws: the same whoever else is in the batch.

    They follow from the state of torch's generator, which every operation that draws moves by one step, so that a forward pass
    from the same state gives the same draws.

    Args:
        records: the numbers of the records in the batch, in order.
        patterns: how shapes hold records, see :func:`patterns_of`; an operation of another shape draws for all records alike.

    Attributes:
        shapes: of what was drawn, in order.
        keys: what the draws followed from.
    """

    def __init__(self, records: Sequence[int], patterns: frozenset[Pattern] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._records, self._patterns = list(records), patterns
        self.shapes: list[Shape] = []
        self.keys: list[int] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's compiler would be imported for it, a second and 50 MiB in each process; nothing here is compiled

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run one operation of torch, for each record by itself where it draws."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        if not given.get(
            "dropout_p", given.get("dropout", 1.0)
        ):  # fused attention and recurrent layers, which draw nothing without dropout
            return func(*args, **kwargs)
        generator = given.get("generator")
        self.keys.append(int(torch.randint(_KEYS, (), generator=generator, device="cpu" if generator is None else generator.device)))
        if generator is not None:
            given["generator"] = None
        shaped = given["size"] if "size" in given else next((v for v in given.values() if isinstance(v, Tensor)), None)
        shape = None if shaped is None else tuple(shaped.shape if isinstance(shaped, Tensor) else shaped)
        self.shapes.append(shape or ())
        found = [self._axis(tuple(v.shape)) for v in given.values() if isinstance(v, Tensor)]
        device = next((v.device for v in given.values() if isinstance(v, Tensor)), torch.device(given.get("device") or "cpu"))
        axis = None if shape is None else self._axis(shape)
        with seeded_torch(self.keys[-1] & 0xFFFFFFFF, device):
            if axis is None or None in found:
                return self._call(func, given)
            return self._each(func, given, device, axis)

    def _each(self, func: Any, given: dict[str, Any], device: torch.device, axis: int) -> Any:
        results, parts = [], []
        for place, record in enumerate(self._records):
            seed_torch(hash((self.keys[-1], record)) & 0xFFFFFFFF, device)
            parts.append({name: self._part(name, value, place) for name, value in given.items()})
            results.append(self._call(func, parts[-1]))
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        for name in written:
            given[name].copy_(torch.cat([part[name] for part in parts], axis))
        if func._schema.returns[0].alias_info is not None:
            return given[written[0]]
        if isinstance(results[0], tuple):
            return tuple(torch.cat(values, axis) for values in zip(*results, strict=True))
        return torch.cat(results, axis)

    def _call(self, func: Any, given: dict[str, Any]) -> Any:
        only = {a.name for a in func._schema.arguments if a.kwarg_only}
        return func(*(v for name, v in given.items() if name not in only), **{name: v for name, v in given.items() if name in only})

    def _part(self, name: str, value: Any, place: int) -> Any:
        """One record's part of an argument."""
        shape = tuple(value.shape) if isinstance(value, Tensor) else tuple(value) if name == "size" else None
        axis = None if shape is None else self._axis(shape)
        if axis is None or shape is None:
            return value
        block = shape[axis] // len(self._records)
        if isinstance(value, Tensor):
            return value.narrow(axis, place * block, block).clone(memory_format=torch.contiguous_format)
        return [*shape[:axis], block, *shape[axis + 1 :]]

    def _axis(self, shape: Shape) -> int | None:
        """Where the records are in a shape; None where they are not."""
        n = len(self._records)
        for axis, size in enumerate(shape):
            if n and size and size % n == 0 and ((*shape[:axis], 0, *shape[axis + 1 :]), axis, size // n) in self._patterns:
                return axis
        return None


def patterns_of(shapes: Callable[[int], list[Shape]], n: int) -> frozenset[Pattern]:
    """How the shapes of what is drawn depend on the number of records.

    Args:
        shapes: number of records -> the shapes of what a batch of that many draws, in order.
        n: a number of records; the other is one less.
    """
    found = set[Pattern]()
    for one, other in zip(shapes(n), shapes(n - 1), strict=False):
        axes = [axis for axis, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        if len(one) == len(other) and len(axes) == 1 and one[axes[0]] % n == 0:
            (axis,) = axes
            found.add(((*one[:axis], 0, *one[axis + 1 :]), axis, one[axis] // n))
    return frozenset(found)
