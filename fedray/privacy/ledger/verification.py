"""Verification of a ledger from its entries: the chain, each commit against its reservation, and each receipt against its charge.

A receipt is a client's record of what it ran: ``reservation`` (hash of the reserve entry), ``plan`` (hash of the plan), and, as far as
the mechanism has them, ``steps``, ``sampling_rate`` ([numerator, denominator]), ``noise_multiplier``, ``clip``, ``engine``, ``data``, and of persons ``person`` (kind and records)
and ``person_records`` (of one person in a turn).
It must agree with the reserve entry's event and with the plan in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedray.errors import LedgerError
from fedray.privacy.ledger.chain import LedgerEntry, Summary, read
from fedray.privacy.recordplan import DpSgdTerms, dpsgd_terms
from fedray.stores.object_path import Location, location

_NUMBERS = DpSgdTerms._fields


def verify(path: str | Location, head: str | None = None) -> Summary:
    """Verify a whole ledger and add up its charges.

    Args:
        path: address of the ledger.
        head: hash of an entry that the ledger must contain (an earlier head). The sums end with this entry; later entries are only verified.

    Returns:
        the sums over the entries.

    Raises:
        LedgerError: the ledger is missing, broken or lacks ``head``, or a commit or receipt differs from its reservation. The sentence names
            the first fault, its line, the difference and the remedy.
    """
    path = location(path)
    summary = Summary(path)
    found = head is None
    reserved: dict[tuple[str, str, int, int, str], LedgerEntry] = {}
    terms: dict[str, Mapping[str, Any]] = {}
    job, entries = "", 0
    for entry in read(path):
        entries += 1
        data = entry.data
        if entry.kind == "open" and data["job"] != job:  # one writer at a time, so earlier jobs cannot commit any more
            job = data["job"]
            reserved.clear()
        elif entry.kind == "reserve":
            reserved[_key(data)] = entry
        elif entry.kind == "commit":
            _check_commit(path, entry, reserved.get(_key(data)), terms)
        elif entry.kind == "note" and "terms" in data and "plan" in data:
            terms[data["plan"]] = data["terms"]
        if head is None or not found:
            summary.take(entry)
        found = found or entry.sha256 == head
    if not entries:
        raise LedgerError(f"{path}: is empty, but a ledger begins with an open entry; restore the full ledger.")
    if not found:
        raise LedgerError(
            f"{path}: lacks the entry {str(head)[:12]}..., which is on record; "
            "the ledger was rolled back or replaced, so restore the right one."
        )
    return summary


def _key(data: Mapping[str, Any]) -> tuple[str, str, int, int, str]:
    return data["job"], data["subject"], data["round"], data["attempt"], data.get("purpose", "")


def _check_commit(path: Location, commit: LedgerEntry, reserve: LedgerEntry | None, terms: Mapping[str, Mapping[str, Any]]) -> None:
    data = commit.data
    where = f"{path}: line {commit.seq + 1}: round {data['round']}, attempt {data['attempt']} of '{data['subject']}'"
    if reserve is None:
        raise LedgerError(
            f"{where} is committed by job '{data['job']}', which did not reserve it before; uncharged results left, "
            "so the claims of that job are void."
        )
    receipt = data.get("receipt")
    if receipt is None:
        return
    fault = _fault(receipt, reserve, terms.get(reserve.data["plan"]))
    if fault is not None:
        raise LedgerError(
            f"{where}: {fault} (reserved in line {reserve.seq + 1}); the client ran something else than what was charged, "
            f"so the claims of job '{data['job']}' are void."
        )


def _fault(receipt: Any, reserve: LedgerEntry, terms: Mapping[str, Any] | None) -> str | None:
    """The first difference between a receipt and its reservation, in words; None if they agree."""
    if not isinstance(receipt, dict):
        return f"its receipt is {receipt!r} instead of an object"
    for key, value in (("reservation", reserve.sha256), ("plan", reserve.data["plan"])):
        if receipt.get(key) != value:
            return f"its receipt names the {key} {_short(receipt.get(key))}, but what was reserved is {_short(value)}"
    if terms is None:
        return f"its receipt follows the plan {_short(receipt['plan'])}, which no earlier note describes"
    event = dpsgd_terms(reserve.event)
    charged: dict[str, Any] = {} if event is None else event._asdict()
    if event is not None:
        charged["sampling_rate"] = [event.sampling_rate.numerator, event.sampling_rate.denominator]
    sources: list[tuple[str, Mapping[str, Any]]] = [("charged", {**reserve.data, **charged}), ("planned", terms)]
    for what, said in sources:
        for key in ("clip", "engine", "data", "person", *_NUMBERS):
            if key not in receipt or said.get(key) is None:
                continue
            if key == "clip" and terms.get("adaptive_clip"):  # it changes with every round, and the noise with it
                continue
            if what == "planned" and key == "steps" and "steps" in charged and charged["steps"] <= said[key]:
                continue  # fewer steps than planned, as charged
            if not _same(receipt[key], said[key]):
                return f"its receipt says {key} {receipt[key]!r}, but {said[key]!r} was {what}"
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 15 else repr(value)
