"""Losses and models that couple the records of a batch are recognised, and trained in whole batches or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedray import components
from fedray.choices import ModelChoice
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.memory import fitting
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Training
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import ConfigError, FedrayError
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, get_vector
from fedray.rng import generator
from fedray.training.choose import choose_engine
from fedray.training.coupling import BatchNeeds, batch_needs, check_batches
from fedray.training.engine import LocalJob, LossFn
from fedray.training.evaluate import evaluate
from fedray.training.losses import Loss, cross_entropy, declared, find_loss
from fedray.training.metrics import mean_loss
from fedray.training.plain import batches, plain

NORM = nn.BatchNorm1d

# -- losses ------------------------------------------------------------------------------------------


def each_of_a_risk_set(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cox, one value a record; a record's risk set is the batch; times below zero are censored."""
    risk, order = outputs.flatten(), torch.argsort(targets.abs(), descending=True)
    terms = torch.empty_like(risk)
    terms[order] = -(risk[order] - torch.logcumsumexp(risk[order], 0)) * (targets[order] > 0).to(risk.dtype)
    return terms


@declared(couples=True)
def partial_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    return each_of_a_risk_set(outputs, targets).mean()


def balanced(outputs: Tensor, targets: Tensor) -> Tensor:
    weights = 1.0 / torch.bincount(targets, minlength=3).clamp(min=1)[targets]
    return functional.cross_entropy(outputs, targets, reduction="none") * weights


def ranked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Couples by gradient alone."""
    losses = functional.mse_loss(outputs.flatten(), targets.to(outputs.dtype), reduction="none")
    spread = outputs.flatten() * outputs.mean()
    return losses + (spread - spread.detach())


def rare(outputs: Tensor, targets: Tensor) -> Tensor:
    """Couples only in batches of more than thirty records with a target of exactly 0."""
    losses = functional.mse_loss(outputs.flatten(), targets.to(outputs.dtype), reduction="none")
    return losses * (targets == 0).sum() if len(targets) > 30 and bool((targets == 0).any()) else losses


def hard(outputs: Tensor, targets: Tensor) -> Tensor:
    """The harder half of the batch."""
    losses = functional.cross_entropy(outputs, targets, reduction="none")
    return losses * (losses >= losses.median())


def of_the_data(outputs: Tensor, targets: Tensor) -> Tensor:
    """Couples records that share a target above 1000, which only the data has."""
    losses = functional.mse_loss(outputs.flatten(), targets.to(outputs.dtype), reduction="none")
    return losses * torch.where(targets > 1000, (targets[:, None] == targets).sum(1), 1)


def tilted(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's own that keeps records apart, and refuses targets below zero."""
    if bool((targets < 0).any()):
        raise ValueError("negative")
    error = outputs.flatten() - targets
    return torch.maximum(0.9 * error, -0.1 * error)


def unruly(outputs: Tensor, targets: Tensor) -> Tensor:
    raise RuntimeError("nothing suits it")


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        (each_of_a_risk_set, None),
        (balanced, 3),
        (ranked, None),
        (rare, None),
        (hard, 3),
        (lambda o, y: (o.flatten() - y[torch.randperm(len(y))]).abs(), None),
    ],
)
def test_a_loss_that_couples_records_without_saying_so_is_refused(loss: LossFn, classes: int | None) -> None:
    for model in (nn.Linear(4, classes or 1), nn.Sequential(NORM(4), nn.Linear(4, classes or 1))):
        with pytest.raises(ConfigError, match=r"'mine' gives a record another value .* couples = True"):
            batch_needs(model, Loss(loss, "mine"), (4,), False, classes, None)


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        (tilted, None),
        (lambda o, y: functional.cross_entropy(o, y, reduction="none", label_smoothing=0.1), 3),
        (lambda o, y: (o.flatten() - y).abs().float(), None),
        (lambda o, y: (o.flatten() - y).abs() * (torch.rand(len(y)) < 0.5), None),  # each record has its own draw
    ],
)
def test_a_loss_that_keeps_records_apart_asks_for_nothing(loss: LossFn, classes: int | None) -> None:
    assert batch_needs(nn.Linear(4, classes or 1), Loss(loss, "mine"), (4,), False, classes, None) == BatchNeeds()


@pytest.mark.parametrize("loss", [unruly, lambda o, y: (o.flatten() - y).abs() * np.random.random()])
def test_where_a_loss_cannot_be_tried_its_batches_stay_whole(loss: LossFn) -> None:
    needs = batch_needs(nn.Linear(4, 1), Loss(loss, "mine"), (4,), False, None, None)
    assert (needs.whole is not None, needs.fewest, needs.couples) == (True, 1, False)


def test_a_loss_may_say_that_it_is_of_whole_batches() -> None:
    needs = batch_needs(nn.Linear(4, 1), Loss(partial_likelihood, "mine", couples=True), (4,), False, None, None)
    assert needs == BatchNeeds("training.loss=mine is taken over the whole batch", 1, True)
    needs = batch_needs(nn.Sequential(NORM(4), nn.Linear(4, 1)), Loss(partial_likelihood, "mine", couples=True), (4,), False, None, None)
    assert (needs.fewest, needs.couples) == (2, True)


def test_the_datas_own_targets_are_tried_where_they_may_be_looked_at() -> None:
    loss, targets = Loss(of_the_data, "mine"), np.repeat(np.array([1.0, 2000.0], dtype=np.float32), 20)
    assert batch_needs(nn.Linear(4, 1), loss, (4,), False, None, None) == BatchNeeds()
    with pytest.raises(ConfigError, match="couples = True"):
        batch_needs(nn.Linear(4, 1), loss, (4,), False, None, targets)


@pytest.mark.parametrize("name", sorted(components.LOSSES.parts()))
def test_built_in_losses_keep_records_apart_or_say_that_they_do_not(name: str) -> None:
    loss = find_loss(name)
    outputs, classes = loss.outputs or 3, loss.classes or (3 if loss.task in ("classes", "tokens") else None)
    shape = tuple({"outputs": outputs, "positions": 2}.get(str(size), size) for size in loss.targets[1:])
    model = nn.Linear(4, outputs)
    if "positions" in loss.targets:
        model = nn.Sequential(nn.Linear(4, 2 * outputs), nn.Unflatten(1, (2, outputs)))
    tried = replace(loss, function=lambda o, y: loss.function(o, y))
    for each in (loss, tried):
        assert batch_needs(model, each, (4,), False, classes, None, shape).couples == loss.couples


# -- models ------------------------------------------------------------------------------------------


class Whitening(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Last(nn.Module):
    """The states of an LSTM; not batch first, it takes the records for time."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=batch_first), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize(
    ("make", "shape", "coupled", "fewest"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 8), NORM(8), nn.Linear(8, 3)), (4,), True, 2),
        (lambda: nn.Sequential(nn.Linear(4, 8), NORM(8, affine=False, track_running_stats=False), nn.Linear(8, 3)), (4,), True, 2),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 3)), (1, 5, 5), True, 1),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 5), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3)), (1, 5, 5), True, 2),
        (lambda: nn.Sequential(Whitening(), nn.Linear(4, 3)), (4,), True, 1),
        (lambda: Last(False), (5, 3), True, 1),
        (lambda: Last(True), (5, 3), False, 1),
        (lambda: nn.Sequential(Noisy(), nn.Linear(4, 3), nn.Dropout()), (4,), False, 1),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.InstanceNorm1d(8), nn.Dropout(), nn.Linear(8, 3)), (2, 4), False, 1),
    ],
)
def test_what_a_model_needs_of_a_batch_is_measured(make: Any, shape: tuple[int, ...], coupled: bool, fewest: int) -> None:
    torch.manual_seed(0)
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss = cross_entropy if len(shape) != 2 or shape[0] != 2 else (lambda o, y: functional.cross_entropy(o.mean(1), y, reduction="none"))
    needs = batch_needs(model, Loss(loss), shape, False, 3, None)
    assert (needs.whole is not None, needs.fewest) == (coupled, fewest)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training


def test_tokens_and_built_in_models_keep_records_apart() -> None:
    lstm = build_model(ModelChoice(kind="lstm", tokens=9), (6,), 3, 0, torch.int64)
    assert batch_needs(lstm, find_loss("cross_entropy"), (6,), True, 3, None) == BatchNeeds()
    assert (
        batch_needs(
            build_model(ModelChoice(kind="resnet18_gn"), (3, 16, 16), 3, 0), find_loss("cross_entropy"), (3, 16, 16), False, 3, None
        )
        == BatchNeeds()
    )


# -- engines and batches -----------------------------------------------------------------------------


def test_lockstep_takes_no_loss_that_couples_records() -> None:
    model, section = nn.Linear(6, 1), Training(batch_size=8, epochs=1)
    assert choose_engine("auto", False, model, section, True)[0] == "lockstep"
    assert choose_engine("auto", False, model, section, True, BatchNeeds("it couples"))[0] == "plain"
    with pytest.raises(ConfigError, match=r"lockstep cannot train this \(it couples\)"):
        choose_engine("lockstep", False, model, section, True, BatchNeeds("it couples"))
    with pytest.raises(ConfigError, match=r"'python:fedray.training.plain:plain' cannot train this, because it couples"):
        choose_engine("python:fedray.training.plain:plain", False, model, section, True, BatchNeeds("it couples", couples=True))


@pytest.mark.parametrize(
    ("training", "sizes", "needs", "words"),
    [
        ({"batch_size": 300, "epochs": 1}, [400], BatchNeeds("x"), "less than a batch of 300"),
        ({"batch_size": 300, "epochs": 1}, [200], BatchNeeds("x"), None),  # no client has so many
        ({"batch_size": 256, "epochs": 1}, [513], BatchNeeds("x", 2), None),  # the last record joins
        ({"sampling_rate": 0.5, "steps": 1, "expected_batch": 9}, [300], BatchNeeds("x"), "less than a batch of 300"),
        ({"sampling_rate": 0.5, "steps": 1, "expected_batch": 9}, [30], BatchNeeds("x", 2), "may draw a single record"),
        ({"sampling_rate": 0.5, "steps": 1, "expected_batch": 9}, [30], BatchNeeds("x", 1, True), "use training.batch_size"),
        ({"batch_size": 1, "epochs": 1}, [30], BatchNeeds("x", 2), "1 record at a time"),
        ({"batch_size": 8, "epochs": 1}, [30, 1], BatchNeeds("x", 2), "client b holds 1 training record"),
        ({"batch_size": 8, "epochs": 1}, [30, 0], BatchNeeds("x", 2), None),
        ({"batch_size": 1, "epochs": 1}, [1, 1], BatchNeeds(), None),
    ],
)
def test_batches_that_would_be_wrong_are_refused_before_any_work(
    training: dict[str, Any], sizes: list[int], needs: BatchNeeds, words: str | None
) -> None:
    run = lambda: check_batches(needs, Training(**training), np.array(sizes), ["a", "b"])  # noqa: E731
    if words is None:
        run()
    else:
        with pytest.raises(ConfigError, match=words):
            run()


@pytest.mark.parametrize(
    ("n", "size", "steps", "fewest", "sizes"),
    [
        (41, 8, None, 2, [8, 8, 8, 8, 9]),
        (41, 8, None, 1, [8, 8, 8, 8, 8, 1]),
        (40, 8, None, 2, [8] * 5),
        (9, 8, None, 2, [9]),
        (7, 8, None, 2, [7]),
        (9, 4, 5, 2, [4, 5, 4, 5, 4]),
        (9, 4, 5, 1, [4, 4, 1, 4, 4]),
        (0, 4, 5, 2, []),
    ],
)
def test_the_last_record_joins_the_batch_before_it(n: int, size: int, steps: int | None, fewest: int, sizes: list[int]) -> None:
    section = Training(batch_size=size, **({"epochs": 1} if steps is None else {"steps": steps}))
    drawn = list(batches(n, section, generator(0, "batches"), fewest))
    assert [len(d) for d in drawn] == sizes
    if steps is None:
        assert sorted(np.concatenate(drawn).tolist() if drawn else []) == list(range(n))


def test_a_batch_that_must_stay_whole_is_not_computed_in_parts_for_want_of_memory() -> None:
    def train(batch: int) -> None:
        raise MemoryError

    with pytest.raises(FedrayError, match="cannot be computed in parts because it couples"):
        fitting(train, 8, "it couples")
    x, y = torch.randn(6, 4), torch.randn(6)
    section = Training(batch_size=6, epochs=1, physical_batch=3)
    job = LocalJob(section, 0.1, partial_likelihood, generator(0, "b"), whole="it couples", couples=True)
    with pytest.raises(ConfigError, match="less than a batch of 6 records"):
        plain(nn.Linear(4, 1), x, y, job)


# -- an actor ----------------------------------------------------------------------------------------


def trained(model: Any, loss: LossFn, training: dict[str, Any], y: Any, classes: int | None, clients: int = 6, **more: Any) -> Any:
    components.provide({"python:provided:model": model, "python:provided:loss": loss})
    each = len(y) // clients
    x = np.random.default_rng(1).standard_normal((len(y), 6), dtype=np.float32)
    names = [f"c{k}" for k in range(clients)]
    config = build_config(
        {
            "name": "coupled",
            "rounds": 1,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": "python:provided:model"},
            "training": {"lr": 0.1, "loss": "python:provided:loss", **training},
        }
        | more
    )
    data = Federation(names, Records(x, y), np.arange(clients + 1, dtype=np.int64) * each, None, None, None, classes)
    outputs = classes or 1
    made = ClientHost(
        make_terms(config, make_groups(config, names)[0], None, first_model(config.model, (6,), outputs, config.seed)[1]),
        Site(device="cpu"),
        data,
    )
    made.ready()
    net = build_model(config.model, (6,), outputs, config.seed)
    reports = made.train(RoundTask(0, 1e4), get_vector(net, Layout.of(net)), [ClientTask(k, n) for k, n in enumerate(names)])
    assert [r.status for r in reports] == ["done"] * clients, reports[0].error
    return made, made.collect(RoundTask(0, 1e4)).total


def survival() -> Any:
    rng = np.random.default_rng(2)
    times = rng.exponential(size=120).astype(np.float32) + 0.01
    return np.where(rng.random(120) < 0.7, times, -times).astype(np.float32)


def test_every_engine_that_takes_a_coupled_loss_gives_the_same_model() -> None:
    def linear(input_shape: tuple[int, ...]) -> nn.Module:
        return nn.Linear(input_shape[0], 1, bias=False)

    sums = []
    for engine, physical in (("auto", 256), ("plain", 256), ("auto", 8)):
        made, total = trained(
            linear, partial_likelihood, {"batch_size": 8, "epochs": 1, "engine": engine, "physical_batch": physical}, survival(), None
        )
        assert made._trainer.engine_name == "plain"
        sums.append(total.values.tobytes())
    assert len(set(sums)) == 1
    with pytest.raises(ConfigError, match="lockstep cannot train this"):
        trained(linear, partial_likelihood, {"batch_size": 8, "epochs": 1, "engine": "lockstep"}, survival(), None)


@pytest.mark.parametrize("each", [9, 17, 2])
def test_batch_normalisation_trains_clients_whose_last_batch_would_be_one_record(each: int) -> None:
    def net(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(input_shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))

    y = np.arange(each * 3) % 3
    made, _ = trained(net, cross_entropy, {"batch_size": 8, "epochs": 2}, y, 3, clients=3)
    assert made._trainer.needs.fewest == 2


# -- evaluation --------------------------------------------------------------------------------------


def test_evaluation_does_not_depend_on_its_batch_size() -> None:
    torch.manual_seed(0)
    x = torch.randn(41, 4)
    for model, y, loss in (
        (nn.Linear(4, 1), torch.randn(41), partial_likelihood),
        (nn.Sequential(Whitening(), nn.Linear(4, 3)), torch.arange(41) % 3, cross_entropy),
        (nn.Sequential(nn.Linear(4, 8), NORM(8, track_running_stats=False), nn.Linear(8, 3)), torch.arange(41) % 3, cross_entropy),
        (nn.Sequential(nn.Linear(4, 8), NORM(8), nn.Linear(8, 3)), torch.arange(41) % 3, cross_entropy),
    ):
        whole, parts = (evaluate(model, x, y, {"loss": mean_loss}, loss, size)["loss"] for size in (100, 8))
        assert parts == pytest.approx(whole, rel=1e-6)
    single = evaluate(nn.Sequential(NORM(4), nn.Linear(4, 3)), x[:1], torch.zeros(1, dtype=torch.int64), {"loss": mean_loss}, cross_entropy)
    assert np.isfinite(single["loss"])
