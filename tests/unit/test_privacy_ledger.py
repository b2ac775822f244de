"""The book of record: durability, the chain, the lock, repair, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import pytest

from fedray.errors import ConfigError, LedgerError
from fedray.privacy.accounting.accountant import FINAL_INTERVAL, bound
from fedray.privacy.accounting.events import Gaussian, Poisson, SelfComposed, Wor
from fedray.privacy.ledger import inspect
from fedray.privacy.ledger.chain import Charge, read
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import clients_path, ledger_directory, records_path, subject_path
from fedray.privacy.ledger.verification import verify
from fedray.rounding import rounded_up
from fedray.stores.object_path import ObjectPath, location

EVENT = SelfComposed(5, Poisson(Fraction(1, 4), Gaussian(1.3)))


def charge(subject: str = "a", round: int = 0, attempt: int = 0, **more: object) -> Charge:
    return Charge(subject, round, attempt, EVENT, "p" * 64, 1.0, **more)  # type: ignore[arg-type]


def book(path: Path, rounds: int = 3) -> Path:
    with Ledger.open(path, "run/1") as ledger:
        for r in range(rounds):
            ledger.reserve([charge("a", r), charge("b", r)])
            ledger.commit(r, 0, ["a"])
    return path


def test_an_entry_has_the_written_form(tmp_path: Path) -> None:
    line = book(tmp_path / "x.jsonl").read_text().splitlines()[1]
    entry = json.loads(line)
    hashed = entry.pop("hash")
    assert len(hashed) == 64
    assert len(entry.pop("prev")) == 64
    assert datetime.strptime(entry.pop("time"), "%Y-%m-%dT%H:%M:%SZ").year > 2000
    assert entry == {
        "v": 1,
        "seq": 1,
        "kind": "reserve",
        "subject": "a",
        "unit": "record",
        "adjacency": "zero_out",
        "round": 0,
        "attempt": 0,
        "job": "run/1",
        "plan": "p" * 64,
        "event": {"self": {"count": 5, "of": {"poisson": {"q": [1, 4], "of": {"gaussian": 1.3}}}}},
        "clip": 1.0,
    }


def test_a_book_is_read_back_and_goes_on(tmp_path: Path) -> None:
    path = book(tmp_path / "x.jsonl")
    with Ledger.open(path, "run/2") as ledger:
        assert ledger.spent("a") == Counter({EVENT: 3})
        assert ledger.spent("nobody") == Counter()
        assert ledger.charges("a") == ledger.charges("a", this_run=True) == 3
        ledger.reserve([charge("a", 0)])
        assert ledger.spent("a") == Counter({EVENT: 4})
        head = ledger.head
    summary = verify(path)
    assert summary.head == head
    assert summary.spent == {"a": Counter({EVENT: 4}), "b": Counter({EVENT: 3})}
    assert summary.commits == 3
    assert summary.jobs == ["run/1", "run/2"]
    assert summary.epsilons(1e-5)["a"] == bound({EVENT: 4}, 1e-5)
    assert [e.seq for e in read(path)] == list(range(summary.entries))
    with Ledger.open(path, "another run") as ledger:
        assert ledger.charges("a", this_run=True) == 0


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = book(tmp_path / "x.jsonl", rounds=1)
    good = path.read_bytes()
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        with pytest.raises(LedgerError, match="x.jsonl"):
            verify(path)


@pytest.mark.parametrize("lines", [[0, 1, 3, 4], [0, 2, 1, 3, 4], [1, 2, 3, 4], [0, 1, 1, 2]])
def test_missing_doubled_and_swapped_lines_are_found_with_their_place(tmp_path: Path, lines: list[int]) -> None:
    path = book(tmp_path / "x.jsonl", rounds=2)
    all_ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(all_[i] for i in lines))
    with pytest.raises(LedgerError, match=r"x.jsonl: line \d+: (carries|names)"):
        verify(path)
    with pytest.raises(LedgerError, match="line"):
        Ledger.open(path, "run/2")


def test_a_broken_book_is_left_as_it_is(tmp_path: Path) -> None:
    path = book(tmp_path / "x.jsonl")
    bad = path.read_bytes().replace(b'"clip":1.0', b'"clip":2.0', 1)
    path.write_bytes(bad)
    with pytest.raises(LedgerError, match="line 2: its content has the hash"):
        Ledger.open(path, "run/2")
    assert path.read_bytes() == bad


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_last_line_was_never_a_charge(tmp_path: Path, cut: int) -> None:
    path = book(tmp_path / "x.jsonl", rounds=1)
    whole = path.read_bytes()
    with Ledger.open(path, "run/2") as ledger:
        ledger.reserve([charge("a", 7)])
    longer = path.read_bytes()
    torn = longer[: len(longer) - 1 - cut]
    path.write_bytes(torn)
    with pytest.raises(LedgerError, match="torn"):
        verify(path)
    with Ledger.open(path, "run/3") as ledger:
        assert ledger.spent("a") == Counter({EVENT: 1})
    assert path.read_bytes().startswith(whole)
    tail = torn.splitlines(keepends=True)[-1]
    assert [p.read_bytes() for p in tmp_path.glob("*.torn-*")] == [tail]
    notes = [e for e in read(path) if e.kind == "note"]
    assert len(notes) == 1
    assert "torn" in notes[0].data["note"]


def test_a_last_line_without_its_end_is_still_a_charge(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Ledger.open(path, "run/1") as ledger:
        ledger.reserve([charge("a", 0)])
    path.write_bytes(path.read_bytes()[:-1])
    with Ledger.open(path, "run/2") as ledger:
        assert ledger.spent("a") == Counter({EVENT: 1})
        assert ledger.charges("a", this_run=True) == 1
    assert verify(path).charges["a"] == 1


CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_privacy_ledger import charge
from fedray.privacy.ledger import ledger as module
from fedray.privacy.ledger.ledger import Ledger
ledger = Ledger.open({path!r}, "run/1")
ledger.reserve([charge("a", 0)])
real = os.pwrite
def half(descriptor, block, offset):
    real(descriptor, block[: len(block) // 2], offset)
    os._exit(9)
os.pwrite = half
ledger.reserve([charge("a", 1), charge("b", 1)])
"""


def test_a_crash_in_the_middle_of_a_write_keeps_all_that_was_reserved(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    code = CRASH.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == 9
    with Ledger.open(path, "run/2") as ledger:
        # The half of the batch that was written whole counts: its fsync may have been the one that was cut off.
        assert ledger.spent("a") in (Counter({EVENT: 1}), Counter({EVENT: 2}))
        assert ledger.spent("b") == Counter()
        ledger.reserve([charge("a", 1)])
    verify(path)


HOLD = """
import sys
sys.path.insert(0, {tests!r})
from fedray.privacy.ledger.ledger import Ledger
ledger = Ledger.open({path!r}, "the other/1")
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_write_one_book(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    code = HOLD.format(tests=str(Path(__file__).parent), path=str(path))
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LedgerError, match=rf"in use by job 'the other/1' \(process {other.pid} on "):
        Ledger.open(path, "run/1")
    verify(path)
    other.stdin.close()
    other.wait()
    Ledger.open(path, "run/1", wait=5.0).close()


def test_one_process_cannot_open_a_book_twice(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "x.jsonl", "run/1"), pytest.raises(LedgerError, match="in use by job 'run/1'"):
        Ledger.open(tmp_path / "x.jsonl", "run/2")
    Ledger.open(tmp_path / "x.jsonl", "run/3").close()


def test_a_reservation_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Ledger.open(path, "run/1") as ledger:
        ledger.reserve([charge("a", 3, 0)])
        before = path.read_bytes()
        for again in ([charge("a", 3, 0)], [charge("a", 2, 5)], [charge("b", 3), charge("b", 3)]):
            with pytest.raises(LedgerError, match="a retry needs a new attempt number"):
                ledger.reserve(again)
        assert path.read_bytes() == before
        ledger.reserve([charge("a", 3, 1), charge("b", 3)])
        assert ledger.charges("a") == 2


def test_a_commit_needs_a_reservation(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "x.jsonl", "run/1") as ledger:
        with pytest.raises(LedgerError, match="never reserved"):
            ledger.commit(0, 0, ["a"])
        ledger.reserve([charge("a", 0)])
        ledger.commit(0, 0, ["a"])
        ledger.reserve([charge("a", 2), charge("b", 2)])
        for round, subjects in ((1, ["a"]), (2, ["a", "c"])):
            with pytest.raises(LedgerError, match="never reserved"):
                ledger.commit(round, 0, subjects)
        ledger.commit(2, 0, {"a": None, "b": {"steps": 5}})
        ledger.commit(0, 0, ["a"])  # what covers several rounds is released several times
    receipts = [e.data.get("receipt") for e in read(tmp_path / "x.jsonl") if e.kind == "commit"]
    assert receipts == [None, None, {"steps": 5}, None]


def test_a_reservation_is_named_by_the_hash_of_its_entry(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "x.jsonl", "run/1") as ledger:
        heads = ledger.reserve([charge("a", 0, data="d" * 64), charge("b", 0)])
        assert ledger.reserve([]) == []
        for bad in ("d" * 63, "D" * 64, "g" * 64):
            with pytest.raises(LedgerError, match="is not a commitment"):
                ledger.reserve([charge("a", 1, data=bad)])
    entries = {e.data["subject"]: e for e in read(tmp_path / "x.jsonl") if e.kind == "reserve"}
    assert [entries[s].sha256 for s in ("a", "b")] == [h.sha256 for h in heads]
    assert [entries[s].seq for s in ("a", "b")] == [h.seq for h in heads]
    assert entries["a"].data["data"] == "d" * 64
    assert "data" not in entries["b"].data


def test_a_book_of_clients_is_added_up_under_its_adjacency(tmp_path: Path) -> None:
    path = clients_path(tmp_path)
    event = Wor(100, 10, Gaussian(3.0))
    with Ledger.open(path, "run/1", unit="client", adjacency="replace_one") as ledger:
        ledger.describe("p" * 64, {"delta": 1e-5})
        ledger.reserve([Charge("clients", 0, 0, event, "p" * 64, 1.0, "client", "replace_one")])
        ledger.commit(0, 0, {"clients": None})
    assert verify(path).epsilons(1e-5) == {"clients": bound({event: 1}, 1e-5, adjacency="replace_one")}
    text = inspect.table(inspect.describe(tmp_path))
    assert "unit: client (replace-one)" in text
    assert "all clients" in text


def test_a_book_of_another_silo_unit_or_adjacency_is_refused(tmp_path: Path) -> None:
    path = book(tmp_path / "x.jsonl")
    with pytest.raises(LedgerError, match="is the book of 'a', not of 'b'"):
        Ledger.open(path, "run/2", subject="b")
    with pytest.raises(LedgerError, match="charges record under zero_out adjacency, not client"):
        Ledger.open(path, "run/2", unit="client")
    with Ledger.open(tmp_path / "y.jsonl", "run/1") as ledger, pytest.raises(LedgerError, match="is a book of record"):
        ledger.reserve([charge("a", 0, unit="client")])


def test_a_pinned_head_finds_a_rollback(tmp_path: Path) -> None:
    path = book(tmp_path / "x.jsonl")
    old = path.read_bytes()
    with Ledger.open(path, "run/2") as ledger:
        pin = ledger.reserve([charge("a", 9)])[0].sha256
    with Ledger.open(path, "run/3", pinned=pin) as ledger:
        assert ledger.charges("a") == 4
    path.write_bytes(old)
    with pytest.raises(LedgerError, match="rolled back or replaced"):
        Ledger.open(path, "run/4", pinned=pin)
    path.unlink()
    with pytest.raises(LedgerError, match="missing though it has been written before"):
        Ledger.open(path, "run/4", pinned=pin)
    assert not path.exists()
    path.touch()
    with pytest.raises(LedgerError, match="empty|rolled back"):
        Ledger.open(path, "run/4", must_exist=True)


@pytest.mark.parametrize("harm", ["remove", "replace", "append"])
def test_a_book_that_changes_under_the_writer_stops_it(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "x.jsonl"
    with Ledger.open(path, "run/1") as ledger:
        ledger.reserve([charge("a", 0)])
        if harm == "append":
            with path.open("ab") as file:
                file.write(b"x")
        else:
            path.rename(tmp_path / "moved")
            if harm == "replace":
                path.write_bytes((tmp_path / "moved").read_bytes())
        for _ in range(2):
            with pytest.raises(LedgerError, match="nothing may be trained"):
                ledger.reserve([charge("a", 1)])


def test_a_failed_write_closes_the_book_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(tmp_path / "x.jsonl", "run/1") as ledger:
        with monkeypatch.context() as patch:

            def fail(descriptor: int) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, "fsync", fail)
            with pytest.raises(LedgerError, match="No space left"):
                ledger.reserve([charge("a", 0)])
        assert ledger.spent("a") == Counter()
        with pytest.raises(LedgerError, match="nothing may be trained"):
            ledger.reserve([charge("a", 1)])


def test_a_closed_book_and_a_forked_one_cannot_charge(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "x.jsonl", "run/1")
    child = os.fork()
    if child == 0:
        try:
            ledger.reserve([charge("a", 0)])
        except LedgerError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="was closed"):
        ledger.reserve([charge("a", 0)])


def test_a_missing_volume_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="mount the volume"):
        Ledger.open(tmp_path / "volume" / "x.jsonl", "run/1")
    with pytest.raises(LedgerError, match="mount the volume"):
        Ledger.open(tmp_path / "volume" / "ledger" / "x.jsonl", "run/1", make_directory=True)
    Ledger.open(tmp_path / "ledger" / "x.jsonl", "run/1", make_directory=True).close()


def test_names_of_files_are_safe_and_never_shared(tmp_path: Path) -> None:
    names = ["a", "a/b", "a%2Fb", "..", ".", "records", "%72ecords", "clients", "", "%", "Ä b", "x" * 300, "x" * 301, "a.b", "../a"]
    paths = [subject_path(tmp_path, n) for n in names] + [records_path(tmp_path), clients_path(tmp_path)]
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert path.parent == tmp_path
        assert len(path.name.encode()) < 250
        path.touch()
    assert subject_path(tmp_path, "silo-03").name == "silo-03.jsonl"


def test_a_ledger_setting_names_a_directory(tmp_path: Path) -> None:
    assert ledger_directory("run", tmp_path) == tmp_path / "ledger"
    assert ledger_directory("/v/books", tmp_path) == ledger_directory("file:///v/books", tmp_path) == Path("/v/books")
    with pytest.raises(ConfigError, match="neither file locks nor conditional writes"):
        ledger_directory("gs://bucket/books", tmp_path)


def test_an_address_names_a_prefix_of_a_bucket(tmp_path: Path) -> None:
    address = "s3://bucket/all/books?endpoint_url=http://store:9000&region=eu-1"
    place = ledger_directory(address, tmp_path)
    assert place == ObjectPath("bucket", "all/books", "http://store:9000", "eu-1")
    assert str(place) == address
    assert str(records_path(address)) == address.replace("books?", "books/records.jsonl?")
    assert str(clients_path("s3://b/x/")) == "s3://b/x/clients.jsonl"
    assert subject_path(place, "a/b").name == "a%2Fb.jsonl"
    for bad in ("s3://bucket", "s3:///x", "s3://b//x", "s3://b/x#y", "s3://b/x//y"):
        with pytest.raises(ConfigError, match="write s3://bucket/prefix"):
            location(bad)
    with pytest.raises(ConfigError, match="'token' has no place in an address"):
        location("s3://b/x?token=1")
    with pytest.raises(ConfigError, match="a user or password has no place"):
        location("s3://me:secret@b/x")


def test_a_thousand_charges_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(tmp_path / "x.jsonl", "run/1") as ledger:
        synced: list[int] = []
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda d: synced.append(d) or real(d))
        charges = [[charge(f"client-{i}", r) for i in range(1000)] for r in range(3)]
        for batch in charges:
            ledger.reserve(batch)
        assert len(synced) == 3
        assert ledger.charges("client-999") == 3


def test_inspection_shows_what_the_entries_say(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "ledger").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    path = records_path(run / "ledger")
    with Ledger.open(path, "run/1") as ledger:
        ledger.describe("p" * 64, {"delta": 1e-5})
        ledger.describe("p" * 64, {"delta": 1e-5})
        ledger.reserve([charge("a", 0), charge("b", 0)])
        ledger.reserve([charge("a", 1)])
    report = inspect.describe(run)
    (only,) = report["books"]
    assert {c["name"]: c["participations_charged"] for c in only["clients"]} == {"a": 2, "b": 1}
    assert report["epsilon"] == bound({EVENT: 2}, 1e-5, FINAL_INTERVAL)
    assert inspect.describe(run, 1e-3)["epsilon"] < report["epsilon"]
    text = inspect.table(json.loads(json.dumps(report)))
    assert rounded_up(report["epsilon"]) in text
    assert "3 charges to 2 clients" in next(iter(inspect.verify_all(path)))
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2'))
    with pytest.raises(LedgerError, match="records.jsonl: line"):
        list(inspect.verify_all(run))
    with pytest.raises(LedgerError, match="holds no privacy ledger"):
        inspect.find(tmp_path / "nothing")
