"""What a local engine is given and gives back, and which engine a run uses.

An engine trains ``model`` in place on one client's records: ``engine(model, x, y, job) -> LocalResult``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import Stopped
from fedray.privacy.persons import Person

#: Losses: (outputs [n, ...], targets [n, ...]) -> [n]. Not reduced over records, so that no engine can couple one record's gradient to
#: another's; only with ``LocalJob.couples`` one number for the batch.
LossFn = Callable[[Tensor, Tensor], Tensor]


#: Where torch keeps the words of its CPU generator's state (a Mersenne twister), and how many there are.
_WORDS_AT, _WORDS = 24, 624
#: Bytes of a state of torch's generators.
SECRET = 4 * _WORDS + 8

#: How a record's gradients are clipped, see :class:`DpStep`.
Clipping = Literal["flat", "per_layer"]


class NoiseSource(Protocol):
    """Draws for privacy: :class:`fedray.privacy.csprng.Csprng`, or the insecure seeded one of tests."""

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        """``n`` values in [0, 1), float64."""
        ...

    def normal(self, n: int) -> npt.NDArray[np.float64]:
        """``n`` standard normal values, float64."""
        ...


@dataclass(frozen=True)
class DpStep:
    """The public constants of record-level DP-SGD.

    Attributes:
        noise_multiplier: z; the noise on a step's sum has standard deviation z times C.
        clip: C, the largest norm of one record's gradients over all trained parameters.
        clipping: ``flat`` clips all parameters jointly to C; ``per_layer`` each of the L parameters to C / sqrt(L).
        person: how much of a person takes part, if persons are protected; None: records are.
    """

    noise_multiplier: float
    clip: float
    clipping: Clipping = "flat"
    person: Person | None = None


class Augmenter(Protocol):
    """Gives the records of a batch as one step sees them; see :mod:`fedray.training.augment`."""

    def __call__(self, x: Tensor, rows: npt.NDArray[np.int64], step: int) -> Tensor:
        """The batch ``x`` [b, ...], which are the client's records ``rows`` [b], as they are in ``step``, of the same shape."""
        ...


class BatchGradient(Protocol):
    """Sets ``p.grad`` to the gradient of the loss, at the parameters as they are, over a batch of the step at hand."""

    def __call__(self, stream: str | None = None) -> None:
        """Over the step's own batch, or over one that a named stream of randomness draws; the same name gives the same batch within a step."""
        ...


#: Leaves in ``p.grad`` what the optimiser moves the model by in a step, and the parameters as they were; calls the gradient as often as it needs to.
Compose = Callable[[nn.Module, BatchGradient], None]

#: What is added to the losses of records [n, ...] that the model has just had in its forward pass: [n]; a term a record, as a loss is.
ExtraLoss = Callable[[Tensor], Tensor]


def _never() -> bool:
    return False


@dataclass(frozen=True)
class LocalJob:
    """One client's work in one round.

    Attributes:
        training: the training section (group overrides applied); ``lr`` is taken from ``lr`` here.
        lr: learning rate of this round, after the schedule.
        loss: per-record loss.
        draws: keyed generator for batches where no privacy is claimed.
        noise: source of DP noise and DP sampling coins; DP engines only.
        dp: DP constants; None in engines without privacy.
        adjust: called after the gradients of a step are final (under DP: after the noise) and before
            the optimiser moves the model; may change ``p.grad``. For FedProx, SCAFFOLD and the like.
        should_stop: polled between steps; when true the engine raises :class:`Stopped`.
        whole: why the records of a batch must be computed together, as a clause; None where parts of it may be.
        fewest: records that a batch needs.
        couples: the loss is one number for the batch.
        persons: whose each record is, int64 ``[n]``, where persons are protected.
        augment: what the records of a batch are changed by; None: they are trained on as they are.
        compose: makes the gradient of a step of several; None: it is that of the step's own batch. Engine ``plain`` only.
        streams: for ``compose``: keyed generator of a stream of further batches, by its name.
        extra: added to the records' losses; engine ``plain`` only.
    """

    training: Training
    lr: float
    loss: LossFn
    draws: np.random.Generator
    noise: NoiseSource | None = None
    dp: DpStep | None = None
    adjust: Callable[[nn.Module], None] | None = None
    should_stop: Callable[[], bool] = _never
    whole: str | None = None
    fewest: int = 1
    couples: bool = False
    persons: npt.NDArray[np.int64] | None = None
    augment: Augmenter | None = None
    compose: Compose | None = None
    streams: Callable[[str], np.random.Generator] | None = None
    extra: ExtraLoss | None = None


@dataclass(frozen=True)
class LocalResult:
    """What an engine did.

    Attributes:
        steps: optimiser steps taken.
        examples: records processed, counted with repetition.
        loss: mean loss over those records as seen during training; None under DP (it is private).
        history: DP engines: the noised steps taken, [(noise_multiplier, sampling_rate, steps), ...], counted where the noise is drawn.
    """

    steps: int
    examples: int
    loss: float | None
    history: list[tuple[float, float, int]] | None = None


Engine = Callable[[nn.Module, Tensor, Tensor, LocalJob], LocalResult]


def make_optimizer(model: nn.Module, training: Training, lr: float) -> torch.optim.Optimizer:
    """The local optimiser over the model's trainable parameters, made new each round."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=training.momentum, nesterov=training.nesterov, weight_decay=training.weight_decay
        )
    adam = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return adam(parameters, lr=lr, betas=(training.betas[0], training.betas[1]), weight_decay=training.weight_decay)


def mover(model: nn.Module, parameters: list[nn.Parameter], training: Training, lr: float, device: torch.device) -> Callable[[], None]:
    """The optimiser's step. Making and calling ``torch.optim.SGD`` costs half as much as a small client's whole
    work, so plain SGD on the CPU moves the weights itself, to the same bits.
    """
    if training.optimizer != "sgd" or training.momentum or training.weight_decay or device.type != "cpu":
        return make_optimizer(model, training, lr).step

    def move() -> None:
        with torch.no_grad():
            for p in parameters:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-lr)

    return move


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's global generators on the CPU and on ``device``.

    For the CPU not by ``torch.manual_seed``, which speaks to every accelerator of the machine and takes a hundred
    times as long; the CPU's draws are the same.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def secretly_seed_torch(secret: bytes, device: torch.device) -> None:
    """Set torch's generators on the CPU and on ``device`` to a state that nobody can guess.

    ``torch.manual_seed`` would not do: the CPU's generator keeps 32 bits of a seed, which can be tried one by one.

    Args:
        secret: :data:`SECRET` bytes of the operating system's randomness. The same bytes give the same draws.
        device: that is trained on.
    """
    state = torch.Generator().get_state()  # of a generator that has drawn nothing
    words = state.numpy()[_WORDS_AT : _WORDS_AT + 8 * _WORDS].view("<u8")
    words[:] = np.frombuffer(secret, dtype="<u4", count=_WORDS)
    torch.default_generator.set_state(state)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed_all(int.from_bytes(secret[-8:], "little") >> 1)  # of whichever number it is


def torch_draws(device: torch.device) -> Callable[[], None]:
    """What sets torch's generators back to where they are now, on the CPU and on ``device``."""
    here, on_cpu = torch.default_generator.get_state(), device.type == "cpu"
    there = None if on_cpu else torch.get_device_module(device).get_rng_state(device)

    def restore() -> None:
        torch.default_generator.set_state(here)
        if not on_cpu:
            torch.get_device_module(device).set_rng_state(there, device)

    return restore


@contextmanager
def seeded_torch(seed: int, device: torch.device) -> Iterator[None]:
    """:func:`seed_torch` within, and the generators as they were afterwards; no other device's driver is started for that."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng(devices=[] if on_cpu else [device.index or 0], device_type="cuda" if on_cpu else device.type):
        seed_torch(seed, device)
        yield


def check_stop(job: LocalJob) -> None:
    """Raise :class:`Stopped` when the job was asked to end."""
    if job.should_stop():
        raise Stopped("training was stopped before it ended.")
