"""Record-level DP-SGD by Opacus: with a gradient for each record (hooks), or with ghost clipping.

Both run the loop of :mod:`fedray.training.dploop`; here is how they make a clipped sum. Importing Opacus takes seconds,
so only a run that uses one of these engines does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedray.errors import ConfigError
from fedray.privacy.rules import check_model
from fedray.training.dploop import ClippedSum, clip_factors, one_by_one, record_losses, row_norms, train_privately
from fedray.training.engine import DpStep, LocalJob, LocalResult, LossFn, torch_draws
from fedray.training.fast.layer_inputs import Tape
from fedray.training.recordgrads import LAYERS, terms
from fedray.training.samplers import samplers

#: How far the records' gradients may add up to something else than the batch's, over the sum of their norms: rounding is far below.
#: Where a gradient is zero but for rounding (of an attention's key bias, say), over the largest sum of any parameter. Both are for float32.
_DIFFERENCE, _ROUNDING = 1e-3, 1e-5
_PARAMETER_MARKS = ("grad_sample", "_forward_counter", "_current_grad_sample", "_norm_sample", "summed_grad")
_MODULE_MARKS = ("activations", "max_batch_len", "ft_compute_sample_grad", "autograd_grad_sample_hooks")


def hooks(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """DP-SGD with a gradient for each record, by Opacus hooks.

    Works for any layer; holds ``training.physical_batch`` gradients in memory.

    Args:
        model: trained in place; without buffers or layers that couple records.
        x: records ``[n, *shape]``, on the model's device.
        y: targets ``[n, ...]``.
        job: with ``dp`` and ``noise``, and a training section with sampling_rate, steps, expected_batch.

    Returns:
        ``steps`` taken, ``examples`` as the public expectation (the true number is private), ``loss`` None,
        and the history of the noise that was drawn.

    Raises:
        ConfigError: the job lacks a DP setting, or the loss or a layer does not give one value a record.
        PrivacyRefusal: the model cannot be trained privately.
        Stopped: the job was asked to end; its charge stands.

    Source: Yousefpour et al. 2021, Opacus: User-Friendly Differential Privacy Library in PyTorch
    """

    @contextmanager
    def prepare(parameters: list[nn.Parameter], dp: DpStep) -> Iterator[ClippedSum]:
        make = _hooks_module()
        with _wrapped(model, lambda: make(model, loss_reduction="sum")) as wrapper:
            yield _Hooks(wrapper, parameters, job.loss, dp, job.training.physical_batch)

    return train_privately(model, x, y, job, check_model, prepare)


def ghost(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """DP-SGD with ghost clipping: norms for each record, no gradient for each record.

    Two backward passes and the memory of ordinary training; layers must not share parameters, and clipping is flat. See
    :func:`hooks` for arguments, result and errors.

    Source: Li et al. 2022, Large Language Models Can Be Strong Differentially Private Learners
    """

    @contextmanager
    def prepare(parameters: list[nn.Parameter], dp: DpStep) -> Iterator[ClippedSum]:
        if dp.clipping != "flat":
            raise ConfigError(
                "training.engine: ghost clips over all layers jointly only; use book or hooks with privacy.clipping=per_layer."
            )
        make = _ghost_module()
        wrap = partial(make, model, loss_reduction="sum", max_grad_norm=dp.clip, use_ghost_clipping=True)
        with _wrapped(model, wrap) as wrapper, _Watch(wrapper) as watch:
            yield one_by_one(lambda part, targets: _sum_by_ghost(watch, parameters, part, targets, job.loss, dp), "ghost")

    return train_privately(model, x, y, job, check_model, prepare)


ENGINES = {"hooks": hooks, "ghost": ghost}


@cache
def _hooks_module() -> Any:
    """Opacus' wrapper with the right gradients for every layer that it knows."""
    from opacus.grad_sample import GradSampleModule as Base

    return type("HooksModule", (Base,), {"GRAD_SAMPLERS": samplers(Base.GRAD_SAMPLERS)})


@cache
def _ghost_module() -> Any:
    """Opacus' ghost wrapper with norms that allow for the rounding of its second backward pass.

    Opacus takes a sequence's norm from inner products in float32. Where a record's gradients cancel over positions, that is
    rounding alone, and the record's share of the sum was measured at three times the clip norm.
    """
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Base

    def norms(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        with torch.no_grad():
            found = terms(layer, activations[0], backprops, keep=0)
        return {layer.get_parameter(name): term.norms for name, term in found.items()}

    own = {"NORM_SAMPLERS": {**Base.NORM_SAMPLERS, **dict.fromkeys(LAYERS, norms)}}
    return type("GhostModule", (Base,), own)


class _Hooks:
    """Clipped sums from a gradient for each record."""

    def __init__(self, wrapper: Any, parameters: Sequence[nn.Parameter], loss: LossFn, dp: DpStep, physical: int) -> None:
        self._wrapper, self._parameters, self._loss, self._dp, self._physical = wrapper, parameters, loss, dp, physical
        self._right = False  # whether a batch has shown that the records' gradients add up to the batch's

    def __call__(self, x: Tensor, y: Tensor, owners: Tensor | None) -> list[Tensor]:
        samples = self._single(x, y) if owners is None else self._means(x, y, owners)
        used = [sample.reshape(len(sample), -1) for sample in samples if sample is not None]
        factors, bad = clip_factors([row_norms(rows) for rows in used], len(self._parameters), self._dp)
        if bad.any():
            for rows in used:
                rows[bad] = 0.0
        # Not a matrix product: that may run in a lower precision than the norms did.
        clipped = (rows.mul_(f.to(rows.dtype)[:, None]).sum(0) for rows, f in zip(used, factors, strict=True))
        return [
            torch.zeros_like(p) if sample is None else next(clipped).view_as(p) for p, sample in zip(self._parameters, samples, strict=True)
        ]

    def _single(self, x: Tensor, y: Tensor) -> list[Tensor | None]:
        """Each record's gradient by each parameter; None where the model does not use it."""
        _reset(self._wrapper, self._parameters)
        record_losses(self._loss, self._wrapper(x), y).sum().backward()  # type: ignore[no-untyped-call]
        samples = [_per_record(p, "grad_sample", len(x)) for p in self._parameters]
        if not self._right and all(bool(_norms(sample).isfinite().all()) for sample in samples if sample is not None):
            self._check(samples)
        _reset(self._wrapper, self._parameters)
        return samples

    def _means(self, x: Tensor, y: Tensor, owners: Tensor) -> list[Tensor | None]:
        """The mean of each person's gradients; a record whose gradient is not finite counts, and adds nothing."""
        counts = torch.bincount(owners)
        sums: dict[int, Tensor] = {}
        for part in torch.split(torch.arange(len(x), device=x.device), self._physical):
            samples = self._single(x[part], y[part])
            norms = [_norms(sample) for sample in samples if sample is not None]
            bad = ~torch.stack(norms).isfinite().all(0) if norms else None
            for i, sample in enumerate(samples):
                if sample is not None and bad is not None:
                    sample[bad] = 0.0
                    if i not in sums:
                        sums[i] = sample.new_zeros((len(counts), *sample.shape[1:]))
                    sums[i].index_add_(0, owners[part], sample)
        shape = [None if i not in sums else (-1, *[1] * p.dim()) for i, p in enumerate(self._parameters)]
        return [None if view is None else sums[i] / counts.view(view) for i, view in enumerate(shape)]

    def _check(self, samples: Sequence[Tensor | None]) -> None:
        """Refuse a model of which Opacus does not see all: a weight that is used by a function besides its layer, say."""
        found = [
            (p, sample, p.grad) for p, sample in zip(self._parameters, samples, strict=True) if sample is not None and p.grad is not None
        ]
        wholes = [float(_norms(sample).sum()) for _, sample, _ in found]
        for (p, sample, gradient), whole in zip(found, wholes, strict=True):
            finer = min(1.0, torch.finfo(gradient.dtype).eps / torch.finfo(torch.float32).eps)
            if not float((sample.sum(0) - gradient).norm()) <= finer * max(_DIFFERENCE * whole, _ROUNDING * max(wholes)):
                raise ConfigError(
                    f"training.engine: hooks has no right gradient for each record of '{_name(self._wrapper, p)}' (it is used outside its own layer, "
                    "or its layer's output is changed by a hook); use training.engine=book, or change the model so that its own layer alone "
                    "uses it."
                )
        self._right = True


def _norms(sample: Tensor) -> Tensor:
    """Of each record's gradient, float64 ``[n]``."""
    return row_norms(sample.reshape(len(sample), -1))


class _Watch(Tape):
    """Follows a batch's way through a model and sees where a parameter is used outside its own layer, of which norms know nothing."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        super().__init__(wrapper.iterate_submodules(wrapper._module))
        self._parameters = {id(p) for layer in self.layers for p in layer.parameters() if p.requires_grad}

    def outputs(self, x: Tensor) -> Tensor:
        """The model's outputs.

        Raises:
            ConfigError: ghost does not know a layer.
        """
        try:
            return self.run(lambda: self.wrapper(x))
        except NotImplementedError as error:
            raise ConfigError(f"training.engine: ghost cannot clip this model ({error}); use hooks.") from error

    def check(self, losses: Tensor) -> None:
        """Look at all ways from the losses of the last outputs.

        Raises:
            ConfigError: one reaches a parameter by another way than its layer's output.
        """
        if not self.reaches_only_layers(losses):
            raise ConfigError(
                "training.engine: ghost cannot clip this model (a parameter is used outside its own layer, so it has no gradient for each "
                "record); change the model so that every parameter is used by its own layer alone."
            )
        self.uses = []

    def _called(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        made = output if isinstance(output, Tensor) else output[0]
        if seen and isinstance(made, Tensor):
            self.note(layer, seen[0], made)


def _name(wrapper: Any, parameter: nn.Parameter) -> str:
    return next(str(name) for name, p in wrapper._module.named_parameters() if p is parameter)


def _sum_by_ghost(watch: _Watch, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: LossFn, dp: DpStep) -> list[Tensor]:
    draws, left_out = torch_draws(x.device), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    stand_ins: Iterator[int] = iter(())
    while True:
        outputs, gradients, norms = _ghost_norms(watch, parameters, x, y, loss)
        if not norms:
            break
        factors, bad = clip_factors(norms, len(parameters), dp)
        if not bad.any():
            return _second_pass(watch.wrapper, parameters, torch.where(left_out, 0.0, factors[0]), outputs, gradients)
        # A factor of 0 would not silence a NaN in the second pass, so another record stands in for such a one. The draws are those
        # of the first time and so are the positions: the other records keep their dropout masks.
        if not left_out.any():
            left_out, stand_ins = bad, iter((~bad).nonzero().flatten().tolist())
            x, y = x.clone(), y.clone()
        other = next(stand_ins, None)
        if other is None:
            break
        x[left_out], y[left_out] = x[other].clone(), y[other].clone()
        draws()
    _reset(watch.wrapper, parameters)
    return [torch.zeros_like(p) for p in parameters]


def _ghost_norms(
    watch: _Watch, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: LossFn
) -> tuple[GradientEdge, Tensor, list[Tensor]]:
    """Where the graph of the model's outputs begins, the outputs' gradients, and the norms of the records' gradients by each parameter."""
    _reset(watch.wrapper, parameters)
    outputs = watch.outputs(x)
    edge, gradients = get_gradient_edge(outputs), list[Tensor]()
    outputs.register_hook(gradients.append)  # type: ignore[no-untyped-call]
    losses = record_losses(loss, outputs, y)
    watch.check(losses)
    losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    norms = [_per_record(p, "_norm_sample", len(x)) for p in parameters]
    return edge, gradients[0], [n for n in norms if n is not None]


def _second_pass(
    wrapper: Any, parameters: Sequence[nn.Parameter], factors: Tensor, outputs: GradientEdge, gradients: Tensor
) -> list[Tensor]:
    """From the outputs on, with their gradients times the factors.

    From the losses on, a factor would round what the loss subtracts: of a record whose class is all but certain, 1 - p is exact, and
    factor - factor * p was seen to be off by 4e-5, which lifted the record above the clip norm.
    """
    for p in parameters:
        p.grad = None
    wrapper.disable_hooks()
    try:
        scaled = factors.to(gradients.dtype).view(-1, *(1,) * (gradients.dim() - 1)) * gradients
        torch.autograd.backward(outputs, scaled)
    finally:
        wrapper.enable_hooks()
    sums = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    _reset(wrapper, parameters)
    return sums


def _per_record(parameter: nn.Parameter, mark: str, records: int) -> Tensor | None:
    """What Opacus left on a parameter for each record; None where the model did not use the parameter."""
    value = getattr(parameter, mark, None)
    if value is None and parameter.grad is None:
        return None
    if not isinstance(value, Tensor) or len(value) != records:
        raise ConfigError(
            f"model: a parameter of shape {tuple(parameter.shape)} has no gradient for each record (it is used outside its own layer, "
            "or the batch is not its layer's first dimension); change the model so that every layer sees [records, ...]."
        )
    return value


def _reset(wrapper: Any, parameters: Sequence[nn.Parameter]) -> None:
    """Forget the last physical batch: a stale norm or activation must never meet the next one."""
    for p in parameters:
        p.grad = None
        p.grad_sample = None  # type: ignore[attr-defined]
        p._forward_counter = 0  # type: ignore[attr-defined]
        for mark in ("_current_grad_sample", "_norm_sample"):
            if hasattr(p, mark):
                delattr(p, mark)
    for module in wrapper._module.modules():
        for mark in ("activations", "max_batch_len"):
            vars(module).pop(mark, None)


@contextmanager
def _wrapped(model: nn.Module, wrap: Callable[[], Any]) -> Iterator[Any]:
    """Opacus' wrapper around the model, and afterwards no trace of it, whatever happened."""
    for module in model.modules():
        if module._forward_hooks and any(p.requires_grad for p in module.parameters(recurse=False)):
            raise ConfigError(
                f"training.engine: a forward hook on {type(module).__name__} may change what Opacus sees of it; take the hook out, or put what "
                "it does into a layer of its own."
            )
        taken = [mark for mark in _MODULE_MARKS if mark in vars(module)]
        if taken:
            raise ConfigError(f"model: {type(module).__name__} has an attribute '{taken[0]}', which Opacus uses itself; rename it.")
    try:
        with warnings.catch_warnings():
            # The first layer's input has no gradient; that of its weights is what is wanted.
            warnings.filterwarnings("ignore", message=".*[Bb]ackward hook.*")
            yield wrap()
    finally:
        for handle in getattr(model, "autograd_grad_sample_hooks", []):
            handle.remove()
        for p in model.parameters():
            p.grad = None
            for mark in _PARAMETER_MARKS:
                if hasattr(p, mark):
                    delattr(p, mark)
        for module in model.modules():
            for mark in _MODULE_MARKS:
                vars(module).pop(mark, None)
