"""Each engine on the device against the CPU: the same start, batches and noise.

Both compute in float32, with TF32 off: private engines see to that themselves, and for the others it is switched off here. So two results
differ by the order of operations alone, and the bounds are those of :mod:`tests.rounding`, which follow from float32's rounding and the
number of terms in a sum. The CPU against itself must give the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.gpu.record import Figures, Missed, Record
from tests.rounding import apart, flat, gamma, steps_apart, terms_of

SECTION = "engines against the CPU"
SEED, CLASSES, RECORDS, STEPS, CLIP = 3, 5, 24, 3, 0.5
#: Model, its arguments, shape of a record, whether records are tokens.
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"activation": "tanh"}, (20,)),
    "opacus_cnn": ({}, (1, 28, 28)),
    "fedavg_cnn": ({}, (1, 28, 28)),
    "lstm": ({}, (28, 28)),
}
#: Engine: the models that it is tried on.
ENGINES = {
    "plain": ["mlp", "opacus_cnn", "fedavg_cnn", "lstm"],
    "lockstep": ["mlp"],
    "book": ["mlp", "opacus_cnn", "fedavg_cnn", "lstm"],
    "hooks": ["mlp", "opacus_cnn", "fedavg_cnn"],
    "ghost": ["mlp", "opacus_cnn", "fedavg_cnn"],
}
PRIVATE = ("book", "hooks", "ghost")
#: Records whose gradients are taken alone, of which the first is the one that is scaled.
ALONE = (2, 0, 11, 23)
#: A record alone may be above the clip norm by the rounding of one product.
ABOVE = 1e-5


def run(record: Record) -> None:
    """All checks of the section."""
    for engine, models in ENGINES.items():
        for model in models:
            record.check(SECTION, f"{engine}, {model}: steps", partial(steps, engine, model, record.device))
            if engine in PRIVATE:
                record.check(SECTION, f"{engine}, {model}: clipped sums and norms", partial(sums, engine, model, record.device))
    for engine in PRIVATE:
        record.check(SECTION, f"{engine}: sensitivity before the first record", partial(preflight, engine, record.device), takes=20)
    record.check(SECTION, "dropout follows the turn's seed", partial(dropout, record.device))
    record.check(SECTION, "bfloat16 convolutions", partial(sixteen_bits, "bf16_convolutions", record.device))
    for precision in ("bf16", "fp16"):
        record.check(SECTION, f"training in {precision}", partial(sixteen_bits, precision, record.device), gpu=True)


class Everyone:
    """Every record is drawn, and the noise is zero."""

    def uniform(self, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.zeros(n)

    normal = uniform


@contextmanager
def without_tf32() -> Iterator[None]:
    """cuDNN rounds to float32, and matrix products do, as torch does by itself."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def made(name: str, **more: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A model and records, on the CPU."""
    from fedray.choices import ModelChoice
    from fedray.models.build import build_model

    arguments, shape = MODELS[name]
    draws = np.random.default_rng(0)
    x, y = draws.standard_normal((RECORDS, *shape), dtype=np.float32), draws.integers(0, CLASSES, RECORDS)
    return build_model(ModelChoice(kind=name, **arguments, **more), shape, CLASSES, SEED), torch.from_numpy(x), torch.from_numpy(y)


def trained(engine: str, model: nn.Module, x: Tensor, y: Tensor, device: torch.device, training: Any, **job: Any) -> nn.Module:
    """A copy of the model after training on the device, back on the CPU."""
    from fedray import components, rng
    from fedray.training.engine import LocalJob
    from fedray.training.losses import cross_entropy

    there = copy.deepcopy(model).to(device)
    work = LocalJob(training, training.lr, cross_entropy, rng.generator(SEED, "batches"), **job)
    with without_tf32():
        components.find(components.ENGINES, engine)(there, x.to(device), y.to(device), work)
    return there.to("cpu")


def steps(engine: str, name: str, device: torch.device) -> Figures:
    """Some steps on the device and on the CPU, and again on the device."""
    from fedray.config import Training
    from fedray.privacy.csprng import InsecureSeeded
    from fedray.training.engine import DpStep

    model, x, y = made(name)
    if engine in PRIVATE:
        section = Training(lr=0.05, sampling_rate=0.5, expected_batch=RECORDS / 2, steps=STEPS, physical_batch=7)
        train = lambda where: trained(  # noqa: E731
            engine, model, x, y, where, section, noise=InsecureSeeded(SEED, 0, 0), dp=DpStep(0.3, CLIP)
        )
    else:
        section = Training(lr=0.05, batch_size=RECORDS // STEPS, epochs=1)
        train = lambda where: trained(engine, model, x, y, where, section)  # noqa: E731
    reference, found, again = train(torch.device("cpu")), train(device), train(device)
    bound = steps_apart(model, reference, terms_of(model, RECORDS * places(x)), STEPS) if device.type != "cpu" else 0.0
    figures = {
        "moved": apart(reference, model),
        "apart": apart(found, reference),
        "bound": bound,
        "repeat_apart": apart(again, found),
        "repeats_to_the_last_bit": bool(np.array_equal(flat(found), flat(again))),
    }
    if not max(figures["apart"], figures["repeat_apart"]) <= bound:
        raise Missed("the weights differ by more than rounding can make of them", figures)
    return figures


def places(x: Tensor) -> int:
    """At how many places of a record a weight may be used."""
    return 1 if x.dim() == 2 else int(np.prod(x.shape[-2:]))


def sums(engine: str, name: str, device: torch.device) -> Figures:
    """The clipped sum of all records, with a clip norm that binds and one that does not, and the norm of each record's gradient alone."""
    model, x, y = made(name)
    x[ALONE[0]] *= 30
    tolerance = 4 * gamma(terms_of(model, x.numel())) if device.type != "cpu" else 0.0
    figures: Figures = {"tolerance": tolerance, "largest_above_clip": 0.0, "norms_apart": 0.0}
    for clip in (CLIP / 10, 1e4):
        expected, found = (clipped(engine, model, x, y, where, clip) for where in (torch.device("cpu"), device))
        figures[f"sums_apart_at_{clip:g}"] = apart(found, expected) / float(np.linalg.norm(flat(expected)))
    for i in ALONE:
        one = slice(i, i + 1)
        above = float(np.linalg.norm(flat(clipped(engine, model, x[one], y[one], device, CLIP / 10)))) / (CLIP / 10) - 1
        figures["largest_above_clip"] = max(figures["largest_above_clip"], above)
        here, there = (float(np.linalg.norm(flat(clipped(engine, model, x[one], y[one], w, 1e4)))) for w in (torch.device("cpu"), device))
        figures["norms_apart"] = max(figures["norms_apart"], abs(there - here) / here)
    if figures["largest_above_clip"] > ABOVE:
        raise Missed("a record alone is above the clip norm", figures)
    if not max(v for k, v in figures.items() if "apart" in k) <= tolerance:
        raise Missed("clipped sums or norms differ by more than rounding can make of them", figures)
    return figures


def clipped(engine: str, model: nn.Module, x: Tensor, y: Tensor, device: torch.device, clip: float) -> Tensor:
    """The clipped sum over all records, float64 [parameters]."""
    from fedray.config import Training
    from fedray.training.engine import DpStep

    taken: list[Tensor] = []

    def take(net: nn.Module) -> None:
        taken.append(torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None]).cpu())

    section = Training(lr=1.0, sampling_rate=1.0, steps=1, expected_batch=1.0)
    trained(engine, model, x, y, device, section, noise=Everyone(), dp=DpStep(0.0, clip), adjust=take)
    return taken[0]


def preflight(engine: str, device: torch.device) -> Figures:
    """The test that a private run passes before its first record, on the device."""
    from fedray import components
    from fedray.config import Training
    from fedray.training.losses import cross_entropy
    from fedray.training.preflight import TOLERANCE, sensitivity_check

    section = Training(lr=0.1, sampling_rate=0.25, steps=5, expected_batch=36.0)
    make: Callable[[], nn.Module] = lambda: made("opacus_cnn")[0].to(device)  # noqa: E731
    worst = sensitivity_check(
        components.find(components.ENGINES, engine), make, cross_entropy, (1, 28, 28), CLASSES, section, CLIP, device=device
    )
    if not worst <= 1 + TOLERANCE:
        raise Missed("one record moves a step by more than the clip norm", {"sensitivity": worst})
    return {"sensitivity": worst}


def dropout(device: torch.device) -> Figures:
    """The generators of the device: a seed gives its draws again, another gives others; so does a secret one."""
    from fedray.training.engine import SECRET, secretly_seed_torch, seed_torch, torch_draws

    def drawn() -> list[float]:
        found: list[float] = nn.functional.dropout(torch.ones(4096, device=device)).cpu().tolist()
        return found

    secrets = [bytes([n]) * SECRET for n in (1, 2)]
    found = {}
    for name, seed in (("seed", lambda n: seed_torch(n, device)), ("secret", lambda n: secretly_seed_torch(secrets[n], device))):
        draws = []
        for n in (0, 0, 1):
            seed(n)
            draws.append(drawn())
        found[name] = draws[0] == draws[1] and draws[0] != draws[2]
    back = torch_draws(device)
    first = drawn()
    back()
    found["put_back"] = drawn() == first
    if not all(found.values()):
        raise Missed("draws do not follow from the seed", found)
    return found


def sixteen_bits(precision: str, device: torch.device) -> Figures:
    """Passes in sixteen bits, where the user asks for them: off by the rounding of so many bits, and weights stay float32."""
    from fedray.config import Training

    model, x, y = made("fedavg_cnn")
    halves, wholes = (
        trained("plain", model, x, y, device, Training.model_validate({"lr": 0.05, "batch_size": 8, "epochs": 1, "precision": kind}))
        for kind in (precision, "fp32")
    )
    figures = {"apart_of_moved": apart(halves, wholes) / apart(wholes, model)}
    if not 2.0**-17 < figures["apart_of_moved"] < 0.3 or any(p.dtype != torch.float32 for p in halves.parameters()):
        raise Missed(f"training in {precision} is not what it should be", figures)
    return figures
