"""What the subjects of a book have spent, as figures; the headline among them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.accountant import Composition


@dataclass(frozen=True)
class Figures:
    """One client's privacy figures; a pure function of the ledger and the plan.

    Attributes:
        name: the client, or ``clients`` for all of them.
        unit: whom the figure protects: a record, or a client.
        charges: rounds charged in this book, by all runs.
        run_charges: rounds charged by this run.
        epsilon: headline (PLD upper bound) at the plan's delta, of all charges in the book.
        epsilon_rdp: the same by RDP; infinite where RDP does not bound an event.
        epsilon_unamplified: without the sampling of clients, against whoever knows the cohorts; None for records.
        next_epsilon: ``epsilon`` after one more round.
        delta: the plan's.
        budget: limit on ``epsilon``, or None.
        rounds_left: rounds that it can still take part in, or None without a limit.
        exhausted: there is no next round for it.
        composition: elementary events with counts.
    """

    name: str
    unit: str
    charges: int
    run_charges: int
    epsilon: float
    epsilon_rdp: float
    epsilon_unamplified: float | None
    next_epsilon: float
    delta: float
    budget: float | None
    rounds_left: int | None
    exhausted: bool
    composition: Composition


@dataclass(frozen=True)
class Spent:
    """Subjects of one account with equal figures; ``figures.name`` is one of ``names``."""

    figures: Figures
    names: Collection[str]


def headline(groups: Sequence[Spent], adjacency: accountant.Adjacency) -> float:
    """The largest subject's epsilon on the fine grid: subjects are refined from the top until no other can exceed them."""
    distinct = {(g.figures.composition, g.figures.delta): g.figures.epsilon for g in groups}
    best = 0.0
    for (composition, delta), coarse in sorted(distinct.items(), key=lambda item: -item[1]):
        if coarse <= best or math.isinf(coarse):
            return max(best, coarse) if math.isinf(coarse) else best
        best = max(best, min(coarse, accountant.bound(dict(composition), delta, accountant.FINAL_INTERVAL, adjacency)))
    return best


def median(groups: Sequence[Spent]) -> float:
    """The median subject's epsilon: over subjects, not groups; 0 without any."""
    ordered = sorted((g.figures.epsilon, len(g.names)) for g in groups)
    half, seen = sum(n for _, n in ordered) / 2, 0
    for i, (epsilon, count) in enumerate(ordered):
        seen += count
        if seen > half:
            return epsilon
        if seen == half:
            return (epsilon + ordered[i + 1][0]) / 2
    return 0.0
