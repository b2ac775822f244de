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
from typing import Self

import torch
from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.privacy.rules import check_layers
from fedray.training import recurrent
from fedray.training.charge import opened
from fedray.training.dploop import ClippedSum, clip_factors, one_by_one, record_losses, train_privately
from fedray.training.engine import DpStep, LocalJob, LocalResult, LossFn
from fedray.training.fast.channels_last import channels_last, lay_out, turned_gradients
from fedray.training.fast.layer_inputs import Tape
from fedray.training.fast.sequential import forward_of, layers_of, own_forward
from fedray.training.recordgrads import LAYERS, Term, takes, terms
from fedray.training.recurrent import Unrolled

_FLOATS = (torch.float32, torch.float64)


def book(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """DP-SGD from one backward pass, by book-keeping: norms and clipped sums from layers' inputs and output gradients.

    The fastest, and without Opacus. For models of Linear, Conv, Embedding, LSTM, LayerNorm and GroupNorm layers that are each used
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
        pixels = lay_out(model, opened(x))
        with _Book(model, pixels) as tape, turned_gradients(model, pixels):
            yield one_by_one(lambda part, targets: _clipped_sum(tape, parameters, part, targets, job.loss, dp), "book")

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
        if type(layer) is not nn.LSTM and (type(layer) not in LAYERS or not trained <= {"weight", "bias"}):
            return f"{kind} is no layer that it knows"
        if own_forward(layer):
            return f"{kind} has a forward pass of its own"
        if isinstance(layer, nn.LSTM) and recurrent.unsupported(layer) is not None:
            return f"{kind} {recurrent.unsupported(layer)}"
    return None


def _check(model: nn.Module) -> None:
    check_layers(model)
    reason = unsupported(model)
    if reason is not None:
        raise _refusal(reason)


def _refusal(reason: str, way_out: str = "use training.engine=hooks") -> ConfigError:
    return ConfigError(f"training.engine: book cannot clip this model ({reason}); {way_out}.")


class _Book(Tape):
    """The tape of all trained layers, which refuses what has no gradient for each record."""

    def __init__(self, model: nn.Module, pixels: bool) -> None:
        self._forward, self._pixels = forward_of(model, layers_of(model)), pixels
        self._names: dict[nn.Module, str] = {}
        self._unrolled: dict[nn.LSTM, Unrolled] = {}
        for name, layer in model.named_modules():
            if not any(p.requires_grad for p in layer.parameters(recurse=False)):
                continue
            mine: list[nn.Module] = [layer]
            if isinstance(layer, nn.LSTM):
                self._unrolled[layer] = Unrolled(layer, self.note)
                mine = [part for part in self._unrolled[layer].layers if any(p.requires_grad for p in part.parameters())]
            self._names |= dict.fromkeys(mine, name or type(layer).__name__)
        super().__init__(self._names)

    def __enter__(self) -> Self:
        for lstm, unrolled in self._unrolled.items():
            lstm.forward = unrolled.forward  # type: ignore[method-assign,assignment]
        return super().__enter__()

    def __exit__(self, *reason: object) -> None:
        for lstm in self._unrolled:
            del lstm.forward
        super().__exit__(*reason)

    def losses(self, x: Tensor, y: Tensor, loss: LossFn) -> Tensor:
        """The loss of every record, [n]; :attr:`uses` is then what the batch used."""
        records = channels_last(x) if self._pixels else x
        losses = self.run(lambda: record_losses(loss, self._forward(records), y))
        seen = set[nn.Module]()
        for use in self.uses:
            name = self._names[use.layer]
            if use.layer in seen:
                raise _refusal(f"layer '{name}' is used more than once")
            seen.add(use.layer)
            if use.edge is None:
                raise _refusal(f"layer '{name}' runs without gradients")
            if not takes(use.layer, use.x) or len(use.x) != len(x):
                raise _refusal(
                    f"layer '{name}' sees {tuple(use.x.shape)} and not [records, ...], so it has no gradient for each record",
                    "give it one row for each record (positions expanded to [records, length], say)",
                )
            if use.changed:
                raise _refusal(f"the input of layer '{name}' is changed in place afterwards")
        if not self.reaches_only_layers(losses):
            raise _refusal("a parameter is used outside its own layer, so it has no gradient for each record")
        return losses


def _clipped_sum(tape: _Book, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: LossFn, dp: DpStep) -> list[Tensor]:
    seen = _seen(tape, tape.losses(x, y, loss))
    found = _terms(seen)
    if not found:
        return [torch.zeros_like(p) for p in parameters]
    factors, bad = clip_factors([term.norms for term in found.values()], len(parameters), dp)
    if bad.any():
        # A factor of 0 would not silence a NaN, so such records leave the products. The batch does not go through the model again:
        # the other records would have other dropout masks.
        found = _terms([(layer, _silenced(inputs, bad), _silenced(gradient, bad)) for layer, inputs, gradient in seen])
        factors, _ = clip_factors([term.norms for term in found.values()], len(parameters), dp)
    with torch.no_grad():
        sums = {p: term.weighted(f.to(p.dtype)) for (p, term), f in zip(found.items(), factors, strict=True)}
    return [sums[p] if p in sums else torch.zeros_like(p) for p in parameters]


#: A layer, its input and the gradient of its output, records first.
_Seen = tuple[nn.Module, Tensor, Tensor]


def _seen(tape: _Book, losses: Tensor) -> list[_Seen]:
    """What the layers that the batch used have seen; the tape forgets it."""
    if not tape.uses or not losses.requires_grad:
        return []
    gradients = tape.gradients(losses, torch.ones_like(losses))
    uses, tape.uses = tape.uses, []
    found = [(use.layer, use.x.detach(), gradient) for use, gradient in zip(uses, gradients, strict=True) if gradient is not None]
    for _, _, gradient in found:
        if gradient.dtype not in _FLOATS:
            raise _refusal(f"a layer's gradient is {str(gradient.dtype).removeprefix('torch.')}, too coarse to clip")
    return found


def _silenced(values: Tensor, bad: Tensor) -> Tensor:
    return values.masked_fill(bad.view(-1, *[1] * (values.dim() - 1)), 0)


def _terms(seen: Sequence[_Seen]) -> dict[nn.Parameter, Term]:
    """For each parameter that the batch used, the norms of its gradients and their weighted sum."""
    with torch.no_grad():
        return {
            layer.get_parameter(name): term for layer, inputs, gradient in seen for name, term in terms(layer, inputs, gradient).items()
        }
