"""The sensitivity test that every record-level DP run passes before it touches a private record.

It runs the run's own model, loss and engine on synthetic records, with every record drawn and no noise,
and measures how far one record can move the sum of a step. Whatever couples records (batch
normalisation, class-weighted means, batch statistics in a loss, values kept between calls) moves it by more than the clip norm.
Dropout is on, and each record has the same masks in all sums, as it has in the proof: they are secret and independent of the data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import ConfigError, FedrayError, PrivacyRefusal, raised
from fedray.privacy.persons import Person
from fedray.training.compiled import as_written
from fedray.training.coupling import couples_records, output_shape
from fedray.training.engine import Clipping, Engine, LossFn, seeded_torch
from fedray.training.kept import kept, kept_refusal
from fedray.training.probe import StepProbe
from fedray.training.recorddraws import patterns_of
from fedray.training.synthetic import odd, synthetic_records, with_tokens, without_dropout

CODE = "privacy.preflight.sensitivity"
TOLERANCE = 1e-5

#: Records of the test, and how many of them are left out in turn; fewer where a model is so large that a step takes long.
_RECORDS, _FEW_RECORDS, _FEW_LEFT_OUT, _LARGE = 20, 4, 3, 500_000
#: Where float64 cannot be had, the rounding of the other records' gradients hides smaller excesses.
_FLOAT32_TOLERANCE = 1e-3
_COUPLING = 1e-3
_WHY = (
    "so the noise would not cover it; something couples records (batch normalisation, a weighted mean or batch statistics in the loss), "
    "so make every record's loss a function of that record alone."
)


def sensitivity_check(
    engine: Engine,
    make_model: Callable[[], nn.Module],
    loss: LossFn,
    shape: tuple[int, ...],
    outputs: int,
    training: Training,
    clip: float,
    classes: int | None = None,
    *,
    vocabulary: int | None = None,
    device: torch.device | str = "cpu",
    clipping: Clipping = "flat",
    target_shape: tuple[int, ...] = (),
    untried: Callable[[], nn.Module] | None = None,
    person: Person | None = None,
) -> float:
    """How far one record moves the clipped sum of a step, over the clip norm.

    Twenty records (four for models above 500,000 parameters) are drawn at random, one of them scaled by
    10,000 and one NaN. With every record in the batch and no noise, S(D) - S(D without x) must have norm at
    most the clip norm, at the run's clip norm and at a hundredth of it (where everything is clipped), with the
    same dropout masks for each record in both; the sum must be that of the records' clipped gradients as autograd has them, each
    taken alone, also where nothing is clipped. This is measured in
    float64, so that rounding does not blur it; in float32 each record alone must keep to the clip norm.

    Args:
        engine: the run's engine.
        make_model: the run's model.
        loss: per-record loss.
        shape: of one record.
        outputs: of the model, for each record.
        training: the run's training section.
        clip: the run's clip norm.
        classes: number of classes of the targets; None: ``outputs`` where that is above 1, else real-valued.
        vocabulary: records are token numbers below this (then none is huge or NaN).
        device: where to run.
        clipping: the run's.
        target_shape: of one record's targets.
        untried: the run's model before its first call, default ``make_model``.
        person: how persons are protected. If a person's gradients are clipped as one, every two records are of one person, and persons are
            left out whole; the huge record and the one that is not finite each have another beside them. Otherwise the measure is of one
            record, of which a bounded person has several.

    Returns:
        The largest ratio measured; at most 1 + 1e-5 (1e-3 for a model that runs in float32 only).

    Raises:
        PrivacyRefusal: one record can move the sum by more, with the measured ratio; or nothing can be measured; or the model or the loss
            keeps something between calls; or the engine's gradients are not autograd's.
        ClaimVoid: the engine did not do exactly the one step that was asked for.
        ConfigError: model or loss cannot be run on such records.
    """
    one_step = training.model_copy(
        update={
            "sampling_rate": 1.0,
            "steps": 1,
            "expected_batch": 1.0,
            "physical_batch": _RECORDS,
            "batch_size": None,
            "epochs": None,
            "optimizer": "sgd",
            "momentum": 0.0,
            "nesterov": False,
            "weight_decay": 0.0,
        }
    )
    model = make_model().to(device)
    large = sum(p.numel() for p in model.parameters()) > _LARGE
    x, y = synthetic_records(_FEW_RECORDS if large else _RECORDS, shape, outputs, classes, vocabulary, target_shape)
    x = with_tokens(model, x)
    probe = StepProbe(engine, model, loss, one_step, x.to(device), y.to(device), clipping)
    if person is not None and person.clipped:
        probe.persons = np.arange(len(x)) // 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # many short steps: sharing them out costs more than it gains, most of all on a busy machine
        probe.patterns = _patterns(probe)
        _check_kept(probe, (untried or make_model)().to(device))
        alone = max(_norm(_one(probe, i, clip)) for i in range(len(x))) / clip
        exact, tolerance = _in_float64(probe, clip)
        worst = _measure(exact, clip, _FEW_LEFT_OUT if large else len(x))
        if not max(alone, worst):  # every sum was zero
            raise PrivacyRefusal(
                "model, training.loss: every gradient of the synthetic records is zero or not finite, so its sensitivity cannot be measured; "
                "start from weights that have gradients.",
                "privacy.preflight.nothing",
            )
        if alone <= 1.0 + TOLERANCE and worst <= 1.0 + tolerance:
            _check_gradients(replace(exact, model=without_dropout(exact.model)), clip)
            kinds = classes if classes is not None else outputs if outputs > 1 and not target_shape else None
            given = output_shape(model, shape, vocabulary is not None)
            if couples_records(loss, given, kinds, target_shape=target_shape) is not False:
                raise PrivacyRefusal(f"training.loss: gives a record another value or gradient in another batch, {_WHY}", CODE)
    except FedrayError:
        raise
    except Exception as error:
        kind = "tokens" if vocabulary is not None else "numbers"
        if _runs(probe):
            raise ConfigError(
                f"training.engine: {getattr(engine, '__name__', 'it')} has no gradient for each record of this model, though the model itself "
                f"runs ({raised(error)}); replace layers that it does not know (opacus.layers has some), and put parameters of the model's "
                "own into a module by themselves that draws nothing."
            ) from error
        raise ConfigError(f"model, training.loss: cannot be run on random records of shape {shape} ({kind}): {raised(error)}.") from error
    finally:
        torch.set_num_threads(threads)
    if alone > 1.0 + TOLERANCE:
        raise PrivacyRefusal(
            f"training.engine: one record alone moves a step's sum by {alone:.6g} times the clip norm; use book, hooks or ghost.", CODE
        )
    if worst > 1.0 + tolerance:
        raise PrivacyRefusal(
            f"model, training.loss: leaving out one record moves a step's sum by {worst:.3g} times the clip norm, {_WHY}", CODE
        )
    return max(worst, alone)


def _runs(probe: StepProbe) -> bool:
    """Whether autograd has the gradient where the engine has none."""
    try:
        probe.gradient(torch.arange(2, device=probe.x.device))
    except Exception:
        return False
    return True


def _patterns(probe: StepProbe) -> frozenset[tuple[tuple[int, ...], int, int]] | None:
    """How the shapes of what the model draws hold records; None where it draws nothing."""
    n = odd(len(probe.x))[0]  # of those before the odd ones
    shapes, keys = probe.draws(n)
    if not shapes:
        return None
    if set(keys) & set(probe.draws(n, seed=1)[1]):
        raise PrivacyRefusal(
            "model: seeds torch's generators itself, so that what it draws in training can be replayed; leave them alone.",
            "privacy.preflight.random",
        )
    return patterns_of(lambda count: probe.draws(count)[0], n)


def _check_kept(probe: StepProbe, model: nn.Module) -> None:
    """Refuse what keeps something between calls: tried without the NaN first, which may hide it."""
    n = len(probe.x)
    plain = [i for i in range(n) if i not in odd(n)]
    groups = [plain, plain[:2], [i for i in range(n) if i != odd(n)[1]], range(n)]
    with as_written(), seeded_torch(probe.first, probe.x.device):
        path = kept(model.train(), probe.loss, ((probe.x[list(group)], probe.y[list(group)]) for group in groups))
    if path is not None:
        raise kept_refusal(path)


def check_turns_apart(
    model: nn.Module,
    loss: LossFn,
    shape: tuple[int, ...],
    outputs: int,
    classes: int | None,
    vocabulary: int | None,
    target_shape: tuple[int, ...] = (),
) -> None:
    """Refuse what carries something from one client's turn to the next although each turn has a model of its own: values that a loss, a
    class or a module keeps.

    Args:
        model: before its first call.
        loss: that is minimised.
        shape, outputs, classes, vocabulary, target_shape: as for :func:`sensitivity_check`.

    Raises:
        PrivacyRefusal: with where it is kept.
    """
    made = synthetic_records(_FEW_RECORDS, shape, outputs, classes, vocabulary, target_shape)
    x, y = (values.to(next(model.parameters()).device) for values in (with_tokens(model, made[0]), made[1]))
    try:
        with as_written():
            path = kept(model.train(), loss, [(x[:2], y[:2]), (x, y)], own=False)
    except FedrayError:
        raise
    except Exception:  # a model need not stand random records where no record is protected
        return
    if path is not None:
        raise kept_refusal(path)


def _in_float64(probe: StepProbe, clip: float) -> tuple[StepProbe, float]:
    """The probe in float64 with the tolerance to hold it to; as it is, where the model or loss is tied to float32."""
    exact = replace(probe, model=copy.deepcopy(probe.model).double(), x=_double(probe.x), y=_double(probe.y))
    try:
        exact.sum(torch.arange(len(probe.x), device=probe.x.device), clip)
    except (RuntimeError, TypeError, ValueError):
        return probe, _FLOAT32_TOLERANCE
    return exact, TOLERANCE


def _double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _measure(probe: StepProbe, clip: float, left_out: int) -> float:
    """The largest sensitivity over the clip norm."""
    n = len(probe.x)
    everyone, plain = _groups(probe)
    chosen = [*odd(n), *plain.tolist()][:left_out]
    whole = probe.sum(everyone, clip)
    if _norm(whole - probe.sum(everyone, clip)) > _COUPLING * max(_norm(whole), clip):
        raise PrivacyRefusal(
            "model, training.loss: give other gradients when the same batch is computed again, so their sensitivity cannot be measured; draw "
            "random numbers by no other means than torch's (nn.Dropout, torch.rand), and keep nothing between calls.",
            "privacy.preflight.random",
        )
    first = plain[: max(1, left_out - 2)].tolist()
    return max(
        _sensitivity(probe, everyone, chosen, clip, whole),
        _sensitivity(probe, everyone, chosen, clip / 100),
        _sensitivity(probe, plain, first, clip),  # without the odd ones: a NaN that spreads to all would leave nothing to measure
    )


def _groups(probe: StepProbe) -> tuple[Tensor, Tensor]:
    """All records, and all but the odd ones."""
    n = len(probe.x)
    everyone = torch.arange(n, device=probe.x.device)
    return everyone, everyone[[i not in odd(n) for i in range(n)]]


def _sensitivity(probe: StepProbe, everyone: Tensor, chosen: Sequence[int], clip: float, whole: Tensor | None = None) -> float:
    whole = probe.sum(everyone, clip) if whole is None else whole
    return max(_norm(whole - probe.sum(probe.without(everyone, i), clip)) / clip for i in chosen)


def _check_gradients(probe: StepProbe, clip: float) -> None:
    """Refuse an engine whose clipped sum is not that of the records' gradients, each computed by autograd from that record alone."""
    everyone, plain = _groups(probe)
    alone = {i: probe.gradient(everyone[i : i + 1]) for i in everyone.tolist()}
    for group, norm in ((everyone, clip), (plain, clip), (plain, clip * 1e6)):
        expected = torch.stack([probe.clipped(unit, norm) for unit in probe.units(group.tolist(), alone)])
        difference = probe.sum(group, norm) - expected.sum(0)
        largest = max(float(expected.norm(dim=1).max()), 1e-30)
        if _norm(difference) <= _COUPLING * largest:
            continue
        together = torch.cat([g.flatten().double() for g in probe.gradient(plain)])
        single = torch.stack([torch.cat([g.flatten().double() for g in alone[i]]) for i in plain.tolist()])
        coupling = _norm(together - single.sum(0)) / max(float(single.norm(dim=1).max()), 1e-30)
        if not coupling <= _COUPLING:  # a record alone may have no finite gradient
            raise PrivacyRefusal(
                f"model, training.loss: the gradients of records taken together differ from those taken alone by {coupling:.3g} of the "
                f"largest, {_WHY}",
                CODE,
            )
        sizes = [p.numel() for _, p in probe.parameters]
        worst = int(np.argmax([_norm(part) for part in torch.split(difference, sizes)]))
        raise PrivacyRefusal(
            f"training.engine: its gradient of the parameter '{probe.parameters[worst][0]}' is not that of the model, by "
            f"{_norm(difference) / largest:.3g} of the largest (the parameter may be used outside its own layer, or the layer works in a "
            "way that the engine does not know); use another of book, hooks and ghost, or change the model so that every parameter is "
            "used by its own layer.",
            "privacy.preflight.gradients",
        )


def _one(probe: StepProbe, i: int, clip: float) -> Tensor:
    record = torch.tensor([i], device=probe.x.device)
    try:
        return probe.sum(record, clip)
    except (RuntimeError, TypeError, ValueError) as error:
        probe.sum(torch.arange(len(probe.x), device=probe.x.device), clip)  # if all together fail too, that is the error to show
        raise PrivacyRefusal(f"model, training.loss: cannot be run on one record alone ({error}), {_WHY}", CODE) from error


def _norm(vector: Tensor) -> float:
    value = float(vector.norm())
    return value if np.isfinite(value) else float("inf")
