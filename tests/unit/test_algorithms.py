"""All algorithms and server optimisers that a config can name: what is the same for each, and what each one's paper says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, label_skewed
from rounding import gamma
from virtualray import drive

from fedray import components
from fedray.algorithms.algorithm import Algorithm, Mean, make_algorithm, make_server, only_trains
from fedray.algorithms.fednova import effective_steps
from fedray.checkpoint import load_latest
from fedray.choices import Choice
from fedray.clients.messages import ClientReport, ClientTask, RoundTask
from fedray.clients.states import StateFiles
from fedray.configfile import build_config
from fedray.errors import ConfigError, FedrayError, PrivacyRefusal
from fedray.exchange import Exchange, Field
from fedray.parameters import get_vector
from fedray.planning.combinations import check_only
from fedray.rounds.clientstates import ClientStates
from fedray.runfiles import RunFiles

ALGORITHMS = sorted(set(components.ALGORITHMS.parts()) - ({"bagged_trees"} if find_spec("xgboost") is None else set()))
SERVERS = sorted(components.SERVERS.parts())
FEDERATION, TEST = label_skewed()
#: What an algorithm cannot do without.
ARGUMENTS: dict[str, dict[str, Any]] = {kind: {"personal": ["fc.bias"]} for kind in ("fedper", "fedrep")}
ARGUMENTS["flhc"] = {"clients": 10, "after": 1}
#: The models of those that are not for any.
MODELS: dict[str, dict[str, Any]] = {kind: {"kind": "trees", "depth": 2} for kind in ("bagged_trees", "histogram_trees")}


def part_of(kind: str) -> dict[str, Any]:
    """The section that names an algorithm."""
    return {"kind": kind, **ARGUMENTS.get(kind, {})}


@settings(max_examples=8, deadline=None)
@given(data=st.data(), kind=st.sampled_from(ALGORITHMS), rounds=st.integers(1, 2))
def test_any_split_any_order_and_other_actors_each_round_give_the_same_bytes(data: st.DataObject, kind: str, rounds: int) -> None:
    model = MODELS.get(kind, {"kind": "softmax"})
    alone, split = (Rehearsed(config_of(part_of(kind), model=model), FEDERATION) for _ in range(2))
    for _ in range(rounds):
        cohort = data.draw(st.permutations(range(10)))[:4]
        alone.train([sorted(cohort)])
        cut = data.draw(st.integers(0, 4))
        split.train([cohort[:cut], cohort[cut:]], data.draw(st.permutations(range(2))))
        split.restart()
    assert alone.globals.tobytes() == split.globals.tobytes()
    assert alone.kept() == split.kept()
    assert {k: v.tobytes() for k, v in alone.state.items()} == {k: v.tobytes() for k, v in split.state.items()}


@pytest.mark.parametrize("kind", [kind for kind in ALGORITHMS if components.ALGORITHMS.parts()[kind].traits.together])
def test_training_many_at_once_or_each_alone_is_the_same_but_for_rounding(kind: str) -> None:
    runs = []
    for engine in ("lockstep", "plain"):
        training = {"lr": 0.1, "batch_size": 10, "epochs": 2, "engine": engine}
        run = Rehearsed(config_of({"kind": kind}, training=training), FEDERATION)
        run.train([[0, 3, 5]])
        runs.append(run.globals)
    np.testing.assert_allclose(runs[0], runs[1], rtol=0, atol=1e-4)


def test_a_proximal_term_is_that_of_the_loss() -> None:
    mu, lr = 0.3, 0.1
    training = {"lr": lr, "batch_size": 5000, "epochs": 3, "physical_batch": 5000}
    run = Rehearsed(config_of({"kind": "fedprox", "mu": mu}, training=training), FEDERATION)
    start = run.globals.copy()
    run.train([[2]])
    x, y = (torch.from_numpy(v[slice(*FEDERATION.offsets[2:4])]) for v in (FEDERATION.train.x, FEDERATION.train.y))
    weight, bias = (torch.from_numpy(v.copy()).double().requires_grad_() for v in run.layout.views(start).values())
    first = [p.detach().clone() for p in (weight, bias)]
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, y)
        loss = loss + mu / 2 * sum(((p - f) ** 2).sum() for p, f in zip((weight, bias), first, strict=True))
        for p, g in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            p.data -= lr * g
    found = run.layout.views(run.globals)
    for p, name in zip((weight, bias), found, strict=True):
        np.testing.assert_allclose(found[name], p.detach().numpy(), rtol=0, atol=gamma(3000))


def test_with_as_many_steps_each_fednova_is_fedavg() -> None:
    training = {"lr": 0.1, "batch_size": 5000, "epochs": 2, "physical_batch": 5000}
    runs = [Rehearsed(config_of({"kind": kind}, training=training), FEDERATION) for kind in ("fedavg", "fednova")]
    for run in runs:
        run.train([[1, 4, 7]])
    np.testing.assert_allclose(runs[0].globals, runs[1].globals, rtol=0, atol=gamma(20))


def test_fednova_counts_steps_and_not_records() -> None:
    run = Rehearsed(config_of({"kind": "fednova"}), FEDERATION)
    first = run.globals.copy()
    run.train([[0, 1]])
    sizes, moved = FEDERATION.sizes[:2].astype(float), []
    for k in (0, 1):
        alone = Rehearsed(config_of({"kind": "fedavg"}), FEDERATION)
        alone.train([[k]])
        moved.append((alone.globals - first).astype(np.float64))
    steps = [2 * -(-int(n) // 10) for n in sizes]
    shares = sizes / sizes.sum()
    expected = first + (shares @ steps) * sum(p * d / t for p, d, t in zip(shares, moved, steps, strict=True))
    np.testing.assert_allclose(run.globals, expected, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(0, 50), momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_effective_steps_are_what_momentum_moves_for_a_constant_gradient(steps: int, momentum: float) -> None:
    velocity = moved = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0
        moved += velocity
    assert effective_steps(steps, momentum) == pytest.approx(moved, rel=1e-9)


def test_q_zero_is_fedavg_that_counts_each_client_once() -> None:
    runs = [Rehearsed(config_of(part), FEDERATION) for part in ({"kind": "qfedavg", "q": 0}, {"kind": "fedavg", "weights": "uniform"})]
    for run in runs:
        run.train([[0, 2, 9]])
    np.testing.assert_allclose(runs[0].globals, runs[1].globals, rtol=0, atol=gamma(20))


def test_a_larger_q_moves_the_model_for_those_who_lose_most() -> None:
    def spread(q: float) -> float:
        run = Rehearsed(config_of({"kind": "qfedavg", "q": q}), FEDERATION)
        for _ in range(12):
            run.train([range(10)])
        parts = [
            (FEDERATION.train.x[a:b], FEDERATION.train.y[a:b]) for a, b in zip(FEDERATION.offsets, FEDERATION.offsets[1:], strict=False)
        ]
        weight, bias = (v.astype(np.float64) for v in run.layout.views(run.globals).values())
        losses = []
        for x, y in parts:
            logits = x @ weight.T + bias
            losses.append(float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).mean()))
        return float(np.std(losses))

    assert spread(2.0) < spread(0.0)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["adagrad", "adam", "yogi"]), seed=st.integers(0, 1000), beta1=st.sampled_from([0.0, 0.9]))
def test_adaptive_servers_are_algorithm_2(kind: str, seed: int, beta1: float) -> None:
    draws, lr, beta2, tau = np.random.default_rng(seed), 0.03, 0.99, 1e-2
    arguments: dict[str, Any] = {"lr": lr, "beta1": beta1, "tau": tau} | ({} if kind == "adagrad" else {"beta2": beta2})
    server = make_server(Choice(kind=kind, **arguments))
    weights, state = draws.standard_normal(20).astype(np.float32), server.init(20)
    x, m, v = weights.astype(np.float64), np.zeros(20), np.full(20, tau**2)
    for _ in range(5):
        delta = (draws.standard_normal(20) * 0.1).astype(np.float32)
        before = weights.copy()
        weights, state = server.step(weights, delta, state)
        d = delta.astype(np.float64)
        m = beta1 * m + (1 - beta1) * d
        v = {"adagrad": v + d**2, "adam": beta2 * v + (1 - beta2) * d**2, "yogi": v - (1 - beta2) * d**2 * np.sign(v - d**2)}[kind]
        x = x + lr * m / (np.sqrt(v) + tau)
        assert weights is not before and all(value.dtype == np.float32 for value in state.values())
    np.testing.assert_allclose(weights, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_step_leaves_its_arguments(kind: str) -> None:
    server = make_server(Choice(kind=kind))
    weights, delta, state = np.ones(3, np.float32), np.full(3, 0.1, np.float32), server.init(3)
    for array in (weights, delta, *state.values()):
        array.flags.writeable = False
    new, _ = server.step(weights, delta, state)
    assert (new > weights).all()


def test_control_variates_are_option_two() -> None:
    """Two rounds written out, in float64, for two clients of which the second trains in the second round alone."""
    training = {"lr": 0.05, "batch_size": 5000, "epochs": 3, "physical_batch": 5000}
    run = Rehearsed(config_of({"kind": "scaffold", "weights": "uniform"}, training=training), FEDERATION)
    size, lr, steps = run.layout.size, 0.05, 3
    data = [
        (FEDERATION.train.x[a:b].astype(np.float64), FEDERATION.train.y[a:b])
        for a, b in zip(FEDERATION.offsets, FEDERATION.offsets[1:], strict=False)
    ]

    def gradient(w: np.ndarray, k: int) -> np.ndarray:
        x, y = data[k]
        weight, bias = w[:640].reshape(10, 64), w[640:]
        logits = x @ weight.T + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        return np.concatenate([(p.T @ x / len(y)).ravel(), p.mean(0)])

    x, c, own = run.globals[:size].astype(np.float64), np.zeros(size), np.zeros((10, size))
    for cohort in ([0], [0, 3]):
        moves, changes = [], []
        for k in cohort:
            y = x.copy()
            for _ in range(steps):
                y -= lr * (gradient(y, k) - own[k] + c)
            new = own[k] - c + (x - y) / (steps * lr)
            moves.append(y - x)
            changes.append(new - own[k])
            own[k] = new
        x, c = x + np.mean(moves, 0), c + len(cohort) / 10 * np.mean(changes, 0)
        run.train([cohort])
    np.testing.assert_allclose(run.globals, np.concatenate([x, c]), rtol=0, atol=1e-4)


def test_a_turn_whose_update_did_not_count_leaves_the_state_before_it() -> None:
    run = Rehearsed(config_of({"kind": "scaffold"}), FEDERATION)
    run.train([[0, 1]])
    before, task = run.kept(), RoundTask(1, run.algorithm.largest_weight(FEDERATION.sizes), clients=10)
    (report,) = run.host(1).train(task, run.globals, run.states.attached([ClientTask(0, "client-0")]))
    assert report.status == "done" and report.state is not None
    run.states.commit([report], [])  # as where its part is lost with an actor
    assert run.kept() == before
    run.states.commit([report], [0])
    assert run.kept() != before


def test_state_that_is_gone_or_damaged_is_said(tmp_path: Path) -> None:
    files = StateFiles(str(tmp_path))
    address = files.append(0, {"a": np.arange(3, dtype=np.float32), "b": np.zeros(0, dtype=np.float32)})
    other = files.append(0, {"a": np.ones(2, dtype=np.float32)})
    assert {name: v.tolist() for name, v in files.read(address).items()} == {"a": [0, 1, 2], "b": []}
    assert files.read(other)["a"].tolist() == [1, 1]
    states = ClientStates(tmp_path, 1)
    states.commit([ClientReport(4, "x", "done", state=other)], [4])
    assert ClientStates(tmp_path, 1, states.tensors()).attached([ClientTask(4, "x")])[0].state == other
    path = tmp_path / address.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(FedrayError, match="is not what was written"):
        files.read(other)
    saved = states.tensors()
    path.write_bytes(b"")
    with pytest.raises(FedrayError, match=r"client state in it that is gone; bring the file back"):
        ClientStates(tmp_path, 1, saved)


def test_files_without_a_state_that_counts_are_deleted(tmp_path: Path) -> None:
    files, states = StateFiles(str(tmp_path)), ClientStates(tmp_path, 2)
    for round_ in range(5):
        address = files.append(round_, {"a": np.full(1, round_, dtype=np.float32)})
        states.commit([ClientReport(0, "x", "done", state=address)], [0])
        states.checkpointed(round_ + 1)
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["000003", "000004"]


def test_dittos_clients_measure_models_of_their_own() -> None:
    run = Rehearsed(config_of({"kind": "ditto", "pull": 0.1}), FEDERATION)
    for _ in range(3):
        run.train([range(10)])
    own = {k: np.frombuffer(kept["model"], dtype=np.float32) for k, kept in run.kept().items()}
    assert len(own) == 10

    def loss(w: np.ndarray, k: int) -> float:
        x, y = (v[slice(*FEDERATION.offsets[k : k + 2])] for v in (FEDERATION.train.x, FEDERATION.train.y))
        logits = x.astype(np.float64) @ w[:640].reshape(10, 64).T + w[640:]
        return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).mean())

    training = {"lr": 0.1, "batch_size": 10, "epochs": 2, "engine": "plain"}
    fedavg = Rehearsed(config_of({"kind": "fedavg"}, training=training), FEDERATION)
    for _ in range(3):
        fedavg.train([range(10)])
    assert run.globals.tobytes() == fedavg.globals.tobytes()  # Ditto's global model is FedAvg's
    assert all(loss(own[k], k) < loss(run.globals, k) for k in range(10))
    tasks = run.states.attached([ClientTask(k, f"client-{k}") for k in range(10)])
    measured = run.host(0)._trainer.measured(run.globals, tasks[4])
    assert get_vector(measured, run.layout).tobytes() == own[4].tobytes()


def test_only_an_algorithm_that_leaves_turns_alone_only_trains() -> None:
    assert {kind for kind in ALGORITHMS if only_trains(make_algorithm(Choice(**part_of(kind))))} == {"fedavg", "fedper"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((), "first field"),
        ((Field("control", 3),), "first field"),
        ((Field("model", 3), Field("model", 3)), "a name of its own"),
        ((Field("model", 3), Field("x", 0, down=False, up=False)), "and values"),
        ((Field("model", 3, weigh="one"), Field("x", 1)), "must come before"),
    ],
)
def test_fields_that_cannot_be_exchanged_are_refused(fields: tuple[Field, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Exchange(fields)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), ones=st.integers(0, 4))
def test_fields_are_slices_of_one_vector(sizes: list[int], ones: int) -> None:
    fields = [Field("model" if k == 0 else f"f{k}", n, weigh="client" if k < ones else "one") for k, n in enumerate(sizes)]
    exchange = Exchange(tuple(fields))
    vector = np.arange(sum(sizes), dtype=np.float32)
    assert exchange.up_size == exchange.down_size == len(vector)
    assert exchange.joined(exchange.views(vector, "up"), "up").tobytes() == vector.tobytes()
    assert exchange.ones_from == sum(sizes[:ones])
    with pytest.raises(ConfigError, match="it gave the fields"):
        exchange.joined({"model": vector[:0]}, "up")


@pytest.mark.parametrize(
    ("algorithm", "sections", "words"),
    [
        ({"kind": "fedprox", "mu": 0}, {}, "algorithm.mu: 0.0 is not above 0"),
        ({"kind": "qfedavg", "q": -1}, {}, "algorithm.q"),
        ({"kind": "qfedavg", "weights": "samples"}, {}, "algorithm.weights: unknown"),
        ({"kind": "fednova"}, {"training": {"lr": 0.1, "batch_size": 8, "epochs": 1, "optimizer": "adam"}}, "optimizer: sgd"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(algorithm: dict[str, Any], sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_only(config_of(algorithm, **sections))


RECORD = {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5}
WHOLE = {"delta": 1e-5, "noise_multiplier": 2.0, "clip": 1.0}
#: What a privacy claim may be combined with: None, or the code of the refusal.
TABLE = [
    ("fedavg", {"weights": "uniform"}, None, None),
    ("fedprox", {"weights": "uniform"}, None, None),
    ("fedprox", {}, None, "client.sample_weights"),
    ("fednova", {"weights": "uniform"}, None, "client.steps"),
    ("qfedavg", {}, "record.reads", "client.quotient"),
    ("scaffold", {"weights": "uniform"}, None, "client.client_state"),
    ("feddyn", {}, None, "client.client_state"),
    ("afl", {}, "record.reads", "client.client_state"),
    ("ditto", {"weights": "uniform"}, "record.passes", "client.client_state"),
    ("pfedme", {"weights": "uniform"}, "record.composed", "client.client_state"),
    ("moon", {"weights": "uniform"}, "record.composed", "client.client_state"),
    ("perfedavg", {"weights": "uniform"}, "record.composed", None),
    ("newton", {}, "record.reads", "client.exact_totals"),
    ("bagged_trees", {}, "record.reads", "client.exact_totals"),
    ("histogram_trees", {}, "record.reads", "client.exact_totals"),
    ("ifca", {"weights": "uniform"}, "record.reads", "client.quotient"),
    ("flhc", {"weights": "uniform", "clients": 10}, None, "client.quotient"),
    ("fedper", {"weights": "uniform", "personal": ["fc.bias"]}, None, "client.client_state"),
    ("fedrep", {"weights": "uniform", "personal": ["fc.bias"]}, "record.passes", "client.client_state"),
]


@pytest.mark.parametrize(("kind", "arguments", "record", "client"), TABLE)
def test_privacy_rules_go_by_traits(kind: str, arguments: dict[str, Any], record: str | None, client: str | None) -> None:
    steps = {"training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30}, "privacy": RECORD}
    cohort = {"cohort": {"kind": "poisson", "fraction": 0.5}}
    whole = {"training": {"lr": 0.1, "batch_size": 8, "epochs": 1}, "privacy": {"regime": "client", **WHOLE}, **cohort}
    if not components.ALGORITHMS.parts()[kind].traits.passes:
        steps["training"] = whole["training"] = {}
    for sections, refused in ((steps, record), (whole, client)):
        config = config_of({"kind": kind, **arguments}, **sections)
        if refused is None:
            check_only(config)
        else:
            with pytest.raises(PrivacyRefusal) as caught:
                check_only(config)
            assert caught.value.code == f"privacy.incompatible.{refused}"


def test_each_is_listed_with_what_it_takes() -> None:
    for kind in ALGORITHMS:
        made = make_algorithm(Choice(**part_of(kind)))
        assert isinstance(made, Algorithm) and "Source:" in (type(made).__doc__ or "")
    build_config(config_of({"kind": "fedavg"}, server={"kind": "adam", "lr": 0.01}).model_dump(exclude_unset=True))


class Boastful(Algorithm):
    """Its figures fail in the second round."""

    rounds = 0

    def figures(self, mean: Mean) -> Any:
        self.rounds += 1
        return {"round/clients": np.float32(mean.clients), "round/odd": np.nan} if self.rounds < 2 else {"round/clients": "many"}


def test_a_step_whose_figures_fail_is_not_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: str, rounds: int) -> Any:
        config = config_of(
            {"kind": f"python:{__name__}:Boastful"},
            rounds=rounds,
            data={"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}},
            evaluation={"metrics": []},
            checkpoint={"every": 10},
        )
        return drive(config, tmp_path / folder, lambda client: 1.0, 2, monkeypatch)

    rows, _, weights = run("one", 1)
    assert rows[0]["metrics"]["round/clients"] == 4.0 and rows[0]["not_finite"] == {"round/odd": "nan"}
    with pytest.raises(ConfigError, match="figures of 'Boastful' returned {'round/clients': 'many'}; return a dict of name to number"):
        run("two", 2)
    saved = load_latest(RunFiles(tmp_path / "two").checkpoints)
    assert saved is not None and saved.round == 1 and saved.weights.tobytes() == weights.tobytes()
