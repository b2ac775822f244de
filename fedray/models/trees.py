"""Ensembles of decision trees, as a model whose parameters an algorithm sets and no gradient moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.models.shapes import flat_size

_DEEPEST = 12


class Trees(nn.Module):
    """Room for so many trees of one depth for each output; all tensors are zero at first, which is a model that gives 0.

    A tree is complete: node i of a level has the nodes 2 i and 2 i + 1 of the next below it. A record goes right where its feature is not
    below the threshold, else left, and so do all where a node does not split. The numbers are exact in float32.

    Attributes:
        base: what every record's outputs begin with, ``[outputs]``.
        feature: of each inner node, level after level: the feature's number plus 1, or 0 where the node does not split, ``[outputs, trees, nodes]``.
        threshold: of each inner node, ``[outputs, trees, nodes]``.
        value: that a leaf adds to the output, ``[outputs, trees, leaves]``.
        gain: of each feature: the gains of all splits by it, added up, ``[features]``.
    """

    def __init__(self, features: int, outputs: int, trees: int, depth: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(outputs))
        self.feature = nn.Parameter(torch.zeros(outputs, trees, 2**depth - 1))
        self.threshold = nn.Parameter(torch.zeros(outputs, trees, 2**depth - 1))
        self.value = nn.Parameter(torch.zeros(outputs, trees, 2**depth))
        self.gain = nn.Parameter(torch.zeros(features))

    @property
    def depth(self) -> int:
        """Levels of inner nodes of each tree."""
        return (self.value.shape[2] - 1).bit_length()

    def forward(self, x: Tensor) -> Tensor:
        """Records of any shape [n, ...] -> [n, outputs]."""
        return self.outputs(x, self.value.shape[1])

    def outputs(self, x: Tensor, trees: int) -> Tensor:
        """What the first so many trees give, float32 [n, outputs]. Leaves are added up tree after tree, so that the last bits of a record's
        outputs do not depend on the records beside it.
        """
        places = self.places(x, 0, trees, self.depth)
        found = self.base.expand(len(x), -1)
        for tree in range(trees):
            found = found + torch.gather(self.value[:, tree].T, 0, places[:, :, tree])
        return found

    def places(self, x: Tensor, first: int, stop: int, level: int) -> Tensor:
        """In which node of a level records [n, ...] are, in trees from ``first`` to before ``stop``: int64 [n, outputs, trees]."""
        x = x.flatten(1).float()
        feature, threshold = (tensor.detach()[:, first:stop] for tensor in (self.feature, self.threshold))
        trees = torch.arange(feature[..., 0].numel(), device=x.device).reshape(feature.shape[:2]) * feature.shape[2]
        place = torch.zeros((len(x), *trees.shape), dtype=torch.int64, device=x.device)
        for above in range(level):
            node = trees + place + (2**above - 1)
            number = feature.take(node).long() - 1
            values = x.gather(1, number.clamp(min=0).flatten(1)).reshape(number.shape)
            place = 2 * place + ((number >= 0) & (values >= threshold.take(node)))
        return place


def trees(input_shape: tuple[int, ...], outputs: int, trees: int = 20, depth: int = 4) -> nn.Module:
    """Decision trees of one depth, whose leaves are added up; for algorithms that grow trees.

    Takes records of any shape, flattened; gives [n, outputs]: logits, or predicted values.

    Args:
        input_shape: of one record.
        outputs: for a record; each has trees of its own.
        trees: how many there is room for, for each output.
        depth: splits between the root and a leaf, 1 to 12.

    Raises:
        ConfigError: no trees, or a depth outside 1 to 12.

    Source: Chen, Guestrin 2016, XGBoost: A Scalable Tree Boosting System, section 2.1.
    """
    if trees < 1:
        raise ConfigError(f"model.trees: {trees} is below 1.")
    if not 1 <= depth <= _DEEPEST:
        raise ConfigError(f"model.depth: {depth} is not in 1 to {_DEEPEST}.")
    return Trees(flat_size("trees", input_shape), outputs, trees, depth)


def check_grown(model: nn.Module, kind: str, trains: bool) -> None:
    """Refuse to train trees by gradients.

    Args:
        model: of the run.
        kind: the config's ``algorithm.kind``.
        trains: whether its clients train by gradients.

    Raises:
        ConfigError: with what to use instead.
    """
    if trains and isinstance(model, Trees):
        raise ConfigError(
            f"model.kind: trees have no gradient, by which clients of algorithm.kind '{kind}' train; use algorithm.kind histogram_trees, or "
            "another model."
        )


MODELS = {"trees": trees}
