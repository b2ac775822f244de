"""Federated averaging.

Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, Communication-Efficient Learning of Deep
Networks from Decentralized Data, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedray.algorithms.algorithm import Algorithm


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Local training from the global model; the mean of the updates weighted by records.

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data.

    Attributes:
        weights: ``samples``: a client counts as many times as it has records (the paper); ``uniform``: once.
    """

    weights: Literal["samples", "uniform"] = "samples"

    def weight(self, records: int) -> float:
        """Weight of a client with ``records`` training records."""
        return float(records) if self.weights == "samples" else 1.0

    def largest_weight(self, sizes: npt.NDArray[np.int64]) -> float:
        """Sum of the weights of all clients, which no cohort exceeds; ``sizes`` are their record counts."""
        return float(np.sum(sizes)) if self.weights == "samples" else float(len(sizes))


ALGORITHMS = {"fedavg": FedAvg}
