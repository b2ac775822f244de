"""The receipts that a silo has given, of which its ledger may be told to keep one, and no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedray.clients.messages import ClientReport
from fedray.silos.objection import Objection, contradiction

#: Bytes of a receipt in the silo's ledger.
_MOST = 1 << 16
#: Rounds for which receipts are remembered; a commit comes in the round's own or in one of the next.
_ROUNDS = 16


class OwnReceipts:
    """Remembers receipts by round and attempt."""

    def __init__(self) -> None:
        self._given: dict[tuple[int, int], list[str]] = {}

    def keep(self, key: tuple[int, int], report: ClientReport) -> None:
        """Remember what leaves with a report."""
        if report.receipts:
            self._given = {k: v for k, v in self._given.items() if k[0] >= key[0] - _ROUNDS}
            self._given.setdefault(key, []).extend(map(_canonical, report.receipts.values()))

    def objection(self, key: tuple[int, int], receipt: Mapping[str, Any] | None) -> Objection | None:
        """The objection to writing a receipt into the silo's ledger; None where it is the silo's own, or none at all."""
        given = _canonical(receipt)
        if receipt is None or (len(given) <= _MOST and given in self._given.get(key, ())):
            return None
        return contradiction("receipt", key[0], "the receipt is none that this silo gave, and its ledger keeps no other")


def reports_in(answer: Any) -> list[ClientReport]:
    """The reports in an answer: in a list, or in front of a list or tuple of other things."""
    if isinstance(answer, ClientReport):
        return [answer]
    if isinstance(answer, list | tuple):
        return [report for each in answer for report in reports_in(each)]
    return []


def _canonical(receipt: Mapping[str, Any] | None) -> str:
    return json.dumps(receipt, sort_keys=True, default=str)
