"""Any sequence of charges is what a fresh reader finds, and any harm to the file is found."""

from __future__ import annotations

import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import LedgerError
from fedray.privacy import events
from fedray.privacy.events import Composed, Event, Gaussian, Laplace, Poisson, SelfComposed, Tree, Unsupported, ZCdp
from fedray.privacy.ledger import Charge, Ledger, verify

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
@settings(deadline=None, max_examples=100)
def test_every_event_survives_its_json(event: Event) -> None:
    assert events.from_canonical(events.canonical(event)) == event


@given(BATCHES, st.integers(0, 4))
@settings(deadline=None, max_examples=40)
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
@settings(deadline=None, max_examples=60)
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
