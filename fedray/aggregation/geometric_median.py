"""The geometric median.

Pillutla, Kakade, Harchaoui 2022, Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing 70 (RFA), algorithm 2, the
smoothed Weiszfeld algorithm. Each of its iterates is a mean of the updates with other factors, so inner products are all that it needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each
from fedray.aggregation.rule import Memory, Rule
from fedray.errors import ConfigError
from fedray.parameters import Values, Vector

#: The iteration ends where it makes the sum of distances smaller by less than this part of it.
_SMALLEST_GAIN = 1e-12


@dataclass(frozen=True)
class GeometricMedian(Rule[Each]):
    """The point with the smallest sum of distances from the updates, by the smoothed Weiszfeld algorithm.

    Source: Pillutla, Kakade, Harchaoui 2022, Robust Aggregation for Federated Learning (RFA), Algorithm 2

    It holds against clients with less than half of the weight, and does not depend on the choice of coordinates.

    Attributes:
        weighted: count each update with the weight that the algorithm gives it, as the paper does; false: each counts once, so that no
            client gives itself power.
        smoothing: distance below which an update attracts no more strongly, in the updates' norm, above 0.
        iterations: most steps of the algorithm, at least 1; the paper takes 3. They need no further look at the updates.
    """

    weighted: bool = False
    smoothing: float = 1e-6
    iterations: int = 100

    def __post_init__(self) -> None:
        if not (math.isfinite(self.smoothing) and self.smoothing > 0):
            raise ConfigError(f"aggregation.smoothing: {self.smoothing} is not above 0.")
        if self.iterations < 1:
            raise ConfigError(f"aggregation.iterations: {self.iterations} is below 1.")

    def held(self, updates: int) -> int:
        """Products of all pairs, and those of some columns."""
        return 2 * 8 * updates**2

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The geometric median, and nothing remembered."""
        weights = got.weights if self.weighted and got.weights.sum() > 0 else np.ones(got.count)
        return got.weighted_sum(self.factors(got.products, weights / weights.sum())), {}

    def factors(self, products: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The factors of the updates in the median, float64 ``[n]`` with sum 1.

        Args:
            products: inner products of all pairs of updates, float64 ``[n, n]``.
            weights: of the updates, float64 ``[n]`` with sum 1; the first iterate is the mean with them.
        """
        factors, before = weights, math.inf
        for _ in range(self.iterations):
            beside = products @ factors
            squares = products.diagonal() - 2 * beside + factors @ beside
            distances = np.sqrt(np.maximum(squares, self.smoothing**2))
            total = float(weights @ distances)
            if total >= before * (1 - _SMALLEST_GAIN):
                break
            pulls = weights / distances
            factors, before = pulls / pulls.sum(), total
        return factors


AGGREGATORS = {"geometric_median": GeometricMedian}
