"""Forward passes in sixteen bits, where the user asks for them: weights, gradients, losses and steps stay float32.

A layer's products are computed from weights and inputs that are rounded to bfloat16 or float16; layers whose results need more bits (norms,
softmax) compute in float32, as torch's autocast chooses. Small gradients would be zero in float16, so the loss is multiplied before the backward
pass and the gradients are divided after it; where one overflows, the pass is made again with half the factor.

Source: Micikevicius et al. 2018, Mixed Precision Training
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fedray.config import Precision, Training
from fedray.errors import ConfigError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: The factor of losses in float16 at a turn's beginning, and the passes without overflow after which it is doubled.
_FIRST, _GROWS = 2.0**12, 200


def forward_in(precision: Precision, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A model's forward pass in a precision; its outputs are float32, and it is ``forward`` itself where nothing changes."""
    kind = _TYPES.get(precision)
    return forward if kind is None else partial(_forward, forward, kind)


@contextmanager
def convolutions_in(precision: Precision, model: nn.Module) -> Iterator[None]:
    """Within the context the model's convolutions alone compute in bfloat16 and return float32, forward and backward, if the precision says so.

    Args:
        precision: of the training section.
        model: on any device. Layers with a forward pass of their own keep it.
    """
    layers = _convolutions(model) if precision == "bf16_convolutions" else []
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, partial(type(layer).forward, layer), torch.bfloat16)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _convolutions(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m) in _CONVOLUTIONS and "forward" not in vars(m)]


def _forward(forward: Callable[[Tensor], Tensor], kind: torch.dtype, x: Tensor) -> Tensor:
    # Entered for each call: autocast keeps the weights that it has cast for as long as it lasts, and steps change them.
    with torch.autocast(x.device.type, kind):
        found = forward(x)
    return found.float()


class LossScale:
    """The factor of losses in float16; 1 in other precisions."""

    def __init__(self, precision: Precision) -> None:
        self._moves = precision == "fp16"
        self.factor, self._passed = _FIRST if self._moves else 1.0, 0

    def unscaled(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divide the gradients by the factor; False where one overflowed, so that the pass has to be made again.

        A gradient that is not finite at a factor of 1 stays so, as it would be in float32.
        """
        if not self._moves:
            return True
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.factor > 1.0 and not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self.factor, self._passed = self.factor / 2, 0
            return False
        torch._foreach_div_(gradients, self.factor)
        self._passed += 1
        if self._passed == _GROWS:
            self.factor, self._passed = self.factor * 2, 0
        return True


def check_convolutions(training: Training, model: nn.Module) -> None:
    """Refuse bfloat16 in the convolutions of a model that has none.

    Raises:
        ConfigError: with what to use.
    """
    if training.precision == "bf16_convolutions" and not _convolutions(model):
        raise ConfigError("training.precision: the model has no convolutions that could be in bfloat16; use bf16 for all of it, or fp32.")
