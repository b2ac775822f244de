"""Any sequence of charges is what a fresh reader finds, and any harm to a book is found, wherever it lies."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto import mock_aws

from fedray.errors import LedgerError
from fedray.privacy.accounting.event_json import canonical, from_canonical
from fedray.privacy.accounting.events import Composed, Event, Gaussian, Laplace, Poisson, SelfComposed, Tree, Unsupported, ZCdp
from fedray.privacy.ledger.chain import Charge
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.verification import verify
from fedray.stores.object_path import Location, ObjectPath

FLOATS = st.floats(0.0, 1e6, allow_nan=False)
RATES = st.fractions(0, 1).filter(lambda q: q > 0)
EVENTS: st.SearchStrategy[Event] = st.recursive(
    st.builds(Gaussian, FLOATS)
    | st.builds(Laplace, FLOATS)
    | st.builds(ZCdp, FLOATS, FLOATS)
    | st.builds(Tree, FLOATS, st.integers(1, 10**6))
    | st.builds(Unsupported, st.text()),
    lambda inner: (
        st.builds(Poisson, RATES, inner)
        | st.builds(SelfComposed, st.integers(1, 10**9), inner)
        | st.builds(Composed, st.lists(inner, max_size=3).map(tuple))
    ),
    max_leaves=4,
)
BATCHES = st.lists(st.dictionaries(st.sampled_from(["a", "b", "ü/", "c d"]), EVENTS, max_size=3), max_size=5)


@given(EVENTS)
@settings(max_examples=100)
def test_every_event_survives_its_json(event: Event) -> None:
    assert from_canonical(canonical(event)) == event


@given(BATCHES, st.integers(0, 4))
@settings(max_examples=40)
def test_a_reader_finds_what_was_reserved_whatever_the_sessions(batches: list[dict[str, Event]], reopen_at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        expected: dict[str, Counter[Event]] = {}
        ledger = Ledger.open(path, "run/1")
        for r, batch in enumerate(batches):
            if r == reopen_at:
                pin = ledger.head.sha256
                ledger.close()
                ledger = Ledger.open(path, "run/2", pinned=pin)
            ledger.reserve([Charge(s, r, 0, e, "p", 0.5) for s, e in batch.items()])
            for subject, event in batch.items():
                expected.setdefault(subject, Counter())[event] += 1
        assert {s: ledger.spent(s) for s in ledger.subjects} == expected
        ledger.close()
        assert verify(path).spent == expected


@given(st.integers(1, 4), st.data())
@settings(max_examples=60)
def test_any_harm_is_found(rounds: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        with Ledger.open(path, "run/1") as ledger:
            for r in range(rounds):
                ledger.reserve([Charge("a", r, 0, SelfComposed(3, Poisson(Fraction(1, 3), Gaussian(1.0))), "p", 1.0)])
            head = ledger.head.sha256
        good = path.read_bytes()
        start = data.draw(st.integers(0, len(good) - 1))
        end = data.draw(st.integers(start, len(good)))
        bad = good[:start] + data.draw(st.binary(max_size=8)) + good[end:]
        path.write_bytes(bad)
        if bad == good:
            return
        try:
            summary = verify(path)
        except LedgerError:
            return
        # Whole lines missing at the end are an older state of the book, which only a pinned head finds out.
        assert good.startswith(bad)
        assert summary.head is not None
        assert summary.head.sha256 != head
        with pytest.raises(LedgerError, match="rolled back"):
            Ledger.open(path, "run/2", pinned=head)


Blocks = list[bytes]
BUCKET = "silo-books"


@contextmanager
def file() -> Iterator[tuple[Location, Callable[[], Blocks], Callable[[Blocks], None]]]:
    """A book as a file: where it is, its one block, and how it is replaced."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        yield path, lambda: [path.read_bytes()], lambda blocks: path.write_bytes(b"".join(blocks)) and None


@contextmanager
def objects() -> Iterator[tuple[Location, Callable[[], Blocks], Callable[[Blocks], None]]]:
    """A book in an object store. Whoever harms it names the objects as a ledger would."""
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)

        def keys() -> list[str]:
            return [o["Key"] for o in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]

        def replace(blocks: Blocks) -> None:
            at, wanted = 0, {}
            for block in blocks:
                wanted[f"x.jsonl/{at:016d}"] = block
                at += len(block)
            for key in set(keys()) | set(wanted):
                if key not in wanted:
                    client.delete_object(Bucket=BUCKET, Key=key)
                elif written.get(key) != wanted[key]:
                    client.put_object(Bucket=BUCKET, Key=key, Body=wanted[key])
            written.clear()
            written.update(wanted)

        written: dict[str, bytes] = {}
        yield (
            ObjectPath(BUCKET, "x.jsonl", region="us-east-1"),
            lambda: [client.get_object(Bucket=BUCKET, Key=k)["Body"].read() for k in keys()],
            replace,
        )


@pytest.mark.parametrize(("place", "examples"), [(file, 120), (objects, 25)])
def test_a_changed_byte_and_a_line_out_of_place_are_found(place: Callable[..., object], examples: int) -> None:
    with place() as (path, blocks, replace):  # type: ignore[attr-defined]
        with Ledger.open(path, "run/1") as ledger:
            ledger.describe("p", {"delta": 1e-5})
            for r in range(2):
                ledger.reserve([Charge(s, r, 0, SelfComposed(3, Poisson(Fraction(1, 3), Gaussian(1.0))), "p", 1.0) for s in "abc"])
                ledger.commit(r, 0, dict.fromkeys("abc"))
            head = ledger.head.sha256
        good: Blocks = blocks()
        assert verify(path, head).charges == {"a": 2, "b": 2, "c": 2}

        @given(st.data())
        @settings(max_examples=examples)
        def harmed(data: st.DataObject) -> None:
            bad = list(good)
            b = data.draw(st.integers(0, len(bad) - 1), label="block")
            kind = data.draw(st.sampled_from(["byte", "remove", "swap", "double", "block removed", "blocks swapped", "block doubled"]))
            c = data.draw(st.integers(0, len(bad) - 1), label="other block")
            lines = bad[b].splitlines(keepends=True)
            i, j = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            if kind == "byte":
                at = data.draw(st.integers(0, len(bad[b]) - 1))
                bad[b] = bad[b][:at] + bytes([bad[b][at] ^ data.draw(st.integers(1, 255))]) + bad[b][at + 1 :]
            elif kind == "block removed":
                del bad[b]
            elif kind == "block doubled":
                bad.insert(c, bad[b])
            elif kind == "blocks swapped":
                bad[b], bad[c] = bad[c], bad[b]
            else:
                lines = {
                    "remove": lines[:i] + lines[i + 1 :],
                    "swap": [lines[j] if k == i else lines[i] if k == j else line for k, line in enumerate(lines)],
                    "double": [*lines[:i], lines[i], *lines[i:]],
                }[kind]
                bad[b] = b"".join(lines)
            if bad == good:
                return
            replace(bad)
            if b"".join(good).startswith(b"".join(bad)):  # an older state of the book: only a head kept elsewhere tells
                with pytest.raises(LedgerError, match="lacks the entry|is empty|holds no book|does not hold whole lines"):
                    verify(path, head)
            else:
                with pytest.raises(LedgerError):
                    verify(path)

        harmed()


@pytest.mark.parametrize("place", [file, objects])
def test_every_shorter_book_is_found_by_its_head(place: Callable[..., object]) -> None:
    with place() as (path, blocks, replace):  # type: ignore[attr-defined]
        with Ledger.open(path, "run/1") as ledger:
            for r in range(2):
                ledger.reserve([Charge("a", r, 0, Gaussian(1.0), "p", 1.0)])
            head = ledger.head.sha256
        whole = b"".join(blocks()).splitlines(keepends=True)
        for kept in range(1, len(whole)):
            replace(whole[:kept])
            assert verify(path).entries == kept
            with pytest.raises(LedgerError, match="rolled back"):
                verify(path, head)
            with pytest.raises(LedgerError, match="rolled back"):
                Ledger.open(path, "run/2", pinned=head)
