"""What the partition looks like: sizes, classes and how much clients differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedray.data.records import Federation, Indices
from fedray.errors import DataError

#: Clients up to which each has a row in the report.
MAX_ROWS = 10_000
#: Largest table of class counts.
MAX_CELLS = 20_000_000


def class_counts(federation: Federation) -> Indices | None:
    """Training records of each class at each client, int64 ``[clients, classes]``; None for a table of more than :data:`MAX_CELLS`.

    These are exact counts over private records; under differential privacy they must not be released.

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
    """Mean total-variation distance of the clients' label distributions from the pooled one, 0 (alike) to 1."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    pooled = counts.sum(axis=0) / counts.sum()
    return float(0.5 * np.abs(shares - pooled).sum(axis=1).mean())


def partition_report(names: Sequence[str], sizes: Indices, counts: Indices | None) -> dict[str, Any]:
    """The partition as JSON-ready data.

    Args:
        names: clients.
        sizes: training records of each, ``[clients]``.
        counts: from :func:`class_counts`; None leaves out all that depends on labels.

    Returns:
        ``clients``, ``records``, ``size`` (min, median, mean, max), ``label_distance`` (None without counts) and ``rows``:
        for each client its name, records and, with counts, ``classes``, the counts in class order; of more than
        :data:`MAX_ROWS` clients only the first ones.
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
