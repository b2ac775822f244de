"""The small data sets that come inside scikit-learn; nothing is downloaded."""

from __future__ import annotations

import numpy as np

from fedray.components import nearest
from fedray.data.source import Raw, Source, Whole, build
from fedray.errors import DataError

_NAMES = ("breast_cancer", "digits", "iris", "wine")


def sklearn(where: str, *, image: bool = False) -> Source:
    """Classification sets inside scikit-learn: digits, breast_cancer, wine, iris.

    Source: UCI Machine Learning Repository, as shipped with scikit-learn.

    Args:
        where: the name.
        image: digits as ``(1, 8, 8)`` instead of ``(64,)``.

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
            x = x / np.float32(16)
        columns = () if image else tuple(str(name) for name in loaded.feature_names)
        return build(f"sklearn:{where}", x.reshape(-1, 1, 8, 8) if image else x, loaded.target, columns=columns)

    return Whole(load)


SOURCES = {"sklearn": sklearn}
