"""What the built-in models ask of a record's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from fedray.errors import ConfigError


def flat_size(model: str, input_shape: tuple[int, ...]) -> int:
    """Number of values in a record of ``input_shape``.

    Raises:
        ConfigError: the record has no axis or an empty one.
    """
    refuse_several(model, input_shape)
    if not input_shape or min(input_shape) < 1:
        raise ConfigError(f"model.kind: {model} needs records of at least one value along every axis, but they have shape {input_shape}.")
    return math.prod(input_shape)


def image_shape(model: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """(channels, height, width) of an image record; (height, width) counts as one channel.

    Raises:
        ConfigError: not an image with channels first, or smaller than ``smallest`` pixels a side.
    """
    refuse_several(model, input_shape)
    shape = (1, *input_shape) if len(input_shape) == 2 else input_shape
    if len(shape) != 3 or min(shape[1:]) < smallest or shape[0] < 1:
        channels_last = len(shape) == 3 and shape[2] < smallest <= min(shape[0], shape[1])
        hint = "; move the channels to the front" if channels_last else ""
        raise ConfigError(
            f"model.kind: {model} needs images of shape (channels, height, width) of at least {smallest} x {smallest} pixels, "
            f"but the records have shape {input_shape}{hint}."
        )
    return shape[0], shape[1], shape[2]


def refuse_several(model: str, input_shape: object) -> None:
    """Refuse records with several inputs, whose shape is a mapping.

    Raises:
        ConfigError: with models that take them.
    """
    if isinstance(input_shape, Mapping):
        raise ConfigError(
            f"model.kind: {model} is for records of one array, but these have the inputs {', '.join(input_shape)}; use late_fusion, or a model of "
            "your own (python:module:name)."
        )


def check_dropout(dropout: float) -> None:
    """See that a share of values can be dropped.

    Raises:
        ConfigError: it is not in [0, 1).
    """
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"model.dropout: {dropout} is not in [0, 1).")


def channel_axis(input_shape: tuple[int, ...]) -> dict[str, nn.Module]:
    """A first layer that gives (height, width) records their channel axis; nothing for other records."""
    return {"channel": nn.Unflatten(1, (1, input_shape[0]))} if len(input_shape) == 2 else {}
