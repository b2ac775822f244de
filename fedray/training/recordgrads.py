"""Per-record gradients of a layer from its input and its output's gradient: their norms, and their weighted sum.

A layer's gradient for record i is a product of what went in and the gradient of what came out, so that neither the
norms nor the clipped sum need a gradient for each record in memory. Where the record went through the layer
once (Linear on [n, d]) the norm is |a| |g|. Where it has T positions (sequences, convolutions), the gradient is
sum_t g_t a_t', and its norm comes from that product itself (T p d multiplications), or from the two T x T matrices of inner
products (T T (p + d)), whichever is cheaper.

Source: Goodfellow 2015, Efficient Per-Example Gradient Computations (Linear); Li et al. 2022, Large Language Models Can Be
Strong Differentially Private Learners, section 4 (ghost norm); Bu, Wang, Zha and Karypis 2023, Differentially Private
Optimization on Large Foundation Models, algorithm 1 (book-keeping: sums from the same backward pass)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedray.training.dploop import row_norms

#: Bytes of per-record gradients that one layer may keep from its norms for its sum.
KEEP = 2**26
#: Elements of unfolded input that are made at a time: what a core's cache holds, or what fills a GPU.
_CHUNK, _GPU_CHUNK = 2**18, 2**26
#: Multiplications that take as long as moving one number to memory and back.
_TRAFFIC = 30
#: Relative rounding of one float32 operation, of which the norms leave a margin where the sum is computed anew.
_ROUNDING = 2.0**-24


@dataclass(frozen=True)
class Term:
    """One parameter's gradients in one batch.

    Attributes:
        norms: of every record's gradient, float64 [n].
        weighted: factors [n], in the gradients' precision -> sum over records of factor times gradient, in the parameter's shape.
    """

    norms: Tensor
    weighted: Callable[[Tensor], Tensor]


def takes(layer: nn.Module, x: Tensor) -> bool:
    """Whether the first axis of ``x`` is there besides what the layer itself needs."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return x.dim() == len(layer.kernel_size) + 2
    if isinstance(layer, nn.LayerNorm):
        return x.dim() > len(layer.normalized_shape)
    return x.dim() >= (1 if isinstance(layer, nn.Embedding) else 2)


def terms(layer: nn.Module, x: Tensor, gradient: Tensor, keep: int | None = None) -> dict[str, Term]:
    """The terms of a layer's trained parameters, by name.

    Args:
        layer: of a type in :data:`LAYERS`.
        x: its input, records first.
        gradient: of the sum of losses with respect to its output, in the output's shape.
        keep: bytes of per-record gradients that may be kept, default :data:`KEEP`. With 0 all norms have the margin
            that a sum computed in another way needs.
    """
    return LAYERS[type(layer)](layer, x.detach(), gradient, KEEP if keep is None else keep)


def _linear(layer: nn.Linear, x: Tensor, gradient: Tensor, keep: int) -> dict[str, Term]:
    if x.dim() > 2:
        return _linear_on_sequences(layer, x.flatten(1, -2), gradient.flatten(1, -2), keep)
    found, norms = {}, row_norms(gradient)
    if layer.weight.requires_grad:
        found["weight"] = Term(row_norms(x) * norms, lambda factors: (gradient * factors[:, None]).t() @ x)
    if layer.bias is not None and layer.bias.requires_grad:
        found["bias"] = Term(norms, lambda factors: factors @ gradient)
    return found


def _linear_on_sequences(layer: nn.Linear, x: Tensor, gradient: Tensor, keep: int) -> dict[str, Term]:
    """[n, T, d] and [n, T, p]."""
    found = {}
    if layer.weight.requires_grad:

        def anew(factors: Tensor) -> Tensor:
            return (gradient * factors[:, None, None]).flatten(0, 1).t() @ x.flatten(0, 1)

        columns = x.transpose(1, 2)
        found["weight"] = _positions(lambda a, b: columns[a:b], gradient, x.shape[2], layer.weight, anew, keep)
    if layer.bias is not None and layer.bias.requires_grad:
        found["bias"] = _added_up(gradient, 1, layer.bias, keep)
    return found


def _convolution(layer: Any, x: Tensor, gradient: Tensor, keep: int) -> dict[str, Term]:
    """[n, channels, *space] and [n, p, *positions], in ``groups`` independent products."""
    found, n, groups = {}, len(x), layer.groups
    gradients = gradient.flatten(2)
    if layer.weight.requires_grad:
        padding, mode = layer._reversed_padding_repeated_twice, layer.padding_mode
        padded = functional.pad(x, padding, mode="constant" if mode == "zeros" else mode) if any(padding) else x
        native = mode == "zeros" and not isinstance(layer.padding, str)
        pad = list(layer.padding) if native else [0] * len(layer.kernel_size)
        settings = (list(layer.stride), pad, list(layer.dilation), False, [0] * len(pad), groups, [False, True, False])

        def anew(factors: Tensor) -> Tensor:
            scaled = (gradients * factors[:, None, None]).view_as(gradient)
            whole = torch.ops.aten.convolution_backward(scaled, x if native else padded, layer.weight, None, *settings)
            result: Tensor = whole[1]
            return result

        inputs = layer.in_channels // groups * math.prod(layer.kernel_size)
        shaped = gradients.reshape(n * groups, layer.out_channels // groups, -1).transpose(1, 2)
        last = padded.dim() == 4 and groups == 1 and padded.stride(1) == 1
        columns = _columns_last(layer, padded) if last else _columns(layer, padded, inputs)
        found["weight"] = _positions(columns, shaped.contiguous(), inputs, layer.weight, anew, keep, groups, last)
    if layer.bias is not None and layer.bias.requires_grad:
        found["bias"] = _added_up(gradients, 2, layer.bias, keep)
    return found


def _columns(layer: Any, padded: Tensor, inputs: int) -> Callable[[int, int], Tensor]:
    """(from, to) -> what each output position of those records sees, [records * groups, inputs, T]."""
    patches = _patches(layer, padded)
    return lambda a, b: patches[a:b].reshape((b - a) * layer.groups, inputs, -1)


def _columns_last(layer: Any, padded: Tensor) -> Callable[[int, int], Tensor]:
    """The same of images whose channels lie side by side, and so do those of the inputs: copied in runs as long as a kernel's row."""
    patches = _patches(layer, padded).permute(0, 4, 5, 2, 3, 1)
    return lambda a, b: patches[a:b].reshape(b - a, math.prod(patches.shape[1:3]), -1).transpose(1, 2)


def _patches(layer: Any, padded: Tensor) -> Tensor:
    """What each output position sees, as a view: [n, channels, *kernel, *positions]."""
    space, strides = padded.shape[2:], padded.stride()
    each = list(zip(space, layer.kernel_size, layer.stride, layer.dilation, strict=True))
    positions = [(size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in each]
    within = [step * dilation for step, dilation in zip(strides[2:], layer.dilation, strict=True)]
    between = [step * stride for step, stride in zip(strides[2:], layer.stride, strict=True)]
    return padded.as_strided((*padded.shape[:2], *layer.kernel_size, *positions), (*strides[:2], *within, *between))


def _positions(
    columns: Callable[[int, int], Tensor],
    gradients: Tensor,
    d: int,
    weight: Tensor,
    anew: Callable[[Tensor], Tensor],
    keep: int,
    groups: int = 1,
    channels_last: bool = False,
) -> Term:
    """The term of a weight whose gradient for a record is a sum over T positions.

    Args:
        columns: (from, to) -> those records' inputs [records * groups, d, T].
        gradients: [n * groups, T, p].
        d: inputs of one output in one group.
        weight: the parameter, of groups * p * d elements in that order.
        anew: the weighted sum, computed from inputs and gradients.
        keep: bytes of gradients that may be kept instead.
        groups: independent products for each record.
        channels_last: the inputs of one output are in the order of the weight's axes 2, 3, 1, and not 1, 2, 3.
    """
    rows, positions, p = gradients.shape
    n = rows // groups
    kept = n * weight.numel() * weight.element_size() <= keep
    product = positions * p * d
    by_product = product + _TRAFFIC * p * d if kept else 2 * product + _TRAFFIC / 3 * p * d
    by_ghost = 2 * positions * positions * (p + d) + product  # float64 takes twice as long
    step = max(1, (_CHUNK if weight.device.type == "cpu" else _GPU_CHUNK) // (groups * max(d * positions, p * d, positions * positions)))
    chunks = [(a, min(a + step, n)) for a in range(0, n, step)]
    if by_ghost < by_product:
        return Term(torch.cat([_ghost_norms(columns(a, b), gradients[a * groups : b * groups], b - a) for a, b in chunks]), anew)
    if not kept:
        return Term(torch.cat([_product_norms(columns(a, b), gradients[a * groups : b * groups], b - a) for a, b in chunks]), anew)
    samples = torch.empty((rows, d, p), dtype=gradients.dtype, device=gradients.device)
    for a, b in chunks:
        torch.bmm(columns(a, b), gradients[a * groups : b * groups], out=samples[a * groups : b * groups])

    def weighted(factors: Tensor) -> Tensor:
        total = (factors @ samples.view(n, -1)).view(groups, d, p).transpose(1, 2)
        if channels_last:
            return total.view(p, *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)
        return total.reshape(weight.shape)

    return Term(row_norms(samples.view(n, -1)), weighted)


def _added_up(values: Tensor, positions: int, parameter: Tensor, keep: int) -> Term:
    """The term of a parameter whose gradient is the sum of ``values`` [n, ...] over their axis ``positions``, which is small."""
    samples = values.sum(positions)
    norms = row_norms(samples)
    if not keep:
        norms = norms + _ROUNDING * math.sqrt(values.shape[positions]) * row_norms(values.reshape(len(values), -1))
    return Term(norms, lambda factors: (factors @ samples).view(parameter.shape))


def _product_norms(columns: Tensor, gradients: Tensor, records: int) -> Tensor:
    norms = row_norms(torch.bmm(columns, gradients).view(records, -1))
    return norms + _ROUNDING * row_norms(columns.reshape(records, -1)) * row_norms(gradients.reshape(records, -1))


def _ghost_norms(columns: Tensor, gradients: Tensor, records: int) -> Tensor:
    """|sum_t g_t a_t'|^2 = sum_st (a_s . a_t)(g_s . g_t), in float64: the sum may cancel."""
    a, g = columns.double(), gradients.double()
    inner, outer = torch.bmm(a.transpose(1, 2), a), torch.bmm(g, g.transpose(1, 2))
    sizes = [m.diagonal(dim1=1, dim2=2).reshape(records, -1).sum(1) for m in (inner, outer)]
    squares = inner.mul_(outer).view(records, -1).sum(1).clamp_(min=0.0)
    return squares.sqrt() + _ROUNDING * (sizes[0] * sizes[1]).sqrt()


def _embedding(layer: nn.Embedding, x: Tensor, gradient: Tensor, keep: int) -> dict[str, Term]:
    """Records' gradients are rows of the table; those of a token that a record has several times add up first."""
    n, size = len(x), layer.num_embeddings
    tokens, rows = x.reshape(n, -1), gradient.reshape(-1, layer.embedding_dim)
    record = torch.arange(n, device=x.device)[:, None].expand_as(tokens)
    pairs, where = torch.unique((record * size + tokens).reshape(-1), return_inverse=True)
    sums = torch.zeros((len(pairs), layer.embedding_dim), dtype=rows.dtype, device=rows.device).index_add_(0, where, rows)
    if layer.padding_idx is not None:
        sums[pairs % size == layer.padding_idx] = 0.0
    owner = pairs // size
    norms = row_norms(sums)
    if not keep:
        sizes = torch.zeros_like(norms).index_add_(0, where, row_norms(rows).square()).sqrt()
        norms = norms + _ROUNDING * math.sqrt(tokens.shape[1]) * sizes
    squares = torch.zeros(n, dtype=torch.float64, device=rows.device).index_add_(0, owner, norms.square())

    def weighted(factors: Tensor) -> Tensor:
        return torch.zeros_like(layer.weight).index_add_(0, pairs % size, sums * factors[owner, None])

    return {"weight": Term(squares.sqrt(), weighted)}


def _layer_norm(layer: nn.LayerNorm, x: Tensor, gradient: Tensor, keep: int) -> dict[str, Term]:
    shape = (len(x), -1, math.prod(layer.normalized_shape))
    normal = functional.layer_norm(x, layer.normalized_shape, None, None, layer.eps)
    return _scale_and_shift(layer, (gradient * normal).reshape(shape), gradient.reshape(shape), 1, keep)


def _group_norm(layer: nn.GroupNorm, x: Tensor, gradient: Tensor, keep: int) -> dict[str, Term]:
    shape = (*x.shape[:2], -1)
    normal = functional.group_norm(x, layer.num_groups, None, None, layer.eps)
    return _scale_and_shift(layer, (gradient * normal).reshape(shape), gradient.reshape(shape), 2, keep)


def _scale_and_shift(layer: Any, scale: Tensor, shift: Tensor, positions: int, keep: int) -> dict[str, Term]:
    """Norm layers: the weight multiplies and the bias is added at every position."""
    found = {}
    if layer.weight.requires_grad:
        found["weight"] = _added_up(scale, positions, layer.weight, keep)
    if layer.bias is not None and layer.bias.requires_grad:
        found["bias"] = _added_up(shift, positions, layer.bias, keep)
    return found


#: What has terms, by exact type: a subclass may compute something else.
LAYERS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor, int], dict[str, Term]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
