"""The source of a run whose clients are silos outside the cluster: their names, and what all of them must agree on."""

from __future__ import annotations

from collections.abc import Sequence

from fedray.data.records import Label
from fedray.data.source import Raw, Silos, check_names
from fedray.errors import DataError


def silos(where: str, *, classes: int | None = None, labels: Sequence[Label] | None = None, regression: bool = False) -> Silos:
    """Silos outside the cluster, by name, as silos:NAME,NAME: where a silo's records are, and how they are read, its own site file says.

    Args:
        where: the silos' names, with commas between; their order is that of the clients.
        classes: labels are the integers 0..classes-1.
        labels: the labels in class order, instead of classes.
        regression: the label is a number to predict.

    Raises:
        DataError: no names, or not exactly one of classes, labels and regression.
    """
    if (classes is not None) + (labels is not None) + regression != 1:
        raise DataError(
            "data: silos declare what they have together, as no one reads all of them; give one of classes, labels, regression."
        )
    if classes is not None and classes < 1:
        raise DataError(f"data.classes: should be 1 or more, but is {classes}.")
    known = tuple(labels) if labels is not None else tuple(range(classes or 0))
    names = check_names([name.strip() for name in where.split(",")], f"silos:{where}")

    def load(name: str) -> Raw:
        raise DataError(
            f"data.source: the records of silo '{name}' are outside the cluster, and read by nobody else; use clients.placement=remote."
        )

    return Silos(names, load, len(known) or None, known)


SOURCES = {"silos": silos}
