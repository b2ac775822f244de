"""What no honest peer sends is refused by either end, and changes nothing: 10,000 malformed and 10,000 hostile frames each."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest
from hostileframes import hostile, malformed

from fedray.silos.counter import Counter
from fedray.silos.desk import Desk
from fedray.silos.frames import Offered, Status, offer, read_frame
from fedray.silos.orderbook import OrderBook
from fedray.silos.parcels import LARGEST, MalformedMessage, Parcel

FRAMES = 10_000


def transferred(counter: Counter, desk: Desk) -> None:
    """Have an order worked on over an honest connection."""
    answer = counter.submit(random.randbytes(16), Parcel(b"{}", (bytes(5000),)), 1e9)
    down, up = counter.connected(), desk.connected()
    while not answer.done():
        for box, hear in ((down, desk.hear), (up, lambda frame: counter.hear(down, frame))):
            while (data := box.next()) is not None:
                hear(read_frame(data))
        desk.work(False, wait=False)
    assert answer.result() == Parcel(b"{}", (bytes(5000),))


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(OrderBook(tmp_path), lambda order, parcel: parcel, lambda order, parcel: parcel)


def test_a_malformed_frame_is_refused_by_both_ends(desk: Desk) -> None:
    draw, counter, largest = random.Random(0), Counter("a"), 0
    held = counter.submit(bytes(16), Parcel(b"{}"), 1e9)
    for _ in range(FRAMES):
        data = malformed(draw)
        with pytest.raises(MalformedMessage):
            desk.connected()
            desk.hear(read_frame(data))
        outbox = counter.connected()
        try:
            counter.hear(outbox, read_frame(data))
        except MalformedMessage:
            largest += 1
        else:  # an answer to an order that is not open is not wanted, whatever it is
            assert outbox.next() is not None
    assert largest > FRAMES // 2 and not held.done()
    counter.release(bytes(16))
    transferred(counter, desk)


@pytest.mark.parametrize("end", ["silo", "gateway"])
def test_hostile_frames_take_no_memory_and_no_order(end: str, desk: Desk, tmp_path: Path) -> None:
    draw, counter = random.Random(1), Counter("a")
    orders = [draw.randbytes(16) for _ in range(5)]
    answers = [counter.submit(order, Parcel(b"{}", (bytes(3000),)), 1e9) for order in orders]
    outbox = counter.connected()
    before = memory()
    for _ in range(FRAMES):
        try:
            if end == "silo":
                desk.hear(read_frame(hostile(draw, orders)))
                desk.work(False, wait=False)
                desk.work(True, wait=False)
            else:
                counter.hear(outbox, read_frame(hostile(draw, orders)))
        except MalformedMessage:
            desk.connected()
            outbox = counter.connected()
    assert memory() - before < 300 * 2**20, "what a peer claims is taken from memory only as it arrives"
    for order in orders:
        counter.release(order)
    assert all(answer.done() for answer in answers)
    transferred(counter, desk)


def test_claims_alone_take_no_memory(desk: Desk) -> None:
    """Ten times as many orders of 4 GiB as a silo takes, and none of them comes."""
    other, before = Counter("a"), memory()
    for number in range(640):
        desk.hear(read_frame(offer(number.to_bytes(16, "little"), Offered(False, Status.DONE, LARGEST, bytes(16)))))
    assert memory() - before < 64 * 2**20
    transferred(other, desk)
