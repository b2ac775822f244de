"""What methods that grow boosted trees have in common: their arguments and losses, and the shape of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedray.algorithms.algorithm import Algorithm
from fedray.algorithms.derivatives import DERIVATIVES
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.models.trees import Trees
from fedray.parameters import Layout, Vector


class Shape(NamedTuple):
    """The shape of a model of trees; it is broadcast, because the driver's half of a method is not given the model's layout.

    Attributes:
        features, outputs, trees, depth: as of :class:`fedray.models.trees.Trees`.
    """

    features: int
    outputs: int
    trees: int
    depth: int

    @classmethod
    def of(cls, layout: Layout) -> Shape:
        """The shape of the model of a layout.

        Raises:
            ConfigError: the model is not of trees.
        """
        shapes = {e.name: e.shape for e in layout.entries}
        if list(shapes) != ["base", "feature", "threshold", "value", "gain"]:
            raise ConfigError("model.kind: this algorithm.kind grows trees; use model.kind trees, or another algorithm.")
        (features,), (outputs, trees, leaves) = shapes["gain"], shapes["value"]
        return cls(features, outputs, trees, (leaves - 1).bit_length())

    @classmethod
    def read(cls, vector: Vector) -> Shape:
        """The shape of :meth:`vector`."""
        return cls(*vector.astype(np.int64).tolist())

    def vector(self) -> Vector:
        """As it is broadcast, float32 ``[4]``."""
        return np.array(self, dtype=np.float32)

    def views(self, weights: Vector) -> dict[str, Vector]:
        """Name to a view of the model's vector."""
        return Layout.of(Trees(*self)).views(weights)

    def grown(self, weights: Vector) -> int:
        """How many places of the model have trees; those behind have none."""
        filled = np.flatnonzero(self.views(weights)["value"].any((0, 2)))
        return int(filled[-1]) + 1 if len(filled) else 0


@dataclass(frozen=True)
class BoostedTrees(Algorithm):
    """A method that grows boosted trees.

    Source: Chen, Guestrin 2016, XGBoost: A Scalable Tree Boosting System.

    Attributes:
        lr: factor on the values of leaves, above 0 (eta).
        l2: added to the second derivatives of a leaf, 0 or above (lambda).
        min_gain: what a split must gain more than, 0 or above (gamma): G^2 / (H + l2) of both sides less that of the whole.
        min_child_weight: of the second derivatives of each side of a split, 0 or above.
    """

    lr: float = 0.3
    l2: float = 1.0
    min_gain: float = 0.0
    min_child_weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"algorithm.lr: {self.lr} is not above 0.")
        for name in ("l2", "min_gain", "min_child_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"algorithm.{name}: {getattr(self, name)} is not 0 or above.")

    def check(self, training: Training) -> None:
        """The loss is one whose derivatives are known."""
        if training.loss.kind not in DERIVATIVES or training.loss.arguments:
            given = f"{training.loss} with {', '.join(training.loss.arguments)}" if training.loss.arguments else str(training.loss)
            raise ConfigError(
                f"training.loss: trees are grown by the derivatives of {', '.join(DERIVATIVES)}, and not by those of {given}; use one of these "
                "without arguments."
            )
