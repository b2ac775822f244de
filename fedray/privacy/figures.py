"""The figures of a ledger's subjects, and the headline and median over all subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Adjacency, Composition

K = TypeVar("K")

#: Subjects up to which the figures of each are given.
LISTED = 10_000


@dataclass(frozen=True)
class Figures:
    """One subject's privacy figures, a pure function of the ledger and the plan.

    Attributes:
        name: name of the client, or ``clients`` for the whole population.
        unit: protected unit, ``record``, ``person`` or ``client``.
        charges: rounds that all runs charged in this ledger.
        run_charges: rounds that this run charged.
        epsilon: headline upper bound at the plan's delta over all charges in the ledger.
        epsilon_rdp: upper bound by RDP; infinite if RDP does not bound one of the events.
        epsilon_unamplified: upper bound without amplification by the sampling of clients; None for records.
        next_epsilon: ``epsilon`` after one more round.
        delta: delta of the plan.
        budget: largest allowed ``epsilon``; None if there is no limit.
        rounds_left: number of rounds that the subject can still take part in; None if there is no limit.
        exhausted: whether the subject can take part in no further round.
        composition: charged elementary events with their counts.
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
    """The ``names`` of an account's subjects with equal ``figures``; ``figures.name`` is one of them."""

    figures: Figures
    names: Collection[str]


def listed(groups: Sequence[Spent], subjects: Iterable[str]) -> list[Figures]:
    """Each subject's own figures.

    Args:
        groups: subjects with equal figures together.
        subjects: in the order that is wanted; those in no group are left out.

    Returns:
        Of more than :data:`LISTED` subjects, those that spent most, in that order.
    """
    if sum(len(group.names) for group in groups) > LISTED:
        ordered = sorted(groups, key=lambda group: -group.figures.epsilon)
        return [replace(g.figures, name=name) for g, name in islice(((g, name) for g in ordered for name in g.names), LISTED)]
    found = {name: group.figures for group in groups for name in group.names}
    return [replace(found[name], name=name) for name in subjects if name in found]


def headline(groups: Sequence[Spent], adjacency: Adjacency) -> float:
    """The largest subject's epsilon on the fine grid."""
    coarse = {(g.figures.composition, g.figures.delta): g.figures.epsilon for g in groups}
    return largest(coarse, lambda key: accountant.bound(dict(key[0]), key[1], accountant.FINAL_INTERVAL, adjacency))


def largest(coarse: Mapping[K, float], refine: Callable[[K], float]) -> float:
    """The largest figure on the fine grid; 0 if there are none.

    Args:
        coarse: each figure on the coarse grid, where it is at least as large as on the fine grid.
        refine: the figure on the fine grid; called from the largest coarse figure downwards until no other figure can be larger.
    """
    best = 0.0
    for key, figure in sorted(coarse.items(), key=lambda item: -item[1]):
        if figure <= best:
            break
        best = max(best, figure if math.isinf(figure) else min(figure, refine(key)))
    return best


def median(groups: Sequence[Spent]) -> float:
    """The median epsilon over all subjects, with each group weighted by its number of subjects; 0 if there are none."""
    ordered = sorted((g.figures.epsilon, len(g.names)) for g in groups)
    half, seen = sum(n for _, n in ordered) / 2, 0
    for i, (epsilon, count) in enumerate(ordered):
        seen += count
        if seen > half:
            return epsilon
        if seen == half:
            return (epsilon + ordered[i + 1][0]) / 2
    return 0.0
