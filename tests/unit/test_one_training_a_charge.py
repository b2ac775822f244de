"""What an algorithm does with a client's records in a private turn is what was charged, whatever way it takes to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedray.algorithms.algorithm import Algorithm, Update
from fedray.algorithms.turn import Turn
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientReport, ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Config
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import ClaimVoid
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.privacy.csprng import Csprng
from fedray.privacy.recordplan import check_history, plan_record
from fedray.training.bookkeeping import book
from fedray.training.charge import TurnCharge
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import DpStep, Engine, LocalJob, LocalResult
from fedray.training.losses import find_loss
from fedray.training.plain import plain
from fedray.traits import Traits

STEPS = 3
HERE = f"python:{__name__}:"
#: Local training as it is given an engine and sealed records.
Local = Callable[[Engine, nn.Module, Tensor, Tensor, LocalJob], LocalResult]


def own(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    return engine(model, x, y, job)


def twice(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    engine(model, x, y, job)
    return engine(model, x, y, job)


def imported(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    return book(model, x, y, job)


def beside(other: Engine) -> Local:
    """The given engine once, another one beside it, and a result of the first alone."""

    def local(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
        result = engine(model, x, y, job)
        other(model, x, y, job)
        return result

    return local


def in_two_halves(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    engine(model, x, y, replace(job, training=job.training.model_copy(update={"steps": 1})))
    return engine(model, x, y, replace(job, training=job.training.model_copy(update={"steps": STEPS - 1})))


def own_gradients(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    result = engine(model, x, y, job)
    job.loss(model(x), y).mean().backward()
    return result


def silent(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """Takes no notice of what it is refused."""
    result = engine(model, x, y, job)
    try:
        next(model.parameters()).data += x.mean()
    except Exception:
        next(model.parameters()).data += 1.0
    return result


def other_loss(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    return engine(model, x, y, replace(job, loss=lambda o, t: 2 * job.loss(o, t)))


def own_noise(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    return engine(model, x, y, replace(job, noise=Csprng()))


def hooked(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """Looks at what the records make of the model."""
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _m, _x, outputs: seen.append(outputs.detach().mean()))
    result = engine(model, x, y, job)
    next(model.parameters()).data += torch.stack(seen).mean()
    return result


def wrapped(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    return engine(nn.Sequential(nn.Tanh(), model), x, y, job)


def copied(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """A copy is the model that was tried, too."""
    other = copy.deepcopy(model)
    result = engine(other, x, y, job)
    model.load_state_dict(other.state_dict())
    return result


def halved(model: nn.Module) -> None:
    """What may be done: change what is noised already."""
    for p in model.parameters():
        assert p.grad is not None
        p.grad *= 0.5


def adjusted(engine: Engine, model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """Shapes may be looked at, too."""
    assert len(x) == len(y) == 40
    assert x.shape == (40, 6) and x.dtype == torch.float32 and x.device.type == "cpu"
    assert "Sealed" in repr(x)
    return engine(model, x, y, replace(job, adjust=halved))


class Twice(Algorithm):
    traits = Traits(gradients="adjusted")

    def local(self, turn: Turn) -> Update:
        turn.train()
        return super().local(turn)


class Hooked(Algorithm):
    def local(self, turn: Turn) -> Update:
        turn.model.register_forward_hook(lambda _m, _x, outputs: outputs)
        return super().local(turn)


class Adjusted(Algorithm):
    traits = Traits(gradients="adjusted")

    def local(self, turn: Turn) -> Update:
        turn.train(adjust=halved, stream="own")
        return Update({"model": turn.moved()})


class Curious(Algorithm):
    def local(self, turn: Turn) -> Update:
        turn.loss()
        return super().local(turn)


def charged(local: Local) -> list[tuple[float, float, int]]:
    """The noised steps that are counted for a client's turn with 40 records, as the plan says."""
    draws, config = np.random.default_rng(0), private_config("fedavg")
    x, y = torch.from_numpy(draws.normal(size=(40, 6)).astype(np.float32)), torch.from_numpy(draws.integers(0, 3, 40))
    model, plan = build_model(config.model, (6,), 3, 0), plan_record(config, config.training)
    dp = DpStep(plan.noise_multiplier, plan.clip)
    job = LocalJob(config.training, 0.5, find_loss("cross_entropy"), np.random.default_rng(0), Csprng(), dp)
    charge = TurnCharge(job, model)
    local(book, model, *charge.seal(x, y), job)
    history = charge.history()
    check_history(history, plan, None)
    return history


def private_config(algorithm: str) -> Config:
    return build_config(
        {
            "name": "one",
            "rounds": 1,
            "data": {"source": "python:nowhere:data"},
            "model": {"kind": "softmax"},
            "algorithm": {"kind": algorithm},
            "training": {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 20, "steps": STEPS},
            "privacy": {"regime": "record", "noise_multiplier": 2.0, "budget": 100, "delta": 1e-3},
        }
    )


def turn(algorithm: str) -> ClientReport:
    """How a turn of one client with 40 records ends."""
    draws, config = np.random.default_rng(0), private_config(algorithm)
    records = Records(draws.normal(size=(40, 6)).astype(np.float32), draws.integers(0, 3, 40))
    federation = Federation(["a"], records, np.array([0, 40]), None, None, None, 3)
    group = make_groups(config, ["a"])[0]
    host = ClientHost(
        make_terms(config, group, plan_record(config, group.training), first_model(config.model, (6,), 3, config.seed)[1]),
        Site(device="cpu"),
        federation,
    )
    host.ready()
    model = build_model(config.model, (6,), 3, 0)
    (report,) = host.train(RoundTask(0, 40.0), get_vector(model, Layout.of(model)), [ClientTask(0, "a")])
    return report


HERE = f"python:{__name__}:"


@pytest.mark.parametrize("local", [own, imported, in_two_halves, copied, adjusted], ids=lambda f: f.__name__)
def test_one_training_is_what_was_charged(local: Local) -> None:
    assert charged(local) == [(2.0, 0.5, STEPS)]


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "fednova", HERE + "Adjusted"])
def test_an_algorithm_that_trains_once_has_its_receipt(algorithm: str) -> None:
    report = turn(algorithm)
    assert report.status == "done", report.traceback
    assert report.receipts["record"]["steps"] == STEPS


@pytest.mark.parametrize(
    ("local", "why"),
    [
        (twice, "2.0, 0.5, 6"),
        (own_gradients, "outside of the engine"),
        (silent, "outside of the engine"),
        (other_loss, "another 'loss'"),
        (own_noise, "another 'noise'"),
        (hooked, "other layers or hooks"),
        (wrapped, "other layers or hooks"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_more_than_was_charged_voids_the_claim(local: Local, why: str) -> None:
    with pytest.raises(ClaimVoid, match=why):
        charged(local)


@pytest.mark.parametrize(("algorithm", "why"), [("Twice", "2.0, 0.5, 6"), ("Hooked", "other layers or hooks")])
def test_an_algorithm_that_does_more_than_was_charged_voids_the_claim(algorithm: str, why: str) -> None:
    with pytest.raises(ClaimVoid, match=why):
        turn(HERE + algorithm)


def test_an_algorithm_that_reads_what_it_does_not_declare_fails() -> None:
    report = turn(HERE + "Curious")
    assert report.status == "failed" and "add reads={'loss'}" in report.error


@pytest.mark.parametrize(("other", "why"), [(book, "2.0, 0.5, 6"), (hooks, "2.0, 0.5, 6"), (ghost, "6"), (plain, "outside")])
def test_an_engine_of_fedrays_own_counts_whoever_calls_it(other: Engine, why: str) -> None:
    with pytest.raises(ClaimVoid, match=why):
        charged(beside(other))
