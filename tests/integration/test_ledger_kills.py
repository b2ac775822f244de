"""A writer killed anywhere has trained nothing that the ledger does not say, and leaves a whole ledger.

What was trained is counted from outside: each writer notes it in a file of its own after the charge returned.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bookwriter import EVENT, SUBJECTS, Writers, trained
from objectstore import Wire, object_store

from fedray.errors import LedgerError, StoreError
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.ledger import ledger as ledger_module
from fedray.privacy.ledger.chain import Charge, Summary
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import records_path
from fedray.privacy.ledger.notices import Notice, find_notices
from fedray.privacy.ledger.verification import verify
from fedray.stores import s3 as object_client
from fedray.stores.object_path import Location

#: A book this old is left for a new one, so that reading it does not come to take all the time.
LIVES = 10


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, Wire]]:
    with object_store() as (address, wire):
        yield address, wire


@pytest.fixture(scope="module")
def writers(store: tuple[str, Wire]) -> Iterator[Writers]:
    writers = Writers()
    yield writers
    writers.stop()


def checked(book: str) -> Summary:
    """The book as the next run finds it: a line torn by the kill is mended by opening it."""
    try:
        return verify(book)
    except LedgerError as error:
        assert any(word in str(error) for word in ("torn", "has no end", "empty"))
    Ledger.open(book, "the next run/1").close()
    return verify(book)


def compare(book: str, witness: Path, lives: int) -> Summary:
    """Nothing that was trained is missing, and nothing is charged but what was trained and one batch a life."""
    summary, seen = checked(book), trained(witness)
    for subject in SUBJECTS:
        assert seen[subject] <= summary.charges[subject] <= seen[subject] + lives
    return summary


def kill_one(writers: Writers, book: str, witness: Path, draw: random.Random, life: int, wire: Wire | None) -> str:
    """One life, ended at a random moment from outside, or at a random call from inside; returns which."""
    inside = draw.random() < 0.5
    calls = draw.randrange(1, 60)
    job = {"book": book, "witness": str(witness), "job": f"run/{life}"}
    if inside:
        writers.start(**job, calls=calls, after=draw.random() < 0.5)
        assert writers.reap() == "killed"
        return "inside"
    pid = writers.start(**job)
    moment = draw.uniform(0.0, 0.06 if wire is None else 0.5)
    away = wire is not None and draw.random() < 0.2
    if away and wire is not None:
        time.sleep(moment / 2)
        wire.cut()
        time.sleep(moment / 2)
    else:
        time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    ended = writers.reap()
    if away and wire is not None:
        wire.mend()
    # A block of the writer killed before may still have been on its way when this one opened the book: it stops, having charged nothing.
    assert ended == "killed" or "someone else wrote" in ended
    return "away" if away else "outside"


def kill_many(kills: int, writers: Writers, folder: Path, place: str, wire: Wire | None, seed: int) -> None:
    draw = random.Random(seed)
    how: dict[str, int] = {}
    in_all = 0
    for life in range(kills):
        volume = life // LIVES
        (folder / f"{volume}").mkdir(exist_ok=True)
        book = str(records_path(f"{folder}/{volume}" if wire is None else place.replace("?", f"/{seed}-{volume}?")))
        witness = folder / f"{volume}" / "witness"
        end = kill_one(writers, book, witness, draw, life, wire)
        how[end] = how.get(end, 0) + 1
        if not trained(witness) and not readable(book):
            continue  # killed before there was a book
        summary = compare(book, witness, life % LIVES + 1)
        if life % LIVES == LIVES - 1:
            in_all += sum(trained(witness).values())
            for subject, epsilon in summary.epsilons(1e-5).items():
                assert epsilon >= bound({EVENT: trained(witness)[subject]}, 1e-5)
    assert min(how.values()) > 0
    assert in_all > 0 or kills < LIVES


def readable(book: str) -> bool:
    with contextlib.suppress(LedgerError, StoreError):
        return verify(book).entries > 0
    return False


def test_ten_kills_of_a_writer_to_a_file(writers: Writers, tmp_path: Path) -> None:
    kill_many(10, writers, tmp_path, "", None, 1)


def test_ten_kills_of_a_writer_to_an_object_store(writers: Writers, tmp_path: Path, store: tuple[str, Wire]) -> None:
    kill_many(10, writers, tmp_path, *store, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_kills_of_a_writer_to_a_file(writers: Writers, tmp_path: Path) -> None:
    kill_many(100, writers, tmp_path, "", None, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills_of_a_writer_to_an_object_store(writers: Writers, tmp_path: Path, store: tuple[str, Wire]) -> None:
    kill_many(100, writers, tmp_path, *store, 4)


def store_away(writers: Writers, folder: Path, store: tuple[str, Wire], seconds: float) -> None:
    """A writer goes on when the store is back, and every charge is there once."""
    address, wire = store
    book, witness = str(records_path(address.replace("?", f"/away-{seconds:g}?"))), folder / "witness"
    pid = writers.start(book=book, witness=str(witness), job="run/1", rounds=30)
    while not trained(witness):
        time.sleep(0.01)
    wire.cut()
    threading.Timer(seconds, wire.mend).start()
    assert writers.reap() == "ended 0", pid
    assert trained(witness) == dict.fromkeys(SUBJECTS, 30)
    assert verify(book).charges == dict.fromkeys(SUBJECTS, 30)


def test_a_store_away_for_two_seconds_is_waited_for(writers: Writers, tmp_path: Path, store: tuple[str, Wire]) -> None:
    store_away(writers, tmp_path, store, 2.0)


@pytest.mark.slow
def test_a_store_away_for_a_minute_is_waited_for(writers: Writers, tmp_path: Path, store: tuple[str, Wire]) -> None:
    store_away(writers, tmp_path, store, 61.0)


def test_answers_that_are_lost_count_once(writers: Writers, tmp_path: Path, store: tuple[str, Wire]) -> None:
    """The store has the block, the writer does not know: it looks, and neither repeats nor forgets it."""
    address, wire = store
    book, witness = str(records_path(address.replace("?", "/lost?"))), tmp_path / "witness"
    writers.start(book=book, witness=str(witness), job="run/1", rounds=40)
    draw = random.Random(5)
    while len(trained(witness)) == 0:
        time.sleep(0.01)
    for _ in range(12):
        wire.lose_answers(draw.randrange(1, 3))
        time.sleep(draw.uniform(0.0, 0.05))
    wire.lose_answers(0)
    assert writers.reap() == "ended 0"
    assert verify(book).charges == dict.fromkeys(SUBJECTS, 40) == trained(witness)


def test_a_store_that_stays_away_stops_the_writer(tmp_path: Path, store: tuple[str, Wire], monkeypatch: pytest.MonkeyPatch) -> None:
    address, wire = store
    monkeypatch.setattr(object_client, "PATIENCE", 0.5)

    def found_before_the_cut(book: Location) -> list[Notice]:
        found = find_notices(book)
        wire.cut()
        return found

    with Ledger.open(records_path(address.replace("?", "/gone?")), "run/1") as ledger:
        wire.cut()
        try:
            with pytest.raises(StoreError, match="could not be reached to list"):
                ledger.reserve([Charge("a", 0, 0, EVENT, "p", 1.0)])
        finally:
            wire.mend()
        ledger.reserve([Charge("a", 0, 0, EVENT, "p", 1.0)])  # nothing was written before, so nothing is in doubt
        with monkeypatch.context() as patched:
            patched.setattr(ledger_module, "find_notices", found_before_the_cut)
            try:
                with pytest.raises(StoreError, match="could not be reached to write"):
                    ledger.reserve([Charge("a", 1, 0, EVENT, "p", 1.0)])
            finally:
                wire.mend()
        with pytest.raises(LedgerError, match="nothing may be trained"):
            ledger.reserve([Charge("a", 2, 0, EVENT, "p", 1.0)])
