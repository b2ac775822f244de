"""Splits records into training and held-out records."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedray.data.partition import apportion
from fedray.data.records import Indices, Targets
from fedray.data.whose import expanded, units


def split(
    labels: Targets,
    fraction: float,
    stratify: bool,
    draws: np.random.Generator,
    groups: Indices | None = None,
    persons: Indices | None = None,
) -> tuple[Indices, Indices]:
    """Split records at random: ``round(fraction * n)`` are held out, at least one record is kept for training.

    Args:
        labels: ``[n]``, or ``[n, ...]``, which is never stratified.
        fraction: fraction of the records to hold out.
        stratify: whether to hold out the same fraction of each class (with classes only).
        draws: random generator.
        groups: natural client of each record, int64 ``[n]``; each client keeps at least one record for training.
        persons: whose each record is, int64 ``[n]``; persons are then held out with all their records, and ``fraction`` is one of persons.

    Returns:
        Sorted positions of the training records and of the held-out records, int64.
    """
    if persons is not None:
        rows, first, theirs = units(persons, labels)
        kept, left = split(theirs, fraction, stratify, draws, None if groups is None else groups[first])
        return expanded(rows, kept), expanded(rows, left)
    n = len(labels)
    wanted = min(int(fraction * n + 0.5), n - 1)
    held_out = np.zeros(n, dtype=np.bool_)
    order = draws.permutation(n)
    if stratify and labels.dtype.kind == "i" and labels.ndim == 1 and wanted > 0:
        classes, code, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        quotas = apportion(wanted, sizes.astype(np.float64))
        grouped = order[np.argsort(code[order], kind="stable")]
        starts = np.cumsum(sizes) - sizes
        for k in range(len(classes)):
            held_out[grouped[starts[k] : starts[k] + quotas[k]]] = True
    else:
        held_out[order[:wanted]] = True
    if groups is not None:
        _keep_one(held_out, groups)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _keep_one(held_out: npt.NDArray[np.bool_], groups: Indices) -> None:
    kept = np.bincount(groups[~held_out], minlength=int(groups.max()) + 1)
    found, first = np.unique(groups, return_index=True)
    held_out[first[kept[found] == 0]] = False
