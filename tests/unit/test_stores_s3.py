"""The client of object stores: outages, lost answers, conditions on writes, files that do not fit into memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from objectstore import Wire, object_store

from fedray.errors import FedrayError, StoreError
from fedray.storage import write_atomic
from fedray.stores import s3
from fedray.stores.object_path import ObjectPath
from fedray.stores.s3 import Absent, Bucket, Taken


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[ObjectPath, Wire]]:
    with object_store() as (address, wire):
        yield ObjectPath.parse(address), wire


@pytest.fixture
def wire(store: tuple[ObjectPath, Wire]) -> Wire:
    return store[1]


@pytest.fixture
def bucket(store: tuple[ObjectPath, Wire], request: pytest.FixtureRequest) -> Bucket:
    return Bucket(store[0] / request.node.name, patience=30.0)


CALLS: dict[str, Callable[[Bucket, Path], Any]] = {
    "get": lambda bucket, path: bucket.get("old"),
    "get_tagged": lambda bucket, path: bucket.get_tagged("old"),
    "download": lambda bucket, path: bucket.download("old", path),
    "put": lambda bucket, path: bucket.put("new", b"new"),
    "put of a file": lambda bucket, path: bucket.put("new", (path.write_bytes(b"new"), path.open("rb"))[1]),
    "create": lambda bucket, path: bucket.create("new", b"new"),
    "claim": lambda bucket, path: bucket.claim("new", b"new", None),
    "delete": lambda bucket, path: bucket.delete("old"),
    "names": lambda bucket, path: bucket.names(),
    "folders": lambda bucket, path: bucket.folders(),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_is_tried_again_while_the_store_is_away(bucket: Bucket, wire: Wire, tmp_path: Path, call: str) -> None:
    bucket.put("old", b"old")
    wire.cut()
    try:
        with pytest.raises(StoreError, match=r"the store could not be reached to .*; check the address, the credentials and the network"):
            CALLS[call](Bucket(bucket.path, patience=0.0), tmp_path / "file")
        threading.Timer(0.3, wire.mend).start()
        CALLS[call](bucket, tmp_path / "file")
    finally:
        wire.cut()
        wire.mend()
    written = {"new"} if bucket.get("new") == b"new" else set()
    assert written == ({"new"} if call in ("put", "put of a file", "create", "claim") else set())
    assert set(bucket.names()) == written | (set() if call == "delete" else {"old"})


def test_an_answer_that_is_lost_counts_once(bucket: Bucket, wire: Wire) -> None:
    wire.lose_answers(1)
    bucket.create("a", b"mine")
    assert bucket.get("a") == b"mine"
    with pytest.raises(Taken):
        bucket.create("a", b"other")
    assert bucket.get("a") == b"mine"


def test_conditions_on_writes_and_deletions(bucket: Bucket) -> None:
    first = bucket.claim("a", b"1", None)
    with pytest.raises(Taken):
        bucket.claim("a", b"2", None)
    second = bucket.claim("a", b"2", first)
    for condition in (None, first):
        with pytest.raises(Taken):
            bucket.claim("a", b"3", condition)
    assert bucket.get_tagged("a") == (b"2", second)
    bucket.delete("a", second)
    assert bucket.get("a") is None
    with pytest.raises(Taken):
        bucket.claim("a", b"3", second)
    bucket.delete("a")  # an object that is gone is no error


def test_names_and_folders_are_relative_and_of_this_prefix_alone(bucket: Bucket) -> None:
    beside = bucket.at(ObjectPath(bucket.path.bucket, f"{bucket.path.prefix}.holder", bucket.path.endpoint_url))
    beside.put("x", b"")
    for name in ("b", "a/2", "a/1/deep", "c.jsonl/0"):
        bucket.put(name, b"")
    assert bucket.names() == ["a/1/deep", "a/2", "b", "c.jsonl/0"]
    assert bucket.folders() == ["a", "c.jsonl"]
    assert beside.names() == ["x"]


def test_a_large_file_is_sent_and_fetched_in_parts(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART", 5 * 2**20)
    bucket = Bucket(bucket.path)
    size, path = 32 * 2**20 + 7, tmp_path / "large"
    path.write_bytes(os.urandom(size))
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            path.rename(tmp_path / "moved")  # an open file is sent wherever its name leads by now
            bucket.put("large", file)
            bucket.put("large", file)  # the file is still open, and is sent from its beginning
        write_atomic(tmp_path / "back", lambda target: bucket.download("large", target))
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()
    assert (tmp_path / "back").read_bytes() == (tmp_path / "moved").read_bytes()
    found = bucket.get_tagged("large")
    assert found is not None and found[1].endswith('-7"'), "it was sent in parts"


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_lines_that_are_appended_while_a_file_is_sent_are_left_out(bucket: Bucket, tmp_path: Path, size: int) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"x" * size)

    def append(**_: object) -> None:
        with path.open("ab") as more:
            more.write(b"late")

    bucket._client.meta.events.register("before-send.s3.PutObject", append)
    with path.open("rb") as file:
        bucket.put("rows", file)
    assert path.stat().st_size == size + 4
    assert bucket.get("rows") == b"x" * size


def test_an_object_that_is_absent_leaves_no_file(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(Absent):
        write_atomic(tmp_path / "a", lambda path: bucket.download("nothing", path))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_taken_for_a_store_that_is_away(bucket: Bucket) -> None:
    bucket.put("a", b"x" * 100)
    with pytest.raises(OSError, match="No space left"):
        bucket.download("a", Path("/dev/full"))


def test_a_refusal_is_told_at_once(bucket: Bucket) -> None:
    with pytest.raises(FedrayError, match=r"^s3://nobucket/x\?.*refused to write 'a' .*does not exist.*; check the bucket and the rights"):
        Bucket(ObjectPath("nobucket", "x", bucket.path.endpoint_url)).put("a", b"")


def test_boto3_is_loaded_where_a_store_is_used() -> None:
    code = "import sys, fedray.cli, fedray.runfiles, fedray.stores.mirror, fedray.privacy.ledger.ledger; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
