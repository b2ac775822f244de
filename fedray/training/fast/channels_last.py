"""Images in channels-last memory order, in which convolutions on a CPU are faster and max-pooling is ten times as fast.

torch keeps that order by itself once records and the weights of convolutions have it. With a single channel both orders have the same bytes,
and torch takes the slow one; there the strides are set by hand, which moves no value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedray.models.build import evaluating
from fedray.training.engine import seeded_torch

#: Whether a model was seen to work with records in this order.
_STANDS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def lay_out(model: nn.Module, x: Tensor) -> bool:
    """Store the weights of convolutions in channels-last order where that is faster: for two-dimensional convolutions of images on a CPU.

    A model that needs the usual order, because it calls ``view`` on activations, keeps it. Whether it does is tried with records of zeros,
    once for each model.

    Args:
        model: will be trained.
        x: its records [n, ...].

    Returns:
        Whether its records should be stored so, too, with :func:`channels_last`.
    """
    if x.dim() != 4 or x.device.type != "cpu" or not x.is_floating_point() or not _STANDS.get(model, True):
        return False
    layers = [m for m in model.modules() if type(m) is nn.Conv2d]
    for layer in layers:
        if not _is_last(layer.weight):
            layer.weight.data = channels_last(layer.weight.data)
    if layers and model not in _STANDS:
        _STANDS[model] = _stands(model, x.new_zeros((2, *x.shape[1:])))
        if not _STANDS[model]:
            for layer in layers:
                layer.weight.data = layer.weight.data.contiguous()
            return False
    return bool(layers)


@contextmanager
def turned_gradients(model: nn.Module, turned: bool) -> Iterator[None]:
    """Within the context gradients reach max-pooling layers in channels-last order; of another order torch would copy the layer's input and result, too.

    Args:
        model: in training.
        turned: whether its records come in channels-last order; otherwise the context does nothing.
    """
    handles = [m.register_forward_hook(_turn_gradient) for m in model.modules() if type(m) is nn.MaxPool2d] if turned else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _turn_gradient(_layer: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
    if isinstance(output, Tensor) and output.requires_grad and output.dim() == 4:
        output.register_hook(channels_last)  # type: ignore[no-untyped-call]


def channels_last(x: Tensor) -> Tensor:
    """[n, channels, height, width] with the channels side by side in memory; a copy only where they are not."""
    if x.shape[1] != 1:
        return x.contiguous(memory_format=torch.channels_last)
    n, _, height, width = x.shape
    return x.contiguous().as_strided((n, 1, height, width), (height * width, 1, width, 1))


def _stands(model: nn.Module, x: Tensor) -> bool:
    with seeded_torch(0, x.device), evaluating(model):
        try:
            model(channels_last(x))
        except RuntimeError:
            return False
    return True


def _is_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)
