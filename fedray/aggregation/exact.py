"""The exact sum: integer arithmetic, so a total does not depend on who added what when.

An update times its weight is rounded once to a grid of 2**-bits and added as int64. Integer
addition is associative and commutative, so the same updates give the same bytes on 1 actor or 8,
on 1 node or 5, after retries, in any order and with any tree of partial sums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedray.errors import FedrayError, UpdateRejected

#: Largest magnitude of one coordinate of an update. A model whose weights move by more in one
#: round has diverged.
MAX_COORDINATE = 2.0**12
_HEADROOM_BITS = 62
_MAX_BITS = 40
_SHIFT = np.float64(1.5 * 2.0**52)
#: What values are multiplied or divided by: one number for all, or one for each row.
Factor = float | npt.NDArray[np.float64]
#: The factor of an update that counts fully. Factors are whole numbers up to this, a power of two, so that products with them are exact.
FULL = 256
#: Values that are added at a time: more calls cost more than a float64 scratch of 1 MiB that leaves a core's own cache.
BLOCK = 1 << 17


def grid_bits(total_weight: float) -> int:
    """Fraction bits of the grid for updates whose weights sum to at most ``total_weight``.

    Chosen so that ``total_weight * MAX_COORDINATE * 2**bits`` stays below 2**62: no sum can overflow.
    The rounding error of a weighted mean is at most ``2**-(bits + 1) * clients / weight``.

    Raises:
        FedrayError: the weights leave fewer than 8 fraction bits.
    """
    if not (math.isfinite(total_weight) and total_weight > 0):
        raise FedrayError(f"total weight {total_weight} of the clients is not a positive number; check the clients' record counts.")
    used = math.ceil(math.log2(total_weight)) if total_weight > 1 else 0
    bits = min(_MAX_BITS, _HEADROOM_BITS - int(math.log2(MAX_COORDINATE)) - used)
    if bits < 8:
        raise FedrayError(f"weights that sum to {total_weight:g} leave {bits} fraction bits for the sum; use uniform weights.")
    return bits


@dataclass
class ExactSum:
    """A running weighted sum of float32 vectors in fixed point.

    The values from ``ones_from`` on count each update once, whatever its weight, on a grid of their own.

    Attributes:
        values: int64 of the vectors' shape, in units of ``2**-bits``, from ``ones_from`` on of ``2**-ones_bits``.
        weight: sum of the weights (exact while weights are integers or dyadic fractions).
        count: number of updates added.
        bits: fraction bits of the grid.
        capacity: the weight that the grid was chosen for.
        ones_from: position of the first value that is added with weight 1; None where all are weighted.
        ones_bits: fraction bits of the grid from there on.
        readable: whether the values are the sum.
    """

    readable: ClassVar[bool] = True

    values: npt.NDArray[np.int64]
    weight: float
    count: int
    bits: int
    capacity: float
    ones_from: int | None = None
    ones_bits: int = 0

    @classmethod
    def zero(cls, size: int, total_weight: float, ones_from: int | None = None, clients: int = 0) -> ExactSum:
        """An empty sum over vectors of ``size`` whose weights will add up to at most ``total_weight``.

        Args:
            size: of the vectors.
            total_weight: bound on the sum of the weights.
            ones_from: position from which on each of at most ``clients`` updates counts once.
            clients: see there.
        """
        values, bits = np.zeros(size, dtype=np.int64), grid_bits(total_weight)
        if ones_from is None or ones_from >= size:
            return cls(values, 0.0, 0, bits, total_weight)
        return cls(values, 0.0, 0, bits, total_weight, ones_from, grid_bits(clients))

    @classmethod
    def of_integers(cls, size: int, total_weight: float) -> ExactSum:
        """An empty sum over vectors of ``size`` whole numbers below 2**32, at most ``total_weight`` of them."""
        if not 0 < total_weight < 2.0 ** (_HEADROOM_BITS - 32):
            raise FedrayError(f"a sum of whole numbers over {total_weight:g} clients does not fit 64 bits.")
        return cls(np.zeros(size, dtype=np.int64), 0.0, 0, 0, total_weight)

    def add_integers(self, values: npt.NDArray[np.int64]) -> None:
        """Add a vector of whole numbers in [0, 2**32), with weight 1.

        Raises:
            UpdateRejected: another length, or a value outside the range; the sum is unchanged.
            FedrayError: more vectors than the sum was laid out for; the sum is unchanged.
        """
        if values.shape != self.values.shape or values.dtype != np.int64:
            raise UpdateRejected(f"an update of {values.shape} {values.dtype} was sent for a ring of {self.values.shape[0]} int64 values.")
        if values.size and (values.min() < 0 or values.max() >= 1 << 32):
            raise UpdateRejected("an update has values outside the ring.")
        self._reserve(1.0)
        self._add_at(0, values)
        self.weight += 1.0
        self.count += 1

    def add(self, update: npt.NDArray[np.float32], weight: float = 1.0, factor: int = FULL) -> None:
        """Add ``weight * update``, rounded to the grid (half to even).

        Args:
            update: float32 ``[size]``.
            weight: of the update, by whose sum a mean divides.
            factor: of :data:`FULL`; the values are multiplied by ``factor / FULL``, the weight is not.

        Raises:
            UpdateRejected: a coordinate is not finite or exceeds ``MAX_COORDINATE``; the sum is unchanged.
            FedrayError: the weights exceed what the grid was chosen for; the sum is unchanged.
        """
        if update.shape != self.values.shape:
            raise UpdateRejected(f"an update of shape {update.shape} was sent for a model of {self.values.shape[0]} values.")
        bounds = [(0, len(update))] if self.ones_from is None else [(0, self.ones_from), (self.ones_from, len(update))]
        self.add_blocks(
            lambda: ((at, update[at : min(at + BLOCK, stop)]) for start, stop in bounds for at in range(start, stop, BLOCK)), weight, factor
        )

    def add_blocks(
        self, blocks: Callable[[], Iterator[tuple[int, npt.NDArray[np.float32]]]], weight: float = 1.0, factor: int = FULL
    ) -> None:
        """:meth:`add` an update that is never whole in memory.

        Args:
            blocks: gives (position of the first value, at most :data:`BLOCK` values) for all of the update, the same each time it is
                called. A block is used before the next is asked for, and lies on one side of ``ones_from``.
            weight: of the update.
            factor: as in :meth:`add`.

        Raises:
            As :meth:`add`.
        """
        check_weight(weight)
        self._reserve(weight)
        scratch, added = np.empty(min(BLOCK, len(self.values))), 0

        def scale(start: int) -> float:
            once = self.ones_from is not None and start >= self.ones_from
            return math.ldexp(factor / FULL, self.ones_bits) if once else math.ldexp(weight * factor / FULL, self.bits)

        try:
            for start, block in blocks():
                largest = float(largest_magnitude(block))
                if not largest <= MAX_COORDINATE:
                    raise rejection(np.concatenate([block.copy() for _, block in blocks()]))
                self._add_at(start, _scaled(block, scale(start), largest, scratch))
                added += 1
        except BaseException:  # whole numbers that are subtracted again leave no trace
            for start, block in itertools.islice(blocks(), added):
                self._add_at(start, -_scaled(block, scale(start), float(largest_magnitude(block)), scratch))
            raise
        self.weight += weight
        self.count += 1

    def add_many(
        self, updates: npt.NDArray[np.float32], weights: Sequence[float], factors: Sequence[int] = ()
    ) -> list[UpdateRejected | None]:
        """Add rows, each as :meth:`add` would: the same bits.

        Args:
            updates: [k, size].
            weights: of the rows.
            factors: of the rows, as in :meth:`add`; empty where all count fully.

        Returns:
            For each row None, or why it was left out.

        Raises:
            FedrayError: the weights exceed what the grid was chosen for; the sum is unchanged.
        """
        largest = largest_magnitude(updates)
        with np.errstate(invalid="ignore"):
            refused = [None if value <= MAX_COORDINATE else rejection(row) for row, value in zip(updates, largest, strict=True)]
        kept = np.array([n for n, why in enumerate(refused) if why is None], dtype=np.int64)
        mine = np.array([weights[n] for n in kept], dtype=np.float64)
        for weight in mine:
            check_weight(float(weight))
        self._reserve(float(mine.sum()))
        scales, once = np.ldexp(mine, self.bits), math.ldexp(1.0, self.ones_bits)
        if any(factor != FULL for factor in factors):
            for k, n in enumerate(kept):
                self.add(updates[n], float(mine[k]), factors[n])
            return refused
        rows = updates if len(kept) == len(updates) else updates[kept]
        # Sums of whole numbers are exact in float64 below 2**53, and so can be converted at once.
        most = scales if self.ones_from is None else np.maximum(scales, once)
        if float((largest[kept].astype(np.float64) * most + 1.0).sum()) >= 2.0**53:
            for row, weight in zip(rows, mine, strict=True):
                self.add(row, float(weight))
            return refused
        factor = scales[0] if len(kept) and (scales == scales[0]).all() else scales[:, None]  # by one number takes a third of the time
        block = max(1, BLOCK // max(1, len(rows)))
        for first, stop, by in self._grids(factor, once):
            for start in range(first, stop, block):
                scaled = rows[:, start : min(start + block, stop)].astype(np.float64)
                scaled *= by
                np.rint(scaled, out=scaled)
                self._add_at(start, scaled.sum(0).astype(np.int64))
        self.weight += float(mine.sum())
        self.count += len(kept)
        return refused

    def merge(self, other: ExactSum) -> None:
        """Add another partial sum of the same grid.

        Raises:
            FedrayError: different grids or lengths, more weight than the grid was chosen for, or only one of the two can be read.
        """
        if self.readable != other.readable:
            raise FedrayError("a sum that is sealed cannot be added to one that is not.")
        if not self._alike(other):
            raise FedrayError(
                f"partial sums of different grids cannot be added ({other.values.shape[0]} values at {other.bits} bits "
                f"to {self.values.shape[0]} at {self.bits})."
            )
        self._reserve(other.weight)
        self._add_at(0, other.values)
        self.weight += other.weight
        self.count += other.count

    def discounted(self, factor: int) -> ExactSum:
        """The sum with its values times ``factor / FULL``, rounded to the grid (half up); weight and count stay. It may be this one."""
        if factor == FULL:
            return self
        low = ((self.values & (FULL - 1)) * factor + FULL // 2) // FULL  # in two halves: the product of the whole could overflow
        values = self.values // FULL * factor + low
        return ExactSum(values, self.weight, self.count, self.bits, self.capacity, self.ones_from, self.ones_bits)

    def joined(self, other: ExactSum) -> ExactSum:
        """This sum and another, neither of which is used afterwards: where this one is empty, the other as it is.

        Raises:
            FedrayError: as :meth:`merge`.
        """
        empty = not self.count and not self.weight and self._alike(other)
        if empty and other.values.flags.writeable and other.capacity == self.capacity:
            return other
        self.merge(other)
        return self

    def data(self) -> bytes:
        """What was added up, as it has come."""
        return self.values.tobytes()

    def mean(self, denominator: float | None = None, spend: bool = False) -> npt.NDArray[np.float32]:
        """The sum over ``denominator`` (default: the weight added so far), float32.

        Args:
            denominator: see above.
            spend: the sum is not used afterwards; memory that can go meanwhile goes.

        Raises:
            FedrayError: nothing was added and no denominator is given.
        """
        divisor = self.weight if denominator is None else denominator
        if divisor <= 0:
            raise FedrayError("the mean of no updates was asked for.")
        mean = np.empty(len(self.values), dtype=np.float32)
        for first, stop, scale in self._grids(math.ldexp(divisor, self.bits), math.ldexp(self.count, self.ones_bits)):
            for start in range(first, stop, BLOCK):  # float64 of all of them would be as large as the sum itself
                end = min(start + BLOCK, stop)
                mean[start:end] = self.values[start:end] / scale
                if spend:
                    self._forget(start, end)
        return mean

    def _grids(self, weighted: Factor, once: float) -> list[tuple[int, int, Factor]]:
        """(first, stop, factor) of the values that are weighted and of those that count each update once."""
        size = len(self.values)
        return [(0, size, weighted)] if self.ones_from is None else [(0, self.ones_from, weighted), (self.ones_from, size, once)]

    def _alike(self, other: ExactSum) -> bool:
        """Whether another sum has the same length and grids."""
        return (other.bits, other.ones_from, other.ones_bits) == (self.bits, self.ones_from, self.ones_bits) and (
            other.values.shape == self.values.shape
        )

    def _add_at(self, start: int, numbers: npt.NDArray[np.int64]) -> None:
        """Add whole numbers to the values from ``start`` on; all that ever changes them."""
        self.values[start : start + len(numbers)] += numbers

    def _forget(self, start: int, stop: int) -> None:
        """Values that nobody reads any more; where they lie in the process's own memory that cannot go bit by bit."""

    def _reserve(self, weight: float) -> None:
        if self.weight + weight > self.capacity * (1 + 1e-12):
            raise FedrayError(f"weights add up to {self.weight + weight:g}, but the sum was laid out for {self.capacity:g}.")


def check_weight(weight: float) -> None:
    """Refuse a weight that is negative or no finite number.

    Raises:
        UpdateRejected: it is.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise UpdateRejected(f"a weight of {weight} was sent with an update.")


def _scaled(block: npt.NDArray[np.float32], scale: float, largest: float, scratch: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Values times ``scale`` as whole numbers, in ``scratch``."""
    values = scratch[: len(block)]
    np.copyto(values, block)  # two steps: a product that converts goes through a small buffer
    values *= scale
    return _whole_numbers(values, largest * scale)


def _whole_numbers(values: npt.NDArray[np.float64], largest: float) -> npt.NDArray[np.int64]:
    """Values rounded half to even; overwrites them.

    Below 2**51, adding 1.5 * 2**52 leaves no bits for a fraction, so the sum is rounded as asked and its last 52 bits are the number.
    """
    if largest < 2.0**51:
        values += _SHIFT
        numbers = values.view(np.int64)
        numbers -= _SHIFT.view(np.int64)
        return numbers
    return np.rint(values, out=values).astype(np.int64)


def largest_magnitude(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The largest magnitude over the last axis; of NaN it is NaN."""
    return np.asarray(np.maximum(values.max(-1, initial=0.0), -values.min(-1, initial=0.0)))


def rejection(update: npt.NDArray[np.float32]) -> UpdateRejected:
    """Why an update with a value that is not finite or exceeds :data:`MAX_COORDINATE` is left out."""
    largest = float(largest_magnitude(update))
    if not math.isfinite(largest):
        bad = int(np.count_nonzero(~np.isfinite(update)))
        return UpdateRejected(
            f"{bad} of {update.size} values of the update are NaN or infinite; lower the learning rate or check the data."
        )
    return UpdateRejected(
        f"the update moves a weight by {largest:.3g}, more than {MAX_COORDINATE:g}; training has diverged, lower the learning rate."
    )
