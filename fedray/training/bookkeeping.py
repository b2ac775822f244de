"""Record-level DP-SGD from one backward pass: clipped sums without a gradient for each record.

Hooks keep every layer's input; one backward pass gives the gradient of every layer's output and of nothing else. From
both come the norms of the records' gradients (:mod:`fedray.training.recordgrads`), from those the clip factors, and with these
the clipped sums directly.

Source: Bu, Wang, Zha and Karypis 2023, Differentially Private Optimization on Large Foundation Models, algorithm 1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedray.errors import ConfigError
from fedray.privacy.rules import check_layers
from fedray.training.dploop import ClippedSum, clip_factors, record_losses, train_privately
from fedray.training.engine import DpStep, LocalJob, LocalResult, LossFn
from fedray.training.recordgrads import LAYERS, Term, takes, terms

_FLOATS = (torch.float32, torch.float64)


def book(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """DP-SGD from one backward pass, by book-keeping: norms and clipped sums from layers' inputs and output gradients.

    The fastest, and without Opacus. For models of Linear, Conv, Embedding, LayerNorm and GroupNorm layers that are each used
    once, besides layers without parameters; memory is that of ordinary training plus the gradients of the layers' outputs.

    Args:
        model: trained in place; without buffers or layers that couple records.
        x: records ``[n, *shape]``, on the model's device.
        y: targets ``[n, ...]``.
        job: with ``dp`` and ``noise``, and a training section with sampling_rate, steps, expected_batch.

    Returns:
        ``steps`` taken, ``examples`` as the public expectation (the true number is private), ``loss`` None,
        and the history of the noise that was drawn.

    Raises:
        ConfigError: the job lacks a DP setting, the loss or a layer does not give one value a record, or the model has
            layers or uses of them that only ``hooks`` can clip.
        PrivacyRefusal: the model cannot be trained privately.
        Stopped: the job was asked to end; its charge stands.

    Source: Bu, Wang, Zha and Karypis 2023, Differentially Private Optimization on Large Foundation Models, algorithm 1
    """

    @contextmanager
    def prepare(parameters: list[nn.Parameter], dp: DpStep) -> Iterator[ClippedSum]:
        with _Tape(model) as tape:
            yield lambda part, targets: _clipped_sum(tape, parameters, part, targets, job.loss, dp)

    return train_privately(model, x, y, job, _check, prepare)


ENGINES = {"book": book}


def unsupported(model: nn.Module) -> str | None:
    """Why :func:`book` cannot clip the model, as a clause; None where its layers are ones that it knows."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False) if p.requires_grad)
    if owners and max(owners.values()) > 1:
        return "layers share a parameter"
    for name, layer in model.named_modules():
        trained = {n for n, p in layer.named_parameters(recurse=False) if p.requires_grad}
        if not trained:
            continue
        kind = f"'{name or type(model).__name__}' ({type(layer).__name__})"
        if type(layer) not in LAYERS or not trained <= {"weight", "bias"}:
            return f"{kind} is no layer that it knows"
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            return f"{kind} has a forward pass of its own"
        if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
            return f"{kind} is set to change its weights or gradients by the batch (max_norm, scale_grad_by_freq, sparse)"
    return None


def _check(model: nn.Module) -> None:
    check_layers(model)
    reason = unsupported(model)
    if reason is not None:
        raise _refusal(reason)


def _refusal(reason: str) -> ConfigError:
    return ConfigError(f"training.engine: book cannot clip this model ({reason}); use training.engine=hooks.")


@dataclass(frozen=True)
class _Use:
    """A layer's run on a batch: its input as it was, and where its output's gradient arrives."""

    layer: nn.Module
    x: Tensor
    version: int
    edge: GradientEdge


class _Tape:
    """Keeps each trained layer's use while a batch goes through the model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.uses: dict[nn.Module, _Use] = {}
        self._on = False
        self._names = {m: name or type(m).__name__ for name, m in model.named_modules()}
        self._trained = {id(p) for p in model.parameters() if p.requires_grad}

    def __enter__(self) -> _Tape:
        layers = [m for m in self._names if any(p.requires_grad for p in m.parameters(recurse=False))]
        self._handles = [layer.register_forward_hook(self._note, with_kwargs=True) for layer in layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.uses = {}

    def losses(self, x: Tensor, y: Tensor, loss: LossFn) -> Tensor:
        """The loss of every record, [n]; :attr:`uses` is then what the batch used."""
        self.uses, self._on = {}, True
        try:
            losses = record_losses(loss, self.model(x), y)
        finally:
            self._on = False  # a layer may run again in the backward pass (activation checkpoints)
        self._check(losses, len(x))
        return losses

    def _note(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not self._on:
            return
        name = self._names[layer]
        if layer in self.uses:
            raise _refusal(f"layer '{name}' is used more than once")
        if not output.requires_grad:
            raise _refusal(f"layer '{name}' runs without gradients")
        x = args[0] if args else kwargs["input"]
        self.uses[layer] = _Use(layer, x, x._version, get_gradient_edge(output))

    def _check(self, losses: Tensor, records: int) -> None:
        for use in self.uses.values():
            if not takes(use.layer, use.x) or len(use.x) != records:
                raise _refusal(
                    f"layer '{self._names[use.layer]}' sees {tuple(use.x.shape)} and not [records, ...], so it has no gradient for each record"
                )
            if use.x._version != use.version:
                raise _refusal(f"the input of layer '{self._names[use.layer]}' is changed in place afterwards")
        if not self._reaches_only_layers(losses):
            raise _refusal("a parameter is used outside its own layer, so it has no gradient for each record")

    def _reaches_only_layers(self, losses: Tensor) -> bool:
        """Whether every way from the losses to a trained parameter leads through its layer's output."""
        ends = {use.edge.node for use in self.uses.values()}
        waiting = [losses.grad_fn, *(use.x.grad_fn for use in self.uses.values())]
        seen = set(ends)
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) in self._trained:
                return False
            waiting += [following for following, _ in node.next_functions]
        return True


def _clipped_sum(tape: _Tape, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: LossFn, dp: DpStep) -> list[Tensor]:
    while len(x):
        found = _terms(tape, tape.losses(x, y, loss))
        if not found:
            break
        factors, bad = clip_factors([term.norms for term in found.values()], len(parameters), dp)
        if not bad.any():
            with torch.no_grad():
                sums = {p: term.weighted(f.to(p.dtype)) for (p, term), f in zip(found.items(), factors, strict=True)}
            return [sums[p] if p in sums else torch.zeros_like(p) for p in parameters]
        # A factor of 0 would not silence a NaN, so such records leave. The norms are taken again: with dropout,
        # another forward pass has other gradients.
        x, y = x[~bad], y[~bad]
    return [torch.zeros_like(p) for p in parameters]


def _terms(tape: _Tape, losses: Tensor) -> dict[nn.Parameter, Term]:
    """For each parameter that the batch used, the norms of its gradients and their weighted sum."""
    uses, tape.uses = list(tape.uses.values()), {}
    if not uses or not losses.requires_grad:
        return {}
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        [losses], [use.edge for use in uses], [torch.ones_like(losses)], allow_unused=True
    )
    found: dict[nn.Parameter, Term] = {}
    with torch.no_grad():
        for use, gradient in zip(uses, gradients, strict=True):
            if gradient is None:
                continue
            if gradient.dtype not in _FLOATS:
                raise _refusal(f"a layer's gradient is {str(gradient.dtype).removeprefix('torch.')}, too coarse to clip")
            for name, term in terms(use.layer, use.x, gradient).items():
                found[use.layer.get_parameter(name)] = term
    return found
