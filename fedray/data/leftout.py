"""Leaves clients out of a source, so that a run is as one that never had them: not a record of them is dealt, counted or held out.

Clients that the source itself knows are left out before anything is split, dealt or counted. Those that a partition makes are left out after
it has dealt, because without them it would deal others' records to other clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.components import nearest
from fedray.data.partition import Deal
from fedray.data.records import Indices
from fedray.data.source import Raw, Silos, Source, Whole
from fedray.errors import ConfigError


def staying(names: Sequence[str], without: Sequence[str]) -> Indices:
    """Positions of the clients that stay, int64, in order.

    Raises:
        ConfigError: there is no such client, or none stays.
    """
    for name in without:
        if name not in names:
            raise ConfigError(f"data.without: there is no client '{name}' among the {len(names)} of data.source.{nearest(name, names)}")
    if len(set(without)) == len(names):
        raise ConfigError("data.without: leaves no client to train; name fewer.")
    out = {names.index(name) for name in without}
    return np.array([k for k in range(len(names)) if k not in out], dtype=np.int64)


def of_source(source: Source, without: Sequence[str], natural: bool) -> Source:
    """A source without some clients that it knows itself; ``natural``: its own clients are the run's. Others are left out of the deal."""
    if not without:
        return source
    if isinstance(source, Silos):
        return replace(source, names=tuple(source.names[k] for k in staying(source.names, without)))
    return Whole(lambda: _of_raw(source.load(), without)) if natural else source


def of_deal(deal: Deal | None, stay: Indices) -> Deal | None:
    """The records of the clients that stay."""
    return None if deal is None else Deal.of([deal[int(k)] for k in stay])


def _of_raw(raw: Raw, without: Sequence[str]) -> Raw:
    """A source's records without those of some of its clients.

    Raises:
        ConfigError: there is no such client, none stays, or a class that nobody declared is gone with them.
    """
    if raw.groups is None:
        return raw
    stay = staying(raw.group_names, without)
    place = np.full(len(raw.group_names), -1, dtype=np.int64)
    place[stay] = np.arange(len(stay))
    rows = np.flatnonzero(place[raw.groups] >= 0)
    test, test_groups, kept = raw.test, raw.test_groups, np.zeros(0, dtype=np.int64)
    if test is not None and test_groups is not None:  # whose test records are of nobody stay
        kept = np.flatnonzero((test_groups < 0) | (place[test_groups] >= 0))
        test_groups = np.where(test_groups[kept] < 0, -1, place[test_groups[kept]])
        test = test[0][kept], test[1][kept]
    found = replace(
        raw,
        x=raw.x[rows],
        y=raw.y[rows],
        test=test,
        groups=place[raw.groups[rows]],
        group_names=tuple(raw.group_names[k] for k in stay),
        test_groups=test_groups,
        persons=None if raw.persons is None else raw.persons[rows],
    )
    _check_classes(found)
    return found


def _check_classes(raw: Raw) -> None:
    if raw.declared or raw.classes is None:
        return
    there = np.unique(np.concatenate([raw.y.ravel(), *([] if raw.test is None else [raw.test[1].ravel()])]))
    if len(there) < raw.classes:
        label = next(str(raw.class_labels[k]) for k in range(raw.classes) if k not in there)
        raise ConfigError(
            f"data.without: the class '{label}' is in no record that stays, so a run that never had these clients would not know it; declare the "
            "classes with data.classes or data.labels."
        )
