"""Books in an object store: who may write, what is found out, how blocks, locks and addresses look."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from fedray.errors import LedgerError, StoreError
from fedray.privacy.accounting.events import Gaussian
from fedray.privacy.ledger import inspect, object_lock
from fedray.privacy.ledger.chain import Charge, read
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import records_path, subject_path
from fedray.privacy.ledger.verification import verify
from fedray.stores.object_path import ObjectPath
from fedray.stores.s3 import Bucket

PLACE = "s3://silo-books/ledgers?region=us-east-1"
BOOK = records_path(PLACE)
KEYS = "ledgers/records.jsonl/"
HOLDER = "ledgers/records.jsonl.holder"


@pytest.fixture(autouse=True)
def s3() -> Iterator[Any]:
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="silo-books")
        yield client


def charge(subject: str, round: int) -> Charge:
    return Charge(subject, round, 0, Gaussian(2.0), "p" * 64, 1.0)


def write(rounds: int = 3) -> str:
    with Ledger.open(BOOK, "run/1") as ledger:
        ledger.describe("p" * 64, {"delta": 1e-5})
        for r in range(rounds):
            ledger.reserve([charge("a", r), charge("b", r)])
        return ledger.head.sha256


def objects(s3: Any) -> dict[str, bytes]:
    listed = s3.list_objects_v2(Bucket="silo-books").get("Contents", ())
    return {o["Key"]: s3.get_object(Bucket="silo-books", Key=o["Key"])["Body"].read() for o in listed}


def test_a_batch_is_one_object_named_by_its_place(s3: Any) -> None:
    write()
    found = objects(s3)
    at = 0
    for key, block in sorted(found.items()):
        assert key == f"{KEYS}{at:016d}"
        at += len(block)
    assert [b.count(b"\n") for _, b in sorted(found.items())] == [1, 1, 2, 2, 2]
    assert [json.loads(line)["seq"] for _, b in sorted(found.items()) for line in b.splitlines()] == list(range(8))


def test_a_book_is_read_back_and_goes_on() -> None:
    pin = write()
    with Ledger.open(BOOK, "run/2", pinned=pin) as ledger:
        assert ledger.spent("a") == Counter({Gaussian(2.0): 3})
        ledger.reserve([charge("a", 0)])
        head = ledger.head
    summary = verify(BOOK)
    assert summary.head == head
    assert summary.charges == {"a": 4, "b": 3}
    assert len(list(read(BOOK))) == summary.entries
    with pytest.raises(LedgerError, match="lacks the entry"):
        Ledger.open(BOOK, "run/3", pinned="0" * 64)


def test_missing_books_are_not_made_up() -> None:
    with pytest.raises(LedgerError, match="holds no book"):
        verify(BOOK)
    with pytest.raises(LedgerError, match="missing though it has been written before"):
        Ledger.open(BOOK, "run/1", pinned="0" * 64)
    with pytest.raises(LedgerError, match="holds no privacy ledger"):
        inspect.find(PLACE)
    with pytest.raises(StoreError, match=r"store refused to .*NoSuchBucket"):
        Ledger.open(records_path("s3://another/ledgers?region=us-east-1"), "run/1")


def test_show_and_verify_take_addresses() -> None:
    write()
    with Ledger.open(subject_path(PLACE, "silo/1"), "run/1", subject="silo/1") as ledger:
        ledger.describe("p" * 64, {"delta": 1e-5})
        ledger.reserve([charge("silo/1", 0)])
    assert [b.name for b in inspect.find(PLACE).books] == ["records.jsonl", "silo%2F1.jsonl"]
    assert inspect.find(str(BOOK)).books == [BOOK]
    report = inspect.describe(PLACE)
    assert {c["name"]: c["participations_charged"] for book in report["books"] for c in book["clients"]} == {"a": 3, "b": 3, "silo/1": 1}
    lines = list(inspect.verify_all(PLACE))
    assert len(lines) == 2
    assert "whole, 8 entries, 6 charges to 2 clients" in lines[0]


def test_a_living_writer_keeps_the_book(s3: Any) -> None:
    with Ledger.open(BOOK, "the first/1") as first:
        with pytest.raises(LedgerError, match=r"in use by job 'the first/1' \(process \d+ on "):
            Ledger.open(BOOK, "the second/1")
        threading.Timer(0.6, first.close).start()
        Ledger.open(BOOK, "the second/1", wait=10.0).close()
    assert HOLDER not in objects(s3)


def test_a_writer_elsewhere_lives_as_long_as_it_renews(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lock, "_LOOK", 0.01)
    monkeypatch.setattr(object_lock, "RENEW", 0.05)
    monkeypatch.setattr(object_lock, "LEASE", 2.0)
    monkeypatch.setattr(object_lock, "_process", lambda pid: None)
    with Ledger.open(BOOK, "the first/1"), pytest.raises(LedgerError, match="in use by job 'the first/1'"):
        Ledger.open(BOOK, "the second/1")


def test_a_writer_that_is_thought_dead_cannot_write(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is taken over when it was not renewed; what it writes then finds its place taken."""
    monkeypatch.setattr(object_lock, "_LOOK", 0.01)
    monkeypatch.setattr(object_lock, "LEASE", 0.1)
    monkeypatch.setattr(object_lock, "_process", lambda pid: None)
    slow = Ledger.open(BOOK, "slow/1")
    slow.reserve([charge("a", 0)])
    start = time.monotonic()
    with Ledger.open(BOOK, "next/1") as ledger:
        assert time.monotonic() - start >= 0.1
        with pytest.raises(LedgerError, match="someone else wrote at position"):
            slow.reserve([charge("a", 1)])
        with pytest.raises(LedgerError, match="nothing may be trained"):
            slow.reserve([charge("a", 2)])
        slow.close()
        assert json.loads(objects(s3)[HOLDER])["job"] == "next/1"
        ledger.reserve([charge("a", 1)])
    assert verify(BOOK).charges == {"a": 2}


class Away:
    """A store in which someone else's lock lies, and which is away for a minute from its third look on; with a clock of its own."""

    path = ObjectPath.parse(PLACE)

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def get_tagged(self, key: str, patience: float | None = None) -> tuple[bytes, str]:
        self.looks += 1
        self.now += 60.0 if self.looks == 3 else 0.01
        return b'{"job": "first/1", "pid": 1, "host": "h"}', "before" if self.now < 75.0 else "renewed"

    def claim(self, *arguments: object, **more: object) -> str:
        raise AssertionError("a living holder's lock was taken")


def test_a_holder_that_could_not_reach_the_store_gets_the_time_to_renew(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away()
    monkeypatch.setattr(object_lock, "time", away)
    with pytest.raises(LedgerError, match="in use by job 'first/1'"):
        object_lock.ObjectLock(away, "records.jsonl", "second/1", 0.0)  # type: ignore[arg-type]
    assert away.now >= 75.0


def test_a_writer_learns_that_it_was_replaced(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lock, "RENEW", 0.02)
    with Ledger.open(BOOK, "run/1") as ledger:
        s3.put_object(Bucket="silo-books", Key=HOLDER, Body=json.dumps({"job": "other/1", "pid": 1, "host": "h", "token": "t"}).encode())
        end = time.monotonic() + 10
        while not ledger._store._lock.lost and time.monotonic() < end:  # type: ignore[union-attr]
            time.sleep(0.01)
        with pytest.raises(LedgerError, match=r"job 'other/1' \(process 1 on h\) took this book over"):
            ledger.reserve([charge("a", 0)])


def test_the_same_bytes_from_two_writers_are_never_taken_for_one(s3: Any) -> None:
    """Two starts under one name and number would write equal entries, were it not for the writer's own number."""
    seen = set()
    for _ in range(2):
        with Ledger.open(BOOK, "run/1"):
            pass
        ((key, block),) = objects(s3).items()
        seen.add(block)
        s3.delete_object(Bucket="silo-books", Key=key)
    assert len(seen) == 2


@pytest.mark.parametrize("harm", ["remove", "swap", "add", "shorten", "no end", "torn"])
def test_harm_is_found_with_its_place(s3: Any, harm: str) -> None:
    write()
    found = objects(s3)
    keys = sorted(found)

    def put(key: str, body: bytes) -> None:
        s3.put_object(Bucket="silo-books", Key=key, Body=body)

    if harm == "remove":
        s3.delete_object(Bucket="silo-books", Key=keys[2])
    elif harm == "swap":
        put(keys[2], found[keys[3]])
        put(keys[3], found[keys[2]])
    elif harm == "add":
        put(f"{KEYS}{sum(map(len, found.values())):016d}", found[keys[-1]])
    elif harm == "shorten":
        put(keys[2], found[keys[2]].splitlines(keepends=True)[0])
    else:
        put(keys[-1], found[keys[-1]][:-1] if harm == "no end" else found[keys[-1]][:-40])
    for look in (verify, lambda book: Ledger.open(book, "run/2")):
        with pytest.raises(LedgerError, match=r"has an object|does not hold whole lines|line \d+: (carries|names)"):
            look(BOOK)
    assert HOLDER not in objects(s3)


def test_a_store_without_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Bucket._request

    def careless(self: Bucket, operation: str, key: str, **parameters: Any) -> Any:
        return real(self, operation, key, **{name: value for name, value in parameters.items() if name not in ("IfNoneMatch", "IfMatch")})

    monkeypatch.setattr(Bucket, "_request", careless)
    with pytest.raises(LedgerError, match="ignores conditions on writes"):
        Ledger.open(BOOK, "run/1")


def test_without_boto3_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StoreError, match=r"needs boto3; install fedray\[s3\]"):
        verify(BOOK)


def test_without_credentials_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="check the address and the credentials"):
        verify(BOOK)
