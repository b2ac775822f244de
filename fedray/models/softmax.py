"""Linear models."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fedray.errors import ConfigError
from fedray.models.shapes import flat_size


def softmax(input_shape: tuple[int, ...], outputs: int, zero: bool = False) -> nn.Module:
    """Multinomial logistic regression: one linear layer, one output a class.

    Takes records of any shape, flattened; gives [n, outputs].

    Args:
        input_shape: of one record.
        outputs: number of classes.
        zero: begin with weights of zero, and not with drawn ones.
    """
    return _linear("softmax", input_shape, outputs, zero)


def logistic(input_shape: tuple[int, ...], outputs: int, zero: bool = False) -> nn.Module:
    """Binary logistic regression: one linear layer with one logit, for binary_cross_entropy.

    Takes records of any shape, flattened; gives [n, 1].

    Args:
        input_shape: of one record.
        outputs: 1.
        zero: begin with weights of zero, and not with drawn ones.

    Raises:
        ConfigError: the loss asks for more than one output.
    """
    if outputs != 1:
        raise ConfigError(
            f"model.kind: logistic gives one logit, but {outputs} outputs are needed; use softmax, or training.loss binary_cross_entropy."
        )
    return _linear("logistic", input_shape, 1, zero)


def linear(input_shape: tuple[int, ...], outputs: int, zero: bool = False) -> nn.Module:
    """Linear regression: one linear layer, for mse.

    Takes records of any shape, flattened; gives [n, outputs].

    Args:
        input_shape: of one record.
        outputs: predicted values for a record.
        zero: begin with weights of zero, and not with drawn ones.
    """
    return _linear("linear", input_shape, outputs, zero)


def _linear(kind: str, input_shape: tuple[int, ...], outputs: int, zero: bool) -> nn.Module:
    fc = nn.Linear(flat_size(kind, input_shape), outputs)
    if zero:
        nn.init.zeros_(fc.weight)
        nn.init.zeros_(fc.bias)
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=fc))


MODELS = {"softmax": softmax, "logistic": logistic, "linear": linear}
