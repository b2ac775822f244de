"""The sensitivity test that every record-level DP run passes before it touches a private record.

It runs the run's own model, loss and engine on synthetic records, with every record drawn and no noise,
and measures how far one record can move the sum of a step. Whatever couples records (batch
normalisation, class-weighted means, batch statistics in a loss) moves it by more than the clip norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import ClaimVoid, ConfigError, FedrayError, PrivacyRefusal
from fedray.rng import generator
from fedray.training.engine import Clipping, DpStep, Engine, LocalJob, LossFn, seeded_torch

CODE = "privacy.preflight.sensitivity"
TOLERANCE = 1e-5

#: Records of the test, and how many of them are left out in turn; fewer where a model is so large that a step takes long.
_RECORDS, _FEW_RECORDS, _FEW_LEFT_OUT, _LARGE = 20, 4, 3, 500_000
_HUGE = 1e4
#: Where float64 cannot be had, the rounding of the other records' gradients hides smaller excesses.
_FLOAT32_TOLERANCE = 1e-3
_COUPLING = 1e-3
_WHY = (
    "so the noise would not cover it; something couples records (batch normalisation, a weighted mean or batch statistics in the loss), "
    "so make every record's loss a function of that record alone."
)


class _Silence:
    """Every record's coin falls heads, and the noise is zero. For synthetic records only."""

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)

    def normal(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)


@dataclass
class _Probe:
    """Runs one noiseless step on some of the synthetic records and gives the clipped sum, flat float64."""

    engine: Engine
    model: nn.Module
    loss: LossFn
    training: Training
    x: Tensor
    y: Tensor
    clipping: Clipping
    state: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Dropout off, and the weights kept, because every step starts from them."""
        _without_dropout(self.model)
        self.state = {k: v.clone() for k, v in self.model.state_dict().items()}

    def sum(self, keep: Tensor, clip: float, seed: int = 0) -> Tensor:
        taken: list[Tensor] = []

        def take(model: nn.Module) -> None:
            taken.append(torch.cat([p.grad.detach().flatten().double() for p in model.parameters() if p.grad is not None]))

        job = LocalJob(
            training=self.training,
            lr=1.0,
            loss=self.loss,
            draws=generator(0, "preflight"),
            noise=_Silence(),
            dp=DpStep(0.0, clip, self.clipping),
            adjust=take,
        )
        self.model.load_state_dict(self.state)
        with seeded_torch(seed, self.x.device):
            result = self.engine(self.model, self.x[keep], self.y[keep], job)
        if len(taken) != 1 or result.history != [(0.0, 1.0, 1)]:
            raise ClaimVoid(
                f"training.engine: took {len(taken)} steps and accounted for {result.history} where one noised step was asked for."
            )
        return taken[0]


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
) -> float:
    """How far one record moves the clipped sum of a step, over the clip norm.

    Twenty records (four for models above 500,000 parameters) are drawn at random, one of them scaled by
    10,000 and one NaN. With every record in the batch and no noise, S(D) - S(D without x) must have norm at
    most the clip norm, at the run's clip norm and at a hundredth of it (where everything is clipped); the sum
    over all records must be the sum of each alone, also where nothing is clipped. This is measured in
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

    Returns:
        The largest ratio measured; at most 1 + 1e-5 (1e-3 for a model that runs in float32 only).

    Raises:
        PrivacyRefusal: one record can move the sum by more, with the measured ratio.
        ClaimVoid: the engine did not do exactly the one step that was asked for.
        ConfigError: model or loss cannot be run on such records.
    """
    one_step = training.model_copy(
        update={
            "sampling_rate": 1.0,
            "steps": 1,
            "expected_batch": 1.0,
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
    x, y = _records(_FEW_RECORDS if large else _RECORDS, shape, outputs, classes, vocabulary)
    probe = _Probe(engine, model, loss, one_step, x.to(device), y.to(device), clipping)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # many short steps: sharing them out costs more than it gains, most of all on a busy machine
        alone = max(_norm(_one(probe, i, clip)) for i in range(len(x))) / clip
        exact, tolerance = _in_float64(probe, clip)
        worst, coupling = _measure(exact, clip, _FEW_LEFT_OUT if large else len(x))
    except FedrayError:
        raise
    except Exception as error:
        kind = "tokens" if vocabulary is not None else "numbers"
        raise ConfigError(
            f"model, training.loss: cannot be run on random records of shape {shape} ({kind}): {type(error).__name__}: {error}"
        ) from error
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
    if coupling > _COUPLING:
        raise PrivacyRefusal(
            f"model, training.loss: the gradients of records taken together differ from those taken alone by {coupling:.3g} of the largest, {_WHY}",
            CODE,
        )
    return max(worst, alone)


def _in_float64(probe: _Probe, clip: float) -> tuple[_Probe, float]:
    """The probe in float64 with the tolerance to hold it to; as it is, where the model or loss is tied to float32."""
    exact = replace(probe, model=copy.deepcopy(probe.model).double(), x=_double(probe.x), y=_double(probe.y))
    try:
        exact.sum(torch.arange(len(probe.x), device=probe.x.device), clip)
    except (RuntimeError, TypeError, ValueError):
        return probe, _FLOAT32_TOLERANCE
    return exact, TOLERANCE


def _double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _measure(probe: _Probe, clip: float, left_out: int) -> tuple[float, float]:
    """The largest sensitivity over the clip norm, and the largest coupling."""
    n = len(probe.x)
    everyone = torch.arange(n, device=probe.x.device)
    odd = _odd(n)
    plain = everyone[[i not in odd for i in range(n)]]
    chosen = [*odd, *(i for i in range(n) if i not in odd)][:left_out]
    whole = probe.sum(everyone, clip)
    _check_repeatable(probe, whole, everyone, clip)
    worst = max(_sensitivity(probe, everyone, chosen, clip, whole), _sensitivity(probe, everyone, chosen, clip / 100))
    if worst > 1.0 + _FLOAT32_TOLERANCE:
        return worst, 0.0
    # Without the odd records too: a NaN that spreads to all of them would leave nothing to measure.
    return worst, max(_coupling(probe, [everyone, plain], clip), _coupling(probe, [plain], clip * 1e6))


def _sensitivity(probe: _Probe, everyone: Tensor, chosen: Sequence[int], clip: float, whole: Tensor | None = None) -> float:
    whole = probe.sum(everyone, clip) if whole is None else whole
    return max(_norm(whole - probe.sum(everyone[everyone != i], clip)) / clip for i in chosen)


def _coupling(probe: _Probe, groups: Sequence[Tensor], clip: float) -> float:
    """How much the sum over a group's records differs from the sum of each alone, relative to the largest of those."""
    sums = [torch.zeros(()) for _ in groups]
    largest = 0.0
    for i in sorted({i for group in groups for i in group.tolist()}):
        alone = _one(probe, i, clip)
        largest = max(largest, _norm(alone))
        sums = [total.to(alone.device) + alone if i in group else total for total, group in zip(sums, groups, strict=True)]
    return max(_norm(probe.sum(group, clip) - total) for group, total in zip(groups, sums, strict=True)) / max(largest, 1e-30)


def _one(probe: _Probe, i: int, clip: float) -> Tensor:
    record = torch.tensor([i], device=probe.x.device)
    try:
        return probe.sum(record, clip)
    except (RuntimeError, TypeError, ValueError) as error:
        probe.sum(torch.arange(len(probe.x), device=probe.x.device), clip)  # if all together fail too, that is the error to show
        raise PrivacyRefusal(f"model, training.loss: cannot be run on one record alone ({error}), {_WHY}", CODE) from error


def _check_repeatable(probe: _Probe, whole: Tensor, everyone: Tensor, clip: float) -> None:
    if _norm(whole - probe.sum(everyone, clip, seed=1)) > _COUPLING * max(_norm(whole), clip):
        raise PrivacyRefusal(
            "model: draws random numbers in training other than by nn.Dropout, so its sensitivity cannot be measured; use nn.Dropout.",
            "privacy.preflight.random",
        )


def _norm(vector: Tensor) -> float:
    value = float(vector.norm())
    return value if np.isfinite(value) else float("inf")


def _without_dropout(model: nn.Module) -> None:
    """Dropout is independent for each record and so needs no test, but would hide what does."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            setattr(module, "dropout", 0.0)  # noqa: B010 - recurrent and attention layers keep their rate as a number


def _odd(n: int) -> tuple[int, int]:
    """Which of ``n`` records is huge and which holds a NaN."""
    return n // 2, n - 1


def _records(n: int, shape: tuple[int, ...], outputs: int, classes: int | None, vocabulary: int | None) -> tuple[Tensor, Tensor]:
    draws = generator(0, "preflight")
    if vocabulary is not None:
        x = torch.from_numpy(draws.integers(0, vocabulary, (n, *shape)))
    else:
        values = draws.standard_normal((n, *shape)).astype(np.float32)
        huge, nan = _odd(n)
        values[huge] *= _HUGE
        values[nan].reshape(-1)[:1] = np.nan
        x = torch.from_numpy(values)
    kinds = classes if classes is not None else outputs if outputs > 1 else None
    if kinds is not None:
        return x, torch.from_numpy(draws.integers(0, kinds, n))
    return x, torch.from_numpy(draws.standard_normal(n).astype(np.float32))
