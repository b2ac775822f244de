"""A sum of few sparse updates as positions and values, for the way between processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SparseValues:
    """The values of a sum that are not zero.

    Attributes:
        size: number of values with the zeros.
        positions: ascending, uint32 ``[n]``.
        values: int64 ``[n]``.
    """

    size: int
    positions: npt.NDArray[np.uint32]
    values: Integers

    @classmethod
    def of(cls, values: Integers) -> SparseValues | None:
        """The same values, int64 ``[size]``, in fewer bytes; None where they would not be fewer."""
        number, size = int(np.count_nonzero(values)), len(values)
        if size > 1 << 32 or number * (4 + 8) >= values.nbytes:
            return None
        positions = np.flatnonzero(values)
        return cls(size, positions.astype(np.uint32), values[positions])

    @property
    def nbytes(self) -> int:
        """Bytes of positions and values."""
        return self.positions.nbytes + self.values.nbytes

    def dense(self) -> Integers:
        """All values, int64 ``[size]``, a new array."""
        values = np.zeros(self.size, dtype=np.int64)
        values[self.positions] = self.values
        return values
