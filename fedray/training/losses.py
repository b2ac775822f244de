"""Losses, one value a record.

A loss maps (outputs [n, ...], targets [n]) to [n] and never reduces over records, so that no engine can
couple one record's gradient to another's. A loss may say how many ``outputs`` it needs for a record and
how many ``classes`` the data must have, as attributes of the function; without, it needs one output a class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from fedray import components
from fedray.errors import ConfigError
from fedray.training.engine import LossFn

_FOCUS = 2.0  # gamma of the paper's main results


def _needs(outputs: int, classes: int | None = None) -> Callable[[LossFn], LossFn]:
    def mark(loss: LossFn) -> LossFn:
        vars(loss).update(outputs=outputs, classes=classes)
        return loss

    return mark


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of softmax over classes: outputs [n, classes], targets int64 [n]."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Focal loss with gamma 2, unweighted: outputs [n, classes], targets int64 [n].

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4.
    """
    cross = functional.cross_entropy(outputs, targets, reduction="none")
    return (-cross).expm1().neg().pow(_FOCUS) * cross


@_needs(outputs=1, classes=2)
def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of one logit: outputs [n] or [n, 1], targets 0 or 1 [n]."""
    logits = _one(outputs)
    return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")


@_needs(outputs=1)
def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error: outputs [n] or [n, 1], targets [n]."""
    values = _one(outputs)
    return functional.mse_loss(values, targets.to(values.dtype), reduction="none")


@_needs(outputs=1)
def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error: outputs [n] or [n, 1], targets [n]."""
    values = _one(outputs)
    return functional.l1_loss(values, targets.to(values.dtype), reduction="none")


#: Losses of a number that is predicted, whatever the targets are; all others tell classes apart, or are the user's own.
VALUE_LOSSES = ("mse", "mae")

LOSSES = {"cross_entropy": cross_entropy, "focal": focal, "binary_cross_entropy": binary_cross_entropy, "mse": mse, "mae": mae}


@dataclass(frozen=True)
class CheckedLoss:
    """A user's loss that is held to one value a record."""

    loss: LossFn
    name: str

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every record, [n].

        Raises:
            ConfigError: the user's function returned anything else.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # so it is afterwards, too, whatever the function leaves
            losses = self.loss(outputs, targets)
        if not isinstance(losses, Tensor) or losses.shape != (len(targets),):
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
            raise ConfigError(f"training.loss: '{self.name}' returned {got} for {len(targets)} records; return one loss for each.")
        return losses


def find_loss(name: str) -> LossFn:
    """The loss called ``name``; a user's own (``python:module:attribute``) comes with a check of its shape.

    Raises:
        ConfigError: no such loss, or not a function.
    """
    loss = components.find(components.LOSSES, name)
    if not callable(loss):
        raise ConfigError(f"training.loss: '{name}' is a {type(loss).__name__}; name a function of (outputs, targets).")
    return cast(LossFn, loss) if name in LOSSES else CheckedLoss(loss, name)


def outputs_for(loss_name: str, classes: int | None) -> int:
    """How many outputs a model needs for each record.

    Args:
        loss_name: the config's ``training.loss``.
        classes: number of classes of the data; None where the targets are real numbers.

    Raises:
        ConfigError: the loss does not suit the data.
    """
    loss = components.find(components.LOSSES, loss_name)
    needed = getattr(loss, "classes", None)
    if needed is not None and classes != needed:
        found = "real-valued targets" if classes is None else f"{classes} classes"
        better = "mse" if classes is None else "cross_entropy"
        raise ConfigError(f"training.loss: {loss_name} needs {needed} classes, but the data has {found}; use {better}.")
    outputs = getattr(loss, "outputs", classes)
    if outputs is None:
        raise ConfigError(
            f"training.loss: {loss_name} needs classes, but the data has real-valued targets; use mse, or set your loss's `outputs`."
        )
    return int(outputs)


def _one(outputs: Tensor) -> Tensor:
    """[n] of [n] or [n, 1]."""
    return outputs.squeeze(-1) if outputs.ndim == 2 else outputs
