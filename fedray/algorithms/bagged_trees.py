"""Gradient-boosted trees that clients grow by themselves with XGBoost, all of which become trees of the model.

Source: the exchange is that of bagging in NVFlare's and Flower's XGBoost examples; Chen, Guestrin 2016, XGBoost: A Scalable Tree Boosting
System, for the trees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedray.algorithms.algorithm import Mean, Update
from fedray.algorithms.forest import BoostedTrees, Shape
from fedray.algorithms.totals import DIGITS, RecordTotals, totals_of
from fedray.algorithms.turn import Turn
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.models.trees import Trees
from fedray.parameters import Layout, Vector
from fedray.traits import Traits

_BLOCK = 1024  # records at a time
_OBJECTIVES = {"binary_cross_entropy": "binary:logistic", "cross_entropy": "multi:softprob", "mse": "reg:squarederror"}


@dataclass(frozen=True)
class BaggedTrees(BoostedTrees):
    """Gradient-boosted trees: each client grows a tree on its own records with XGBoost, and the model gets the trees of all.

    In a round each client boosts the current model by one tree for each output; the server takes all of them, each with its client's share of
    the learning rate, which is a step by their mean. What comes up has a place for each client, so the driver sees every client's trees.

    Source: Chen, Guestrin 2016, XGBoost: A Scalable Tree Boosting System; bagging as in NVFlare's and Flower's XGBoost examples

    Attributes:
        lr: factor on the mean of the clients' trees, above 0 (eta).
        l2: added to the second derivatives of a leaf, 0 or above (lambda).
        min_gain: what a split must gain more than, 0 or above (gamma): G^2 / (H + l2) of both sides less that of the whole.
        min_child_weight: of the second derivatives of each side of a split, 0 or above.
        weights: ``samples``: a client's share follows its number of records; ``uniform``: all have the same.
        traits: clients read their records and send trees, each in a place of its own, of which the server makes the next model.
    """

    weights: Literal["samples", "uniform"] = "samples"
    traits: ClassVar[Traits] = Traits(reads=frozenset({"records"}), passes=0, sets=True, singles=True, exact=True)

    def check_model(self, model: nn.Module) -> None:
        """There is XGBoost."""
        _xgboost()

    def exchange(self, layout: Layout) -> Exchange:
        """A place for each client's trees comes up, as many places as the model has: the bits of their numbers, as digits.

        Raises:
            ConfigError: the model is not of trees.
        """
        shape = Shape.of(layout)
        return Exchange(
            (
                Field("model", layout.size, up=False),
                Field("shape", len(shape), up=False),
                Field("trees", DIGITS * shape.trees * _numbers(shape), down=False, weigh="one"),
            )
        )

    def begin(self, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> dict[str, Vector]:
        """The initial model, whose trees are kept if it has any."""
        return {"model": weights, "shape": Shape.of(layout).vector()}

    def most_rounds(self, layout: Layout, weights: Vector, cohort: int, clients: int) -> int:
        """As many as there is room for trees of a whole cohort.

        Raises:
            ConfigError: there are fewer places for trees than clients.
        """
        shape = Shape.of(layout)
        if shape.trees < clients:
            raise ConfigError(
                f"model.trees: each of the {clients} clients has a place for a tree in what comes up, and there are {shape.trees}; give room for "
                f"rounds times clients, {clients} trees or more."
            )
        return (shape.trees - shape.grown(weights)) // cohort

    def local(self, turn: Turn) -> Update:
        """One more tree for each output, in the client's place."""
        xgboost, (x, y), shape = _xgboost(), turn.rows(), Shape.of(turn.layout)
        turn.put(turn.globals["model"])
        model, grown = cast(Trees, turn.model), shape.grown(turn.globals["model"])
        with torch.no_grad():
            outputs = np.concatenate([model.outputs(part, grown).cpu().numpy() for part in torch.split(x, _BLOCK)])
        data = xgboost.DMatrix(x.flatten(1).float().cpu().numpy(), y.cpu().numpy(), base_margin=outputs, nthread=1)
        given = {
            "objective": _OBJECTIVES[turn.training.loss.kind],
            "max_depth": shape.depth,
            "eta": 1.0,
            "lambda": self.l2,
            "gamma": self.min_gain,
            "min_child_weight": self.min_child_weight,
            "tree_method": "hist",
            "nthread": 1,  # the sums of several threads would differ from run to run
            **({"num_class": shape.outputs} if shape.outputs > 1 else {}),
        }
        booster = json.loads(xgboost.train(given, data, 1).save_raw("json"))
        trees = booster["learner"]["gradient_booster"]["model"]["trees"]
        weight = len(y) if self.weights == "samples" else 1
        found = np.concatenate([np.full(1, weight, dtype=np.float32), *(_complete(tree, shape.depth) for tree in trees)])
        totals, first = RecordTotals(shape.trees * len(found)), turn.client * len(found)
        totals.values[first : first + len(found)] = found.view(np.int32)
        return Update({"trees": totals.digits(0, len(totals.values))})

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """All trees that have come, in the order of the clients, behind those that the model has."""
        shape, weights = Shape.read(globals_["shape"]), globals_["model"].copy()
        bits = np.rint(np.ldexp(totals_of(mean.values["trees"], mean.clients), 32)).astype(np.int32)
        places = bits.view(np.float32).reshape(shape.trees, -1)
        model, grown = shape.views(weights), shape.grown(weights)
        came = np.flatnonzero(places[:, 0] > 0)[: shape.trees - grown]
        trees, records = places[:, 1:].reshape(shape.trees, shape.outputs, -1)[came].swapaxes(0, 1), places[came, 0]
        inner = 2**shape.depth - 1
        feature, threshold, gain, value = np.split(trees, [inner, 2 * inner, 3 * inner], axis=2)
        new, shares = slice(grown, grown + len(came)), self.lr * records / records.sum()
        model["feature"][:, new], model["threshold"][:, new], model["value"][:, new] = feature, threshold, value * shares[:, None]
        np.add.at(model["gain"], feature[feature > 0].astype(np.int64) - 1, gain[feature > 0])
        return {"model": weights, "shape": globals_["shape"]}


def _numbers(shape: Shape) -> int:
    """Of one client: its weight, and features, thresholds and gains of inner nodes, and values of leaves, for each output."""
    return 1 + shape.outputs * ((4 << shape.depth) - 3)


def _complete(tree: Mapping[str, Any], depth: int) -> Vector:
    """A tree of XGBoost's as the numbers of a complete one, float32: features plus 1, thresholds, gains and values.

    A leaf above the last level leaves all its records in its left child.
    """
    inner = 2**depth - 1
    found = np.zeros((3, inner)), np.zeros(2**depth)

    def place(node: int, level: int, at: int) -> None:
        left = tree["left_children"][node]
        if left < 0:
            found[1][at << (depth - level)] = tree["split_conditions"][node]
            return
        found[0][:, 2**level - 1 + at] = tree["split_indices"][node] + 1, tree["split_conditions"][node], tree["loss_changes"][node]
        place(left, level + 1, 2 * at)
        place(tree["right_children"][node], level + 1, 2 * at + 1)

    place(0, 0, 0)
    numbers: npt.NDArray[np.float32] = np.concatenate([found[0].ravel(), found[1]]).astype(np.float32)
    return numbers


def _xgboost() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import xgboost
    except ImportError as error:
        raise ConfigError(
            f"algorithm.kind: bagged_trees takes the package xgboost ({error}); pip install 'fedray[trees]' on all machines, or use "
            "histogram_trees, which needs none."
        ) from None
    return xgboost


ALGORITHMS = {"bagged_trees": BaggedTrees}
