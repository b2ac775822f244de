"""A sum of updates that was sealed where it was made: whoever adds it to others cannot read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from fedray.aggregation.exact import ExactSum
from fedray.secure.protocol import SealedValues


@dataclass
class SealedSum(ExactSum):
    """An :class:`ExactSum` whose values are zeros, until somebody opens what is sealed and adds it to them."""

    readable: ClassVar[bool] = False
    sealed: SealedValues = field(kw_only=True)

    @classmethod
    def of(cls, sum_: ExactSum, sealed: SealedValues) -> Self:
        """A sum of which only weight and count can be read, with its sealed values."""
        return cls._arrived(len(sum_.values), sum_.weight, sum_.count, sum_.bits, sum_.capacity, sum_.ones_from, sum_.ones_bits, sealed)

    @classmethod
    def _arrived(cls, size: int, *about: Any) -> Self:
        *grid, sealed = about
        return cls(np.zeros(size, dtype=np.int64), *grid, sealed=sealed)

    def __reduce__(self) -> Any:
        """Zeros do not travel."""
        about = self.weight, self.count, self.bits, self.capacity, self.ones_from, self.ones_bits
        return type(self)._arrived, (len(self.values), *about, self.sealed)

    def merge(self, other: ExactSum) -> None:
        """See :meth:`ExactSum.merge`."""
        super().merge(other)
        assert isinstance(other, SealedSum)
        self.sealed.add(other.sealed)

    def data(self) -> bytes:
        """See :meth:`ExactSum.data`."""
        return self.sealed.data()
