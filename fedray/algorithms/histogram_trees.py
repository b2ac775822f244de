"""Gradient-boosted trees from histograms that clients add up.

Source: Chen, Guestrin 2016, XGBoost: A Scalable Tree Boosting System; the exchange is that of horizontal FedTree: Li et al. 2023, FedTree: A
Federated Learning System for Trees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

from fedray.algorithms.algorithm import Mean, Update
from fedray.algorithms.bin_edges import REFINEMENTS, first_edges, refined
from fedray.algorithms.derivatives import DERIVATIVES, Targets, softmax_residual
from fedray.algorithms.forest import BoostedTrees, Shape
from fedray.algorithms.totals import DIGITS, RecordTotals, totals_of
from fedray.algorithms.turn import Turn
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.models.trees import Trees
from fedray.parameters import Layout, Vector
from fedray.traits import Traits

_BLOCK = 1024  # records at a time
_LEAST = 1e-6  # gain of a split; below it is what rounding leaves

Floats = npt.NDArray[np.float64]


class Growth(NamedTuple):
    """How far the trees are, as the broadcast says it.

    Attributes:
        refinements: how often the bins' edges have been moved.
        levels: of nodes that have been split, counted over all trees.
    """

    refinements: int
    levels: int

    @classmethod
    def read(cls, vector: Vector) -> Growth:
        """What was broadcast."""
        return cls(*vector.astype(np.int64).tolist())

    def vector(self) -> Vector:
        """As it is broadcast, float32 ``[2]``."""
        return np.array(self, dtype=np.float32)


@dataclass(frozen=True)
class HistogramTrees(BoostedTrees):
    """Gradient-boosted trees: clients send histograms of their records' gradients, from which the server chooses all splits.

    A round adds one level to one tree of each output. Each client sends, for each node of the level, feature and bin, the sums of the first
    and second derivatives of the loss over its records; the server adds them up and splits each node where the gain is largest. The sums
    are exact, so any split of the same records among clients gives the same trees, bit by bit. In the first five rounds the histograms say
    where the records lie, and the bins' edges move there; then every output begins with one Newton step from 0.

    Source: Chen, Guestrin 2016, XGBoost: A Scalable Tree Boosting System, equations 5 to 7; Li et al. 2023, FedTree: A Federated Learning
        System for Trees

    Attributes:
        bins: of each feature, 16 or more, for fewer do not find the records; a split lies between two of them.
        lr: factor on the values of leaves, above 0 (eta).
        l2: added to the second derivatives of a leaf, 0 or above (lambda).
        min_gain: what a split must gain more than, 0 or above (gamma): G^2 / (H + l2) of both sides less that of the whole.
        min_child_weight: of the second derivatives of each side of a split, 0 or above.
        traits: clients read their records and send exact totals over them, of which the server makes the next model.
    """

    bins: int = 32
    traits: ClassVar[Traits] = Traits(reads=frozenset({"records"}), passes=0, sets=True, exact=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 16:
            raise ConfigError(f"algorithm.bins: {self.bins} is below 16.")

    def exchange(self, layout: Layout) -> Exchange:
        """The bins' edges and how far the trees are go down; the histograms of a tree's widest level come up, as digits.

        Raises:
            ConfigError: the model is not of trees.
        """
        shape = Shape.of(layout)
        return Exchange(
            (
                Field("model", layout.size, up=False),
                Field("edges", shape.features * (self.bins - 1), up=False),
                Field("growth", len(Growth._fields), up=False),
                Field("shape", len(shape), up=False),
                Field("histograms", DIGITS * self._sums(shape), down=False, weigh="one"),
            )
        )

    def _sums(self, shape: Shape) -> int:
        """How many there are at a tree's widest level."""
        return shape.outputs * (1 << shape.depth) * shape.features * self.bins

    def begin(self, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> dict[str, Vector]:
        """The initial model, whose trees are kept if it has any, and edges all over the numbers."""
        shape = Shape.of(layout)
        growth, edges = Growth(0, shape.grown(weights) * shape.depth), first_edges(shape.features, self.bins)
        return {"model": weights, "edges": edges.ravel(), "growth": growth.vector(), "shape": shape.vector()}

    def most_rounds(self, layout: Layout, weights: Vector, cohort: int, clients: int) -> int:
        """Five, and one for each level of the trees that there is still room for."""
        shape = Shape.of(layout)
        return REFINEMENTS + (shape.trees - shape.grown(weights)) * shape.depth

    def local(self, turn: Turn) -> Update:
        """The histograms of the client's records."""
        x, y = turn.rows()
        shape, growth, model = Shape.of(turn.layout), Growth.read(turn.globals["growth"]), cast(Trees, turn.model)
        tree, level = divmod(min(growth.levels, shape.trees * shape.depth - 1), shape.depth)  # of a full model nothing is asked
        turn.put(turn.globals["model"])
        edges = turn.globals["edges"].reshape(shape.features, -1)
        totals = RecordTotals(self._sums(shape))
        for start in range(0, len(y), _BLOCK):
            part, targets = x[start : start + _BLOCK], y[start : start + _BLOCK].cpu().numpy()
            with torch.no_grad():
                outputs = model.outputs(part, tree).T.double().cpu().numpy()
                nodes = model.places(part, tree, tree + 1, level)[:, :, 0].T.cpu().numpy()
            slopes, curvatures = _derivatives(turn.training.loss.kind, outputs, targets)
            columns = part.flatten(1).float().cpu().numpy().T
            bins = np.stack([np.searchsorted(own, column, side="right") for own, column in zip(edges, columns, strict=True)])
            lines = np.arange(shape.outputs)[:, None] * 2**level + nodes  # [outputs, records]
            cells = (lines[:, None] * shape.features + np.arange(shape.features)[:, None]) * self.bins + bins
            totals.scatter(2 * cells, slopes[:, None])
            totals.scatter(2 * cells + 1, curvatures[:, None])
        return Update({"histograms": totals.digits(0, len(totals.values))})

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """One more level of one tree of each output, or better edges of the bins."""
        shape, growth = Shape.read(globals_["shape"]), Growth.read(globals_["growth"])
        edges, weights = globals_["edges"].reshape(shape.features, -1), globals_["model"].copy()
        model, (tree, level) = shape.views(weights), divmod(growth.levels, shape.depth)
        sums = totals_of(mean.values["histograms"], mean.clients).reshape(-1, shape.features, self.bins, 2)
        sums = sums[: shape.outputs * 2**level].reshape(shape.outputs, 2**level, *sums.shape[1:])
        if growth.refinements < REFINEMENTS:
            edges = refined(edges, sums[:, 0, :, :, 1].sum(0), growth.refinements)
            growth = growth._replace(refinements=growth.refinements + 1)
            if growth.refinements == REFINEMENTS:
                slope, curvature = np.moveaxis(sums[:, 0, 0].sum(1), -1, 0)
                model["base"] -= np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
        elif tree < shape.trees:
            self._split(model, tree, edges, sums)
            growth = growth._replace(levels=growth.levels + 1)
        return {"model": weights, "edges": edges.ravel(), "growth": growth.vector(), "shape": globals_["shape"]}

    def _split(self, model: Mapping[str, Vector], tree: int, edges: Vector, sums: Floats) -> None:
        """Split the nodes of a level, and after the last give the leaves their values.

        A node that does not split leaves all its records in its left child, whose sums are the same, so that it does not split either.

        Args:
            model: views of the model, which are changed.
            tree: that grows.
            edges: of the bins, ``[features, bins - 1]``.
            sums: of the derivatives, ``[outputs, nodes, features, bins, 2]``.
        """
        sides = sums.cumsum(3)
        whole, left = sides[..., -1:, :], sides[..., :-1, :]
        right = whole - left
        gain = self._score(left) + self._score(right) - self._score(whole)  # [outputs, nodes, features, bins - 1]
        heavy = (left[..., 1] >= self.min_child_weight) & (right[..., 1] >= self.min_child_weight)
        gain = np.where(heavy, gain, 0.0).reshape(*gain.shape[:2], -1)
        best = gain.argmax(2)
        most = np.take_along_axis(gain, best[..., None], 2)[..., 0]
        split = most > max(self.min_gain, _LEAST)
        feature, edge = np.divmod(best, self.bins - 1)
        first = best.shape[1] - 1  # of the level's nodes
        nodes = slice(first, first + best.shape[1])
        model["feature"][:, tree, nodes] = np.where(split, feature + 1, 0)
        model["threshold"][:, tree, nodes] = np.where(split, edges[feature, edge], 0.0)
        np.add.at(model["gain"], feature[split], most[split])
        if nodes.stop == model["feature"].shape[2]:
            output, node = np.indices(best.shape)
            whole = whole[:, :, 0, 0]
            one = np.where(split[..., None], left[output, node, feature, edge], whole)
            leaves = np.stack([one, whole - one], 2).reshape(len(best), -1, 2)
            model["value"][:, tree] = -self.lr * self._ratio(leaves[..., 0], leaves[..., 1])

    def _score(self, sums: Floats) -> Floats:
        """What a leaf of these sums ``[..., 2]`` takes off the loss, twice: G^2 / (H + l2)."""
        return self._ratio(sums[..., 0] ** 2, sums[..., 1])

    def _ratio(self, over: Floats, curvature: Floats) -> Floats:
        under = curvature + self.l2
        return np.divide(over, under, out=np.zeros_like(over), where=under > 0)


def _derivatives(loss: str, outputs: Floats, targets: Targets) -> tuple[Floats, Floats]:
    """The first and second derivatives of a loss by each output ``[outputs, n]``, as XGBoost has them: of squared error half of them, and of
    cross-entropy twice the second ones, for the outputs of a record move together.
    """
    if loss == "cross_entropy":
        slope, p = softmax_residual(outputs, targets)
        return slope, 2 * p * (1 - p)
    slope, curvature = DERIVATIVES[loss](outputs, targets)
    return (slope / 2, curvature[0] / 2) if loss == "mse" else (slope, curvature[0])


ALGORITHMS = {"histogram_trees": HistogramTrees}
