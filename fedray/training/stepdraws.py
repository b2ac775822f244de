"""Who joins a private step: each record by its own coin, some of each person's records, or persons with all their records.

Coins are independent float64 draws of a cryptographic source, one per record (or person) and step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError
from fedray.privacy.persons import Person
from fedray.training.engine import NoiseSource

Indices = npt.NDArray[np.int64]

#: (sampling rate, physical batch) -> the physical batches of one step: the rows of each, int64 ``[b]``, and with persons that are clipped as
#: one the number of each row's person within the batch, int64 ``[b]``, from 0 without a gap.
Draw = Callable[[float, int], Iterator[tuple[Indices, Indices | None]]]


def drawing(person: Person | None, persons: Indices | None, records: int, noise: NoiseSource) -> Draw:
    """How a turn's steps draw who joins.

    Args:
        person: how persons are protected; None if the unit is a record.
        persons: whose each record is, int64 ``[records]``.
        records: number of the client's records.
        noise: source of the coins, and of the choice of the records that take part in this turn.

    Raises:
        ConfigError: persons are protected, and it is not said of each record whose it is.
    """
    if person is None:
        return _by_record(np.arange(records), noise)
    if persons is None or persons.shape != (records,):
        raise ConfigError("privacy.person: it is not known whose each record is; name the column with data.person.")
    if person.records is not None:
        return _by_record(bounded(persons, person.records, noise), noise)
    return _by_person(persons, noise)


def bounded(persons: Indices, most: int, noise: NoiseSource) -> Indices:
    """At most ``most`` records of each person, drawn uniformly at random; which of a person's are drawn depends on nobody else's records.

    Args:
        persons: whose each record is, int64 ``[n]``.
        most: at least 1.
        noise: source of the draw.

    Returns:
        Rows in increasing order, int64.
    """
    _, owners, counts = np.unique(persons, return_inverse=True, return_counts=True)
    order = np.lexsort((noise.uniform(len(persons)), owners))
    place = np.arange(len(persons)) - np.repeat(np.cumsum(counts) - counts, counts)  # among the person's own, in random order
    return np.sort(order[place < most])


def _by_record(eligible: Indices, noise: NoiseSource) -> Draw:
    def draw(q: float, physical: int) -> Iterator[tuple[Indices, Indices | None]]:
        drawn = eligible[noise.uniform(len(eligible)) < q]
        return ((drawn[start : start + physical], None) for start in range(0, len(drawn), physical))

    return draw


def _by_person(persons: Indices, noise: NoiseSource) -> Draw:
    _, owners, counts = np.unique(persons, return_inverse=True, return_counts=True)
    rows, starts = np.argsort(owners, kind="stable"), np.cumsum(counts) - counts

    def draw(q: float, physical: int) -> Iterator[tuple[Indices, Indices | None]]:
        drawn = np.flatnonzero(noise.uniform(len(counts)) < q)
        first = 0
        while first < len(drawn):  # as many whole persons as fit; one who does not fit alone is a batch of its own
            together = np.cumsum(counts[drawn[first:]])
            last = first + max(1, int(np.searchsorted(together, physical, side="right")))
            these = drawn[first:last]
            yield (
                np.concatenate([rows[starts[p] : starts[p] + counts[p]] for p in these]),
                np.repeat(np.arange(len(these)), counts[these]),
            )
            first = last

    return draw
