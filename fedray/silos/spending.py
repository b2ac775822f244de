"""What charges cost a silo: those that its own ledger holds, read beside the ledger's writer, and those that a plan foresees."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedray.errors import LedgerError
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Composition, Event
from fedray.privacy.clientplan import Plan
from fedray.privacy.ledger.chain import run_of, scan
from fedray.privacy.ledger.location import subject_path
from fedray.privacy.ledger.place import read_lines
from fedray.privacy.recordplan import RecordPlan

#: Noise multiplier, and number of charges, beyond which no figure is worth its computation: a driver cannot keep a silo busy with them.
_LEAST, _MOST = 0.1, 10**8


@dataclass(frozen=True)
class Spending:
    """What a silo's own ledger was charged: by this run (all of its starts), and by all others."""

    run: Composition = ()
    others: Composition = ()


def joined(*charges: Composition) -> Composition:
    """Charges together."""
    total: Counter[Event] = Counter()
    for each in charges:
        total.update(dict(each))
    return accountant.flatten(total)


def own_spending(directory: Path, client: str, run: str) -> Spending:
    """The charges of a silo's own ledger: those of one run, and those of all others; none where there is no ledger yet.

    Raises:
        LedgerError: it is broken, so nothing may be charged.
    """
    path, mine, others = subject_path(directory, client), Counter[Event](), Counter[Event]()
    assert isinstance(path, Path)
    if not path.exists():
        return Spending()
    for item in scan(path, read_lines(path)):
        if isinstance(item, bytes):  # a line that is being written, or was cut by a crash; its charge never returned
            break
        entry = item[0]
        if entry.kind == "reserve" and entry.event is not None:
            if entry.data["subject"] != client:
                raise LedgerError(f"{path}: charges '{entry.data['subject']}', and this silo is '{client}'; restore the right ledger.")
            (mine if run_of(entry.data["job"]) == run else others)[entry.event] += 1
    return Spending(accountant.flatten(mine), accountant.flatten(others))


def planned_charges(plan: Plan) -> Composition:
    """All charges of one client that a plan foresees."""
    return accountant.flatten(plan.planned() if isinstance(plan, RecordPlan) else {plan.event(): plan.participations})


@lru_cache(maxsize=256)
def epsilon_of(composition: Composition, plan: Plan) -> float:
    """Epsilon of charges at a plan's delta, on the grid by which the silo's ledger refuses; infinite where it would take long to find out
    that it is large, or that there are many charges.
    """
    if plan.noise_multiplier < _LEAST or sum(count for _, count in composition) > _MOST:
        return math.inf
    return accountant.bound(dict(composition), plan.delta, accountant.INTERVAL, plan.adjacency) if composition else 0.0
