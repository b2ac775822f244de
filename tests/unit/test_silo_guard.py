"""What stands before a silo's client: forged orders are refused with their reason and logged, honest ones pass, and facts are withheld."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from silopolicies import NOON, PLAIN, RECORD, terms, write_policy

from fedray.aggregation.exact import FULL
from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.messages import ClientReport, ClientTask, HostInfo, LocalEvaluation, RoundTask
from fedray.clients.states import StateAddress
from fedray.clients.terms import Terms
from fedray.data.silos import Silo
from fedray.errors import ClaimVoid, DataError
from fedray.exchange import Exchange
from fedray.models.facts import ModelFacts, first_model
from fedray.privacy.account import Account
from fedray.silos.approvals import MOST_WAITING, Approvals, asked_sha256
from fedray.silos.guard import Guard
from fedray.silos.silolog import EVALUATION, TRAINING, SiloLog
from fedray.silos.withheld import HIDDEN, PolicyRefused
from fedray.spans import Span
from fedray.updates.half import HalfPrecision
from fedray.updates.pipeline import make_stages

SILO = Silo("'a'", 200, 50, False, (4,), (), False, 1.0, (), (), (), None, 7)
UNIFORM = {"algorithm": {"kind": "fedavg", "weights": "uniform"}}
SECAGG = {"kind": "secagg", "identities": "/etc/identities.json", "key": "/etc/key"}


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def facts_of(asks: Terms, seed: int | None = None) -> tuple[ModelFacts, Exchange]:
    config = asks.config
    _, facts = first_model(config.model, (4,), 3, config.seed if seed is None else seed)
    return facts, make_algorithm(config.algorithm).exchange(facts.layout)


class Opened:
    """A guard whose run was opened, and orders for it."""

    def __init__(self, folder: Path, asks: Terms, clients: int = 8, **changed: Any) -> None:
        self.policy, self.state, self.clock = write_policy(folder, **changed), folder / "state", Clock()
        self.terms, self.facts, self.exchange = asks, *facts_of(asks)
        self.guard = Guard(self.policy, "a", self.state, now=self.clock)
        self.guard.open(asks, clients, 3)
        self.guard.leaving("open", info())
        self.guard.admit("configure", (self.facts, self.exchange.sha256))
        self.guard.leaving("preflight", 0.5)
        self.task = RoundTask(0, float(clients), make_stages(asks.config), clients=clients)
        self.client = ClientTask(3, "a")
        self.weights = np.zeros(self.exchange.down_size, dtype=np.float32)

    def train(self, task: RoundTask | None = None, client: ClientTask | None = None, **more: Any) -> None:
        self.guard.admit("train_and_hand_over", (task or self.task, more.get("weights", self.weights), [client or self.client]))

    def logged(self, event: str) -> list[str]:
        return [line["message"] for line in SiloLog(self.state).lines() if line["event"] == event]


def info(**changed: Any) -> HostInfo:
    return replace(HostInfo("ward-7", 4711, "cuda:0", 8, SILO, [150, 50], "node", "terms"), **changed)


def refused(order: Callable[[], Any], *said: str) -> str:
    with pytest.raises(PolicyRefused) as error:
        order()
    for text in said:
        assert text in str(error.value)
    return str(error.value)


@pytest.fixture
def plain(tmp_path: Path) -> Opened:
    return Opened(tmp_path, terms(PLAIN, **UNIFORM))


def test_an_honest_run_passes(plain: Opened) -> None:
    for number in range(3):
        plain.train(replace(plain.task, round=number))
        plain.guard.admit("collect", (replace(plain.task, round=number),))
    assert len(plain.logged(TRAINING)) == 3
    assert plain.logged("refused") == []


FORGED_TASKS: dict[str, dict[str, Any]] = {
    "round": {"round": 3},
    "stages": {"stages": (HalfPrecision(),)},
    "plan": {"plan": "0" * 64},
    "secure": {"secure": {"SecAgg": {}}},
    "segments": {"segments": 0},
    "behind": {"behind": 1},
    "clients": {"clients": 4},
}
FORGED_CLIENTS: dict[str, dict[str, Any]] = {
    "steps": {"steps": 50},
    "epochs": {"epochs": 50},
    "halvings": {"halvings": -1},
    "factor": {"factor": 1000},
    "version": {"version": 2},
    "index": {"index": 4},
    "attempt": {"attempt": 99},
    "state": {"state": StateAddress("../../../etc/shadow", 0, 100, "0" * 64)},
}


@pytest.mark.parametrize("field", FORGED_TASKS)
def test_a_task_beyond_the_terms_is_refused(plain: Opened, field: str) -> None:
    said = refused(lambda: plain.train(replace(plain.task, **FORGED_TASKS[field])), field)
    assert [said.removeprefix("a: ")] == plain.logged("refused")
    assert plain.logged(TRAINING) == []
    plain.train()


@pytest.mark.parametrize("field", FORGED_CLIENTS)
def test_an_order_to_the_client_beyond_the_terms_is_refused(plain: Opened, field: str) -> None:
    refused(lambda: plain.train(client=plain.client._replace(**FORGED_CLIENTS[field])), field)
    assert plain.logged(TRAINING) == []
    plain.train()


def test_a_factor_that_is_zero_or_less_than_full_is_refused_in_synchronous_rounds(plain: Opened) -> None:
    for factor in (0, FULL - 1):
        refused(lambda factor=factor: plain.train(client=plain.client._replace(factor=factor)), "factor")


def test_what_stays_the_same_in_a_run_may_not_change(plain: Opened) -> None:
    plain.train()
    refused(lambda: plain.train(replace(plain.task, round=1, capacity=9.0)), "capacity")
    plain.train(replace(plain.task, round=1))


def test_a_replayed_order_is_refused_also_by_a_new_process(plain: Opened) -> None:
    plain.train(replace(plain.task, round=1))
    for number in (1, 0):
        refused(lambda number=number: plain.train(replace(plain.task, round=number)), "was done or is over")
    plain.train(replace(plain.task, round=1), plain.client._replace(attempt=1))
    again = Guard(plain.policy, "a", plain.state, now=plain.clock)
    again.open(plain.terms, 8, 3)
    order = replace(plain.task, round=1), plain.weights, [plain.client._replace(attempt=1)]
    refused(lambda: again.admit("train_and_hand_over", order), "was done or is over")
    again.admit("train_and_hand_over", (replace(plain.task, round=2), plain.weights, [plain.client]))


def test_a_silo_that_died_between_charge_and_training_is_asked_again(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(RECORD, **UNIFORM))
    opened.guard.admit("authorize", (1, 0))
    again = Guard(opened.policy, "a", opened.state, now=opened.clock)
    again.open(opened.terms, 8, 3)
    again.admit("configure", (opened.facts, opened.exchange.sha256))
    again.admit("authorize", (1, 0))
    again.admit("train_and_hand_over", (replace(opened.task, round=1), opened.weights, [opened.client]))
    refused(lambda: again.admit("authorize", (1, 0)), "was done or is over")
    assert len(opened.logged(TRAINING)) == 2, "each charge counts"


@pytest.mark.parametrize(
    "opening", [("a b", 8, 3), ("run\x1b[2J/1", 8, 3), ("", 8, 3), ("r" * 201, 8, 3), ("r", 3, 3), ("r", 10**9, 3), ("r", 8, -1)]
)
def test_an_opening_that_is_none_is_refused(tmp_path: Path, opening: tuple[str, int, int]) -> None:
    job, *about = opening
    guard = Guard(write_policy(tmp_path), "a", tmp_path / "state")
    said = refused(lambda: guard.open(replace(terms(PLAIN, **UNIFORM), job=job), *about))
    assert said.isprintable()


def test_orders_for_others_or_for_several_at_once_are_refused(plain: Opened) -> None:
    for clients in ([], [ClientTask(3, "b")], [plain.client, plain.client]):
        refused(lambda clients=clients: plain.guard.admit("train", (plain.task, plain.weights, clients)), "clients")


def test_globals_of_another_size_or_kind_are_refused(plain: Opened) -> None:
    for weights in (plain.weights[1:], plain.weights.astype(np.float64), [0.0]):
        refused(lambda weights=weights: plain.train(weights=weights), "weights")


@pytest.mark.parametrize("method", ["offer_sum", "merge", "forget_sum", "_reserve", "__init__", "open", "of_ledger"])
def test_whatever_is_no_order_is_refused(plain: Opened, method: str) -> None:
    refused(lambda: plain.guard.admit(method, ("close",)), "a: ")


def test_shared_memory_is_refused(plain: Opened) -> None:
    refused(lambda: plain.guard.admit("train", (plain.task, plain.weights, [plain.client], object())), "shared")


def test_a_ledger_tells_only_its_entries_and_who_is_lacking(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(RECORD, **UNIFORM))
    opened.guard.admit("of_ledger", ("part",))
    opened.guard.admit("of_ledger", ("lacking", "another"))
    for arguments in (("close",), ("part", "x"), ("lacking",), ("lacking", 3)):
        refused(lambda arguments=arguments: opened.guard.admit("of_ledger", arguments), "of_ledger")
    refused(lambda: opened.guard.admit("spent", (10**9,)), "rounds")


def test_a_model_other_than_the_terms_is_refused(plain: Opened) -> None:
    other, _ = facts_of(terms(PLAIN, model={"kind": "mlp"}, **UNIFORM))
    for facts in (other, facts_of(plain.terms, seed=5)[0]):
        refused(lambda facts=facts: plain.guard.admit("configure", (facts, "")), "model")
    _, wide = first_model(plain.terms.config.model, (9,), 3, 0)
    refused(lambda: plain.guard.admit("configure", (wide, "")), "model.shape")
    refused(lambda: plain.guard.admit("configure", (plain.facts, "0" * 64)), "exchange")


def test_a_private_run_must_try_its_model_first(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(RECORD, **UNIFORM))
    assert not opened.guard.to_try("train")
    opened.guard.admit("configure", (opened.facts, opened.exchange.sha256))
    assert opened.guard.to_try("train")
    assert not opened.guard.to_try("ping")


def test_delta_must_go_with_the_number_of_records_that_the_silo_has(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(RECORD, **UNIFORM))
    opened.guard.leaving("ready", info(silo=replace(SILO, records=10_000)))
    said = refused(lambda: opened.guard.leaving("ready", info(silo=replace(SILO, records=10_001))), "privacy.delta")
    assert "10001" not in said, "how many there are is the silo's own"


def test_a_refusal_has_an_answer_with_which_the_run_goes_on(plain: Opened) -> None:
    """The same types as the client's own answers, and nothing added to any sum."""
    error, answer = PolicyRefused("a: no"), plain.guard.refused_answer
    assert answer("authorize", (0, 0), error).refused == {"a": "a: no"}
    order = plain.task, plain.weights, [plain.client]
    (report,) = answer("train", order, error)
    assert (report.index, report.name, report.status, report.error) == (3, "a", "refused", "a: no")
    reports, part = answer("train_and_hand_over", order, error)
    assert reports == [report]
    assert (part.clients, part.total.count, part.total.weight, part.total.values.any()) == ([], 0, 0.0, False)
    found = answer("train_each", (replace(plain.task, collect="each", segments=2), *order[1:]), error)
    assert len(found) == 3
    assert answer("consult", (plain.task, "keys", {3: (0, b"")}), error) == {3: "a: no"}
    assert answer("configure", (), error) is None


# -- budgets, hours, days ------------------------------------------------------------------------------


def test_charges_end_at_the_policys_epsilon_whatever_the_run_plans(tmp_path: Path) -> None:
    asks = terms(RECORD, rounds=2, privacy={"noise_multiplier": 1.0}, **UNIFORM)
    assert asks.plan is not None
    from fedray.silos.spending import epsilon_of, planned_charges

    cost = epsilon_of(planned_charges(asks.plan), asks.plan) * 1.001
    opened = Opened(tmp_path, asks, epsilon_run=cost, epsilon_total=cost)
    opened.guard.admit("authorize", (0, 0))
    opened.train()  # the same training: not charged again
    opened.guard.admit("authorize", (0, 1))
    refused(lambda: opened.guard.admit("authorize", (1, 0)), "policy.yaml, line", "epsilon_run", "takes no further part")
    assert len(opened.logged(TRAINING)) == 2


def test_what_the_ledger_holds_of_other_runs_counts(tmp_path: Path) -> None:
    asks = terms(RECORD, rounds=2, privacy={"noise_multiplier": 1.0}, **UNIFORM)
    assert asks.plan is not None
    (tmp_path / "state").mkdir()
    with Account.open_silo(tmp_path / "state" / "ledger", "a", asks.plan, "before/1") as account:
        account.authorize(0, 0, ["a"])
    from fedray.silos.spending import epsilon_of, planned_charges

    cost = epsilon_of(planned_charges(asks.plan), asks.plan) * 1.001
    said = refused(lambda: Opened(tmp_path, asks, epsilon_run=cost, epsilon_total=cost), "epsilon_total", "other runs have spent")
    assert "epsilon_run:" not in said
    (tmp_path / "state" / "ledger" / "a.jsonl").unlink()
    Opened(tmp_path, asks, epsilon_run=cost, epsilon_total=cost)


def test_hours_and_trainings_of_a_day(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(PLAIN, **UNIFORM), hours=["22:00-06:00"], time_zone="UTC", rounds_a_day=2)
    refused(opened.train, "policy.yaml, line", "hours: 22:00-06:00", "12:00 (UTC)")
    opened.clock.now = NOON.replace(hour=23)
    opened.train()
    opened.train(replace(opened.task, round=1))
    refused(lambda: opened.train(replace(opened.task, round=2)), "rounds_a_day", "2 were begun on 2026-11-30")
    opened.clock.now += timedelta(hours=2)
    opened.train(replace(opened.task, round=2))


def test_the_day_is_that_of_the_policys_time_zone(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(PLAIN, **UNIFORM), time_zone="Asia/Tokyo", rounds_a_day=1)
    opened.clock.now = datetime(2026, 11, 30, 14, 59, tzinfo=UTC)  # 23:59 in Tokyo
    opened.train()
    refused(lambda: opened.train(replace(opened.task, round=1)), "rounds_a_day")
    opened.clock.now += timedelta(minutes=1)
    opened.train(replace(opened.task, round=1))


def test_a_policy_that_becomes_stricter_holds_at_once(plain: Opened, tmp_path: Path) -> None:
    plain.train()
    write_policy(tmp_path, models=["mlp"])
    refused(lambda: plain.train(replace(plain.task, round=1)), "models: mlp")
    plain.policy.write_text("models: [softmax\n")
    refused(lambda: plain.train(replace(plain.task, round=1)), "policy cannot be read")
    write_policy(tmp_path)
    plain.train(replace(plain.task, round=1))


def test_a_flood_of_one_refusal_is_one_line_of_the_log(plain: Opened) -> None:
    for _ in range(50):
        refused(lambda: plain.train(replace(plain.task, round=9)), "round")
    assert len(plain.logged("refused")) == 1


# -- approvals -----------------------------------------------------------------------------------------


def test_a_run_waits_until_it_is_approved_and_stops_at_a_no(tmp_path: Path) -> None:
    asks = terms(PLAIN, **UNIFORM)
    said = refused(lambda: Opened(tmp_path, asks, approval=True), "policy.yaml, line", "approval", "fedray silo approve")
    sha256 = asked_sha256(asks)
    assert sha256[:12] in said
    approvals = Approvals(tmp_path / "state")
    assert [(a.sha256, a.answer) for a in approvals.all()] == [(sha256, "")]
    approvals.decide(sha256[:10], True, "dr. who")
    opened = Opened(tmp_path, asks, approval=True)
    opened.train()
    approvals.decide(sha256, False, "dr. no")
    refused(lambda: opened.train(replace(opened.task, round=1)), "no to terms")
    assert opened.logged("approval") == [
        f"{who} said {answer} to the terms {sha256[:12]} of run {asks.job}" for who, answer in (("dr. who", "yes"), ("dr. no", "no"))
    ]


def test_an_approval_is_for_these_terms_alone_and_for_every_start_of_the_run(tmp_path: Path) -> None:
    asks = replace(terms(PLAIN, **UNIFORM), job="asked-7/1")
    refused(lambda: Opened(tmp_path, asks, approval=True))
    Approvals(tmp_path / "state").decide(asked_sha256(asks), True, "me")
    Opened(tmp_path, replace(asks, job="asked-7/2"), approval=True)
    for other in (replace(asks, job="asked-8/1"), replace(asks, group="g"), replace(terms(PLAIN, rounds=4, **UNIFORM), job="asked-7/1")):
        refused(lambda other=other: Opened(tmp_path, other, approval=True), "wait")


def test_a_driver_cannot_fill_the_disk_with_runs_that_wait(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    for number in range(MOST_WAITING):
        approvals.answer(replace(terms(PLAIN), job=f"run-{number}"))
    with pytest.raises(Exception, match="no more may"):
        approvals.answer(replace(terms(PLAIN), job="one more"))


def test_an_answer_that_was_changed_on_the_disk_is_refused(tmp_path: Path) -> None:
    approvals, asks = Approvals(tmp_path), terms(PLAIN)
    approvals.answer(asks)
    path = tmp_path / "approvals" / f"{asked_sha256(asks)}.json"
    path.write_text(path.read_text().replace('"rounds": 3', '"rounds": 2'))
    with pytest.raises(Exception, match="is not what was asked"):
        approvals.answer(asks)


# -- secure sums ---------------------------------------------------------------------------------------


def test_a_silo_is_one_member_of_a_secure_sum(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(PLAIN, secure=SECAGG, cohort={"min_clients": 5}, **UNIFORM))
    from fedray.secure.protocol import make_protocol

    protocol = make_protocol(opened.terms.config.secure)
    assert protocol is not None
    task = replace(opened.task, secure=protocol.terms())
    opened.guard.admit("consult", (task, "keys", {3: (0, b"")}))
    for messages in ({4: (0, b"")}, {3: (0, b""), 4: (1, b"")}, {}):
        refused(lambda messages=messages: opened.guard.admit("consult", (task, "keys", messages)), "messages")
    refused(lambda: opened.train(replace(task, secure=None)), "secure")
    refused(lambda: opened.train(replace(task, collect="each")), "collect")
    refused(lambda: opened.train(replace(task, secure={"SecAgg": {"fewest": 3}})), "secure")
    opened.train(task)


def test_a_secure_sum_of_fewer_clients_than_agreed_is_refused(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(PLAIN, secure=SECAGG, cohort={"min_clients": 5}, **UNIFORM), clients=4)
    from fedray.secure.protocol import make_protocol

    protocol = make_protocol(opened.terms.config.secure)
    assert protocol is not None
    refused(lambda: opened.train(replace(opened.task, secure=protocol.terms())), "clients")


# -- whole clients -------------------------------------------------------------------------------------


def test_noise_at_the_client_must_be_that_of_the_plan_which_the_silo_computes(tmp_path: Path) -> None:
    from fedray.aggregation.exact import grid_bits
    from fedray.privacy.clientplan import plan_clients
    from fedray.privacy.release import Release

    private = {"regime": "local", "noise_multiplier": 4.0, "delta": 1e-4}
    opened = Opened(tmp_path, terms(PLAIN, privacy=private, **UNIFORM), clients=100, epsilon_run=90.0, epsilon_total=90.0, delta=1e-3)
    plan = plan_clients(opened.terms.config, 100, 0, grid_bits(100.0))
    task = replace(opened.task, stages=Release(plan).stages(0), plan=plan.sha256)
    quiet = plan_clients(
        opened.terms.config.model_copy(update={"privacy": opened.terms.config.privacy.model_copy(update={"noise_multiplier": 0.1})}),
        100,
        0,
        grid_bits(100.0),
    )
    refused(lambda: opened.train(replace(task, stages=Release(quiet).stages(0))), "stages")
    refused(lambda: opened.train(replace(task, stages=())), "stages")
    refused(lambda: opened.train(replace(task, plan=quiet.sha256)), "plan")
    opened.train(task)


# -- evaluation ----------------------------------------------------------------------------------------


def test_held_out_records_are_no_oracle(tmp_path: Path) -> None:
    asks = terms(PLAIN, evaluation={"federated": True, "metrics": ["accuracy"]}, **UNIFORM)
    opened = Opened(tmp_path, asks, evaluations_a_day=2)
    order = opened.weights, [opened.client]
    opened.guard.admit("evaluate", order)
    opened.guard.admit("evaluate", order)
    refused(lambda: opened.guard.admit("evaluate", order), "evaluations_a_day")
    assert len(opened.logged(EVALUATION)) == 2
    opened.clock.now += timedelta(days=1)
    opened.guard.leaving("ready", info(silo=replace(SILO, held_out=9)))
    refused(lambda: opened.guard.admit("evaluate", order), "held_out")
    refused(lambda: opened.guard.admit("evaluate_noised", (*order, 0)), "evaluate")
    opened.guard.leaving("ready", info())
    elsewhere = opened.client._replace(state=StateAddress("/etc/shadow", 0, 100, "0" * 64))
    refused(lambda: opened.guard.admit("evaluate", (opened.weights, [elsewhere])), "state")


def test_an_evaluation_with_noise_is_charged_and_made_once_a_round(tmp_path: Path) -> None:
    charged = {"federated": True, "metrics": ["accuracy"], "charged": {"noise_multiplier": 20.0}}
    asks = terms(RECORD, evaluation=charged, **UNIFORM)
    assert asks.plan is not None
    opened = Opened(tmp_path, asks)
    order = opened.weights, [opened.client]
    opened.guard.admit("evaluate_noised", (*order, 0))
    for number in (0, -1, 3):
        refused(lambda number=number: opened.guard.admit("evaluate_noised", (*order, number)), "round")
    refused(lambda: opened.guard.admit("evaluate", order), "evaluate")
    opened.guard.admit("evaluate_noised", (*order, 1))
    assert dict(opened.guard._spent.run) == {asks.plan.evaluations.event: 2}  # type: ignore[union-attr]
    write_policy(tmp_path, epsilon_run=0.01)
    refused(lambda: opened.guard.admit("evaluate_noised", (*order, 2)), "epsilon")


def test_clients_that_carry_on_over_rounds_start_from_earlier_models(tmp_path: Path) -> None:
    asks = terms(PLAIN, rounds=5, pacing={"kind": "fedbuff", "buffer": 2, "concurrency": 3}, **UNIFORM)
    opened = Opened(tmp_path, asks)
    opened.train(replace(opened.task, round=2), opened.client._replace(version=1, factor=180))
    opened.train(replace(opened.task, round=2), opened.client._replace(version=2))
    refused(lambda: opened.train(replace(opened.task, round=3), opened.client._replace(version=1)), "was done or is over")
    refused(lambda: opened.train(replace(opened.task, round=3), opened.client._replace(version=4)), "version")
    refused(lambda: opened.train(replace(opened.task, round=3), opened.client._replace(version=3, factor=0)), "factor")


def test_an_evaluation_that_the_terms_have_not_is_refused(plain: Opened) -> None:
    refused(lambda: plain.guard.admit("evaluate", (plain.weights, [plain.client])), "evaluate")


# -- what leaves ---------------------------------------------------------------------------------------

REPORT = ClientReport(3, "a", "done", 0, 200, 1.5, 0.25, "", "", "ward-7", {}, 64)


def test_facts_that_are_not_named_are_withheld(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(PLAIN, **UNIFORM), facts=[])
    leaving = opened.guard.leaving
    told = leaving("open", info())
    assert (told.node, told.pid, told.device, told.threads, told.class_counts) == ("silo", 0, "cpu", 1, None)
    assert (told.silo.records, told.silo.held_out, told.silo.dropped, told.silo.shape) == (1, 1, 0, (4,))
    (report,) = leaving("train", [REPORT])
    assert (report.records, report.seconds, report.loss, report.node, report.physical_batch) == (0, 0.0, None, "", None)
    failed = REPORT._replace(status="failed", error="ValueError: record 17 is 'Smith, John'", traceback="File ...")
    (report,), part = leaving("train_and_hand_over", ([failed], "part"))
    assert (report.error, report.traceback, part) == (HIDDEN, "", "part")
    assert any("Smith" in line for line in opened.logged("turn")), "the silo's own log has it"
    (metric,) = leaving("evaluate", [LocalEvaluation("a", 50, {"accuracy": 0.5}, {"f1": "ValueError: 'Smith'"})])
    assert (metric.records, metric.failed, metric.metrics) == (1, {"f1": HIDDEN}, {"accuracy": 0.5})
    assert leaving("spans", [Span("compute", "local training", 0.0, 1.0)]) == []


def test_each_fact_lets_its_own_leave_and_no_other(tmp_path: Path) -> None:
    failed = REPORT._replace(status="failed", error="ValueError: 17", traceback="File ...")
    span = Span("compute", "local training", 0.0, 1.0)
    for number, (fact, seen) in enumerate(
        {
            "records": lambda leaving: leaving("train", [REPORT])[0].records == 200 and leaving("ready", info()).silo.records == 200,
            "class_counts": lambda leaving: leaving("ready", info()).class_counts == [150, 50],
            "loss": lambda leaving: leaving("train", [REPORT])[0].loss == 0.25,
            "timings": lambda leaving: leaving("train", [REPORT])[0].seconds == 1.5 and leaving("spans", [span]) == [span],
            "errors": lambda leaving: leaving("train", [failed])[0].error == "ValueError: 17",
            "host": lambda leaving: leaving("train", [REPORT])[0].node == "ward-7" and leaving("ready", info()).pid == 4711,
        }.items()
    ):
        for facts, expected in (([fact], True), ([], False)):
            folder = tmp_path / f"{number}-{expected}"
            folder.mkdir()
            assert seen(Opened(folder, terms(PLAIN, **UNIFORM), facts=facts).guard.leaving) is expected, (fact, facts)


def test_errors_of_the_client_leave_without_what_they_quote(plain: Opened) -> None:
    told = plain.guard.told(DataError("row 17 of /data/ward.csv: 'Smith' is no number."))
    assert type(told) is DataError
    assert "Smith" not in str(told)
    assert any("Smith" in line for line in plain.logged("error"))
    assert str(plain.guard.told(ClaimVoid("a local round ran"))) == "a local round ran"
    assert "Smith" not in str(plain.guard.told(ValueError("Smith")))


def test_the_ledger_keeps_no_receipt_but_the_silos_own(tmp_path: Path) -> None:
    opened = Opened(tmp_path, terms(RECORD, **UNIFORM))
    opened.train()
    mine = {"reservation": "1" * 64, "steps": 2}
    opened.guard.leaving("train", [REPORT._replace(receipts={"record": mine})])
    opened.guard.admit("commit", (0, 0, mine))
    opened.guard.admit("commit", (0, 0, None))
    refused(lambda: opened.guard.admit("commit", (0, 0, mine | {"steps": 3})), "receipt")
    refused(lambda: opened.guard.admit("commit", (1, 0, mine)), "receipt")


# -- the log -------------------------------------------------------------------------------------------


def test_a_torn_line_of_the_log_costs_no_other(tmp_path: Path) -> None:
    log = SiloLog(tmp_path, Clock())
    log.write(TRAINING, "one", job="j", round=0, attempt=0)
    whole = log.path.read_bytes()
    for cut in range(1, len(whole)):
        log.path.write_bytes(whole + whole[:cut])
        again = SiloLog(tmp_path, Clock())
        again.write(TRAINING, "two", job="j", round=1, attempt=0)
        assert [key[0] for key in again.keys_of("j", TRAINING)] == ([0, 0, 1] if cut == len(whole) - 1 else [0, 1])


def test_without_its_log_a_silo_does_nothing(plain: Opened) -> None:
    plain.state.joinpath("log.jsonl").unlink()
    plain.state.joinpath("log.jsonl").mkdir()
    with pytest.raises(Exception, match=r"log\.jsonl"):
        plain.train()
