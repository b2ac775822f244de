"""Receipts: a client's record of what it ran, which must agree with the reservation before its update is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedray.errors import ClaimVoid
from fedray.privacy.recordplan import RecordPlan

Receipt = dict[str, Any]


def record_receipt(plan: RecordPlan, history: Sequence[Sequence[float]], engine: str, reservation: str | None) -> Receipt:
    """The receipt of one local round of record-level DP-SGD.

    Args:
        plan: plan that the engine followed.
        history: steps that the engine counted: [(noise multiplier, sampling rate, steps)].
        engine: name of the engine.
        reservation: hash of the ledger's entry that charges the round.
    """
    person = {} if plan.person is None else {"person": plan.person.terms(), "person_records": plan.person.records}
    return {
        **person,
        "reservation": reservation,
        "plan": plan.sha256,
        "steps": sum(int(steps) for _, _, steps in history),
        "sampling_rate": [plan.sampling_rate.numerator, plan.sampling_rate.denominator],
        "noise_multiplier": max((z for z, _, _ in history), default=0.0),
        "clip": plan.clip,
        "engine": engine,
    }


def check_receipt(client: str, receipt: Mapping[str, Any] | None, expected: Mapping[str, Any]) -> None:
    """Compare a receipt with the reservation.

    Args:
        client: name of the client.
        receipt: receipt that came with the update.
        expected: required keys with their values; None allows any value.

    Raises:
        ClaimVoid: the receipt is missing or differs; the sentence names the first difference.
    """
    if receipt is None:
        raise ClaimVoid(f"client {client}: its update came without a receipt of what was run; nothing of it is used.")
    for key, value in expected.items():
        if key not in receipt or (value is not None and receipt[key] != value):
            raise ClaimVoid(
                f"client {client}: its receipt says {key} {receipt.get(key)!r}, but {value!r} was reserved; nothing of its update is used."
            )
