"""The gateway's side of the link to one silo without the link: holds orders until they are answered, whatever becomes of connections."""

from __future__ import annotations

import json
import secrets
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace

from fedray.errors import FedrayError
from fedray.silos.frames import NOT_WANTED, Frame, Kind, Status, printable, read_offer
from fedray.silos.outbox import Cargo, Outbox
from fedray.silos.parcels import LARGEST, Assembly, MalformedMessage, Parcel, packed


class SiloAway(FedrayError):
    """A silo was not connected for too long, or did not answer in time."""


class OrderLost(SiloAway):
    """A silo was restarted while it worked on an order: the work is lost, and the order is never worked on again."""


class SiloRefused(FedrayError):
    """A silo refuses an order; the text is the silo's reason."""


@dataclass
class _Open:
    """An order that is waited for. Times are of the monotonic clock, in seconds."""

    cargo: Cargo
    answer: Future[Parcel]
    away: float  # seconds for which the silo may be away
    until: float  # when the answer must be there
    hold: bool
    since: float = field(default_factory=time.monotonic)
    status: Status = Status.DONE
    assembly: Assembly | None = None
    connection: Outbox | None = None  # on which the answer was offered


class Counter:
    """The orders to one silo. Thread-safe.

    Args:
        client: the silo's name.
        largest: bytes that an answer may have.
    """

    def __init__(self, client: str, largest: int = LARGEST) -> None:
        self._client = client
        self._largest = largest
        self._lock = threading.RLock()
        self._outbox: Outbox | None = None
        self._open: dict[bytes, _Open] = {}
        self._releasing: set[bytes] = set()
        self._left = time.monotonic()  # when it was connected last

    def submit(
        self, order: bytes, parcel: Parcel, away: float, within: float | None = None, control: bool = False, hold: bool = False
    ) -> Future[Parcel]:
        """Hold an order for the silo and return its answer to come; one that is held already is joined.

        Args:
            order: 16 bytes that no other order has.
            parcel: the order; its buffers must not change.
            away: seconds for which the silo may be away until the order is given up (:class:`SiloAway`).
            within: seconds within which it must be answered, if that is limited.
            control: whether it goes, and is answered, beside work.
            hold: whether the silo keeps its answer until :meth:`release`.
        """
        with self._lock:
            if order in self._open:
                return self._open[order].answer
            cargo = Cargo(order, control, packed(parcel), secrets.token_bytes(16))
            until = float("inf") if within is None else time.monotonic() + within
            held = self._open[order] = _Open(cargo, Future(), away, until, hold)
            self._releasing.discard(order)
            if self._outbox is not None:
                self._outbox.send(cargo)
                held.cargo = replace(cargo, again=True)
            return held.answer

    def release(self, order: bytes) -> None:
        """Tell the silo that the answer to an order is not needed any more, nor the order if it is not worked on yet."""
        with self._lock:
            held = self._open.pop(order, None)
            if held is not None:
                held.answer.cancel()
            self._released(order)

    def connected(self) -> Outbox:
        """Return what is to be sent on a new connection: every order that is held, from the chunk that the silo has."""
        with self._lock:
            if self._outbox is not None:
                self._outbox.close(f"another connection of silo '{self._client}' has taken its place")
            self._outbox = Outbox()
            for order in self._releasing:
                self._outbox.signal(Kind.RELEASE, order)
            for held in self._open.values():
                self._outbox.send(held.cargo)
                held.cargo = replace(held.cargo, again=True)
            return self._outbox

    def disconnected(self, outbox: Outbox) -> bool:
        """The connection is over; returns whether the silo is away now, because no other has taken its place."""
        with self._lock:
            if self._outbox is not outbox:
                return False
            self._outbox = None
            self._left = time.monotonic()
            return True

    def expire(self, cause: str, now: float) -> None:
        """Give up the orders whose time is over; ``cause`` says why the silo is away, if it is, ``now`` is of the monotonic clock."""
        with self._lock:
            for order, held in list(self._open.items()):
                waited = now - max(held.since, self._left)
                if self._outbox is None and waited >= held.away:
                    text = (
                        f"silo '{self._client}' has been away for {waited:.0f} s ({cause}); see its log, and that it reaches the gateway."
                    )
                elif now >= held.until:
                    text = f"silo '{self._client}' did not answer within {now - held.since:.0f} s; see its log."
                else:
                    continue
                self._drop(order)
                _fail(held.answer, SiloAway(text))

    def stop(self) -> None:
        """Give up every order, because the gateway is stopped."""
        with self._lock:
            for order, held in list(self._open.items()):
                self._drop(order)
                _fail(held.answer, SiloAway(f"the gateway was stopped before silo '{self._client}' had answered."))

    def hear(self, outbox: Outbox, frame: Frame) -> None:
        """Take a frame of the silo's.

        Raises:
            MalformedMessage: it says nothing that is meant; the connection should end.
        """
        with self._lock:
            if outbox is not self._outbox:
                return
            if frame.kind is Kind.OFFER:
                self._offered(outbox, frame)
            elif frame.kind is Kind.CHUNK:
                self._chunk(outbox, frame)
            elif frame.kind is Kind.HAVE:
                outbox.have(frame.order, frame.number)
            elif frame.kind is Kind.RELEASED:
                self._releasing.discard(frame.order)
            else:
                raise MalformedMessage(f"the silo sent a frame of the kind {frame.kind.name}, which it never does here")

    def _offered(self, outbox: Outbox, frame: Frame) -> None:
        held = self._open.get(frame.order)
        if held is None:
            outbox.signal(Kind.HAVE, frame.order, NOT_WANTED)
            return
        offered = read_offer(frame, self._largest)
        if held.assembly is None or (held.assembly.tag, held.assembly.size) != (offered.tag, offered.size):
            try:
                held.assembly = Assembly(offered.size, offered.tag)
            except (OSError, MemoryError):
                self._drop(frame.order)
                outbox.signal(Kind.HAVE, frame.order, NOT_WANTED)
                _fail(
                    held.answer, SiloRefused(f"silo '{self._client}': the gateway has no memory for its answer of {offered.size:,} bytes.")
                )
                return
        held.status, held.connection = offered.status, outbox
        outbox.have(frame.order, NOT_WANTED)  # the silo has an answer, so it needs the order no more
        if offered.again or held.assembly.arrived:
            outbox.signal(Kind.HAVE, frame.order, held.assembly.arrived)

    def _chunk(self, outbox: Outbox, frame: Frame) -> None:
        held = self._open.get(frame.order)
        if held is None:
            outbox.signal(Kind.HAVE, frame.order, NOT_WANTED)
            return
        if held.assembly is None or held.connection is not outbox:
            raise MalformedMessage("the silo sent a chunk of an answer that it had not offered")
        held.assembly.put(frame.number, frame.body)
        if held.assembly.whole:
            self._drop(frame.order)
            if not held.hold or held.status is not Status.DONE:
                self._released(frame.order)
            self._settle(held, held.assembly)

    def _settle(self, held: _Open, assembly: Assembly) -> None:
        try:
            parcel = assembly.parcel()
        except MalformedMessage as error:
            _fail(held.answer, SiloRefused(f"silo '{self._client}': its answer cannot be read: {error}."))
            return
        if held.status is Status.DONE:
            with suppress(InvalidStateError):
                held.answer.set_result(parcel)
        else:
            kind = SiloRefused if held.status is Status.REFUSED else OrderLost
            _fail(held.answer, kind(f"silo '{self._client}': {_reason(parcel)}"))

    def _drop(self, order: bytes) -> None:
        del self._open[order]
        if self._outbox is not None:
            self._outbox.have(order, NOT_WANTED)

    def _released(self, order: bytes) -> None:
        self._releasing.add(order)
        if self._outbox is not None:
            self._outbox.have(order, NOT_WANTED)
            self._outbox.signal(Kind.RELEASE, order)


def _fail(answer: Future[Parcel], error: FedrayError) -> None:
    with suppress(InvalidStateError):
        answer.set_exception(error)


def _reason(parcel: Parcel) -> str:
    try:
        return printable(json.loads(parcel.head)["reason"], 2000)
    except (ValueError, TypeError, KeyError, RecursionError):
        return "it refused without a reason that can be read"
