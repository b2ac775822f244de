"""The small data sets that come inside scikit-learn; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.components import nearest
from fedray.data.records import Label
from fedray.data.source import Raw, Source, Whole, build
from fedray.errors import DataError

_GREY = 16.0
_NAMES = ("breast_cancer", "digits", "iris", "wine")


def sklearn(where: str, *, image: bool = False, classes: int | None = None, labels: Sequence[Label] | None = None) -> Source:
    """Classification sets inside scikit-learn: digits, breast_cancer, wine, iris.

    Source: UCI Machine Learning Repository, as shipped with scikit-learn.

    Args:
        where: the name.
        image: digits as ``(1, 8, 8)`` instead of ``(64,)``.
        classes: number of classes; null = those of the set.
        labels: the labels (0, 1, ...) in another class order.

    The digits' grey values 0..16 are divided by 16; the other sets are left in their units.

    Raises:
        DataError: no such set, or ``image`` for a set that has no images.
    """
    if where not in _NAMES:
        raise DataError(f"data.source: scikit-learn has no '{where}' here; use one of {', '.join(_NAMES)}.{nearest(where, _NAMES)}")
    if image and where != "digits":
        raise DataError(f"data.image: {where} holds no images; leave it out.")

    def load() -> Raw:
        from sklearn import datasets

        loaded = getattr(datasets, f"load_{where}")()
        x = np.asarray(loaded.data, dtype=np.float32)
        if where == "digits":
            x = x / np.float32(_GREY)
        columns = () if image else tuple(str(name) for name in loaded.feature_names)
        known = classes is None and labels is None  # which classes these sets have is public
        raw = build(
            f"sklearn:{where}",
            x.reshape(-1, 1, 8, 8) if image else x,
            loaded.target,
            classes=len(loaded.target_names) if known else classes,
            labels=labels,
            class_labels=tuple(np.asarray(loaded.target_names).tolist()) if known else None,
            columns=columns,
        )
        return replace(raw, divided_by=_GREY) if where == "digits" else raw

    return Whole(load)


SOURCES = {"sklearn": sklearn}
