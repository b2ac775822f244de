"""Fully connected networks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from fedray.errors import ConfigError
from fedray.models.shapes import check_dropout, flat_size

Activation = Literal["relu", "tanh", "gelu", "elu", "sigmoid"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "elu": nn.ELU, "sigmoid": nn.Sigmoid}


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    hidden: list[int] | None = None,
    activation: Activation = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Fully connected network with the hidden layers you give (default one of 64).

    Takes records of any shape, flattened; gives [n, outputs]. Dropout follows every hidden layer.

    Args:
        input_shape: of one record.
        outputs: for a record.
        hidden: units of each hidden layer, in order; null = one layer of 64.
        activation: after every hidden layer.
        dropout: after every hidden layer, in [0, 1).

    Raises:
        ConfigError: a hidden layer without units, or a dropout outside [0, 1).
    """
    widths = [64] if hidden is None else hidden
    if any(width < 1 for width in widths):
        raise ConfigError(f"model.hidden: {widths} has a layer of no units; give sizes of at least 1.")
    check_dropout(dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    size = flat_size("mlp", input_shape)
    for number, width in enumerate(widths, start=1):
        layers[f"fc{number}"] = nn.Linear(size, width)
        layers[f"{activation}{number}"] = _ACTIVATIONS[activation]()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        size = width
    layers["out"] = nn.Linear(size, outputs)
    return nn.Sequential(layers)


def two_nn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The FedAvg paper's 2NN: two hidden layers of 200 ReLU units (199,210 parameters on MNIST).

    Takes records of any shape, flattened; gives [n, outputs].

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, section 3.
    """
    return mlp(input_shape, outputs, hidden=[200, 200])


MODELS = {"mlp": mlp, "2nn": two_nn}
