"""Stages of an update: their arithmetic, what configs and privacy claims allow, and what clients keep for them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from rehearsed import Rehearsed, config_of, label_skewed

from fedray.attacks.attackers import Attackers
from fedray.clients.adding import Adding
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, PartialSum, RoundTask
from fedray.clients.states import StatePlace
from fedray.clients.terms import Site, make_terms
from fedray.errors import ClaimVoid, ConfigError, FedrayError, PrivacyRefusal, UpdateRejected
from fedray.exchange import Exchange, Field
from fedray.models.facts import first_model
from fedray.parameters import get_vector
from fedray.planning.combinations import check_only
from fedray.planning.footprint import footprint
from fedray.planning.preparation import prepare
from fedray.privacy.clientplan import plan_clients
from fedray.privacy.csprng import InsecureSeeded
from fedray.privacy.mechanisms.central import Clipped
from fedray.privacy.receipt import check_receipt
from fedray.privacy.recordplan import plan_record
from fedray.privacy.release import Release
from fedray.rounds.round_metrics import GuaranteePlan
from fedray.updates.norm import NormBound
from fedray.updates.pipeline import make_stages, passed_all, sent_bytes
from fedray.updates.stage import At, Passed, Stage
from fedray.updates.topk import TopK

FEDERATION, _ = label_skewed()
HERE = f"python:{__name__}:"
TOPK, NORM = {"kind": "topk", "share": 0.01}, {"kind": "norm", "norm": 0.5}
AT = At(0, 0, 0, InsecureSeeded(0, 0, 0))


@dataclass(frozen=True)
class Signs(Stage):
    """The mean magnitude with each value's sign."""

    place: ClassVar[Any] = "lossy"
    scale: float = 1.0

    def out(self, x: Any, at: At) -> Passed:
        return Passed((np.sign(x) * np.abs(x).mean() * self.scale).astype(np.float32))

    def sent(self, size: int, before: int) -> int:
        return size // 8 + 4


@dataclass(frozen=True)
class PublicValues(Stage):
    """Keeps the values that everyone knows."""

    place: ClassVar[Any] = "lossy"
    support: ClassVar[Any] = "public"

    def out(self, x: Any, at: At) -> Passed:
        return Passed(np.where(np.arange(len(x)) % 2, x, np.float32(0)))


class Silent(Signs):
    """Keeps what it does not declare."""

    def out(self, x: Any, at: At) -> Passed:
        return Passed(x, {"a": x})


class Double(Signs):
    """Gives float64."""

    def out(self, x: Any, at: At) -> Passed:
        return Passed(x.astype(np.float64))


class Whimsical(Signs):
    """Raises for one update."""

    def out(self, x: Any, at: At) -> Passed:
        if at.client == 1:
            raise ValueError("no such level")
        return super().out(x, at)


class Shorter(Signs):
    def size(self, size: int) -> int:
        return size - 1


class Refusing(Signs):
    """Works on no update."""

    def out(self, x: Any, at: At) -> Passed:
        raise KeyError("levels")


class Arrays(Signs):
    """Gives an array in place of what has passed."""

    def out(self, x: Any, at: At) -> Any:
        return x


class Tables(Signs):
    def terms(self) -> dict[str, Any]:
        return {"Tables": np.zeros(3)}


class Half(Signs):
    def sent(self, size: int, before: int) -> Any:
        return size / 2


class Misspelt(Signs):
    """Declares a support that there is not."""

    support: ClassVar[Any] = "none"


def not_a_stage() -> int:
    return 3


def test_topk_sends_the_largest_of_equal_ones_the_first() -> None:
    x = np.array([1, -3, 2, 3, -2, 0, 2, 2], dtype=np.float32)
    assert TopK(0.5, False).out(x, AT).values.tolist() == [0, -3, 2, 3, -2, 0, 0, 0]
    first = TopK(0.25).out(x, AT)
    assert first.state is not None and first.state["error"].tolist() == [1, 0, 2, 0, -2, 0, 2, 2]
    assert TopK(0.25).out(x, At(1, 0, 0, AT.source, state=first.state)).values.tolist() == [0, 0, 4, 0, -4, 0, 0, 0]
    assert TopK(1.0, False).out(x, AT).values.tolist() == x.tolist()
    assert np.count_nonzero(TopK(1e-6, False).out(x, AT).values) == 1


def test_bytes_of_one_update() -> None:
    assert sent_bytes((), 1000) == 4000
    assert sent_bytes((TopK(0.01),), 1000) == 10 * 8
    assert sent_bytes((TopK(0.01), NormBound(1.0)), 1000) == 10 * 8
    assert sent_bytes((TopK(0.9),), 1000) == 4000  # positions cost more than they save


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_left_to_the_sum_or_the_clip(bad: float) -> None:
    x, own, task = np.array([1, bad, 3, 4], dtype=np.float32), (TopK(0.5), NormBound(1.0)), RoundTask(0, 1.0)
    passed = passed_all(own, x, AT, {"stage0.error": np.ones(4, dtype=np.float32)})
    assert passed.state is not None and passed.state["stage0.error"].tolist() == [1, 1, 1, 1]  # as before
    with pytest.raises(UpdateRejected, match="1 of 4 values of the update are NaN or infinite"):
        task.empty_sum(Exchange((Field("model", 4),))).add(passed.values)
    assert not passed_all((*own, Clipped(1.0, 1e-6, False)), x, AT, {}).values.any()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"compression": {"kind": "topk"}}, r"^compression.share: TopK needs it"),
        ({"compression": {"kind": "topk", "share": 0.0}}, r"^compression.share: should be above 0 and at most 1"),
        ({"compression": {"kind": "topk", "share": 1.5}}, r"^compression.share"),
        ({"compression": {"kind": "topk", "share": 0.1, "bits": 3}}, r"^compression.bits: unknown argument of TopK"),
        ({"compression": {"kind": "topq", "share": 0.1}}, r"^compression.kind: 'topq' is not known.*Did you mean 'topk'"),
        ({"compression": {"kind": "norm", "norm": 0.1}}, r"^compression.kind: 'norm' is not known"),
        ({"compression": {"kind": "none", "share": 0.1}}, r"^compression.share: kind is none, so it would do nothing"),
        ({"bound": {"kind": "norm", "norm": 0.0}}, r"^bound.norm: should be a positive number"),
        ({"bound": {"kind": f"{HERE}Signs"}}, r"^bound.kind: .*declares the place lossy; this section takes a bound stage"),
        ({"compression": {"kind": f"{HERE}not_a_stage"}}, r"^compression.kind: .*is not derived from fedray.updates.stage.Stage"),
        ({"compression": {"kind": f"{HERE}HERE"}}, r"^compression.kind: .* is a str"),
        ({"algorithm": {"kind": "qfedavg"}, "compression": TOPK}, r"^compression.kind: 'qfedavg' sends figures about its records"),
        ({"algorithm": {"kind": "fednova"}, "bound": NORM}, r"^bound.kind: 'fednova' sends figures about its records"),
    ],
)
def test_a_section_that_cannot_work_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_only(config_of(**{"algorithm": {"kind": "fedavg"}, **sections}))


RECORD = {
    "training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30},
    "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5},
}
STEPS = {"lr": 0.1, "batch_size": 8, "epochs": 1}


def whole(regime: str) -> dict[str, Any]:
    privacy = {"regime": regime, "delta": 1e-3, "noise_multiplier": 2.0, "clip": 1.0, "insecure_seed": 1}
    return {"training": STEPS, "privacy": privacy, "cohort": {"kind": "all", "min_clients": 2}}


ALONE = {**TOPK, "feedback": False}
#: What a privacy claim may be combined with, by regime: None, or the code of the refusal.
TABLE = [
    ({"compression": TOPK}, None, "client.client_state", "local.client_state", "distributed.client_state"),
    ({"compression": ALONE}, None, None, None, "distributed.compression"),
    ({"compression": {"kind": f"{HERE}Signs"}}, None, None, None, "distributed.compression"),
    ({"compression": {"kind": "sign"}}, None, "client.client_state", "local.client_state", "distributed.client_state"),
    ({"compression": {"kind": "sign", "feedback": False}}, None, None, None, "distributed.compression"),
    ({"compression": {"kind": "qsgd"}}, None, None, None, "distributed.compression"),
    ({"compression": {"kind": "drive"}}, None, None, None, "distributed.compression"),
    ({"compression": {"kind": "half"}}, None, None, None, "distributed.compression"),
    ({"compression": {**TOPK, "kind": "randk"}}, None, None, None, None),
    (
        {"compression": {**TOPK, "kind": "randk", "feedback": True}},
        None,
        "client.client_state",
        "local.client_state",
        "distributed.client_state",
    ),
    ({"compression": {"kind": f"{HERE}PublicValues"}}, None, None, None, None),
    ({"bound": NORM}, None, None, None, None),
]


@pytest.mark.parametrize(("sections", "record", "client", "local", "distributed"), TABLE)
def test_privacy_rules_go_by_what_a_stage_declares(
    sections: dict[str, Any], record: str | None, client: str | None, local: str | None, distributed: str | None
) -> None:
    for regime, refused in (("record", record), ("client", client), ("local", local), ("distributed", distributed)):
        around = RECORD if regime == "record" else whole(regime)
        config = config_of({"kind": "fedavg", "weights": "uniform"}, **around, **sections)
        if refused is None:
            check_only(config)
        else:
            with pytest.raises(PrivacyRefusal) as caught:
                check_only(config)
            assert caught.value.code == f"privacy.incompatible.{refused}"


@pytest.mark.parametrize(
    ("regime", "order"),
    [
        ("client", ["TopK", "NormBound", "Clipped"]),
        ("local", ["NormBound", "GaussianStep", "TopK"]),
        ("distributed", ["PublicValues", "NormBound", "RingStep"]),
    ],
)
def test_the_clip_is_last_before_the_sum_and_local_noise_before_what_is_lossy(regime: str, order: list[str]) -> None:
    compression = {"kind": f"{HERE}PublicValues"} if regime == "distributed" else ALONE
    config = config_of({"kind": "fedavg", "weights": "uniform"}, **whole(regime), compression=compression, bound=NORM)
    stages = make_stages(config)
    release = Release(plan_clients(config, 10, 650, 40), 1, stages)
    release.begin(0)
    found = release.stages(0)
    assert [type(stage).__name__ for stage in found] == order
    task = RoundTask(0, 10.0, found, release.plan.sha256, 10)
    values = passed_all(found, np.linspace(-9, 9, 650, dtype=np.float32), AT, {}).values
    total = task.empty_sum(Exchange((Field("model", 650),)))
    assert total.values.shape == values.shape
    assert release.size in (650, 0)  # 0: a local plan does not know it
    assert not task.sparse and task.weighed  # nobody sees in a size who took part
    said = task.receipt("client")
    assert set(said) >= {"plan", "clip", "stages"} and set(said["stages"]) == {
        stage for stage in order if stage in ("TopK", "NormBound")
    } | ({"PublicValues"} if regime == "distributed" else set())


def test_receipts_name_the_stages_that_ran_and_no_others() -> None:
    assert RoundTask(0, 1.0).receipt("record") == {}
    said = RoundTask(0, 1.0, (TopK(0.1), NormBound(2.0))).receipt("record")
    assert said == {"stages": {"TopK": {"share": 0.1, "feedback": True}, "NormBound": {"norm": 2.0}}}
    assert RoundTask(0, 1.0, (TopK(0.1),)).receipt("record") != RoundTask(0, 1.0, (TopK(0.2),)).receipt("record")


def test_an_update_with_other_stages_or_fields_than_its_rounds_is_not_used(tmp_path: Path) -> None:
    """Under record privacy a client's receipt names its stages and fields; one that ran others voids the claim."""
    config = config_of({"kind": "fedavg"}, **RECORD, compression=TOPK, bound=NORM)
    group, stages, names = make_groups(config, FEDERATION.names)[0], make_stages(config), FEDERATION.names
    plan = plan_record(config, group.training)
    model, facts = first_model(config.model, (64,), 10, config.seed)
    host = ClientHost(make_terms(config, group, plan, facts), Site(device="cpu", states=StatePlace(str(tmp_path))), FEDERATION)
    host.ready()
    capacity = float(FEDERATION.sizes.sum())

    def receipt(task: RoundTask) -> Mapping[str, Any]:
        (report,) = host.train(task, get_vector(model, facts.layout), [ClientTask(0, names[0], reservations=(("record", "r"),))])
        assert report.status == "done", report.traceback
        return report.receipts["record"]

    task = RoundTask(0, capacity, stages, clients=10)
    exchange = Exchange((Field("model", 650),))
    expected = {"reservation": "r", "exchange": exchange.sha256, **GuaranteePlan("record", [plan]).expected(0, None, task)}
    check_receipt(names[0], receipt(task), expected)
    for fields in ((Field("model", 650, weigh="one"),), (Field("model", 650), Field("control", 650))):
        with pytest.raises(ClaimVoid, match="its receipt says exchange"):
            check_receipt(names[0], receipt(task), expected | {"exchange": Exchange(fields).sha256})
    for number, others in enumerate(((), stages[:1], (TopK(0.02), *stages[1:])), 1):
        with pytest.raises(ClaimVoid, match="its receipt says stages"):
            check_receipt(names[0], receipt(RoundTask(number, capacity, others, clients=10)), expected)


@pytest.mark.parametrize(("kind", "words"), [("Silent", "keeps a state, which it does not declare"), ("Double", "gave float64")])
def test_a_stage_does_what_it_declares(kind: str, words: str) -> None:
    with pytest.raises(FedrayError, match=words):
        passed_all((globals()[kind](),), np.ones(3, dtype=np.float32), AT, {})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("Shorter", r"^compression.kind: '.*Shorter' makes 649 values of 650; keep their number"),
        ("Refusing", r"^compression.kind: '.*Refusing' failed with KeyError: 'levels' \("),
        ("Arrays", "Arrays: its out should return a Passed"),
        ("Double", "gave float64"),
        ("Silent", "keeps a state, which it does not declare"),
        ("Half", r"says that an update takes 325\.0 bytes; let sent\(\) return a whole number"),
        ("Tables", "has terms that are no JSON data"),
        ("Misspelt", "declares the support 'none'; give one of all, public, own"),
    ],
)
def test_a_stage_of_ones_own_is_tried_before_anything_is_trained(kind: str, words: str) -> None:
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 3}}
    with pytest.raises(FedrayError, match=words):
        prepare(config_of({"kind": "fedavg"}, data=data, compression={"kind": f"{HERE}{kind}"}))


@pytest.mark.parametrize("engine", ["lockstep", "plain"])
def test_what_a_stage_raises_is_one_clients_fault_with_every_engine(engine: str) -> None:
    run = run_of(compression={"kind": f"{HERE}Whimsical"}, training={"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": engine})
    task = RoundTask(0, 10.0, run.stages, clients=10)
    reports = run.host(0).train(task, run.globals, [ClientTask(k, f"client-{k}") for k in range(3)])
    assert [r.status for r in reports] == ["done", "failed", "done"]
    assert "ValueError: no such level" in reports[1].error and "Traceback" in reports[1].traceback
    assert run.host(0).collect(task).clients == [0, 2]


def test_a_sparse_part_travels_small_and_arrives_whole() -> None:
    task, exchange = RoundTask(0, 2.0, (TopK(0.01),), clients=2), Exchange((Field("model", 1000),))
    part = PartialSum(0, task.empty_sum(exchange), [4], sparse=task.sparse)
    part.total.add(TopK(0.01).out(np.arange(1000, dtype=np.float32), AT).values, 2.0)
    packed = pickle.dumps(part)
    assert len(packed) < 1000
    arrived = pickle.loads(packed)
    assert arrived.total.values.tobytes() == part.total.values.tobytes()
    assert (arrived.clients, arrived.travelled, arrived.total.weight) == ([4], 10 * (4 + 8), 2.0)
    part.total.values[:] = 1
    dense = pickle.loads(pickle.dumps(part))
    assert dense.travelled == 0 and dense.total.values.tobytes() == part.total.values.tobytes()
    assert not RoundTask(0, 2.0, (NormBound(1.0),)).sparse


def test_a_plan_says_what_an_update_takes() -> None:
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 3}}
    config = config_of({"kind": "fedavg"}, data=data, compression=TOPK)
    assert footprint(prepare(config))["traffic"]["update"] == 8 * 6
    assert footprint(prepare(config_of({"kind": "fedavg"}, data=data)))["traffic"]["update"] is None


def run_of(algorithm: str = "fedavg", **sections: Any) -> Rehearsed:
    return Rehearsed(
        config_of({"kind": algorithm, "weights": "uniform"}, **{"compression": {"kind": "topk", "share": 0.05}, **sections}), FEDERATION
    )


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(algorithm: str) -> None:
    one, other = run_of(algorithm), run_of(algorithm)
    for cohort in ([0, 1, 2], [1, 2, 3], [0, 3, 4]):
        one.train([cohort])
        other.train([cohort[1:], cohort[:1]], order=[1, 0])
        other.restart()
    assert one.globals.tobytes() == other.globals.tobytes()
    assert one.kept() == other.kept()
    names = {"stage0.error"} | ({"control"} if algorithm == "scaffold" else set())
    assert {frozenset(state) for state in one.kept().values()} == {frozenset(names)}
    assert any(np.frombuffer(state["stage0.error"], dtype=np.float32).any() for state in one.kept().values())


def test_what_a_stage_keeps_counts_only_if_the_update_does() -> None:
    run = run_of()
    run.train([[0, 1]])
    before, task = run.kept(), RoundTask(1, run.algorithm.largest_weight(FEDERATION.sizes), run.stages, clients=10)
    (report,) = run.host(1).train(task, run.globals, run.states.attached([ClientTask(0, "client-0")]))
    assert report.status == "done" and report.state is not None
    run.states.commit([report], [])
    assert run.kept() == before
    run.states.commit([report], [0])
    assert run.kept() != before


def test_only_stages_without_state_let_clients_train_together() -> None:
    training = {"lr": 0.1, "batch_size": 10, "epochs": 1}
    for compression, engine in (({"kind": "none"}, "lockstep"), (ALONE, "lockstep"), (TOPK, "plain")):
        run = run_of(compression=compression, training=training)
        assert run.host(0)._trainer.engine_name == engine


def test_many_clients_are_added_as_one_by_one() -> None:
    run = run_of(compression=ALONE, bound=NORM)
    task, size = RoundTask(0, 100.0, run.stages, clients=10), run.exchange.up_size
    updates = np.random.default_rng(3).standard_normal((3, size)).astype(np.float32)
    updates[1, 5] = np.nan
    clients = [ClientTask(k, f"client-{k}") for k in range(3)]
    adding = Adding(run.algorithm, run.exchange, run.host(0)._trainer.device, run._config, Attackers())
    together, single = task.empty_sum(run.exchange), task.empty_sum(run.exchange)
    refused = adding.many(task, clients, [3, 4, 5], updates, together)
    assert [why is None for why in refused] == [True, False, True]
    for k in (0, 2):
        adding.one(task, 3 + k, passed_all(run.stages, updates[k], AT, {}).values, single)
    assert together.values.tobytes() == single.values.tobytes()


def test_a_stage_of_ones_own_runs_with_its_arguments() -> None:
    run = run_of(compression={"kind": f"{HERE}Signs", "scale": 0.5})
    before = run.globals.copy()
    run.train([[0]])
    moved = np.abs(run.globals - before)
    assert len(np.unique(np.round(moved, 5))) <= 2  # one magnitude, or zero
