"""Products of a few rows and a large weight by oneDNN, where that is faster.

The library behind ``torch.mm`` first copies the weight into its own memory order, which for a batch of ten rows takes as long as the product.
oneDNN, which torch uses for convolutions, reads the weight in the order in which it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

#: With AVX-512 oneDNN was measured to be one to three times as fast as ``torch.mm``, with AVX2 as fast, and with less half as fast.
_ONEDNN = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, weight_too: Callable[[], bool]) -> Tensor:
    """Compute :func:`torch.nn.functional.linear` up to rounding; the weight gets a gradient only where ``weight_too`` says so.

    Args:
        x: [..., in].
        weight: [out, in] on the CPU.
        bias: [out].
        weight_too: asked in the backward pass, whether it should make the weight's and the bias' gradients.
    """
    if not suits(weight) or x.dtype != weight.dtype or x.dim() < 2:
        return functional.linear(x, weight, bias)
    found: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias, weight_too)  # type: ignore[no-untyped-call]
    return found if x.dim() == 2 else found.view(*x.shape[:-1], len(weight))


def suits(weight: Tensor) -> bool:
    """Whether oneDNN can read a weight without copying it; with other strides it is a thousand times slower."""
    return _ONEDNN and weight.dtype == torch.float32 and weight.is_contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, weight_too: Callable[[], bool]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.weight_too = weight_too
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        weight_too = (of_weight or of_bias) and ctx.weight_too()
        return (
            _product(gradient, weight.t(), None) if of_x else None,
            gradient.t() @ x if of_weight and weight_too else None,
            gradient.sum(0) if of_bias and weight_too else None,
            None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows.contiguous(), weight, bias, "none", [], "")
    return found
