"""Checking a book from its entries alone: the chain, each commit against its reserve, each receipt against what was charged.

A receipt is what a client says it ran: ``reservation`` (hash of the reserve entry), ``plan`` (hash of the plan),
and of ``steps``, ``sampling_rate`` ([numerator, denominator]), ``noise_multiplier``, ``clip``, ``engine``, ``data``
those that its mechanism has. It must say what the reserve entry's event says, and what the plan noted in the book says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedray.errors import LedgerError
from fedray.privacy.ledger.chain import LedgerEntry, Summary, read
from fedray.privacy.ledger.location import Location, location
from fedray.privacy.recordplan import DpSgdTerms, dpsgd_terms

_NUMBERS = DpSgdTerms._fields


def verify(path: str | Location, head: str | None = None) -> Summary:
    """Check the whole book and add up its charges from the entries alone.

    Args:
        path: the book.
        head: hash of an entry that the book must have (an earlier head). The sums then end with it; what follows is only checked.

    Returns:
        what the book says.

    Raises:
        LedgerError: missing, broken, or without ``head``; or a commit or receipt of something else than what was reserved.
            The first fault, with the place, the line, what differs and what to do.
    """
    path = location(path)
    summary = Summary(path)
    found = head is None
    reserved: dict[tuple[str, str, int, int], LedgerEntry] = {}
    terms: dict[str, Mapping[str, Any]] = {}
    job, entries = "", 0
    for entry in read(path):
        entries += 1
        data = entry.data
        if entry.kind == "open" and data["job"] != job:  # one writer at a time: whoever wrote before cannot commit any more
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
        raise LedgerError(f"{path}: is empty; a book begins with an entry that says who opened it.")
    if not found:
        raise LedgerError(
            f"{path}: lacks the entry {str(head)[:12]}..., which is on record; "
            "the book was rolled back or replaced, so bring the right one back."
        )
    return summary


def _key(data: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return data["job"], data["subject"], data["round"], data["attempt"]


def _check_commit(path: Location, commit: LedgerEntry, reserve: LedgerEntry | None, terms: Mapping[str, Mapping[str, Any]]) -> None:
    data = commit.data
    where = f"{path}: line {commit.seq + 1}: round {data['round']}, attempt {data['attempt']} of '{data['subject']}'"
    if reserve is None:
        raise LedgerError(
            f"{where} is committed by job '{data['job']}', which never reserved it before; results left that were not charged, "
            "so take the claims of that job for void."
        )
    receipt = data.get("receipt")
    if receipt is None:
        return
    fault = _fault(receipt, reserve, terms.get(reserve.data["plan"]))
    if fault is not None:
        raise LedgerError(
            f"{where}: {fault} (reserved in line {reserve.seq + 1}); what was run is not what was charged, "
            f"so take the claims of job '{data['job']}' for void."
        )


def _fault(receipt: Any, reserve: LedgerEntry, terms: Mapping[str, Any] | None) -> str | None:
    """The first difference between a receipt and what was reserved, in words."""
    if not isinstance(receipt, dict):
        return f"its receipt is {receipt!r} instead of an object"
    for key, value in (("reservation", reserve.sha256), ("plan", reserve.data["plan"])):
        if receipt.get(key) != value:
            return f"its receipt names the {key} {_short(receipt.get(key))}, but what was reserved is {_short(value)}"
    if terms is None:
        return f"its receipt follows the plan {_short(receipt['plan'])}, which no note before it describes"
    event = dpsgd_terms(reserve.event)
    charged: dict[str, Any] = {} if event is None else event._asdict()
    if event is not None:
        charged["sampling_rate"] = [event.sampling_rate.numerator, event.sampling_rate.denominator]
    sources: list[tuple[str, Mapping[str, Any]]] = [("charged", {**reserve.data, **charged}), ("planned", terms)]
    for what, said in sources:
        for key in ("clip", "engine", "data", *_NUMBERS):
            if key not in receipt or said.get(key) is None:
                continue
            if key == "clip" and terms.get("adaptive_clip"):  # it moves from round to round, and the noise with it
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
