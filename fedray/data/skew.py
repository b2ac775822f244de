"""The partition report: the clients' sizes, classes and how much these differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedray.data.records import Federation, Indices
from fedray.errors import DataError

#: Largest number of clients that have one row each in the report.
MAX_ROWS = 10_000
#: Largest number of cells of the table of class counts.
MAX_CELLS = 20_000_000


def class_counts(federation: Federation) -> Indices | None:
    """Count the training records of each class at each client, int64 ``[clients, classes]``; None for more than :data:`MAX_CELLS` cells.

    The counts are exact figures of private records, which must not be released under differential privacy.

    Raises:
        DataError: regression has no classes.
    """
    if federation.classes is None:
        raise DataError("class counts: this is regression, which has no classes.")
    clients = len(federation.names)
    if clients * federation.classes > MAX_CELLS:
        return None
    owner = np.repeat(np.arange(clients), federation.sizes)
    cells = owner * federation.classes + federation.train.y.astype(np.int64)
    return np.bincount(cells, minlength=clients * federation.classes).reshape(clients, federation.classes).astype(np.int64)


def label_distance(counts: Indices) -> float:
    """Return the mean total-variation distance of the clients' label distributions from the pooled one, from 0 (equal) to 1."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    pooled = counts.sum(axis=0) / counts.sum()
    return float(0.5 * np.abs(shares - pooled).sum(axis=1).mean())


def partition_report(names: Sequence[str], sizes: Indices, counts: Indices | None) -> dict[str, Any]:
    """Describe a partition.

    Args:
        names: names of the clients.
        sizes: number of training records of each, ``[clients]``.
        counts: from :func:`class_counts`; None leaves out all figures that depend on labels.

    Returns:
        JSON data: ``clients``, ``records``, ``size`` (min, median, mean, max), ``label_distance`` (None without counts) and ``rows``: for
        each of the first :data:`MAX_ROWS` clients its name, its number of records and, with counts, those of each ``classes``.
    """
    rows: list[dict[str, Any]] = [{"client": name, "records": int(size)} for name, size in zip(names[:MAX_ROWS], sizes, strict=False)]
    if counts is not None:
        for row, count in zip(rows, counts[:MAX_ROWS].tolist(), strict=True):
            row["classes"] = count
    return {
        "clients": len(names),
        "records": int(sizes.sum()),
        "size": {"min": int(sizes.min()), "median": float(np.median(sizes)), "mean": float(sizes.mean()), "max": int(sizes.max())},
        "label_distance": label_distance(counts) if counts is not None else None,
        "rows": rows,
    }
