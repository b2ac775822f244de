"""Linear models."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fedray.errors import ConfigError
from fedray.models.shapes import flat_size


def softmax(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Multinomial logistic regression: one linear layer, one output a class.

    Takes records of any shape, flattened; gives [n, outputs].
    """
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(flat_size("softmax", input_shape), outputs)))


def logistic(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Binary logistic regression: one linear layer with one logit, for binary_cross_entropy.

    Takes records of any shape, flattened; gives [n, 1].

    Raises:
        ConfigError: the loss asks for more than one output.
    """
    if outputs != 1:
        raise ConfigError(
            f"model.kind: logistic gives one logit, but {outputs} outputs are needed; use softmax, or training.loss binary_cross_entropy."
        )
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(flat_size("logistic", input_shape), 1)))


MODELS = {"softmax": softmax, "logistic": logistic}
