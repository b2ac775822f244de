"""The silo's side of the link without the link: takes frames, has each order worked on once, keeps and sends the answers.

Connections come and go; the desk stays. Whatever arrives again (a chunk, an offer, an order) has no effect but that its answer is sent again.
"""

from __future__ import annotations

import json
import logging
import queue
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedray.errors import FedrayError
from fedray.silos.frames import NOT_WANTED, Frame, Kind, Offered, Status, read_offer
from fedray.silos.orderbook import Known, OrderBook
from fedray.silos.outbox import Cargo, Outbox
from fedray.silos.parcels import LARGEST, Assembly, MalformedMessage, Parcel, chunks_of, packed

log = logging.getLogger(__name__)

_MOST_OPEN = 64  # orders that are on their way in or wait
_MOST_CONTROLS = 256  # answers to control orders that are remembered

#: Answers an order: its id (32 hexadecimal digits) and what it says. What it raises is a refusal; of errors other than fedray's own only
#: the class is told, because their texts may quote records.
Handler = Callable[[str, Parcel], Parcel]


@dataclass
class _Coming:
    """An order on its way in, or whole and waiting; ``connection`` is the one on which it was offered last."""

    control: bool
    assembly: Assembly
    connection: Outbox


class Desk:
    """One silo's orders.

    Args:
        book: what the silo remembers on disk.
        handle: works on orders, one at a time, in the order in which they came.
        control: answers control orders beside them, one at a time.
        largest: bytes that an order may have; twice as many are held at once at most.
    """

    def __init__(self, book: OrderBook, handle: Handler, control: Handler, largest: int = LARGEST) -> None:
        self._book = book
        self._handlers = {False: handle, True: control}
        self._largest = largest
        self._lock = threading.RLock()
        self._outbox = Outbox()
        self._coming: dict[bytes, _Coming] = {}
        self._waiting: dict[bytes, _Coming] = {}  # whole, and not answered yet
        self._released: set[bytes] = set()  # of those that wait: nobody wants the answer any more
        self._answers: dict[bytes, Cargo] = {}  # to control orders, and to orders whose answer the disk did not take
        self._refused: set[bytes] = set()  # on this connection: what still comes of them is of no interest
        self._queues: dict[bool, queue.SimpleQueue[bytes | None]] = {False: queue.SimpleQueue(), True: queue.SimpleQueue()}
        self._threads = [threading.Thread(target=self._work, args=(control,), daemon=True) for control in (False, True)]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Work on nothing new; returns once the order that is worked on has its answer."""
        for waiting in self._queues.values():
            while not waiting.empty():  # these come again, for they were not begun
                waiting.get()
            waiting.put(None)
        for thread in self._threads:
            thread.join()

    def connected(self) -> Outbox:
        """Return what is to be sent on a new connection; the one before is over."""
        with self._lock:
            self._outbox.close()
            self._outbox, self._refused = Outbox(), set()
            return self._outbox

    def hear(self, frame: Frame) -> None:
        """Take a frame of the gateway's.

        Raises:
            MalformedMessage: it says nothing that is meant; the connection should end.
            FedrayError: the silo's own book cannot be read or written.
        """
        with self._lock:
            if frame.kind is Kind.OFFER:
                self._offered(frame.order, read_offer(frame, self._largest))
            elif frame.kind is Kind.CHUNK:
                self._chunk(frame)
            elif frame.kind is Kind.HAVE:
                self._outbox.have(frame.order, frame.number)
            elif frame.kind is Kind.RELEASE:
                self._release(frame.order)
            else:
                raise MalformedMessage(f"the gateway sent a frame of the kind {frame.kind.name}, which it never does here")

    def _offered(self, order: bytes, offered: Offered) -> None:
        known = Known.NEW if offered.control else self._book.known(order)
        if order in self._answers or known is Known.ANSWERED:
            self._outbox.signal(Kind.HAVE, order, chunks_of(offered.size))
            self._outbox.send(replace(self._answers.get(order) or self._book.answered(order), again=True))
        elif order in self._waiting:
            self._outbox.signal(Kind.HAVE, order, chunks_of(offered.size))
        elif known is Known.CLOSED:
            self._refuse(order, offered.control, "the order was answered and closed before, and no order is worked on twice")
        elif known is not Known.NEW:
            text = "the silo was restarted while it worked on the order; what it did is lost, and no order is worked on twice"
            self._refuse(order, offered.control, text, Status.LOST)
        else:
            self._expect(order, offered)

    def _expect(self, order: bytes, offered: Offered) -> None:
        coming = self._coming.get(order)
        if coming is None or (coming.assembly.tag, coming.assembly.size) != (offered.tag, offered.size):
            self._coming.pop(order, None)
            self._make_room(offered.size)
            held = [c.assembly.size for c in (*self._coming.values(), *self._waiting.values())]
            if len(held) >= _MOST_OPEN or sum(held) + offered.size > 2 * self._largest:
                self._refuse(order, offered.control, f"the silo holds {len(held)} orders of {sum(held):,} bytes and takes no more now")
                return
            try:
                assembly = Assembly(offered.size, offered.tag)
            except (OSError, MemoryError):
                self._refuse(order, offered.control, f"the silo has no memory for an order of {offered.size:,} bytes")
                return
            coming = self._coming[order] = _Coming(offered.control, assembly, self._outbox)
        coming.connection = self._outbox
        if offered.again or coming.assembly.arrived:
            self._outbox.signal(Kind.HAVE, order, coming.assembly.arrived)

    def _make_room(self, size: int) -> None:
        """Forget orders of earlier connections that came in part and were not offered again, if there is no room otherwise."""
        held = sum(c.assembly.size for c in (*self._coming.values(), *self._waiting.values()))
        if len(self._coming) + len(self._waiting) >= _MOST_OPEN or held + size > 2 * self._largest:
            self._coming = {order: coming for order, coming in self._coming.items() if coming.connection is self._outbox}

    def _chunk(self, frame: Frame) -> None:
        order = frame.order
        coming = self._coming.get(order)
        if coming is None or coming.connection is not self._outbox:
            known = order in self._refused or order in self._waiting or order in self._answers or self._book.known(order) is not Known.NEW
            if not known:
                raise MalformedMessage("the gateway sent a chunk of an order that it had not offered")
            return
        coming.assembly.put(frame.number, frame.body)
        if coming.assembly.whole:
            self._waiting[order] = self._coming.pop(order)
            self._queues[coming.control].put(order)

    def _release(self, order: bytes) -> None:
        self._coming.pop(order, None)
        self._answers.pop(order, None)
        self._outbox.have(order, NOT_WANTED)
        if order in self._waiting:
            self._released.add(order)
        else:
            self._close(order)
        self._outbox.signal(Kind.RELEASED, order)

    def _close(self, order: bytes) -> None:
        if self._book.known(order) not in (Known.NEW, Known.LOST):  # what was lost stays lost
            self._book.shut(order)

    def _refuse(self, order: bytes, control: bool, text: str, status: Status = Status.REFUSED) -> None:
        log.warning("order %s is refused: %s", order.hex(), text)
        self._refused.add(order)
        self._outbox.send(Cargo(order, control, packed(_reason(text)), secrets.token_bytes(16), status))

    def _work(self, control: bool) -> None:
        while self.work(control):
            pass

    def work(self, control: bool, wait: bool = True) -> bool:
        """Work on the next order of a lane; returns whether there was one, which is waited for unless the desk is stopped."""
        try:
            order = self._queues[control].get(block=wait)
        except queue.Empty:
            return False
        if order is None:
            return False
        with self._lock:
            coming = self._waiting[order]
            if order in self._released:
                self._released.remove(order)
                del self._waiting[order]
                return True
        cargo = self._answer_control(order, coming) if control else self._answer_work(order, coming)
        with self._lock:
            del self._waiting[order]
            if order in self._released:
                self._released.remove(order)
                self._answers.pop(order, None)
                self._close(order)
            else:
                self._outbox.send(cargo)
        return True

    def _answer_control(self, order: bytes, coming: _Coming) -> Cargo:
        status, answer = self._handled(order, coming)
        cargo = Cargo(order, True, packed(answer), secrets.token_bytes(16), status)
        with self._lock:
            controls = [o for o, kept in self._answers.items() if kept.control]
            for old in controls[: len(controls) - _MOST_CONTROLS + 1]:
                del self._answers[old]
            self._answers[order] = cargo
        return cargo

    def _answer_work(self, order: bytes, coming: _Coming) -> Cargo:
        try:
            self._book.begin(order)
        except FedrayError as error:  # not begun, so it may come again
            log.error("order %s is not worked on: %s", order.hex(), error)
            return Cargo(order, False, packed(_reason(str(error))), secrets.token_bytes(16), Status.REFUSED)
        status, answer = self._handled(order, coming)
        try:
            self._book.answer(order, status, answer)
            return self._book.answered(order)
        except Exception as error:  # of whatever kind: the work is done, and its answer must not be lost
            log.error("the answer to order %s is kept in memory alone: %s", order.hex(), error)
            cargo = Cargo(order, False, packed(answer), secrets.token_bytes(16), status)
            with self._lock:
                self._answers[order] = cargo
            return cargo

    def _handled(self, order: bytes, coming: _Coming) -> tuple[Status, Parcel]:
        try:
            answer = self._handlers[coming.control](order.hex(), coming.assembly.parcel())
            packed(answer)
            return Status.DONE, answer
        except (FedrayError, MalformedMessage) as error:
            log.warning("order %s is refused: %s", order.hex(), error)
            return Status.REFUSED, _reason(str(error))
        except (Exception, SystemExit) as error:
            log.exception("order %s failed", order.hex())
            return Status.REFUSED, _reason(f"the silo failed with {type(error).__name__}; its own log says more")


def _reason(text: str) -> Parcel:
    return Parcel(json.dumps({"reason": text[:2000]}).encode())
