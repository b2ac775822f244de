"""What one side has to send on one connection: signals first, then parcels of control, then parcels of work, each lane in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from fedray.silos.frames import Kind, Offered, Status, frame, offer
from fedray.silos.parcels import MalformedMessage, Stretch

_MOST_SIGNALS = 100_000


@dataclass(frozen=True)
class Cargo:
    """A parcel to be sent.

    Attributes:
        order: the order that it is, or answers.
        control: whether it goes before work.
        data: its bytes.
        tag: marks this making of the bytes: 16 random bytes.
        status: what an answer is.
        again: whether it was offered on an earlier connection, so that the peer says first from which chunk it goes on.
    """

    order: bytes
    control: bool
    data: Stretch
    tag: bytes
    status: Status = Status.DONE
    again: bool = False


class _Sending:
    def __init__(self, cargo: Cargo) -> None:
        self.cargo = cargo
        self.offered = False
        self.next = None if cargo.again else 0  # the next chunk; None until the peer has said from where it goes on


class Outbox:
    """Takes what is to be sent from any thread; :meth:`frames` gives it to gRPC, one frame whenever the connection takes one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._signals: dict[tuple[Kind, bytes], bytes] = {}
        self._lanes: tuple[deque[_Sending], deque[_Sending]] = (deque(), deque())
        self._closed = False
        self.fault = ""  # why this side ends the connection, if it does

    def signal(self, kind: Kind, order: bytes, number: int = 0) -> None:
        """Send a frame without a body; it takes the place of one of the same kind about the same order that is still here.

        Raises:
            MalformedMessage: the peer causes signals and takes none.
        """
        with self._changed:
            if len(self._signals) >= _MOST_SIGNALS:
                raise MalformedMessage(f"{_MOST_SIGNALS:,} signals wait for the peer to take them")
            self._signals[kind, order] = frame(kind, order, number)
            self._changed.notify()

    def send(self, cargo: Cargo) -> None:
        """Send a parcel after those of its lane; no effect if it is being sent."""
        with self._changed:
            lane = self._lanes[not cargo.control]
            if all(sending.cargo.order != cargo.order for sending in lane):
                lane.append(_Sending(cargo))
                self._changed.notify()

    def have(self, order: bytes, chunks: int) -> None:
        """Go on from a chunk, because the peer has those before it; the parcel is done with where that is beyond its end."""
        with self._changed:
            for lane in self._lanes:
                for sending in lane:
                    if sending.cargo.order == order:
                        sending.next = max(sending.next or 0, chunks)
                        if sending.next >= sending.cargo.data.chunks:
                            lane.remove(sending)
                        break
            self._changed.notify()

    @property
    def closed(self) -> bool:
        """Whether nothing more is sent."""
        return self._closed

    def close(self, fault: str = "") -> None:
        """End :meth:`frames`; nothing more is sent."""
        with self._changed:
            self.fault = self.fault or fault
            self._closed = True
            self._changed.notify_all()

    def frames(self) -> Iterator[bytes]:
        """The frames, as they are to be sent, until :meth:`close`."""
        while (due := self.next(wait=True)) is not None:
            yield due

    def next(self, wait: bool = False) -> bytes | None:
        """Return the frame that is due; None once it is closed, and if none is due and that is not waited for."""
        with self._changed:
            while not self._closed:
                due = self._due()
                if isinstance(due, bytes):
                    return due
                if due is not None:
                    break
                if not wait:
                    return None
                self._changed.wait()
            else:
                return None
        cargo, number = due
        return frame(Kind.CHUNK, cargo.order, number, *cargo.data.chunk(number))

    def _due(self) -> bytes | tuple[Cargo, int] | None:
        if self._signals:
            return self._signals.pop(next(iter(self._signals)))
        for lane in self._lanes:
            if not lane:
                continue
            sending = lane[0]
            cargo = sending.cargo
            if not sending.offered:
                sending.offered = True
                return offer(cargo.order, Offered(cargo.control, cargo.status, cargo.data.size, cargo.tag, cargo.again))
            if sending.next is None:
                continue
            number = sending.next
            sending.next += 1
            if sending.next >= cargo.data.chunks:
                lane.popleft()
            return cargo, number
        return None
