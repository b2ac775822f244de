"""Orders through a link that fails anyhow, at any message: each is worked on once at most, and each is answered with the same bytes, or lost.

Both ends run without gRPC and without threads: a schedule says what happens at each message. Chunks are 64 bytes, so that parcels have several.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter as Tally
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.silos import parcels
from fedray.silos.counter import Counter, OrderLost, SiloRefused
from fedray.silos.desk import Desk
from fedray.silos.frames import Kind, read_frame
from fedray.silos.orderbook import OrderBook
from fedray.silos.parcels import MalformedMessage, Parcel


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True, scope="module")
def short_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parcels, "CHUNK", 64)
        patch.setattr(os, "fsync", lambda descriptor: None)  # no power fails here
        yield


def made(seed: int, size: int) -> bytes:
    return hashlib.shake_256(seed.to_bytes(8, "little")).digest(size)


def expected(parcel: Parcel) -> bytes:
    return made(int(parcel.head), len(parcel.buffers[0]) + 100)


class Rig:
    """A silo and a gateway, and the frames on their way between them."""

    def __init__(self, directory: Path, largest: int = 4096) -> None:
        self.directory = directory
        self.largest = largest
        self.worked: Tally[str] = Tally()
        self.kill = ""  # when the silo's process ends: before or after the next order's work
        self.orders: dict[bytes, tuple[Parcel, bool, bool]] = {}
        self.answers: dict[bytes, Future[Parcel]] = {}
        self.booked: OrderBook | None = None
        self.start_silo()
        self.start_gateway()
        self.connect()

    def start_silo(self) -> None:
        if self.booked is not None:
            self.booked.close()
        self.booked = OrderBook(self.directory)
        self.desk = Desk(self.booked, self.handle, self.control, self.largest)

    def start_gateway(self) -> None:
        self.counter = Counter("a", self.largest)
        for order, (parcel, control, hold) in self.orders.items():
            if not self.done(order):
                self.answers[order] = self.counter.submit(order, parcel, 1e9, None, control, hold)

    def connect(self) -> None:
        self.down, self.up = self.counter.connected(), self.desk.connected()
        self.to_silo: deque[bytes] = deque()
        self.to_gateway: deque[bytes] = deque()

    def handle(self, order: str, parcel: Parcel) -> Parcel:
        kill, self.kill = self.kill, ""
        if kill == "before":
            raise Killed
        self.worked[order] += 1
        if kill == "after":
            raise Killed
        return Parcel(parcel.head, (expected(parcel),))

    def control(self, order: str, parcel: Parcel) -> Parcel:
        return Parcel(parcel.head, (expected(parcel),))

    def submit(self, number: int, size: int, control: bool, hold: bool) -> None:
        order = hashlib.md5(bytes([number])).digest()
        if order not in self.orders:
            self.orders[order] = Parcel(str(number).encode(), (made(number, size),)), control, hold
            self.answers[order] = self.counter.submit(order, self.orders[order][0], 1e9, None, control, hold)

    def done(self, order: bytes) -> bool:
        return self.answers[order].done()

    def pull(self) -> bool:
        """Put the next frame of each side on its way; returns whether there was one."""
        found = [(way, data) for way, box in ((self.to_silo, self.down), (self.to_gateway, self.up)) if (data := box.next()) is not None]
        for way, data in found:
            way.append(data)
        return bool(found)

    def deliver(self, way: deque[bytes]) -> bool:
        if not way:
            return False
        try:
            if way is self.to_silo:
                self.desk.hear(read_frame(way.popleft()))
            else:
                self.counter.hear(self.down, read_frame(way.popleft()))
        except MalformedMessage:
            self.connect()
        return True

    def work(self, control: bool) -> bool:
        try:
            return self.desk.work(control, wait=False)
        except Killed:
            self.start_silo()
            self.connect()
            return True

    def act(self, action: str) -> None:
        ways = {"s": self.to_silo, "g": self.to_gateway}
        if action == "pull":
            self.pull()
        elif action.startswith("deliver"):
            self.deliver(ways[action[-1]])
        elif action.startswith("twice") and ways[action[-1]]:
            ways[action[-1]].appendleft(ways[action[-1]][0])
        elif action.startswith("swap") and len(ways[action[-1]]) > 1:
            way = ways[action[-1]]
            way[0], way[1] = way[1], way[0]
        elif action.startswith("late") and ways[action[-1]]:
            ways[action[-1]].rotate(-1)
        elif action == "cut":
            self.connect()
        elif action == "work":
            self.work(False)
            self.work(True)
        elif action == "restart silo":
            self.start_silo()
            self.connect()
        elif action == "restart gateway":
            self.start_gateway()
            self.connect()
        elif action.startswith("kill"):
            self.kill = action.split()[1]

    def settle(self) -> None:
        """Let everything that can happen happen, without more faults."""
        self.connect()
        for _ in range(100_000):
            moved = [self.pull(), self.deliver(self.to_silo), self.deliver(self.to_gateway), self.work(False), self.work(True)]
            if not any(moved):
                return
        raise AssertionError("the two sides never come to rest")

    def check(self) -> None:
        """Every order has its answer, or was lost by a silo that ended while it worked on it; none was worked on twice."""
        assert all(times == 1 for times in self.worked.values())
        for order, (parcel, _, _) in self.orders.items():
            assert self.answers[order].done()
            try:
                answer = self.answers[order].result()
            except OrderLost:
                assert self.worked[order.hex()] <= 1
                continue
            assert answer.head == parcel.head and bytes(answer.buffers[0]) == expected(parcel)


ACTIONS = [
    *("pull", "deliver s", "deliver g", "work") * 4,
    *("twice s", "twice g", "swap s", "swap g", "late s", "late g"),
    *("cut", "restart silo", "restart gateway", "kill before", "kill after"),
]
actions = st.one_of(st.sampled_from(ACTIONS), st.tuples(st.integers(0, 7), st.integers(0, 700), st.booleans(), st.booleans()))


@settings(max_examples=150)
@given(st.lists(actions, max_size=120))
def test_whatever_fails_no_order_is_worked_on_twice_and_no_answer_is_lost(schedule: list[str | tuple[int, int, bool, bool]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Path(directory))
        for action in schedule:
            if isinstance(action, str):
                rig.act(action)
            else:
                rig.submit(*action)
        rig.settle()
        rig.check()
        held = [order for order, (_, control, hold) in rig.orders.items() if hold]
        for order in held:
            rig.counter.release(order)
        rig.settle()
        assert not list(Path(directory).glob("*.answer"))
        assert rig.booked is not None
        rig.booked.close()


def rounds(rig: Rig) -> Iterator[int]:
    """A round of three orders, message by message: yields the number of messages so far before each is delivered."""
    number = 0
    for order in range(3):
        rig.submit(order, 300, order == 2, order == 1)
    while True:
        moved = rig.pull()
        for side in ("s", "g"):
            while {"s": rig.to_silo, "g": rig.to_gateway}[side]:
                yield number
                number += 1
                rig.act(f"deliver {side}")
        if not (moved | rig.work(False) | rig.work(True)):
            return


@pytest.mark.parametrize("fault", ["cut", "restart silo", "restart gateway", "twice s", "twice g", "swap s", "swap g", "late s", "late g"])
def test_a_fault_at_every_message_of_a_round_in_turn(fault: str, tmp_path: Path) -> None:
    at, last = 0, 0
    while at <= last:
        rig = Rig(tmp_path / str(at))
        for last in rounds(rig):
            if last == at:
                rig.act(fault)
        rig.settle()
        rig.check()
        assert sum(rig.worked.values()) == 2 and rig.booked is not None
        rig.booked.close()
        at += 1
    assert last > 20


def test_a_cut_transfer_goes_on_from_the_chunk_that_had_arrived(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.submit(1, 2000, False, False)
    for _ in range(20):
        rig.pull()
        rig.deliver(rig.to_silo)
    rig.connect()
    sent = 0
    while rig.pull():
        while rig.to_silo:
            sent += read_frame(rig.to_silo[0]).kind is Kind.CHUNK
            rig.deliver(rig.to_silo)
        while rig.to_gateway:
            rig.deliver(rig.to_gateway)
    assert sent == -(-(64 + 2000) // 64) - 19  # the first frame was the offer
    rig.settle()
    rig.check()


def test_an_order_that_is_released_before_it_is_worked_on_never_is(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.submit(1, 10, False, False)
    (order,) = rig.orders
    while rig.pull():
        while rig.to_silo:
            rig.deliver(rig.to_silo)
    rig.counter.release(order)
    rig.settle()
    assert not rig.worked
    with pytest.raises(CancelledError):
        rig.answers[order].result()


def test_a_replayed_order_is_refused_with_the_reason(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.submit(1, 10, False, False)
    rig.settle()
    (order,) = rig.orders
    again = rig.counter.submit(order, rig.orders[order][0], 1e9)
    rig.settle()
    with pytest.raises(SiloRefused, match="was answered and closed before, and no order is worked on twice"):
        again.result()
    assert sum(rig.worked.values()) == 1
