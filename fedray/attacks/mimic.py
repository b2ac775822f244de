"""Mimicry of one honest client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each
from fedray.attacks.attack import Agreed, Collusion


@dataclass(frozen=True)
class Mimic(Collusion):
    """All malicious clients send the update of one honest client, so that it counts more than the others.

    Source: Karimireddy, He, Jaggi 2022, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, section 3.2 and appendix B

    They know everything. It is the client that lies furthest out in the direction in which honest updates differ most; the paper finds that
    direction in the first rounds and keeps the client, here both are found anew each round.
    """

    def agreed(self, got: Each, mine: npt.NDArray[np.bool_]) -> Agreed:
        """The update of the one; where no honest client is in the round, what they have trained."""
        honest = np.flatnonzero(~mine)
        if not len(honest):
            return lambda columns: columns[mine]
        products = got.products[np.ix_(honest, honest)]
        products -= products.mean(axis=0)
        products -= products.mean(axis=1)[:, None]
        _, directions = np.linalg.eigh((products + products.T) / 2)
        copied = honest[int(np.argmax(np.abs(directions[:, -1]).round(9)))]  # equal ones: the first
        return lambda columns: columns[copied]


ATTACKS = {"mimic": Mimic}
