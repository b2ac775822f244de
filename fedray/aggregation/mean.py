"""Aggregation rules: from a round's total to the vector that the server's optimiser takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedray.aggregation.exact import ExactSum


def mean(total: ExactSum) -> npt.NDArray[np.float32]:
    """Weighted mean of the updates, from the exact sum, which is not used afterwards.

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, Algorithm 1
    """
    return total.mean(spend=True)


AGGREGATORS = {"mean": mean}
