"""The local engine without privacy: an index loop over tensors.

No DataLoader: a batch is one ``index_select``. That also copies it to aligned memory, so a client's
result does not depend on where in shared memory its records lie.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import ConfigError
from fedray.training.engine import BatchGradient, ExtraLoss, LocalJob, LocalResult, check_stop, mover
from fedray.training.fast.mixed import LossScale
from fedray.training.fast.step import fast_step


def plain(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """SGD, Adam or AdamW without privacy.

    With ``batch_size``: shuffled passes, a new permutation each, the last short batch kept, or joined to the one before where it has
    fewer records than ``job.fewest``; a step's gradient is the mean over its records. With ``sampling_rate``: each record joins a step by a coin of its
    own (Poisson sampling); the gradient is the sum over these records, divided by ``expected_batch``, and that of an empty step is zero.
    This is DP-SGD without clip and noise.

    With ``max_grad_norm`` a longer gradient is scaled down to that norm (Pascanu et al. 2013, On the Difficulty of Training Recurrent Neural
    Networks, algorithm 1), before ``job.adjust``.

    With ``job.compose`` a step's gradient is what that makes of gradients at batches of the step, all of which count in the result's examples
    and loss.

    With ``job.extra`` a step's gradient is that of the loss plus the extra one, which is not in the result's loss.

    With ``job.couples`` a step's gradient is that of the loss of the whole batch.

    A step of more than ``physical_batch`` records accumulates its gradient over parts of that many, unless ``job.whole`` says that
    it must not.
    All draws come from ``job.draws``; dropout from torch's generator, which the caller seeds.

    Args:
        model: trained in place, on the device of ``x``.
        x: records [n, ...].
        y: targets [n, ...].
        job: what to do; ``dp`` and ``noise`` are not used.

    Raises:
        ConfigError: a batch would have to be computed in parts, or has too few records.
        Stopped: ``job.should_stop`` said so between two steps.
    """
    training = job.training
    if not model.training:  # a walk over all modules, so only where needed
        model.train()
    poisson, physical, on_cpu = training.sampling_rate is not None, training.physical_batch, x.device.type == "cpu"
    read = any(asked is not None for asked in (job.adjust, job.compose, job.extra, training.max_grad_norm))  # by another than the optimiser
    one_pass = not read and (training.batch_size or physical + 1) <= physical
    seen: float | Tensor = 0.0
    steps = examples = 0
    with fast_step(model, x, training, job.lr, one_pass) as step:
        move = mover(model, step.parameters, training, job.lr, x.device)
        further, scale = _Further(len(x), job), LossScale(training.precision)

        def gradient(drawn: npt.NDArray[np.int64]) -> None:
            nonlocal seen, examples
            check_stop(job)
            check_batch(len(drawn), job)
            batch = torch.from_numpy(drawn).to(x.device)
            size, before, done = len(batch), seen, False
            weight = 1.0 if job.couples or not size else 1.0 / (training.expected_batch or size)
            while not done:
                seen = before
                for p in step.parameters:
                    p.grad = None
                for part in (batch,) if 0 < size <= physical or (size and job.whole) else torch.split(batch, physical) if size else ():
                    records = x.index_select(0, part)
                    if job.augment is not None:
                        records = job.augment(records, part.numpy(force=True), steps)
                    losses = job.loss(step.outputs(records), y.index_select(0, part))
                    total = losses.detach().sum()
                    if job.extra is not None:
                        losses = losses + _extra(job.extra, records, job.couples)
                    # Weighted here and not by a mean in the graph: fewer nodes, and the same for parts of a batch.
                    step.backward(losses, torch.full_like(losses, weight * scale.factor))
                    if job.couples:
                        total = total * size
                    seen = seen + (total.item() if on_cpu else total.double())  # on a GPU no wait for the step's end
                done = scale.unscaled(step.parameters)
            if poisson:
                for p in step.parameters:  # momentum and decay act alike in every step, empty or not
                    if p.grad is None:
                        p.grad = torch.zeros_like(p)
            examples += size

        for drawn in batches(len(x), training, job.draws, job.fewest):
            if job.compose is None:
                gradient(drawn)
            else:
                job.compose(model, further.of_step(gradient, drawn))
            if training.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(step.parameters, training.max_grad_norm)
            if job.adjust is not None:
                job.adjust(model)
            move()
            steps += 1
    return LocalResult(steps, examples, float(seen) / examples if examples else None)


def _extra(loss: ExtraLoss, records: Tensor, couples: bool) -> Tensor:
    """What is added to the records' losses, [n], or to their one number.

    Raises:
        ConfigError: it is not one value a record.
    """
    added = loss(records)
    if added.shape != (len(records),):
        raise ConfigError(
            f"algorithm.kind: its extra loss has shape {tuple(added.shape)} for {len(records)} records; return one value for each."
        )
    return added.mean() if couples else added


class _Further:
    """Batches of further streams of randomness, of which each step has one of each stream that it asks for."""

    def __init__(self, n: int, job: LocalJob) -> None:
        self._n, self._job, self._streams = n, job, dict[str, Iterator[npt.NDArray[np.int64]]]()

    def of_step(self, gradient: Callable[[npt.NDArray[np.int64]], None], own: npt.NDArray[np.int64]) -> BatchGradient:
        """The gradient over a batch of a step whose own one is ``own``."""
        drawn: dict[str, npt.NDArray[np.int64]] = {}

        def over(stream: str | None = None) -> None:
            if stream is not None and stream not in drawn:
                drawn[stream] = next(self._of(stream))
            gradient(own if stream is None else drawn[stream])

        return over

    def _of(self, stream: str) -> Iterator[npt.NDArray[np.int64]]:
        if stream not in self._streams:
            assert self._job.streams is not None
            self._streams[stream] = batches(self._n, self._job.training, self._job.streams(stream), self._job.fewest)
        return self._streams[stream]


def check_batch(size: int, job: LocalJob) -> None:
    """Refuse a batch that would have to be computed in parts, or that has too few records.

    Raises:
        ConfigError: with the reason.
    """
    if job.whole is not None and size > job.training.physical_batch + job.fewest - 1:  # records that join a batch are no reason
        raise ConfigError(
            f"training.physical_batch: {job.training.physical_batch} is less than a batch of {size} records, which cannot be computed in parts "
            f"because {job.whole}; set it to {size} or more."
        )
    if 0 < size < job.fewest:
        raise ConfigError(f"training: a batch of {size} record cannot be trained on, because {job.whole}; give the client more records.")


def batches(n: int, training: Training, draws: np.random.Generator, fewest: int = 1) -> Iterator[npt.NDArray[np.int64]]:
    """Record indices of each step, int64; where a pass would end with fewer than ``fewest``, these join the batch before."""
    if training.sampling_rate is not None:
        for _ in range(training.steps or 0):
            yield np.flatnonzero(draws.random(n) < training.sampling_rate)
        return
    ends = [*range(0, n, training.batch_size or max(n, 1)), n]
    if len(ends) > 2 and n - ends[-2] < fewest:
        del ends[-2]
    a_pass = len(ends) - 1
    left = a_pass * training.epochs if training.epochs is not None else (training.steps or 0) * (n > 0)
    while left > 0 and n:
        order = draws.permutation(n)
        for start, stop in itertools.pairwise(ends[: left + 1]):
            yield order[start:stop]
        left -= a_pass


def passes(n: int, training: Training, draws: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """The order in which each pass goes through the records, int64 [n]; the last one may end early."""
    for _ in range(-(-steps_of(n, training) // -(-n // (training.batch_size or n))) if n else 0):
        yield draws.permutation(n)


def steps_of(n: int, training: Training) -> int:
    """Number of steps over n records, where batches have a size."""
    if not n:
        return 0
    return (training.steps or 0) if training.epochs is None else training.epochs * -(-n // (training.batch_size or n))


ENGINES = {"plain": plain}
