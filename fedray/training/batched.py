"""Arithmetic on the values of many clients at once, to the same bits whoever they are and however many.

Three things make a value's last bits depend on its neighbours, and each is kept out. A product of a batch of one runs in another kernel
than the same product among several, so one is computed as two. Matrices must begin at the same alignment, so axes are filled up to whole
cache lines. Torch's elementwise loops take two vectors at a time and what is left over value by value, with other roundings, so what they
run over is either rows of one client or a multiple of two vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Floats of a cache line, which is also the widest vector; and those that an elementwise loop takes at a time.
_LINE, _LOOP = 16, 32


def whole(size: int) -> int:
    """Size of an axis that is filled up to whole cache lines."""
    return -(-size // _LINE) * _LINE


def outputs(size: int) -> int:
    """Size of a layer's outputs, filled up so that elementwise loops run over rows of ``size``, or over a multiple of two vectors."""
    return whole(size) if size % _LOOP == 0 or size % _LINE else size + _LINE


def filled(h: Tensor) -> Tensor:
    """The last axis filled up with zeros."""
    missing = whole(h.shape[-1]) - h.shape[-1]
    return nn.functional.pad(h, (0, missing)) if missing else h.contiguous()


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """:func:`torch.bmm` of [clients, m, k] and [clients, k, n]."""
    return torch.bmm(a, b) if len(a) > 1 else torch.bmm(_two(a), _two(b))[:1]


def baddbmm(values: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> Tensor:
    """:func:`torch.baddbmm`: values [clients, m or 1, n] + alpha a b."""
    if len(a) > 1:
        return torch.baddbmm(values, a, b, alpha=alpha)
    return torch.baddbmm(_two(values), _two(a), _two(b), alpha=alpha)[:1]


def add_bmm(values: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """``values += alpha a b`` in place, [clients, m, n]."""
    if len(a) > 1:
        values.baddbmm_(a, b, alpha=alpha)
    else:
        values.copy_(_two(values).baddbmm_(_two(a), _two(b), alpha=alpha)[:1])


def square(values: Tensor) -> Tensor:
    """The sum of each client's squared values, [clients, m, n] -> [clients, 1, 1]."""
    row = values.reshape(len(values), 1, -1)
    return bmm(row, row.transpose(1, 2))


def clip_factor(squares: Sequence[Tensor], largest: float) -> Tensor:
    """What each client's gradient is multiplied by so that its norm is at most ``largest``, [clients, 1, 1].

    Args:
        squares: the squared norms of its parts, each [clients, 1, 1].
        largest: the norm, above 0.
    """
    total = torch.zeros_like(squares[0])
    for part in squares:
        total += part
    factor: Tensor = (largest / (total.sqrt() + 1e-6)).clamp(max=1.0)  # the small number is that of torch.nn.utils.clip_grad_norm_
    return factor


def _two(one: Tensor) -> Tensor:
    """A batch of one matrix as a batch of two, each laid out like the one."""
    rows, columns = one.shape[1:]
    span = 1 + (rows - 1) * one.stride(1) + (columns - 1) * one.stride(2)
    both = torch.empty_strided((2, rows, columns), (whole(span), one.stride(1), one.stride(2)), dtype=one.dtype, device=one.device)
    return both.copy_(one.expand(2, -1, -1))


def cross_entropy_slope(z: Tensor, classes: int, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and its gradient in closed form, classes first: softmax over a short last axis takes four times as long.

    Args:
        z: logits [clients, batch, filled up classes].
        classes: how many of them there are.
        targets: [clients * batch].
        weight: of each record's loss, [clients, batch].

    Returns:
        Losses [clients, batch], and the gradient of their weighted sum by ``z``.
    """
    n = weight.numel()
    log = z.new_zeros((classes, _loops(n)))
    log[:, :n] = z.flatten(0, 1)[:, :classes].t()
    log = torch.log_softmax(log, 0)
    losses = -log[:, :n].gather(0, targets[None])
    slope = log.exp_()[:, :n]
    slope.scatter_add_(0, targets[None], slope.new_full((1, n), -1.0))
    slope *= weight.reshape(-1)
    gradient = torch.zeros_like(z)
    gradient.view(n, -1)[:, :classes] = slope.t()
    return losses.view(weight.shape), gradient


def with_more_records(out: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [n, classes] and targets [n], filled up with records so that a loss' elementwise loops leave nothing over."""
    missing = _loops(len(out)) - len(out)
    if not missing:
        return out, targets
    more = out.new_zeros((missing, *out.shape[1:]))
    return torch.cat([out, more]), torch.cat([targets, targets[:1].expand(missing, *targets.shape[1:])])


def _loops(size: int) -> int:
    return -(-size // _LOOP) * _LOOP
