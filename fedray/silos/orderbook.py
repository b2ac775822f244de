"""What a silo remembers of its orders on disk, so that no order is worked on twice and no answer is lost, whatever is killed.

``orders.log`` has a line for each order that was begun (``begun ORDER``) and for each that is closed (``closed ORDER``); an answer lies in
``ORDER.answer`` from when it is there until its order is closed, for thirty days at most. An order without a line was never begun. The files are for the silo's
user alone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from fedray.errors import FedrayError
from fedray.silos.frames import Status
from fedray.silos.outbox import Cargo
from fedray.silos.parcels import Parcel, Stretch, packed
from fedray.storage import append_line, damaged, write_atomic

_ANSWER = struct.Struct("<4sB16s43x")  # 64 bytes, so that the arrays stay aligned
_MAGIC = b"fans"
_DAY, _KEPT_DAYS = 86400.0, 30


class Known(Enum):
    """How far an order got: not begun, begun by an earlier process and lost, being worked on by this one, answered, or closed."""

    NEW = "new"
    LOST = "lost"
    BEGUN = "begun"
    ANSWERED = "answered"
    CLOSED = "closed"


class OrderBook:
    """The orders of one silo. One process at a time has it; thread-safe.

    Args:
        directory: where it lies; made if it is missing.

    Raises:
        FedrayError: another process has it, or it is damaged.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._log = directory / "orders.log"
        self._lock = threading.Lock()
        self._claim = (directory / "lock").open("w")
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._claim.close()
            raise FedrayError(
                f"{directory}: another process has this silo's orders; end it first, or give each silo its own state."
            ) from None
        for half in directory.glob(".*.answer.*"):  # a killed process was writing it
            half.unlink()
        self._known = self._read()
        self._sweep()

    def close(self) -> None:
        """Let another process have the book."""
        self._claim.close()

    def known(self, order: bytes) -> Known:
        """Return how far an order got."""
        with self._lock:
            return self._known.get(order, Known.NEW)

    def begin(self, order: bytes) -> None:
        """Write down that an order is worked on from now on. It never is again: whatever happens, it is answered, or lost.

        Raises:
            FedrayError: it cannot be written, so the order must not be worked on.
        """
        with self._lock:
            append_line(self._log, f"begun {order.hex()}")
            self._known[order] = Known.BEGUN

    def answer(self, order: bytes, status: Status, parcel: Parcel) -> None:
        """Keep an order's answer.

        Raises:
            FedrayError: it cannot be written.
            ValueError: it is no parcel that can be sent.
        """
        start = _ANSWER.pack(_MAGIC, status, secrets.token_bytes(16))
        parts = [memoryview(start), *packed(parcel).parts()]
        write_atomic(self._answer(order), lambda path: _write(path, parts))
        with self._lock:
            self._known[order] = Known.ANSWERED
        if time.time() - self._swept > _DAY:
            self._sweep()

    def _sweep(self) -> None:
        """Close orders whose answers nobody has fetched, or released, for too long."""
        self._swept = time.time()
        for path in self._directory.glob("*.answer"):
            if self._swept - path.stat().st_mtime > _KEPT_DAYS * _DAY:
                self.shut(bytes.fromhex(path.stem))

    def answered(self, order: bytes) -> Cargo:
        """Return a kept answer; its bytes are mapped from its file.

        Raises:
            FedrayError: the file is gone or damaged.
        """
        path = self._answer(order)
        try:
            with path.open("rb") as file:
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            magic, status, tag = _ANSWER.unpack_from(data)
            if magic != _MAGIC:
                raise ValueError("it is not one of an order")
            return Cargo(order, False, Stretch([data[_ANSWER.size :]]), tag, Status(status))
        except (OSError, ValueError, struct.error) as error:
            raise damaged(path, str(error)) from None

    def shut(self, order: bytes) -> None:
        """Drop an order's answer and remember that the order is closed; no effect on one that was never begun.

        Raises:
            FedrayError: it cannot be written.
        """
        with self._lock:
            if self._known.get(order, Known.CLOSED) is Known.CLOSED:
                return
            append_line(self._log, f"closed {order.hex()}")
            self._known[order] = Known.CLOSED
        self._answer(order).unlink(missing_ok=True)

    def _answer(self, order: bytes) -> Path:
        return self._directory / f"{order.hex()}.answer"

    def _read(self) -> dict[bytes, Known]:
        try:
            content = self._log.read_bytes()
        except FileNotFoundError:
            return {}
        end = content.rfind(b"\n") + 1
        if end < len(content):  # a crash cut the last line off; what it would have begun was not begun
            os.truncate(self._log, end)
        known: dict[bytes, Known] = {}
        for number, line in enumerate(content[:end].splitlines(), start=1):
            word, _, text = line.partition(b" ")
            try:
                order = bytes.fromhex(text.decode("ascii"))
            except ValueError:
                order = b""
            if word not in (b"begun", b"closed") or len(order) != 16:
                raise damaged(self._log, f"line {number} is not one of an order")
            known[order] = Known.CLOSED if word == b"closed" else Known.LOST
        for order, far in known.items():
            if far is Known.LOST and self._answer(order).exists():
                known[order] = Known.ANSWERED
        return known


def _write(path: Path, parts: Sequence[memoryview]) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
