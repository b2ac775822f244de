"""Receipts: what a client says it ran, checked against what was reserved before its update may count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedray.errors import ClaimVoid

Receipt = dict[str, Any]


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
