"""The loop of record-level DP-SGD that every private engine runs; engines differ in how they make a clipped sum.

Each step tosses an independent coin for every record, clips every drawn record's gradient, adds them up, adds Gaussian
noise to the sum and divides by a public constant. Everything after the noise (FedProx and the like, weight decay,
momentum, Adam) is post-processing. A step whose batch is empty is a step of noise, and is charged like any other.

Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1; Mironov, Talwar & Zhang 2019,
Renyi Differential Privacy of the Sampled Gaussian Mechanism
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.training.charge import charge_of, opened
from fedray.training.compiled import as_written
from fedray.training.engine import DpStep, LocalJob, LocalResult, LossFn, NoiseSource, check_stop, mover
from fedray.training.stepdraws import drawing

#: Clipping aims this much below the clip norm, so that rounding in float32 cannot carry a record above it.
_MARGIN = 1e-6
#: Values that are summed, or drawn, at a time.
_BLOCK = 4096

#: (x, y, owners) of one physical batch, never empty -> for each trained parameter the sum over records of clipped gradients; with owners,
#: the number of each record's person from 0, the sum over persons of their clipped mean gradients.
ClippedSum = Callable[[Tensor, Tensor, Tensor | None], list[Tensor]]

#: (trained parameters, constants) -> what makes clipped sums, for as long as the context lasts.
Prepare = Callable[[list[nn.Parameter], DpStep], AbstractContextManager[ClippedSum]]


def train_privately(
    model: nn.Module, x: Tensor, y: Tensor, job: LocalJob, check: Callable[[nn.Module], None], prepare: Prepare
) -> LocalResult:
    """Poisson-sampled, per-record-clipped, noised steps at one client.

    Args:
        model: trained in place.
        x: records ``[n, *shape]``, on the model's device; sealed where what was charged for them is counted (:mod:`fedray.training.charge`).
        y: targets ``[n, ...]``.
        job: with ``dp`` and ``noise``, and a training section with sampling_rate, steps, expected_batch.
        check: refuses models that the engine cannot train privately.
        prepare: the engine's way to a clipped sum.

    Returns:
        ``steps`` taken, ``examples`` as the public expectation (the true number is private), ``loss`` None, and as
        ``history`` the noise that was drawn, counted where it is drawn.

    Raises:
        ConfigError: the job lacks a DP setting, or it is not known whose records they are.
        ClaimVoid: the job is not the one that was charged for these records.
        Stopped: the job was asked to end; its charge stands.
    """
    training, dp, noise = job.training, job.dp, job.noise
    q, steps, expected_batch = training.sampling_rate, training.steps, training.expected_batch
    if dp is None or noise is None or q is None or steps is None or expected_batch is None:
        raise ConfigError("training: record-level DP-SGD needs sampling_rate, steps, expected_batch, the DP constants and a noise source.")
    charge = charge_of(x, y)
    if charge is not None:
        charge.begin(job, model)
    x, y = opened(x), opened(y)
    check(model)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    move = mover(model, parameters, training, job.lr, x.device)
    taken, draw = 0, drawing(dp.person, job.persons, len(x), noise)
    try:
        with as_written(), _full_precision(x.device), prepare(parameters, dp) as clipped_sum:
            for _ in range(steps):
                check_stop(job)
                sums: list[Tensor] | None = None
                for rows, owners in draw(q, training.physical_batch):
                    part = torch.from_numpy(rows).to(x.device)
                    whose = None if owners is None else torch.from_numpy(owners).to(x.device)
                    records = x.index_select(0, part)
                    if job.augment is not None:  # by itself each, so that one record changes one gradient
                        records = job.augment(records, rows, taken)
                    values = clipped_sum(records, y.index_select(0, part), whose)
                    sums = values if sums is None else [total.add_(value) for total, value in zip(sums, values, strict=True)]
                for i, p in enumerate(parameters):
                    gaussian = _gaussian(noise, dp.noise_multiplier * dp.clip, p)
                    p.grad = (gaussian if sums is None else gaussian.add_(sums[i])).div_(expected_batch)
                taken += 1
                if charge is not None:
                    charge.step(dp.noise_multiplier, q)
                if job.adjust is not None:
                    job.adjust(model)
                move()
    finally:
        for p in model.parameters():
            p.grad = None
    return LocalResult(taken, round(taken * expected_batch), None, [(dp.noise_multiplier, q, taken)])


def _gaussian(noise: NoiseSource, std: float, like: Tensor) -> Tensor:
    # Piece by piece, because float64 draws for a whole layer would travel through memory several times.
    values = torch.empty(like.numel(), dtype=like.dtype)
    for piece in torch.split(values, _BLOCK):
        drawn = noise.normal(len(piece))
        drawn *= std
        piece.numpy()[:] = drawn
    return values.view(like.shape).to(like.device)


def record_losses(loss: LossFn, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of every record, [n].

    Raises:
        ConfigError: the loss did not give one value a record.
    """
    losses = loss(outputs, targets)
    if losses.shape != (len(targets),):
        raise ConfigError(f"training.loss: returned shape {tuple(losses.shape)} for {len(targets)} records; return one loss for each.")
    return losses


def one_by_one(clipped_sum: Callable[[Tensor, Tensor], list[Tensor]], engine: str) -> ClippedSum:
    """The clipped sum of an engine that has no single gradients, of which a person's mean could be taken."""

    def records(x: Tensor, y: Tensor, owners: Tensor | None) -> list[Tensor]:
        if owners is not None:
            raise ConfigError(f"training.engine: {engine} has no single gradients to clip by person; use hooks.")
        return clipped_sum(x, y)

    return records


def row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each row of [n, columns], float64 [n].

    Blocks are summed in the tensor's own precision and then added in float64: one float32 sum over millions
    of squares is off by several 1e-5, and always in favour of the record.
    """
    n, columns = rows.shape
    if columns <= _BLOCK:
        norm: Tensor = torch.linalg.vector_norm(rows, dim=1).double()
        return norm
    blocks = columns // _BLOCK
    body, rest = rows[:, : blocks * _BLOCK].reshape(n, blocks, _BLOCK), rows[:, blocks * _BLOCK :]
    norms = torch.cat([torch.linalg.vector_norm(body, dim=2), torch.linalg.vector_norm(rest, dim=1, keepdim=True)], dim=1)
    total: Tensor = norms.double().norm(dim=1)
    return total


def clip_factors(norms: Sequence[Tensor], trained: int, dp: DpStep) -> tuple[list[Tensor], Tensor]:
    """What every record's gradients are multiplied by, so that together they have norm at most the clip norm.

    Args:
        norms: for each parameter that the batch used, the norm of every record's gradient, [n].
        trained: number of trained parameters, used or not: the public constant that per-layer clipping splits by.
        dp: the clip norm C. ``flat`` clips over all parameters jointly; ``per_layer`` each parameter to
            C / sqrt(trained), and the squares of those add up to C squared.

    Returns:
        For each of ``norms`` the factors, float64 [n], at most 1, and 0 for a record with a gradient that is not
        finite; and which records those are, bool [n].

    Source: Abadi et al. 2016, algorithm 1 (flat); McMahan et al. 2018, Learning Differentially Private Recurrent Language
    Models, section 2.3 (per layer)
    """
    stacked = torch.stack([n.double() for n in norms])
    joint = stacked.square().sum(0).sqrt()
    bad = ~torch.isfinite(joint)
    if dp.clipping == "flat":
        return [_factors(joint, dp.clip, bad)] * len(norms), bad
    return list(_factors(stacked, dp.clip / math.sqrt(trained), bad)), bad


def _factors(norms: Tensor, clip: float, bad: Tensor) -> Tensor:
    return torch.where(bad, 0.0, torch.clamp(clip / (norms * (1.0 + _MARGIN)), max=1.0))


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, no bfloat16 inside float32 products, no autocast: norms and gradients must be rounded alike."""
    switches = precision_switches()
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


def precision_switches() -> list[Any]:
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
