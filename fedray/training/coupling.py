"""What a model and a loss need of a batch: whether its records must be computed together, and how many there must be.

A loss over risk sets (Cox), a contrastive one, or batch normalisation give a record another gradient in another batch. Such a batch is
what the user chose, so it must not be computed in parts, mixed with another client's, or end with a single record. Found by calling
model and loss on batches, on their parts, and in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import ConfigError, blaming
from fedray.models.build import evaluating
from fedray.rng import generator
from fedray.training.engine import LossFn, seeded_torch
from fedray.training.fast.sequential import observed
from fedray.training.losses import Loss, known_apart
from fedray.training.recorddraws import Pattern, RecordDraws, Shape, patterns_of
from fedray.training.synthetic import synthetic_records, vocabulary_of, with_tokens, without_dropout
from fedray.training.trial import tried

#: Layers that treat every record by itself, by exact type and however they are set.
_APART: tuple[type[nn.Module], ...] = (
    *(nn.Sequential, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.Dropout),
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.ELU, nn.SiLU, nn.LeakyReLU, nn.Softplus, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d),
)
#: Records that a model is tried on, and sizes of the batches that a loss is tried on.
_RECORDS, _SIZES = 6, (2, 7, 40)
#: Of the data's targets, how many a loss is tried on.
_TARGETS = 256
#: Differences that rounding does not make, over the largest value.
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}


@dataclass(frozen=True)
class BatchNeeds:
    """What a batch must be.

    Attributes:
        whole: why its records must be computed together, as a clause; None where it may be computed in parts.
        fewest: records that it needs.
        couples: the loss is one number for the batch.
    """

    whole: str | None = None
    fewest: int = 1
    couples: bool = False


def batch_needs(
    model: nn.Module,
    loss: Loss,
    shape: tuple[int, ...],
    tokens: bool,
    classes: int | None,
    targets: npt.NDArray[Any] | None,
    target_shape: tuple[int, ...] = (),
) -> BatchNeeds:
    """What a batch must be for a model and a loss.

    Args:
        model: left as it is.
        loss: that is minimised.
        shape: of one record.
        tokens: whether records are token numbers.
        classes: number of classes of the targets; None where they are real numbers.
        targets: the data's, [n, *target_shape], where they may be looked at.
        target_shape: of one record's targets.

    Raises:
        ConfigError: the loss couples records and does not say so, or it fails on the model's outputs and the data's targets.
    """
    needs = _of_model(model, shape, tokens)
    if loss.couples:
        return BatchNeeds(f"training.loss={loss.name} is taken over the whole batch", needs.fewest, couples=True)
    if known_apart(loss):
        return needs
    some = None
    if targets is not None and len(targets):
        some = torch.from_numpy(np.array(targets[np.linspace(0, len(targets) - 1, min(len(targets), _TARGETS)).astype(np.int64)]))
    found = tried(partial(couples_records, loss, output_shape(model, shape, tokens), classes, some, target_shape), otherwise=None)
    if found:
        raise ConfigError(
            f"training.loss: '{loss.name}' gives a record another value or gradient in another batch; make each record's loss a function of "
            "that record alone, or set the function's attribute couples = True and return one number for the whole batch."
        )
    if found is None and some is not None:
        tried(partial(_call_once, model, loss, shape, tokens, some[:_RECORDS]), otherwise=None)
    return needs if found is False else BatchNeeds(needs.whole or "training.loss could not be tried on parts of a batch", needs.fewest)


def _call_once(model: nn.Module, loss: Loss, shape: tuple[int, ...], tokens: bool, targets: Tensor) -> None:
    """Call a loss that stood none of the outputs it was tried on with those of the model, for records of zeros, and the data's targets."""
    x = torch.zeros((len(targets), *shape), dtype=torch.int64 if tokens else torch.float32, device=next(model.parameters()).device)
    with evaluating(model):
        outputs = model(x).cpu()
    with blaming(f"training.loss: '{loss.name}'"):
        loss(outputs, targets)


def check_batches(needs: BatchNeeds, training: Training, sizes: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Refuse a training section, or a client, with which a batch could not be what it must be.

    Args:
        needs: of the model and the loss.
        training: the training section.
        sizes, names: of the clients; at least one.

    Raises:
        ConfigError: with the way out.
    """
    largest, smallest = int(np.max(sizes)), int(np.argmin(np.where(sizes > 0, sizes, np.iinfo(np.int64).max)))
    batch = largest if training.sampling_rate is not None else min(training.batch_size or largest, largest)
    if needs.whole is not None and batch > training.physical_batch:
        raise ConfigError(
            f"training.physical_batch: {training.physical_batch} is less than a batch of {batch} records, which cannot be computed in parts because "
            f"{needs.whole}; set it to {batch} or more, or training.batch_size lower."
        )
    if needs.couples and training.sampling_rate is not None:
        raise ConfigError(
            f"training.sampling_rate: the sum over a drawn batch is divided by expected_batch, but {needs.whole}; use training.batch_size."
        )
    if needs.fewest <= 1:
        return
    if training.sampling_rate is not None:
        raise ConfigError(
            f"training.sampling_rate: a step may draw a single record, which the model cannot be trained on ({needs.whole}); use "
            "training.batch_size, or GroupNorm instead of batch normalisation."
        )
    if (training.batch_size or 0) < needs.fewest:
        raise ConfigError(
            f"training.batch_size: the model cannot be trained on {training.batch_size} record at a time ({needs.whole}); set it to "
            f"{needs.fewest} or more, or use GroupNorm instead of batch normalisation."
        )
    if 0 < sizes[smallest] < needs.fewest:
        raise ConfigError(
            f"data: client {names[smallest]} holds {sizes[smallest]} training record, which the model cannot be trained on ({needs.whole}); "
            "leave the client out, partition otherwise, or use GroupNorm instead of batch normalisation."
        )


def apart_in_evaluation(model: nn.Module, x: Tensor) -> bool:
    """Whether a model in evaluation mode gives a record the same outputs in any batch.

    Args:
        model: in evaluation mode, without gradients.
        x: some records, on its device.
    """
    if all(_known(m) or (isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats) for m in model.modules()):
        return True
    whole = model(x)
    try:
        return all(
            _same(whole[rows], model(x[rows])) for rows in (slice(0, 1), slice(0, len(x) // 2), slice(len(x) // 2, None)) if len(x[rows])
        )
    except (RuntimeError, ValueError):
        return False


def _known(module: nn.Module) -> bool:
    kind = type(module)
    return kind in _APART or kind.__module__.startswith("fedray.models.") or (isinstance(module, nn.Flatten) and module.start_dim == 1)


def _of_model(model: nn.Module, shape: tuple[int, ...], tokens: bool) -> BatchNeeds:
    """Tried in training mode, without dropout, and with each record's other draws held fixed."""
    if all(_known(m) and not observed(m) for m in model.modules()):
        return BatchNeeds()
    try:
        tried = without_dropout(copy.deepcopy(model)).double().train()
        x = _records(model, _RECORDS, shape, tokens).to(next(model.parameters()).device)
        shapes = lambda n: _outputs(tried, x, list(range(n)))[1]  # noqa: E731
        patterns = patterns_of(shapes, _RECORDS)
        everyone = list(range(_RECORDS))
        whole = _outputs(tried, x, everyone, patterns)[0]
        again = _outputs(tried, x, everyone, patterns)[0]
    except Exception:  # a model need not stand random records
        return BatchNeeds()
    why = "the model gives a record other outputs in another batch"
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        why = "batch normalisation takes its mean and variance from the records of a batch"
    try:
        single = _outputs(tried, x, [0], patterns)[0]
        if bool(torch.isfinite(whole[0]).all()) and not bool(torch.isfinite(single).all()):
            return BatchNeeds(why, 2)
        parts = torch.cat([_outputs(tried, x, rows, patterns)[0] for rows in (everyone[:3], everyone[3:])])
    except (RuntimeError, ValueError):
        return BatchNeeds(why, 2)
    if not _same(whole, again):  # draws by other means than torch's: nothing can be said
        return BatchNeeds()
    return BatchNeeds() if _same(whole, parts) and _same(whole[:1], single) else BatchNeeds(why)


def _outputs(model: nn.Module, x: Tensor, rows: list[int], patterns: frozenset[Pattern] = frozenset()) -> tuple[Tensor, list[Shape]]:
    state = {name: values.clone() for name, values in model.state_dict().items()}
    with torch.no_grad(), seeded_torch(0, x.device), RecordDraws(rows, patterns) as draws:
        outputs: Tensor = model(x[rows])
    model.load_state_dict(state)
    return outputs, draws.shapes


def _records(model: nn.Module, n: int, shape: tuple[int, ...], tokens: bool) -> Tensor:
    x = with_tokens(model, synthetic_records(n + 2, shape, 1, None, (vocabulary_of(model) or 2) if tokens else None)[0])
    ordinary = x[[i for i in range(n + 2) if i not in ((n + 2) // 2, n + 1)]]
    return ordinary.double() if ordinary.is_floating_point() else ordinary


def output_shape(model: nn.Module, shape: tuple[int, ...], tokens: bool) -> tuple[int, ...]:
    """Of a record's outputs, tried with zeros."""
    parameter = next(model.parameters())
    x = torch.zeros((2, *shape), dtype=torch.int64 if tokens else parameter.dtype, device=parameter.device)
    with evaluating(model):
        return tuple(model(x).shape[1:])


# -- losses ------------------------------------------------------------------------------------------


def couples_records(
    loss: LossFn, shape: tuple[int, ...], classes: int | None, targets: Tensor | None = None, target_shape: tuple[int, ...] = ()
) -> bool | None:
    """Whether a loss gives a record another value, or another gradient, in another batch; None where it cannot be tried, as where the same call
    does not give the same twice.

    Args:
        loss: per-record loss; what it draws from torch's generators is held fixed for each record.
        shape: of a record's outputs.
        classes: number of classes of the targets; None where they are real numbers.
        targets: some of the data's, where they may be looked at.
        target_shape: of one record's targets.
    """
    if known_apart(loss):
        return False
    tried = False
    for outputs, wanted in _batches(shape, classes, targets, target_shape):
        n = len(outputs)
        if _called(loss, outputs, wanted, torch.arange(n)) is None:
            continue
        tried = True
        patterns = patterns_of(partial(_drawn, loss, outputs, wanted), n)
        order = torch.from_numpy(generator(0, "coupling", n).permutation(n))
        whole, again = (_called(loss, outputs, wanted, torch.arange(n), patterns) for _ in range(2))
        if whole is None or again is None or not all(_same(a, b) for a, b in zip(whole[0], again[0], strict=True)):
            return None
        for rows in (order, torch.arange(n // 2), torch.arange(n // 2, n), torch.arange(1), torch.arange(n - 1, n)):
            part = _called(loss, outputs[rows], wanted[rows], rows, patterns)
            if part is None or not all(_same(a[rows], b) for a, b in zip(whole[0], part[0], strict=True)):
                return True
    return False if tried else None


def _drawn(loss: LossFn, outputs: Tensor, targets: Tensor, n: int) -> list[Shape]:
    found = _called(loss, outputs[:n], targets[:n], torch.arange(n))
    return [] if found is None else found[1]


#: The records' losses and the gradients of their sum, and the shapes of what was drawn.
_Called = tuple[tuple[Tensor, Tensor], list[Shape]]


def _called(loss: LossFn, outputs: Tensor, targets: Tensor, rows: Tensor, patterns: frozenset[Pattern] = frozenset()) -> _Called | None:
    """None where the loss does not stand such values."""
    outputs = outputs.clone().requires_grad_()
    try:
        with seeded_torch(0, torch.device("cpu")), RecordDraws(rows.tolist(), patterns) as draws:
            losses = loss(outputs, targets.clone())
            gradient = torch.autograd.grad([losses.sum()], [outputs], allow_unused=True)[0] if losses.requires_grad else None
    except ConfigError:
        raise  # it does not give one value a record
    except BaseException:  # a user's loss may raise anything, SystemExit too
        return None
    return (losses.detach(), torch.zeros_like(outputs) if gradient is None else gradient), draws.shapes


def _batches(
    shape: tuple[int, ...], classes: int | None, targets: Tensor | None, target_shape: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs of several scales, with targets of several kinds; the data's own, too, where they may be looked at."""
    draws = generator(0, "coupling")
    for n in (*_SIZES, *([] if targets is None else [len(targets)])):
        if n < 2:
            continue
        for wanted in _targets((n, *target_shape), classes, targets, draws):
            for scale in (1.0, 10.0, 0.0):
                outputs = torch.from_numpy(draws.standard_normal((n, *shape)) * scale)
                yield outputs, wanted


def _targets(size: tuple[int, ...], classes: int | None, targets: Tensor | None, draws: np.random.Generator) -> Iterator[Tensor]:
    if targets is not None and len(targets) >= size[0]:
        yield targets[: size[0]].clone()
    if classes is not None:
        yield torch.from_numpy(draws.integers(0, classes, size))
        yield torch.zeros(size, dtype=torch.int64)
        yield torch.full(size, classes - 1, dtype=torch.int64)
        return
    real = draws.standard_normal(size)
    coins = draws.random(size) < 0.5
    for values in (real, np.abs(real) + 0.1, -np.abs(real) - 0.1, np.round(real * 2), np.ones(size), np.zeros(size), coins):
        yield torch.from_numpy(np.asarray(values, dtype=np.float32))


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    largest = float(torch.nan_to_num(a.abs(), posinf=0.0).max()) if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=_TOLERANCE.get(a.dtype, 1e-2) * max(largest, 1e-12), equal_nan=True))
