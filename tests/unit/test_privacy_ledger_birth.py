"""How a book comes into being: with its first entry or not at all, so that an empty file is never taken for a new book."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_privacy_ledger import EVENT, book, charge

from fedray.errors import LedgerError
from fedray.privacy.ledger import chain
from fedray.privacy.ledger.chain import read
from fedray.privacy.ledger.elsewhere import elsewhere
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.verification import verify

HARMS = {
    "nothing": b"",
    "a blank line": b"\n",
    "blanks": b"  \n  ",
    "half an entry": b'{"v":1,"seq":0,"prev":"00',
    "zeros": bytes(300),
    "another file": b"client,epsilon\na,1.0\n",
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("must_exist", [False, True])
def test_a_file_without_an_entry_is_no_new_book(tmp_path: Path, harm: str, must_exist: bool) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(HARMS[harm])
    with pytest.raises(LedgerError, match=r"bring the full book back|restore (it|the right ledger)"):
        Ledger.open(path, "run/1", must_exist=must_exist)
    assert path.read_bytes() == HARMS[harm]
    with pytest.raises(LedgerError):
        verify(path)


def test_a_book_whose_beginning_is_gone_is_refused(tmp_path: Path) -> None:
    """Entries sealed anew from number 0 on, but without the one that says who opened the book."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(chain.seal({"v": 1, "seq": 0, "prev": chain.GENESIS, **chain.reserve_entry(charge(), "run/1")})[0])
    with pytest.raises(LedgerError, match="line 1: is a reserve entry, but a ledger begins with an open entry"):
        Ledger.open(path, "run/2")


CRASH = """
import os, sys
sys.path.insert(0, {tests!r})
from fedray.privacy.ledger.ledger import Ledger
def gone(*arguments, **more):
    os._exit(9)
os.{call} = gone
Ledger.open({path!r}, "run/1")
"""


@pytest.mark.parametrize(("call", "left"), [("pwrite", False), ("link", False), ("unlink", True)])
def test_a_crash_while_a_book_is_made_leaves_it_whole_or_not_there(tmp_path: Path, call: str, left: bool) -> None:
    path = tmp_path / "x.jsonl"
    code = CRASH.format(tests=str(Path(__file__).parent), path=str(path), call=call)
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == 9
    assert path.exists() is left
    with Ledger.open(path, "run/2") as ledger:
        ledger.reserve([charge("a", 0)])
    assert [e.kind for e in read(path)] == ["open"] * (1 + left) + ["reserve"]


def test_of_two_that_make_a_book_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "x.jsonl", os.link

    def late(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "link", real)
        with Ledger.open(path, "the other/1") as ledger:
            ledger.reserve([charge("a", 0)])
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(LedgerError, match="another run began this book a moment ago; start again"):
        Ledger.open(path, "run/1")
    assert verify(path).spent == {"a": {EVENT: 1}}
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_entries_without_a_time_still_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were written before the time joined them: a run with times goes on behind them."""
    real, path = chain.seal, tmp_path / "x.jsonl"
    monkeypatch.setattr("fedray.privacy.ledger.ledger.seal", lambda data: real({k: v for k, v in data.items() if k != "time"}))
    book(path)
    monkeypatch.undo()
    assert verify(path).times == {}
    with Ledger.open(path, "later/1") as ledger:
        ledger.reserve([charge("a", 7)])
    found = verify(path)
    assert list(found.times) == ["later"] and found.charges["a"] == 4
    first, last = found.times["later"]
    assert first <= last and first.endswith("Z")
    changed = path.read_bytes().replace(first.encode(), b"2001-01-01T00:00:00Z")
    path.write_bytes(changed)
    with pytest.raises(LedgerError, match="the line was changed"):
        verify(path)


def test_a_new_ledger_names_the_ledgers_beside_it_and_the_books_that_it_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        book(path)

    monkeypatch.chdir(tmp_path)
    assert elsewhere(["new.ledger", "run"], [], dedicated=True) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "metrics.jsonl").write_text('{"round": 1}\n')
    (tmp_path / "refused").mkdir()
    Ledger.open(tmp_path / "refused" / "york.jsonl", "run/1").close()  # nothing was charged there
    assert elsewhere(["new.ledger", "refused"], [], dedicated=True) == []
    keep(tmp_path / "old.ledger" / "york.jsonl")
    (said,) = elsewhere(["new.ledger"], [], dedicated=True)
    assert said.startswith(
        "privacy.ledger: new.ledger is a new ledger, and old.ledger lies beside it: what the same records were charged there"
    )
    assert elsewhere(["new.ledger", "old.ledger"], [], dedicated=True) == []  # the run charges both itself
    assert elsewhere([], ["new.ledger"], dedicated=False) == [said]
    assert elsewhere(["old.ledger"], [], dedicated=True) == []
    (said,) = elsewhere([str(tmp_path / "old.ledger")], [], dedicated=False)
    assert "holds books of dedicated clients (york), which hosted clients do not read" in said
    keep(tmp_path / "old.ledger" / "records.jsonl")
    assert elsewhere(["old.ledger"], [], dedicated=False) == []
    keep(tmp_path / "driver.ledger" / "records.jsonl")
    (said,) = elsewhere(["driver.ledger"], [], dedicated=True)
    assert "holds the book of hosted clients (records), which dedicated clients do not read" in said
