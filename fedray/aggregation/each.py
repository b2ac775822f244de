"""Single updates, for rules that a sum is not enough for: an actor's part holds a row for each client, and stays in its node's object store.

A part is cut into segments of columns. The driver knows where they lie, and reads one segment of all parts after the other, so each value
travels once and the driver never holds the updates of all clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedray.aggregation.exact import FULL, MAX_COORDINATE, check_weight, largest_magnitude, rejection
from fedray.aggregation.root import Root
from fedray.errors import FedrayError, UpdateRejected
from fedray.parameters import Vector

#: Most values of all clients in a segment: 32 MiB in float32. Each segment of a part is an object of its own, so there should not be too many.
SEGMENT_VALUES = 1 << 23
_STRIP_VALUES, _STRIP_WIDTH = 1 << 17, 128


def segments_for(clients: int, size: int) -> int:
    """Number of segments for ``clients`` vectors of ``size`` values."""
    return max(1, min(size, -(-clients * size // SEGMENT_VALUES)))


def strips(clients: int, width: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of ranges of ``width`` columns that stay in cache in float64, for products of matrices."""
    step = max(_STRIP_WIDTH, _STRIP_VALUES // max(1, clients))
    return ((start, min(start + step, width)) for start in range(0, width, step))


def squared_distances(products: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squared distances of all pairs of vectors from their inner products, both float64 ``[n, n]``; rounding makes none negative."""
    squares = products.diagonal()
    found = products * -2.0
    found += squares[:, None]
    found += squares
    return np.maximum(found, 0.0, out=found)


def bounds(size: int, segments: int) -> list[tuple[int, int]]:
    """(start, stop) of each segment of ``size`` columns."""
    return [(k * size // segments, (k + 1) * size // segments) for k in range(segments)]


@dataclass
class Rows:
    """The updates that one actor has collected, in the order in which they were added, with the checks of the exact sum.

    Attributes:
        size: of the vectors.
        blocks: float32 ``[k, size]`` each.
        weights: one for each row.
    """

    size: int
    blocks: list[npt.NDArray[np.float32]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of updates added."""
        return len(self.weights)

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(sum(self.weights))

    def add(self, update: npt.NDArray[np.float32], weight: float = 1.0, factor: int = FULL) -> None:
        """Add a copy of an update, times ``factor / FULL``.

        Raises:
            UpdateRejected: a coordinate is not finite or exceeds ``MAX_COORDINATE``, or another length; nothing is added.
        """
        self.add_blocks(lambda: iter([(0, update)]), weight, factor)

    def add_blocks(
        self, blocks: Callable[[], Iterator[tuple[int, npt.NDArray[np.float32]]]], weight: float = 1.0, factor: int = FULL
    ) -> None:
        """:meth:`add` an update that is given as (position of the first value, values).

        Raises:
            UpdateRejected: as :meth:`add`.
        """
        check_weight(weight)
        row, filled = np.empty((1, self.size), dtype=np.float32), 0
        for start, block in blocks():
            if block.ndim != 1 or start + len(block) > self.size:
                raise UpdateRejected(f"an update of shape {block.shape} was sent for a model of {self.size} values.")
            row[0, start : start + len(block)] = block
            filled += len(block)
        if filled != self.size:
            raise UpdateRejected(f"an update of {filled} values was sent for a model of {self.size} values.")
        if not largest_magnitude(row)[0] <= MAX_COORDINATE:
            raise rejection(row[0])
        self.blocks.append(row if factor == FULL else row * np.float32(factor / FULL))
        self.weights.append(weight)

    def add_many(
        self, updates: npt.NDArray[np.float32], weights: Sequence[float], factors: Sequence[int] = ()
    ) -> list[UpdateRejected | None]:
        """Add copies of rows, float32 ``[k, size]``, times their factors as in :meth:`add`; for each None, or why it was left out."""
        largest = largest_magnitude(updates)
        refused = [None if value <= MAX_COORDINATE else rejection(row) for row, value in zip(updates, largest, strict=True)]
        mine = [n for n, why in enumerate(refused) if why is None]
        for n in mine:
            check_weight(weights[n])
        if mine:
            less = np.array([factors[n] / FULL for n in mine] if factors else 1.0, dtype=np.float32)
            self.blocks.append(updates[mine] if (less == 1).all() else updates[mine] * less[:, None])
            self.weights += [weights[n] for n in mine]
        return refused

    def cut(self, segments: int) -> list[Rows]:
        """The same updates in ``segments`` ranges of columns."""
        if segments == 1:
            return [self]
        return [
            Rows(stop - start, [np.ascontiguousarray(b[:, start:stop]) for b in self.blocks], self.weights)
            for start, stop in bounds(self.size, segments)
        ]


@dataclass(frozen=True, eq=False)
class RowsAt:
    """A part with single updates, where it lies.

    Attributes:
        clients: whose they are, in the order of the rows.
        fetch: gives a segment by its number, or says why it is gone.
    """

    clients: Sequence[int]
    fetch: Callable[[int], Rows | str]

    @classmethod
    def here(cls, clients: Sequence[int], rows: Rows, segments: int = 1) -> RowsAt:
        """A part that lies in this process."""
        return cls(clients, rows.cut(segments).__getitem__)


class PartLost(FedrayError):
    """A part with single updates cannot be read any more.

    Attributes:
        part: which.
    """

    def __init__(self, part: RowsAt, why: str) -> None:
        super().__init__(why)
        self.part = part


@dataclass(frozen=True, eq=False)
class Each:
    """All updates of a round, each for itself, in the order of the clients' indices.

    Attributes:
        size: of the vectors.
        segments: into how many the parts are cut.
        parts: where they lie, in any order.
        root: what the driver knows of the round from its root set; None where it has none.
    """

    size: int
    segments: int = 1
    parts: tuple[RowsAt, ...] = ()
    root: Root | None = None

    def joined(self, part: RowsAt) -> Each:
        """These updates and those of another part."""
        return replace(self, parts=(*self.parts, part))

    def without(self, part: RowsAt) -> Each:
        """These updates without those of a part."""
        return replace(self, parts=tuple(p for p in self.parts if p is not part))

    @cached_property
    def count(self) -> int:
        """Number of updates."""
        return sum(len(part.clients) for part in self.parts)

    @cached_property
    def clients(self) -> list[int]:
        """Indices of the clients, ascending."""
        return sorted(index for part in self.parts for index in part.clients)

    @cached_property
    def weights(self) -> npt.NDArray[np.float64]:
        """The clients' weights, float64 ``[count]``.

        Raises:
            PartLost: a part is gone.
        """
        found = np.empty(self.count)
        for where, rows in self._opened(0):
            found[where] = rows.weights
        return found

    def columns(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """A copy of the values from ``start`` to ``stop`` of all updates, float32 ``[count, stop - start]``.

        Raises:
            PartLost: a part is gone.
        """
        found = np.empty((self.count, stop - start), dtype=np.float32)
        for segment, (first, last) in enumerate(bounds(self.size, self.segments)):
            low, high = max(start, first), min(stop, last)
            if low >= high:
                continue
            for where, rows in self._opened(segment):
                at = 0
                for block in rows.blocks:
                    found[where[at : at + len(block)], low - start : high - start] = block[:, low - first : high - first]
                    at += len(block)
        return found

    def blocks(self) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
        """(start, stop, :meth:`columns` of these) for all values, one segment after the other.

        Raises:
            PartLost: a part is gone.
        """
        for start, stop in bounds(self.size, self.segments):
            yield start, stop, self.columns(start, stop)

    @cached_property
    def products(self) -> npt.NDArray[np.float64]:
        """Inner products of all pairs of updates, float64 ``[count, count]``, from one look at all values.

        Raises:
            PartLost: a part is gone.
        """
        found = np.zeros((self.count, self.count))
        for _, _, columns in self.blocks():
            for low, high in strips(*columns.shape):
                strip = columns[:, low:high].astype(np.float64)
                found += strip @ strip.T
        return found

    def against(self, reference: Vector) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Inner products of all updates with a vector, float32 ``[size]``, and squares of their own lengths, both float64 ``[count]``.

        Raises:
            PartLost: a part is gone.
        """
        products, squares = np.zeros(self.count), np.zeros(self.count)
        for start, _, columns in self.blocks():
            for low, high in strips(*columns.shape):
                strip = columns[:, low:high].astype(np.float64)
                products += strip @ reference[start + low : start + high].astype(np.float64)
                squares += np.square(strip).sum(axis=1)
        return products, squares

    def rows(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """(place of the first, whole updates, float32 ``[k, size]``) for all updates; each time all values are read for some that fit a segment.

        Raises:
            PartLost: a part is gone.
        """
        some = max(1, SEGMENT_VALUES // self.size)
        for first in range(0, self.count, some):
            found = np.empty((min(some, self.count - first), self.size), dtype=np.float32)
            for start, stop, columns in self.blocks():
                found[:, start:stop] = columns[first : first + some]
            yield first, found

    def weighted_sum(self, factors: npt.NDArray[np.float64]) -> Vector:
        """The sum of all updates times their factors, float32 ``[size]``, added up in the order of the clients.

        Args:
            factors: float64 ``[count]``; what has the factor zero is left out.

        Raises:
            PartLost: a part is gone.
        """
        found = np.empty(self.size, dtype=np.float32)
        for start, stop, columns in self.blocks():
            total = np.zeros(stop - start)
            for factor, row in zip(factors, columns, strict=True):
                if factor:
                    total += np.multiply(row, factor, dtype=np.float64)
            found[start:stop] = total
        return found

    def _opened(self, segment: int) -> Iterator[tuple[npt.NDArray[np.int64], Rows]]:
        """A segment of each part, with the places of its rows among all clients; one part is let go before the next is asked for.

        Raises:
            PartLost: it is gone.
            FedrayError: it is not of the part's clients.
        """
        start, stop = bounds(self.size, self.segments)[segment]
        for part, where in zip(self.parts, self._places, strict=True):
            rows = part.fetch(segment)
            if isinstance(rows, str):
                raise PartLost(part, rows)
            if (rows.count, sum(map(len, rows.blocks)), rows.size) != (len(part.clients), len(part.clients), stop - start):
                raise FedrayError(
                    f"{rows.count} updates of {rows.size} values came for {len(part.clients)} clients and {stop - start} values."
                )
            yield where, rows
            del rows

    @cached_property
    def _places(self) -> list[npt.NDArray[np.int64]]:
        """For each part the places of its rows among all clients."""
        indices = np.array(self.clients, dtype=np.int64)
        return [np.searchsorted(indices, np.asarray(part.clients, dtype=np.int64)) for part in self.parts]
