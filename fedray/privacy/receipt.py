"""Receipts: what a client says it ran, checked against what was reserved before its update may count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedray.errors import ClaimVoid
from fedray.privacy.recordplan import RecordPlan

Receipt = dict[str, Any]


def record_receipt(plan: RecordPlan, history: Sequence[Sequence[float]], engine: str, reservation: str | None) -> Receipt:
    """What a client ran of record-level DP-SGD.

    Args:
        plan: what the engine was given.
        history: what the engine counted: [(noise multiplier, sampling rate, steps)].
        engine: its name.
        reservation: hash of the ledger's entry that charges it.
    """
    return {
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
        client: whose it is.
        receipt: what came with the update.
        expected: every key that it must have, with its value; None means any value.

    Raises:
        ClaimVoid: no receipt, or one that differs; names the first difference.
    """
    if receipt is None:
        raise ClaimVoid(f"client {client}: its update came without a receipt of what was run; nothing of it is used.")
    for key, value in expected.items():
        if key not in receipt or (value is not None and receipt[key] != value):
            raise ClaimVoid(
                f"client {client}: its receipt says {key} {receipt.get(key)!r}, but {value!r} was reserved; nothing of its update is used."
            )
