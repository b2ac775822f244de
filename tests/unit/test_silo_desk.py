"""The silo's desk where its disk or its handler fails."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from fedray.errors import FedrayError
from fedray.silos import orderbook
from fedray.silos.counter import Counter, SiloRefused
from fedray.silos.desk import Desk
from fedray.silos.frames import Status, read_frame
from fedray.silos.orderbook import Known, OrderBook
from fedray.silos.parcels import Parcel

ORDER = bytes(range(16))


def echo(order: str, parcel: Parcel) -> Parcel:
    return parcel


def answered(desk: Desk, hold: bool = False) -> Parcel:
    """What the desk says to an order over a link without faults."""
    counter = Counter("a")
    answer = counter.submit(ORDER, Parcel(b"{}", (b"1234",)), 1e9, hold=hold)
    down, up = counter.connected(), desk.connected()
    for _ in range(50):
        while (data := down.next()) is not None:
            desk.hear(read_frame(data))
        while (data := up.next()) is not None:
            counter.hear(down, read_frame(data))
        desk.work(False, wait=False)
    return answer.result(0.0)


def failing(*args: object) -> None:
    raise FedrayError("no space is left on the disk")


def test_an_order_that_cannot_be_written_down_is_not_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[str] = []

    def handle(order: str, parcel: Parcel) -> Parcel:
        worked.append(order)
        return parcel

    desk = Desk(OrderBook(tmp_path), handle, echo)
    with monkeypatch.context() as patch, pytest.raises(SiloRefused, match="no space is left"):
        patch.setattr(orderbook, "append_line", failing)
        answered(desk)
    assert not worked
    assert answered(desk) == Parcel(b"{}", (b"1234",)) and worked == [ORDER.hex()]  # it may come again


def test_an_answer_that_cannot_be_kept_is_sent_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(OrderBook(tmp_path), echo, echo)
    with monkeypatch.context() as patch:
        patch.setattr(orderbook, "write_atomic", failing)
        assert answered(desk, hold=True) == Parcel(b"{}", (b"1234",))
    assert answered(desk) == Parcel(b"{}", (b"1234",))  # again, to a gateway that was restarted


def test_a_handler_that_ends_its_thread_is_a_refusal(tmp_path: Path) -> None:
    def handle(order: str, parcel: Parcel) -> Parcel:
        sys.exit(1)

    with pytest.raises(SiloRefused, match="the silo failed with SystemExit"):
        answered(Desk(OrderBook(tmp_path), handle, echo))


def test_an_answer_that_cannot_be_sent_is_a_refusal(tmp_path: Path) -> None:
    desk = Desk(OrderBook(tmp_path), lambda order, parcel: Parcel(bytes(2**21)), echo)
    with pytest.raises(SiloRefused, match="the silo failed with ValueError"):
        answered(desk)


def test_an_answer_that_nobody_fetches_is_kept_for_thirty_days(tmp_path: Path) -> None:
    book = OrderBook(tmp_path)
    book.begin(ORDER)
    book.answer(ORDER, Status.DONE, Parcel(b"{}"))
    book.close()
    (file,) = tmp_path.glob("*.answer")
    for days, known in ((29, Known.ANSWERED), (31, Known.CLOSED)):
        os.utime(file, (time.time() - days * 86400,) * 2)
        book = OrderBook(tmp_path)
        assert book.known(ORDER) is known and file.exists() is (known is Known.ANSWERED)
        book.close()


@pytest.mark.parametrize("line", [b"begun 12\n", b"ended 00000000000000000000000000000000\n", b"\xff\n"])
def test_a_damaged_book_is_not_worked_with(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "orders.log").write_bytes(b"begun " + b"0" * 32 + b"\n" + line)
    with pytest.raises(FedrayError, match=r"orders.log: is damaged \(line 2 is not one of an order\)"):
        OrderBook(tmp_path)


def test_a_line_that_a_crash_cut_off_was_not_begun(tmp_path: Path) -> None:
    (tmp_path / "orders.log").write_bytes(b"begun " + ORDER.hex().encode() + b"\nbegun 0000")
    book = OrderBook(tmp_path)
    assert book.known(ORDER) is Known.LOST
    book.begin(bytes(16))
    book.close()
    assert OrderBook(tmp_path).known(bytes(16)) is Known.LOST
