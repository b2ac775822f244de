"""Arrays of records, one client's data, and the whole federation with each client's rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fedray.inputs import Input

Features = npt.NDArray[np.float32] | npt.NDArray[np.int64]
Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Label = str | int | float | bool


class Numbered(Sequence[str]):
    """Names ``client-0000``, ``client-0001``, ... of numbered clients, computed on demand, so that a million names take no memory."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, k: int) -> str: ...
    @overload
    def __getitem__(self, k: slice) -> list[str]: ...
    def __getitem__(self, k: int | slice) -> str | list[str]:
        if isinstance(k, slice):
            return [_numbered(i) for i in range(self._count)[k]]
        return _numbered(k if 0 <= k < self._count else range(self._count)[k])

    def __iter__(self) -> Iterator[str]:
        return map(_numbered, range(self._count))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._position(name) is not None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbered):
            return self._count == other._count
        return isinstance(other, Sequence) and len(other) == self._count and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Numbered({self._count})"

    def index(self, name: str, start: int = 0, stop: int | None = None) -> int:
        """Return the position of a name.

        Raises:
            ValueError: no client between ``start`` and ``stop`` has this name.
        """
        found = self._position(name)
        if found is None or found not in range(self._count)[start:stop]:
            raise ValueError(f"there is no client '{name}' among {self._count}.")
        return found

    def _position(self, name: str) -> int | None:
        digits = name.rpartition("-")[2]
        k = int(digits) if digits.isascii() and digits.isdigit() else -1
        return k if 0 <= k < self._count and _numbered(k) == name else None


def _numbered(k: int) -> str:
    return f"client-{k:04d}"


def positions(names: Sequence[str]) -> Callable[[str], int]:
    """Return a function from a name to its position in ``names`` that takes constant time."""
    return names.index if isinstance(names, Numbered) else {name: k for k, name in enumerate(names)}.__getitem__


def offsets_of(sizes: npt.ArrayLike) -> Indices:
    """Return the bounds of consecutive ranges with these sizes: int64 ``[len(sizes) + 1]``, from 0."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Records:
    """Features and targets of ``n`` records.

    Attributes:
        x: ``[n, *shape]`` float32, or int64 for tokens.
        y: ``[n]`` int64 classes, or float32 in regression; ``[n, ...]`` where a record has several targets.
        persons: whose each record is, as int64 ``[n]`` numbers that mean nothing elsewhere; None if it is not known.
    """

    x: Features
    y: Targets
    persons: Indices | None = None

    def __len__(self) -> int:
        return len(self.y)

    def slice(self, start: int, stop: int) -> Records:
        """Rows ``start`` to ``stop`` as views (no copies)."""
        return Records(self.x[start:stop], self.y[start:stop], None if self.persons is None else self.persons[start:stop])

    @property
    def number_of_persons(self) -> int | None:
        """How many persons they are of; None if it is not known."""
        return None if self.persons is None else len(np.unique(self.persons))


@dataclass(frozen=True, eq=False)
class ClientData:
    """One client's records.

    Attributes:
        name: name of the client.
        train: the client's training records, never empty.
        test: the client's test records, or None.
        classes: number of classes of the task (not of this client); None in regression.
        columns: names of the features if the source is a table. Silos that are read separately have the same features only if these agree.
        scale: divisor of the user's values (255 for the bytes of an image).
        inputs: the inputs that stand side by side in a record; empty if a record is one array.
        own_test: whether the test records are a test set of the source, and not held out at random.
        absent: names in ``data.drop`` that are no columns of the client's table.
        dropped: number of records that were left out because of missing cells.
    """

    name: str
    train: Records
    test: Records | None
    classes: int | None = None
    columns: tuple[str, ...] = ()
    scale: float = 1.0
    inputs: tuple[Input, ...] = ()
    own_test: bool = False
    absent: tuple[str, ...] = ()
    dropped: int = 0


@dataclass(frozen=True, eq=False)
class Federation:
    """All clients' records, with contiguous rows for each client, and the driver's test set.

    Attributes:
        names: names of the clients, in order.
        train: training records of all clients; client ``k`` has rows ``offsets[k]`` to ``offsets[k + 1]``.
        offsets: int64 ``[clients + 1]``.
        test: the driver's test set, or None.
        client_test: the clients' own held-out records in client order, or None.
        client_test_offsets: int64 ``[clients + 1]``, with ``client_test``.
        classes: number of classes; None in regression.
        columns: names of the features if the source is a table.
        class_labels: the source's own label of each class, in class order; empty in regression.
        declared: whether the config, or the source as a public fact, names the classes; otherwise they were found in the records.
        scale: see :class:`ClientData`.
        inputs: see :class:`ClientData`.
        dropped: number of all clients' records, and of the driver's, that were left out because of missing cells.
    """

    names: Sequence[str]
    train: Records
    offsets: Indices
    test: Records | None
    client_test: Records | None
    client_test_offsets: Indices | None
    classes: int | None
    columns: tuple[str, ...] = ()
    class_labels: Sequence[Label] = ()
    declared: bool = False
    scale: float = 1.0
    inputs: tuple[Input, ...] = ()
    dropped: int = 0

    def client(self, k: int) -> ClientData:
        """Return the data of client ``k`` as views (no copies)."""
        train = self.train.slice(int(self.offsets[k]), int(self.offsets[k + 1]))
        test: Records | None = None
        if self.client_test is not None and self.client_test_offsets is not None:
            held_out = self.client_test.slice(int(self.client_test_offsets[k]), int(self.client_test_offsets[k + 1]))
            test = held_out if len(held_out) else None
        return ClientData(self.names[k], train, test, self.classes, self.columns, self.scale, self.inputs)

    @property
    def sizes(self) -> Indices:
        """Number of training records of each client, int64 ``[clients]``."""
        return np.diff(self.offsets)

    @property
    def persons(self) -> Indices | None:
        """Number of persons with training records at each client, int64 ``[clients]``; None if it is not known."""
        if self.train.persons is None:
            return None
        return np.array([self.client(k).train.number_of_persons for k in range(len(self.names))], dtype=np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return tuple(self.train.x.shape[1:])

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one record's targets; () where it has one."""
        return tuple(self.train.y.shape[1:])

    @cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the names, shapes, types and bytes of all fields."""
        hasher = hashlib.sha256()
        for name in self.names:
            hasher.update(f"{len(name.encode())}:{name}".encode())
        hasher.update(f"|{self.classes}|{self.columns!r}".encode())
        if list(self.class_labels) != list(range(self.classes or 0)):
            hasher.update(f"|{list(self.class_labels)!r}".encode())
        if self.inputs:
            hasher.update(f"|{self.inputs!r}".encode())
        parts: list[npt.NDArray[Any] | None] = [self.train.x, self.train.y, self.offsets]
        for records in (self.test, self.client_test):
            parts += [records.x, records.y] if records is not None else [None]
        parts.append(self.client_test_offsets)
        parts += [] if self.train.persons is None else [self.train.persons]
        for array in parts:
            if array is None:
                hasher.update(b"|none")
            else:
                contiguous = np.ascontiguousarray(array)
                hasher.update(f"|{contiguous.dtype.str}{contiguous.shape}".encode())
                hasher.update(contiguous.reshape(-1).view(np.uint8).data)
        return hasher.hexdigest()
