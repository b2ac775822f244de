"""FLTrust.

Cao, Fang, Liu, Gong 2021, FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS, section IV and algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedray.aggregation.each import Each
from fedray.aggregation.root import RootUse
from fedray.aggregation.rule import Memory, Rule
from fedray.errors import FedrayError
from fedray.parameters import Values, Vector


@dataclass(frozen=True)
class FLTrust(Rule[Each]):
    """Mean of the updates at the length of the driver's own update on its root set, weighted by their cosine with it, or 0 where that is below.

    Source: Cao et al. 2021, FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, Algorithm 2

    It needs the section ``root``, and holds against any number of attackers as far as the root set is like the clients' records. Where no
    update points its way, the model stays where it is.
    """

    def root(self) -> RootUse:
        """It does not run without."""
        return "must"

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The weighted mean, and nothing remembered."""
        if got.root is None:
            raise FedrayError("aggregation.kind: 'fltrust' compares updates with one on a root set, and there is none here.")
        own = got.root.update()
        products, squares = got.against(own)
        length, lengths = float(np.sqrt(np.square(own, dtype=np.float64).sum())), np.sqrt(squares)
        reach = np.maximum(length * lengths, np.finfo(np.float64).tiny)
        trust = np.maximum(products / reach, 0.0)  # an update of length zero has a product of zero, too
        total = trust.sum()
        if not total:
            return np.zeros(got.size, dtype=np.float32), {}
        return got.weighted_sum(trust / total * length / np.where(lengths > 0, lengths, 1.0)), {}


AGGREGATORS = {"fltrust": FLTrust}
