"""What an algorithm does with a client's records in a private turn is what was charged, whatever way it takes to them."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost, HostSpec
from fedray.clients.messages import ClientReport, ClientTask, RoundTask
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import ClaimVoid
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.privacy.csprng import Csprng
from fedray.privacy.recordplan import plan_record
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import Engine, LocalJob, LocalResult
from fedray.training.plain import plain

STEPS = 3


class Own:
    """An algorithm of the user's; its subclasses differ in :meth:`local`."""

    def weight(self, records: int) -> float:
        return 1.0

    def max_weight_total(self, sizes: npt.NDArray[np.int64]) -> float:
        return float(len(sizes))

    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        return engine(model, x, y, job)


class Twice(Own):
    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        engine(model, x, y, job)
        return engine(model, x, y, job)


class Imported(Own):
    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        return book(model, x, y, job)


class Beside(Own):
    """The given engine once, others beside it, and a result of the first alone."""

    def __init__(self, other: str) -> None:
        self.other = {"book": book, "hooks": hooks, "ghost": ghost, "plain": plain}[other]

    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        result = engine(model, x, y, job)
        self.other(model, x, y, job)
        return result


class InTwoHalves(Own):
    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        result = None
        for steps in (1, STEPS - 1):
            result = engine(model, x, y, replace(job, training=job.training.model_copy(update={"steps": steps})))
        assert result is not None
        return result


class OwnGradients(Own):
    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        result = engine(model, x, y, job)
        job.loss(model(x), y).mean().backward()
        return result


class Silent(Own):
    """Takes no notice of what it is refused."""

    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        result = engine(model, x, y, job)
        try:
            next(model.parameters()).data += x.mean()
        except Exception:
            next(model.parameters()).data += 1.0
        return result


class OtherLoss(Own):
    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        return engine(model, x, y, replace(job, loss=lambda o, t: 2 * job.loss(o, t)))


class OwnNoise(Own):
    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        return engine(model, x, y, replace(job, noise=Csprng()))


class Hooked(Own):
    """Looks at what the records make of the model."""

    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        seen: list[Tensor] = []
        model.register_forward_hook(lambda _m, _x, outputs: seen.append(outputs.detach().mean()))
        result = engine(model, x, y, job)
        next(model.parameters()).data += torch.stack(seen).mean()
        return result


class Wrapped(Own):
    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        return engine(nn.Sequential(nn.Tanh(), model), x, y, job)


class Copied(Own):
    """A copy is the model that was tried, too."""

    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        other = copy.deepcopy(model)
        result = engine(other, x, y, job)
        model.load_state_dict(other.state_dict())
        return result


class Adjusted(Own):
    """What may be done: look at shapes, and change what is noised already."""

    def local(self, engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        assert len(x) == len(y) == 40
        assert x.shape == (40, 6) and x.dtype == torch.float32 and x.device.type == "cpu"
        assert "Sealed" in repr(x)

        def halve(model: nn.Module) -> None:
            for p in model.parameters():
                assert p.grad is not None
                p.grad *= 0.5

        return engine(model, x, y, replace(job, adjust=halve))


def turn(algorithm: str, **arguments: str) -> ClientReport:
    """How a turn of one client with 40 records ends."""
    draws = np.random.default_rng(0)
    records = Records(draws.normal(size=(40, 6)).astype(np.float32), draws.integers(0, 3, 40))
    federation = Federation(["a"], records, np.array([0, 40]), None, None, None, 3)
    config = build_config(
        {
            "name": "one",
            "rounds": 1,
            "data": {"source": "python:nowhere:data"},
            "model": {"kind": "softmax"},
            "algorithm": {"kind": algorithm, **arguments},
            "training": {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 20, "steps": STEPS},
            "privacy": {"regime": "record", "noise_multiplier": 2.0, "budget": 100, "delta": 1e-3},
        }
    )
    group = make_groups(config, ["a"])[0]
    host = ClientHost(
        HostSpec(config, group, plan_record(config, group.training), first_model(config.model, (6,), 3, config.seed)[1], threads=1),
        federation,
        device="cpu",
    )
    host.ready()
    model = build_model(config.model, (6,), 3, 0)
    (report,) = host.train(RoundTask(0, 40.0), get_vector(model, Layout.of(model)), [ClientTask(0, "a")])
    return report


HERE = f"python:{__name__}:"


@pytest.mark.parametrize("algorithm", ["fedavg", *(HERE + name for name in ("Own", "Imported", "InTwoHalves", "Copied", "Adjusted"))])
def test_one_training_is_what_was_charged(algorithm: str) -> None:
    report = turn(algorithm)
    assert report.status == "done", report.traceback
    assert report.receipts["record"]["steps"] == STEPS


@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        ("Twice", "2.0, 0.5, 6"),
        ("OwnGradients", "outside of the engine"),
        ("Silent", "outside of the engine"),
        ("OtherLoss", "another 'loss'"),
        ("OwnNoise", "another 'noise'"),
        ("Hooked", "other layers or hooks"),
        ("Wrapped", "other layers or hooks"),
    ],
)
def test_more_than_was_charged_voids_the_claim(algorithm: str, why: str) -> None:
    with pytest.raises(ClaimVoid, match=why):
        turn(HERE + algorithm)


@pytest.mark.parametrize(("other", "why"), [("book", "2.0, 0.5, 6"), ("hooks", "2.0, 0.5, 6"), ("ghost", "6"), ("plain", "outside")])
def test_an_engine_of_fedrays_own_counts_whoever_calls_it(other: str, why: str) -> None:
    with pytest.raises(ClaimVoid, match=why):
        turn(HERE + "Beside", other=other)
