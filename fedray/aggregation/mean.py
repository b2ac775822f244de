"""The weighted mean.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedray.aggregation.exact import ExactSum
from fedray.aggregation.rule import Memory, Rule
from fedray.parameters import Values, Vector
from fedray.traits import Wants


@dataclass(frozen=True)
class WeightedMean(Rule[ExactSum]):
    """Mean of the updates, weighted as the algorithm says, from their exact sum.

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, Algorithm 1

    One client can move it as far as it likes, so all clients must be trusted to send what they trained.
    """

    wants: ClassVar[Wants] = "sum"

    def combine(self, got: ExactSum, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The sum over the weight, and nothing remembered."""
        return got.mean(spend=True), {}


AGGREGATORS = {"mean": WeightedMean}
