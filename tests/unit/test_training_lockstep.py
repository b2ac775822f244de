"""The engine that trains many clients at once: what each would get alone, to the last bit whoever is beside it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import DEVICE, EXACT
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import apart, gamma, steps_apart, terms_of
from torch import nn

from fedray import components
from fedray.aggregation.exact import ExactSum
from fedray.choices import ModelChoice
from fedray.clients import trainer
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Training
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import ConfigError, Stopped
from fedray.models.build import build_model
from fedray.models.facts import first_model
from fedray.parameters import Layout, Vector, get_vector, set_vector
from fedray.rng import generator
from fedray.training.choose import choose_engine
from fedray.training.engine import Engine, LocalJob, LocalResult
from fedray.training.lockstep import Crowd, lockstep, train_crowd
from fedray.training.losses import find_loss
from fedray.training.plain import plain

MODELS = [
    ModelChoice(kind="softmax"),
    ModelChoice(kind="mlp", hidden=[5], activation="elu"),  # smooth, as the others: at a corner, rounding decides between two gradients
    ModelChoice(kind="mlp", hidden=[17, 3], activation="sigmoid"),
    ModelChoice(kind="mlp", hidden=[16, 32], activation="tanh"),
]
WORK: list[dict[str, Any]] = [
    {"batch_size": 4, "epochs": 1},
    {"batch_size": 5, "epochs": 2, "momentum": 0.9},
    {"batch_size": 3, "steps": 7, "momentum": 0.5, "nesterov": True, "weight_decay": 0.02},
    {"batch_size": 64, "epochs": 3, "weight_decay": 0.1},
]


def crowd_of(sizes: list[int], features: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((sum(sizes), features), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, classes, sum(sizes)))
    stops = np.cumsum(sizes).tolist()
    return x, y, [0, *stops[:-1]], stops


def alone(
    engine: Engine, model: nn.Module, layout: Layout, weights: Vector, x: torch.Tensor, y: torch.Tensor, job: LocalJob
) -> tuple[Vector, LocalResult]:
    set_vector(model, layout, weights)
    result = engine(model, x.to(DEVICE), y.to(DEVICE), job)
    return get_vector(model, layout) - weights, result


def same(a: Any, b: Any) -> bool:
    """To the last bit; a GPU's kernels do not promise that."""
    return a.tobytes() == b.tobytes() if EXACT else np.allclose(a, b, rtol=1e-4, atol=1e-6)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 23), min_size=1, max_size=12),
    model=st.sampled_from(MODELS),
    work=st.sampled_from(WORK),
    loss=st.sampled_from(["cross_entropy", "focal"]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_each_client_gets_what_it_gets_alone(
    sizes: list[int], model: ModelChoice, work: dict[str, Any], loss: str, seed: int, data: st.DataObject
) -> None:
    net = build_model(model, (9,), 4, seed).to(DEVICE)
    layout, training = Layout.of(net), Training(lr=0.2, **work)
    weights = get_vector(net, layout)
    x, y, starts, stops = crowd_of(sizes, 9, 4, seed)

    def job(k: int) -> LocalJob:
        return LocalJob(training, 0.2, find_loss(loss), generator(seed, "batches", k))

    def together(clients: list[int]) -> tuple[Any, list[LocalResult]]:
        crowd = Crowd(
            x, y, [starts[k] for k in clients], [stops[k] for k in clients], lambda place: generator(seed, "batches", clients[place])
        )
        trained, results = train_crowd(net, layout, weights, crowd, job(0))
        return trained - weights, results

    everyone = list(range(len(sizes)))
    updates, results = together(everyone)
    for k in everyone:
        expected, result = alone(plain, net, layout, weights, x[starts[k] : stops[k]], y[starts[k] : stops[k]], job(k))
        assert apart(updates[k], expected) <= steps_apart(
            weights, weights + expected, terms_of(net, training.batch_size or 1), result.steps
        )
        assert (results[k].steps, results[k].examples) == (result.steps, result.examples)
        assert results[k].loss == pytest.approx(result.loss, rel=gamma(result.steps * terms_of(net, training.batch_size or 1)))
        itself, _ = alone(lockstep, net, layout, weights, x[starts[k] : stops[k]], y[starts[k] : stops[k]], job(k))
        assert same(itself, updates[k])
    order = data.draw(st.permutations(everyone))
    cut = data.draw(st.integers(0, len(order)))
    for part in (order[:cut], order[cut:]):
        if part:
            assert same(together(part)[0], updates[part])


ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SiLU, nn.LeakyReLU, nn.Softplus, nn.Identity]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda made: made.__name__)
@pytest.mark.parametrize("hidden", [(17, 3), (16, 16), (48, 16)])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_no_bit_depends_on_how_many_there_are(loss: str, hidden: tuple[int, int], activation: type[nn.Module]) -> None:
    """One client and two, whole vectors and halves of one: other kernels, and loops that leave values over, on some processors."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, hidden[0]), activation(), nn.Linear(*hidden), activation(), nn.Linear(hidden[1], 4)).to(DEVICE)
    layout = Layout.of(net)
    weights = get_vector(net, layout)
    x, y, starts, stops = crowd_of([1, 3, 2], 9, 4, 0)
    job = LocalJob(Training(lr=0.2, batch_size=1, epochs=2), 0.2, find_loss(loss), generator(0, "b"))

    def together(clients: list[int]) -> Any:
        crowd = Crowd(x, y, [starts[k] for k in clients], [stops[k] for k in clients], lambda n: generator(1, "b", clients[n]))
        return train_crowd(net, layout, weights, crowd, job)[0]

    whole = together([0, 1, 2])
    for part in ([0], [1], [2], [0, 1], [1, 2]):
        assert same(together(part), whole[part])


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("size", [1, 16, 40, 784])
def test_no_bit_depends_on_the_others_where_arithmetic_is_heavy(size: int, threads: int) -> None:
    """More clients, wider layers: other kernels than in the property above. An actor of several cores has several threads."""
    net = build_model(ModelChoice(kind="mlp", hidden=[48, 33]), (size,), 10, 0).to(DEVICE)
    layout = Layout.of(net)
    weights = get_vector(net, layout)
    x, y, starts, stops = crowd_of([20] * 60, size, 10, 1)
    job = LocalJob(Training(lr=0.1, batch_size=10, epochs=2), 0.1, find_loss("cross_entropy"), generator(0, "x"))

    def together(clients: range) -> Any:
        crowd = Crowd(
            x, y, starts[clients.start : clients.stop], stops[clients.start : clients.stop], lambda place: generator(0, "b", clients[place])
        )
        return train_crowd(net, layout, weights, crowd, job)[0]

    whole = together(range(60))
    for a, b in ((0, 1), (1, 2), (3, 10), (7, 38), (59, 60), (1, 60)):
        assert same(together(range(a, b)), whole[a:b])
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("model", "training", "words"),
    [
        (nn.Sequential(nn.Linear(3, 2)), {"batch_size": 2, "epochs": 1, "optimizer": "adam"}, "SGD only"),
        (nn.Sequential(nn.Linear(3, 2)), {"sampling_rate": 0.5, "steps": 1, "expected_batch": 2.0}, "batch_size"),
        (nn.Sequential(nn.Linear(3, 2)), {"batch_size": 9, "epochs": 1, "physical_batch": 4}, "physical_batch"),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout()), {"batch_size": 2, "epochs": 1}, "Dropout is no layer"),
        (nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(6, 2)), {"batch_size": 2, "epochs": 1}, "Conv1d is no layer"),
        (nn.Sequential(nn.ReLU()), {"batch_size": 2, "epochs": 1}, "no Linear layer"),
        (nn.Sequential(nn.Linear(3, 2), nn.GELU()), {"batch_size": 2, "epochs": 1}, "GELU is no layer"),
        (nn.Sequential(nn.Linear(3, 2), nn.Flatten(), nn.Linear(2, 2)), {"batch_size": 2, "epochs": 1}, "flattens"),
    ],
)
def test_what_it_cannot_train_is_refused_and_left_to_the_plain_engine(model: nn.Module, training: dict[str, Any], words: str) -> None:
    section = Training(lr=0.1, **training)
    with pytest.raises(ConfigError, match=words) as caught:
        choose_engine("lockstep", False, model, section, True)
    assert str(caught.value).startswith("training.engine: ")
    assert choose_engine("auto", False, model, section, True)[0] == "plain"


def test_tied_layers_and_layers_with_hooks_are_refused() -> None:
    section = Training(lr=0.1, batch_size=2, epochs=1)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    hooked = nn.Sequential(nn.Linear(3, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    watched, around = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    watched[0].register_full_backward_hook(lambda *_: None)
    around.register_forward_hook(lambda *_: None)
    for model in (tied, hooked, watched, around):
        assert choose_engine("auto", False, model, section, True)[0] == "plain"


def test_it_is_chosen_for_small_models_where_the_algorithm_leaves_training_alone() -> None:
    section = Training(lr=0.1, batch_size=2, epochs=1)
    small, large = nn.Sequential(nn.Linear(30, 2)), nn.Sequential(nn.Linear(2000, 2000))
    assert choose_engine("auto", False, small, section, True)[0] == "lockstep"
    assert choose_engine("auto", False, small, section, False)[0] == "plain"
    assert choose_engine("auto", False, large, section, True)[0] == "plain"
    assert choose_engine("lockstep", False, large, section, True)[0] == "lockstep"
    with pytest.raises(ConfigError, match="takes part in every step"):
        choose_engine("lockstep", False, small, section, False)


def test_it_stops_between_steps() -> None:
    net = build_model(ModelChoice(kind="softmax"), (9,), 4, 0).to(DEVICE)
    layout = Layout.of(net)
    x, y, starts, stops = crowd_of([8, 8], 9, 4, 0)
    answers = iter([False, False, True])
    job = LocalJob(
        Training(lr=0.1, batch_size=2, epochs=1),
        0.1,
        find_loss("cross_entropy"),
        generator(0, "x"),
        should_stop=lambda: next(answers),
    )
    crowd = Crowd(x, y, starts, stops, lambda place: generator(0, "b", place))
    with pytest.raises(Stopped):
        train_crowd(net, layout, get_vector(net, layout), crowd, job)


# -- in an actor ---------------------------------------------------------------------------------


def host(engine: str, x: Any, y: Any, clients: int, **sections: Any) -> tuple[ClientHost, Vector, Federation]:
    config = build_config(
        {
            "name": "together",
            "rounds": 1,
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": clients}},
            "model": {"kind": "softmax"},
            "training": {"lr": 0.1, "batch_size": 4, "epochs": 2, "engine": engine},
        }
        | sections
    )
    offsets = np.arange(clients + 1, dtype=np.int64) * (len(y) // clients)
    data = Federation([f"c{k}" for k in range(clients)], Records(x, y), offsets, None, None, None, 3)
    made = ClientHost(
        make_terms(config, make_groups(config, data.names)[0], None, first_model(config.model, data.shape, 3, config.seed)[1]),
        Site(device=str(DEVICE)),
        data,
    )
    made.ready()
    net = build_model(config.model, data.shape, 3, config.seed)
    return made, get_vector(net, Layout.of(net)), data


def records(clients: int, each: int = 10) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((clients * each, 7), dtype=np.float32), rng.integers(0, 3, clients * each)


def test_an_actor_trains_them_together_as_it_would_one_by_one() -> None:
    x, y = records(9)
    sums = []
    for engine in ("lockstep", "plain", "auto"):
        made, weights, data = host(engine, x, y, 9)
        task, clients = RoundTask(0, 1e3), [ClientTask(k, n) for k, n in enumerate(data.names)]
        reports = made.train(task, weights, clients[:4]) + made.train(task, weights, clients[4:])
        assert [r.status for r in reports] == ["done"] * 9
        part = made.collect(task)
        assert part.clients == list(range(9))
        sums.append((part.total, [r.loss for r in reports]))
    (together, losses), (single, expected), (chosen, _) = sums
    net, scale = build_model(ModelChoice(kind="softmax"), (7,), 3, 0), 2.0**-single.bits
    start, moved = len(y) * weights, single.values * scale  # each client counts as often as it has records
    terms, steps = terms_of(net, records=4), 2 * 3
    assert apart(together.values * scale, moved) <= steps_apart(start, start + moved, terms, steps)
    assert losses == pytest.approx(expected, rel=gamma(steps * terms))
    assert same(chosen.values * scale, together.values * scale)


def test_a_client_that_diverges_is_left_out_and_named_and_no_other() -> None:
    x, y = records(5)
    x[20:30] *= 1e25  # client 2
    made, weights, data = host("lockstep", x, y, 5)
    task = RoundTask(0, 1e3)
    reports = made.train(task, weights, [ClientTask(k, n) for k, n in enumerate(data.names)])
    assert [r.status for r in reports] == ["done", "done", "rejected", "done", "done"]
    assert "NaN or infinite" in reports[2].error
    part = made.collect(task)
    assert part.clients == [0, 1, 3, 4]
    assert part.total.count == 4
    assert part.total.weight == 40


def picky(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if float(outputs.detach().abs().max()) > 1e3:
        raise RuntimeError("the sensor is broken")
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def test_where_one_client_fails_the_others_train_on_their_own() -> None:
    x, y = records(4)
    x[10:20] = 1e6  # client 1
    components.provide({"python:provided:picky": picky})
    training = {"lr": 0.1, "batch_size": 4, "epochs": 2, "loss": "python:provided:picky"}
    made, weights, data = host("lockstep", x, y, 4, training=training)
    task = RoundTask(0, 1e3)
    reports = made.train(task, weights, [ClientTask(k, n) for k, n in enumerate(data.names)])
    assert [r.status for r in reports] == ["done", "failed", "done", "done"]
    assert "the sensor is broken" in reports[1].error
    part = made.collect(task)
    assert part.clients == [0, 2, 3]
    again, _, _ = host("lockstep", x, y, 4, training=training)
    again.train(task, weights, [ClientTask(k, data.names[k]) for k in (0, 2, 3)])
    assert same(part.total.values * 2.0**-part.total.bits, again.collect(task).total.values * 2.0**-part.total.bits)


def test_what_failed_together_is_freed_before_the_clients_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a lack of memory of the crowd would be one of each of its clients."""
    x, y = records(3)
    made, weights, data = host("lockstep", x, y, 3)
    held: list[weakref.ref[torch.Tensor]] = []

    def fails(*_: Any) -> Any:
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    real = trainer.Trainer._turn

    def turn(*arguments: Any) -> Any:
        assert held[0]() is None
        return real(*arguments)

    monkeypatch.setattr(trainer, "train_crowd", fails)
    monkeypatch.setattr(trainer.Trainer, "_turn", turn)
    monkeypatch.setattr(made._trainer, "engine", plain)
    reports = made.train(RoundTask(0, 1e3), weights, [ClientTask(k, n) for k, n in enumerate(data.names)])
    assert [r.status for r in reports] == ["done"] * 3


def test_an_actor_that_was_told_to_stop_says_so_for_all() -> None:
    x, y = records(4)
    made, weights, data = host("lockstep", x, y, 4)
    made.stop_round(0)
    reports = made.train(RoundTask(0, 1e3), weights, [ClientTask(k, n) for k, n in enumerate(data.names)])
    assert [r.status for r in reports] == ["late"] * 4
    assert isinstance(made.collect(RoundTask(0, 1e3)).total, ExactSum)
