"""Record-level DP-SGD: Poisson-sampled, per-record-clipped, noised steps at one client.

Each step tosses an independent coin for every record, clips every drawn record's gradient over all
trained parameters jointly, adds them up, adds Gaussian noise to the sum and divides by a public
constant. Everything after the noise (FedProx and the like, weight decay, momentum, Adam) is
post-processing. A step whose batch is empty is a step of noise, and is charged like any other.

Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1; Mironov, Talwar & Zhang 2019,
Renyi Differential Privacy of the Sampled Gaussian Mechanism
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.privacy.rules import check_model
from fedray.training.engine import LocalJob, LocalResult, LossFn, NoiseSource, check_stop, make_optimizer

#: Clipping aims this much below the clip norm, so that rounding in float32 cannot carry a record above it.
_MARGIN = 1e-6
_BLOCK = 4096
_PARAMETER_MARKS = ("grad_sample", "_forward_counter", "_current_grad_sample", "_norm_sample", "summed_grad")
_MODULE_MARKS = ("activations", "max_batch_len", "ft_compute_sample_grad", "autograd_grad_sample_hooks")

#: (wrapper, parameters, x, y, loss, clip) -> for each parameter the sum over records of clipped gradients.
_ClippedSum = Callable[[Any, Sequence[nn.Parameter], Tensor, Tensor, LossFn, float], list[Tensor]]


@dataclass(frozen=True)
class _Step:
    """What Opacus' accounting hook reads of an optimiser; the noise is drawn with the same multiplier."""

    noise_multiplier: float
    accumulated_iterations: int = 1


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
        and the accountant's history.

    Raises:
        ConfigError: the job lacks a DP setting, or the loss or a layer does not give one value a record.
        PrivacyRefusal: the model cannot be trained privately.
        Stopped: the job was asked to end; its charge stands.

    Source: Yousefpour et al. 2021, Opacus: User-Friendly Differential Privacy Library in PyTorch
    """
    from opacus.grad_sample import GradSampleModule

    return _train(model, x, y, job, lambda clip: GradSampleModule(model, loss_reduction="sum"), _sum_by_hooks)


def ghost(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """DP-SGD with ghost clipping: norms for each record, no gradient for each record.

    Two backward passes and the memory of ordinary training; layers must not share parameters. See :func:`hooks` for
    arguments, result and errors.

    Source: Li et al. 2022, Large Language Models Can Be Strong Differentially Private Learners
    """

    def wrap(clip: float) -> Any:
        return _ghost_module()(model, loss_reduction="sum", max_grad_norm=clip, use_ghost_clipping=True)

    return _train(model, x, y, job, wrap, _sum_by_ghost)


ENGINES = {"hooks": hooks, "ghost": ghost}


@cache
def _ghost_module() -> Any:
    """Opacus' ghost wrapper with norms of convolutions that are exact in float32."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Base

    def norms(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        gradients: dict[nn.Parameter, Tensor] = Base.GRAD_SAMPLERS[type(layer)](layer, activations, backprops)
        return {p: _norms(g.flatten(1)) for p, g in gradients.items()}

    own = {"NORM_SAMPLERS": {**Base.NORM_SAMPLERS, **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), norms)}}
    return type("GhostModule", (Base,), own)


def _train(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob, wrap: Callable[[float], Any], clipped_sum: _ClippedSum) -> LocalResult:
    from opacus.accountants import RDPAccountant

    training, dp, noise = job.training, job.dp, job.noise
    q, steps, expected_batch = training.sampling_rate, training.steps, training.expected_batch
    if dp is None or noise is None or q is None or steps is None or expected_batch is None:
        raise ConfigError("training: record-level DP-SGD needs sampling_rate, steps, expected_batch, the DP constants and a noise source.")
    check_model(model)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(model, training, job.lr)
    accountant = RDPAccountant()
    charge = accountant.get_optimizer_hook_fn(sample_rate=q)
    step = _Step(dp.noise_multiplier)
    with _full_precision(x.device), _wrapped(model, lambda: wrap(dp.clip)) as wrapper:
        for _ in range(steps):
            check_stop(job)
            drawn = torch.from_numpy(np.flatnonzero(noise.uniform(len(x)) < q)).to(x.device)
            sums = [torch.zeros_like(p) for p in parameters]
            for part in torch.split(drawn, training.physical_batch):
                if len(part):
                    for total, value in zip(sums, clipped_sum(wrapper, parameters, x[part], y[part], job.loss, dp.clip), strict=True):
                        total += value
            for p, total in zip(parameters, sums, strict=True):
                p.grad = (total + _gaussian(noise, step.noise_multiplier * dp.clip, p)) / expected_batch
            charge(step)
            if job.adjust is not None:
                job.adjust(model)
            optimizer.step()
    return LocalResult(steps, round(steps * expected_batch), None, list(accountant.history))


def _gaussian(noise: NoiseSource, std: float, like: Tensor) -> Tensor:
    values = noise.normal(like.numel())
    values *= std
    return torch.from_numpy(values).to(like.dtype).view(like.shape).to(like.device)


def _sum_by_hooks(wrapper: Any, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: LossFn, clip: float) -> list[Tensor]:
    _reset(wrapper, parameters)
    _losses(loss, wrapper(x), y).sum().backward()  # type: ignore[no-untyped-call]
    samples: list[Tensor | None] = [_per_record(p, "grad_sample", len(x)) for p in parameters]
    factors, bad = _factors([_norms(g.flatten(1)) for g in samples if g is not None], clip)
    any_bad = bool(bad.any())
    sums = []
    for p, sample in zip(parameters, samples, strict=True):
        if sample is None:
            sums.append(torch.zeros_like(p))
            continue
        flat = sample.flatten(1)
        if any_bad:
            flat[bad] = 0.0
        # Not a matrix product: that may run in a lower precision than the norms did.
        sums.append(flat.mul_(factors.to(flat.dtype)[:, None]).sum(0).view_as(p))
    _reset(wrapper, parameters)
    return sums


def _sum_by_ghost(wrapper: Any, parameters: Sequence[nn.Parameter], x: Tensor, y: Tensor, loss: LossFn, clip: float) -> list[Tensor]:
    while len(x):
        _reset(wrapper, parameters)
        try:
            losses = _losses(loss, wrapper(x), y)
        except NotImplementedError as error:
            raise ConfigError(f"training.engine: ghost cannot clip this model ({error}); use hooks.") from error
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        norms = [_per_record(p, "_norm_sample", len(x)) for p in parameters]
        factors, bad = _factors([n for n in norms if n is not None], clip)
        if not bad.any():
            return _second_pass(wrapper, parameters, factors, losses)
        # A factor of 0 would not silence a NaN in the second pass, so such records leave before it. The norms are
        # taken again: with dropout, another forward pass has other gradients.
        x, y = x[~bad], y[~bad]
    _reset(wrapper, parameters)
    return [torch.zeros_like(p) for p in parameters]


def _second_pass(wrapper: Any, parameters: Sequence[nn.Parameter], factors: Tensor, losses: Tensor) -> list[Tensor]:
    for p in parameters:
        p.grad = None
    wrapper.disable_hooks()
    try:
        (factors.to(losses.dtype) * losses).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        wrapper.enable_hooks()
    sums = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    _reset(wrapper, parameters)
    return sums


def _norms(flat: Tensor) -> Tensor:
    """L2 norm of each row, float64.

    Blocks are summed in the tensor's own precision and then added in float64: one float32 sum over millions
    of squares is off by several 1e-5, and always in favour of the record.
    """
    rows, columns = flat.shape
    blocks = columns // _BLOCK
    body, rest = flat[:, : blocks * _BLOCK].view(rows, blocks, _BLOCK), flat[:, blocks * _BLOCK :]
    norms = torch.cat([torch.linalg.vector_norm(body, dim=2), torch.linalg.vector_norm(rest, dim=1, keepdim=True)], dim=1)
    total: Tensor = norms.double().norm(dim=1)
    return total


def _factors(norms: Sequence[Tensor], clip: float) -> tuple[Tensor, Tensor]:
    """For each record the factor that clips it to ``clip``, and whether its gradient is not finite."""
    total = torch.stack([n.double() for n in norms]).square().sum(0).sqrt()
    bad = ~torch.isfinite(total)
    factors = torch.clamp(clip / (total * (1.0 + _MARGIN)), max=1.0)
    return torch.where(bad, 0.0, factors), bad


def _losses(loss: LossFn, outputs: Tensor, targets: Tensor) -> Tensor:
    losses = loss(outputs, targets)
    if losses.shape != (len(targets),):
        raise ConfigError(f"training.loss: returned shape {tuple(losses.shape)} for {len(targets)} records; return one loss for each.")
    return losses


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


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, no bfloat16 inside float32 products, no autocast: norms and gradients must be rounded alike."""
    switches = _precision_switches()
    before = [switch.fp32_precision for switch in switches]

    def restore() -> None:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value

    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.callback(restore)  # runs after the older switches are put back, which moves these
        with suppress(RuntimeError):  # the older ones refuse to work once a model's module has used the newer
            stack.enter_context(_older_switches())
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield


def _precision_switches() -> list[Any]:
    """Torch's newer switches, of the CPU's and the GPU's libraries; none before torch 2.9."""
    backends: Any = torch.backends
    places = [(backends.cuda, ("matmul",)), (backends.cudnn, ("conv", "rnn")), (backends.mkldnn, ("matmul", "conv", "rnn"))]
    found = [getattr(place, name, None) for place, names in places for name in names]
    return [switch for switch in found if hasattr(switch, "fp32_precision")]


@contextmanager
def _older_switches() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with cudnn.flags(**kept, allow_tf32=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
