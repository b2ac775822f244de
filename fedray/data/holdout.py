"""Splitting records into a training and a held-out part."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedray.data.partition import apportion
from fedray.data.records import Indices, Targets


def split(
    labels: Targets, fraction: float, stratify: bool, draws: np.random.Generator, groups: Indices | None = None
) -> tuple[Indices, Indices]:
    """Positions of the training and of the held-out records, each sorted.

    ``round(fraction * n)`` records are held out, at least one record is kept for training.

    Args:
        labels: ``[n]``.
        fraction: part held out.
        stratify: hold out the same part of each class (classes only; regression is split at random).
        draws: generator.
        groups: natural client of each record; every client keeps at least one record for training, for
            which a held-out record is put back where needed.
    """
    n = len(labels)
    wanted = min(int(fraction * n + 0.5), n - 1)
    held_out = np.zeros(n, dtype=np.bool_)
    order = draws.permutation(n)
    if stratify and labels.dtype.kind == "i" and wanted > 0:
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
