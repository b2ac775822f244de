"""A run's files in an object store: what is sent when, who owns them, a store that is away, commands on addresses."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from click.testing import CliRunner
from objectstore import BUCKET, Wire, object_store
from processes import wait_until

from fedray.checkpoint import Saved, load_latest
from fedray.cli import cli
from fedray.errors import ConfigError, FedrayError, Stopped, StoreError
from fedray.faults import Fault
from fedray.runfiles import RunFiles, choose_output
from fedray.stores import mirror as mirrors
from fedray.stores.mirror import Mirror, local_copy, working_directory
from fedray.stores.object_path import ObjectPath, location
from fedray.stores.s3 import Absent, Bucket


class Shelf(Bucket):
    """A store in memory that breaks at the given call."""

    def __init__(self, objects: dict[str, bytes] | None = None, breaks_at: int = -1) -> None:
        self.path = ObjectPath("shelf", "run")
        self.objects = {} if objects is None else objects
        self.left = breaks_at
        self.away = False

    def _call(self) -> None:
        if self.left == 0 or self.away:
            raise StoreError("s3://shelf/run: the store could not be reached (broken)")
        self.left -= 1

    def put(self, key: str, data: bytes | BinaryIO, patience: float | None = None) -> None:
        self._call()
        self.objects[key] = data if isinstance(data, bytes) else data.read()

    def get(self, key: str, patience: float | None = None) -> bytes | None:
        self._call()
        return self.objects.get(key)

    def download(self, key: str, path: Path, patience: float | None = None) -> None:
        data = self.get(key)
        if data is None:
            raise Absent(key)
        path.write_bytes(data)

    def names(self, patience: float | None = None) -> list[str]:
        self._call()
        return sorted(self.objects)

    def delete(self, key: str, tag: str | None = None, patience: float | None = None) -> None:
        self._call()
        self.objects.pop(key, None)


def train(files: RunFiles, first: int, last: int) -> None:
    """What the driver writes in some rounds: the row of a round comes after its checkpoint."""
    for r in range(first, last + 1):
        if r > 1:
            files.append_row({"round": r - 1, "time": 0.0, "metrics": {}})
        files.save_checkpoint(Saved(r, np.full(3, r, dtype=np.float32)), keep=2)


def end(files: RunFiles, last: int) -> None:
    files.append_row({"round": last, "time": 0.0, "metrics": {}})
    files.write_summary({"status": "completed", "rounds": last})


def rounds_of(objects: dict[str, bytes]) -> list[int]:
    return sorted(int(n[-18:-12]) for n in objects if n.startswith("checkpoints/"))


def resumable(objects: dict[str, bytes]) -> None:
    """Every checkpoint's earlier rows are there, and the summary only when all is."""
    rows = [json.loads(line)["round"] for line in objects.get("metrics.jsonl", b"").splitlines()]
    newest = max(rounds_of(objects), default=0)
    assert rows == list(range(1, len(rows) + 1))
    assert len(rows) >= newest - 1
    if newest:
        assert objects["config.yaml"]
    if "summary.json" in objects:
        assert newest == json.loads(objects["summary.json"])["rounds"] == len(rows)


def quiet(text: str) -> None:
    pass


# -- order and ownership, on a store in memory -----------------------------------------------------


@pytest.mark.parametrize("step", [1, 3])  # the store may lag some rounds behind
def test_whatever_call_is_the_last_the_store_can_be_resumed(tmp_path: Path, step: int) -> None:
    calls = 0
    while True:
        calls += 1
        root, shelf = tmp_path / str(calls), Shelf(breaks_at=calls)
        files = RunFiles(root).claim()
        files.config.write_text("name: x")
        copy, whole, seen = Mirror(root, shelf, quiet), True, 0
        for first in range(1, 9, step):
            last = min(8, first + step - 1)
            train(files, first, last)
            if last == 8:
                end(files, 8)
            try:
                copy.send()
            except StoreError:
                whole = False
            resumable(shelf.objects)
            found = rounds_of(shelf.objects)
            assert max(found, default=0) >= seen
            seen = max(found, default=0)
            if not whole:
                break
        if whole:
            break
    assert calls > 10
    assert rounds_of(shelf.objects) == [7, 8]  # the old ones are gone
    assert copy.unsent() == []


def test_a_driver_that_is_faster_than_its_store_leaves_it_resumable(tmp_path: Path) -> None:
    files = RunFiles(tmp_path).claim()
    files.config.write_text("name: x")

    class Slow(Shelf):
        """While one object is written, the driver goes on by three rounds, and deletes all checkpoints that it had."""

        done, newest = 3, 0

        def _call(self) -> None:
            resumable(self.objects)
            found = max(rounds_of(self.objects), default=0)
            assert found >= self.newest
            self.newest = found
            train(files, self.done + 1, self.done + 3)
            self.done += 3

    shelf = Slow()
    train(files, 1, 3)
    copy = Mirror(tmp_path, shelf, quiet)
    lags = []
    for _ in range(5):
        before = shelf.done
        copy.send()
        resumable(shelf.objects)
        lags.append(max(rounds_of(shelf.objects)) - before)
    assert lags == [0] * 5  # each turn brings the store to where the driver was when it began


def test_a_working_directory_that_is_ahead_of_the_store_stands(tmp_path: Path) -> None:
    shelf = Shelf()
    files = RunFiles(tmp_path / "a").claim()
    files.config.write_text("name: x")
    train(files, 1, 4)
    first = Mirror(files.root, shelf, quiet)
    first.start()
    assert first.close(10) == []
    train(files, 5, 6)  # not sent: the driver died
    again = Mirror(files.root, shelf, quiet)
    again.pull(resume=True)
    newest = load_latest(files.checkpoints)
    assert newest is not None and newest.round == 6
    files = files.claim()
    again.start()
    assert again.close(10) == []
    assert rounds_of(shelf.objects) == [5, 6]
    resumable(shelf.objects)


@pytest.mark.parametrize("more", [0, 2])
def test_the_store_stands_where_another_driver_wrote_last(tmp_path: Path, more: int) -> None:
    shelf = Shelf()
    here = RunFiles(tmp_path / "here").claim()
    here.config.write_text("name: x")
    train(here, 1, 3)
    first = Mirror(here.root, shelf, quiet)
    first.start()
    assert first.close(10) == []
    elsewhere = Mirror(tmp_path / "elsewhere", shelf, quiet)
    elsewhere.pull(resume=True)
    other = RunFiles(tmp_path / "elsewhere").claim()
    assert [r["round"] for r in other.rows()] == [1, 2]
    train(other, 4, 3 + more)
    elsewhere.start()
    assert elsewhere.close(10) == []
    (here.root / "stray.txt").write_text("left over")
    Mirror(here.root, shelf, quiet).pull(resume=True)
    assert not (here.root / "stray.txt").exists()
    newest = load_latest(here.checkpoints)
    assert newest is not None and newest.round == 3 + more
    Mirror(here.root, shelf, quiet).pull(resume=False)  # a new run at an address that was cleared
    assert list(here.root.iterdir()) == []


def test_a_driver_that_was_replaced_stops_and_overwrites_nothing(tmp_path: Path) -> None:
    shelf = Shelf()
    notes: list[str] = []
    cut_off = RunFiles(tmp_path / "a").claim()
    cut_off.config.write_text("name: x")
    train(cut_off, 1, 3)
    first = Mirror(cut_off.root, shelf, notes.append)
    first.start()
    wait_until(lambda: rounds_of(shelf.objects) == [2, 3], "three rounds are in the store")
    shelf.away = True  # for the first alone: it is cut off
    other = Shelf(shelf.objects)
    second = Mirror(tmp_path / "b", other, quiet)
    second.pull(resume=True)
    taken_over = RunFiles(tmp_path / "b").claim()
    second.start()
    train(taken_over, 4, 5)
    assert second.close(10) == []
    train(cut_off, 4, 7)  # it does not know yet
    shelf.away = False
    wait_until(lambda: not cut_off.owned(), "the first driver sees that another owns its run")
    for write in (
        lambda: cut_off.append_row({"round": 7}),
        lambda: cut_off.save_checkpoint(Saved(8, np.zeros(3, dtype=np.float32)), 2),
        lambda: cut_off.write_summary({}),
        lambda: cut_off.rewind(1),
    ):
        with pytest.raises(Stopped, match="another driver has taken this run over"):
            write()
    assert first.close(5) == []
    assert rounds_of(shelf.objects) == [4, 5]
    resumable(shelf.objects)


def test_two_drivers_of_one_directory(tmp_path: Path) -> None:
    first = RunFiles(tmp_path).claim()
    first.append_row({"round": 1})
    second = RunFiles(tmp_path).claim()
    assert (first.owned(), second.owned(), RunFiles(tmp_path).owned()) == (False, True, True)
    with pytest.raises(Stopped):
        first.append_row({"round": 2})
    second.append_row({"round": 2})
    assert [r["round"] for r in second.rows()] == [1, 2]


def test_what_is_never_sent(tmp_path: Path) -> None:
    for name in (".tracking.lock", "ledger/records.jsonl", "ledger/records.salt", "checkpoints/.round-000001.abc", "owner.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "ledger" / "records.part.json").write_text("{}")
    (tmp_path / "empty").write_text("")
    shelf = Shelf()
    Mirror(tmp_path, shelf, quiet).send()
    assert sorted(shelf.objects) == ["empty", "ledger/records.part.json"]


# -- addresses -------------------------------------------------------------------------------------


def test_working_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_WORK", str(tmp_path / "work"))
    here = ObjectPath("b", "runs/digits", "http://x:1")
    one = working_directory(here)
    assert one == working_directory(here) != working_directory(ObjectPath("b", "runs/digits"))
    assert one.name == "digits"
    assert one.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("FEDRAY_WORK")
    monkeypatch.setattr(mirrors.tempfile, "gettempdir", lambda: str(tmp_path))
    assert working_directory(ObjectPath("b", "x")).parent.parent.name == f"fedray-{os.getuid()}"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDRAY_WORK", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="FEDRAY_WORK"):
        working_directory(ObjectPath("b", "x"))


def test_addresses(tmp_path: Path) -> None:
    assert str(location("s3://b/p/?region=eu&endpoint_url=http://h:9")) == "s3://b/p?endpoint_url=http://h:9&region=eu"
    assert str(ObjectPath("b", "p", region="eu") / "report.html") == "s3://b/p/report.html?region=eu"
    assert (ObjectPath("b", "p/q", "http://h:9").parent, ObjectPath("b", "p").parent / "q") == (
        ObjectPath("b", "p", "http://h:9"),
        ObjectPath("b", "q"),
    )
    secrets = ("s3://me:secret@b", "s3://me:secret@b/p", "gs://me:secret@b/p", "s3://b/p?endpoint_url=http://me:secret@h")
    for wrong in ("ftp://b/p", "s3://b", "gs://b/p", "s3://b/p?key=1", *secrets):
        with pytest.raises(ConfigError, match="^--output") as error:
            choose_output("x", wrong, False)
        assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match=r"write s3://bucket/prefix\?endpoint_url=https://storage\.googleapis\.com and put an HMAC key"):
        choose_output("x", "gs://b/p", False)
    local = choose_output("x", f"file://{tmp_path / 'run'}", False)
    assert local == tmp_path / "run"
    assert RunFiles.at(local).books == tmp_path / "run" / "ledger"
    assert RunFiles(tmp_path, ObjectPath("b", "p", region="eu")).books == ObjectPath("b", "p/ledger", None, "eu")


# -- a real store ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, Wire]]:
    with object_store() as (address, wire):
        yield address, wire


@pytest.fixture
def run_address(store: tuple[str, Wire], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FEDRAY_WORK", str(tmp_path / "work"))
    return store[0].replace("/ledgers?", f"/runs/{request.node.name}?")


def opened(address: str, notes: list[str], resume: bool = False) -> tuple[RunFiles, Mirror]:
    output = choose_output("x", address, resume)
    files = RunFiles.at(output)
    copy = files.mirror(notes.append)
    assert copy is not None
    copy.pull(resume)
    files = files.claim()
    copy.start()
    return files, copy


def contents(address: str) -> dict[str, bytes]:
    bucket = Bucket(ObjectPath.parse(address))
    return {name: bucket.get(name) or b"" for name in bucket.names()}


def test_a_store_that_is_away_holds_nothing_up_and_misses_nothing(store: tuple[str, Wire], run_address: str) -> None:
    _, wire = store
    notes: list[str] = []
    files, copy = opened(run_address, notes)
    files.config.write_text("name: x")
    train(files, 1, 3)
    wait_until(lambda: copy.unsent() == [], "three rounds are in the store")
    wire.cut()
    train(files, 4, 6)
    wait_until(lambda: notes, "the outage is told")
    assert "training goes on" in notes[0] and "could not be reached" in notes[0]
    train(files, 7, 9)
    with pytest.raises(ConfigError, match="check the address, the credentials and the network"):
        choose_output("x", run_address, True)
    began = time.monotonic()
    assert "checkpoints/round-000009.safetensors" in copy.close(0.5)
    assert time.monotonic() - began < 30
    wire.mend()
    with pytest.raises(ConfigError, match="--resume"):
        choose_output("x", run_address, False)
    files, copy = opened(run_address, notes, resume=True)  # on the same node: what was not sent is still there
    end(files, 9)
    assert copy.close(30) == []
    found = contents(run_address)
    resumable(found)
    assert rounds_of(found) == [8, 9]
    for name in set(found) - {"owner.json"}:
        assert (files.root / name).read_bytes() == found[name]


def test_an_outage_at_the_end_is_waited_for(store: tuple[str, Wire], run_address: str) -> None:
    _, wire = store
    notes: list[str] = []
    files, copy = opened(run_address, notes)
    wire.cut()
    train(files, 1, 2)
    wait_until(lambda: notes, "the outage is told")
    missing: list[Any] = []
    closing = threading.Thread(target=lambda: missing.append(copy.close(60)))
    closing.start()
    wire.mend()
    closing.join(60)
    assert missing == [[]]
    assert notes[-1].endswith("the store is back and has everything.")
    assert rounds_of(contents(run_address)) == [1, 2]


def test_wrong_buckets_are_said_at_the_start(store: tuple[str, Wire], run_address: str) -> None:
    with pytest.raises(FedrayError, match="nobucket.*bucket does not exist"):
        opened(run_address.replace(f"{BUCKET}/", "nobucket/"), [])


def test_commands_take_addresses_and_send_back_what_they_write(run_address: str, tmp_path: Path) -> None:
    from test_report import finished

    run = finished(tmp_path / "run")
    RunFiles(run).append_fault(Fault("node", "node b | died", 2))
    bucket = Bucket(ObjectPath.parse(run_address))
    for path in sorted(p for p in run.rglob("*") if p.is_file() and p.suffix != ".salt"):
        name = path.relative_to(run).as_posix()
        if name == "ledger/records.jsonl":  # as a book lies in a store: objects by position
            at, content = 0, path.read_bytes()
            for line in content.splitlines(keepends=True):
                bucket.put(f"{name}/{at:016d}", line)
                at += len(line)
        else:
            bucket.put(name, path.read_bytes())
    before = contents(run_address)
    result = CliRunner().invoke(cli, ["report", run_address])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == str(ObjectPath.parse(run_address) / "report.html")
    after = contents(run_address)
    assert {k: v for k, v in after.items() if k in before} == before
    text = after["report.md"].decode()
    assert "the figures of 2 clients follow from" in text
    assert "node b \\| died" in text
    assert {n for n in after if n not in before} >= {"report.html", "report.md"}
    with local_copy(run) as same:
        assert same == run
