"""A stand-in for Ray in this process: calls to actors take virtual seconds, which pass only while somebody waits for one to end.

What a call gives is computed when it is made. So a test decides in which order updates arrive, and nothing sleeps.
"""

from __future__ import annotations

import math
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedray.aggregation.rule import make_rule
from fedray.algorithms.algorithm import begun, make_algorithm, make_server
from fedray.clients import actors, inbox, rounds, slots
from fedray.clients.groups import rates
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, PartialSum, RoundTask
from fedray.clients.placement import Place
from fedray.clients.pool import Pool
from fedray.clients.states import StatePlace
from fedray.clients.terms import Site, make_terms
from fedray.config import Config
from fedray.driver import Driver, Loop, ModelState
from fedray.experiment.besides import noised_evaluations
from fedray.experiment.description import guarantee_plans
from fedray.holder import Holder
from fedray.planning.preparation import capacity, prepare
from fedray.privacy.account import Account
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.regime import Regime
from fedray.privacy.release import Release
from fedray.rounds import broadcast
from fedray.rounds.arrival import make_steps
from fedray.rounds.books import Books, PopulationBook, RunBook
from fedray.rounds.clientstates import ClientStates
from fedray.rounds.dispatch import Secure
from fedray.rounds.drawing import CohortDraw
from fedray.rounds.record import Record
from fedray.rounds.roots import RootHere, RootHost
from fedray.rounds.round_metrics import Guarantees
from fedray.rounds.withdrawals import Withdrawals
from fedray.runfiles import Row, RunFiles
from fedray.secure.protocol import make_protocol
from fedray.updates.download import PackedGlobals
from fedray.updates.pipeline import keep_state, make_stages

#: The name under which books are kept and masks are made.
JOB = "run/1"


def stored(value: Any) -> Any:
    """A value as the object store gives it: its arrays lie in memory of the store, and cannot be written to."""
    buffers = list[pickle.PickleBuffer]()
    packed = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(packed, buffers=[bytes(buffer) for buffer in buffers])


@dataclass(eq=False)
class Ref:
    """What a call gives, and when."""

    value: Any
    done: float


class VirtualRay:
    """What the pool uses of Ray.

    Args:
        seconds: of a client's turn.
    """

    def __init__(self, seconds: Callable[[ClientTask], float]) -> None:
        self.now, self.seconds = 0.0, seconds

    def wait(self, refs: Sequence[Ref], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Ref], list[Ref]]:
        if timeout and not any(ref.done <= self.now for ref in refs):
            self.now = min([self.now + timeout, *(ref.done for ref in refs)])
        ready = sorted((ref for ref in refs if ref.done <= self.now), key=lambda ref: ref.done)[:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def put(self, value: Any) -> Ref:
        return Ref(stored(value), self.now)

    def get(self, ref: Any, timeout: float | None = None) -> Any:
        if isinstance(ref, list):
            return [one.value for one in ref]
        assert ref.done <= self.now
        return ref.value

    def kill(self, handle: Any) -> None:
        raise AssertionError("no actor should be replaced")

    def get_runtime_context(self) -> VirtualRay:
        return self

    def get_node_id(self) -> str:
        return "driver"


class Handle:
    """An actor: one call after the other, but for those that only look."""

    def __init__(self, ray: VirtualRay, host: ClientHost) -> None:
        self.ray, self.host, self.free = ray, host, 0.0
        self.training: list[tuple[RoundTask, weakref.ref[Ref], weakref.ref[Ref]]] = []  # only who waits for a part keeps it

    def __getattr__(self, name: str) -> Call:
        return Call(self, name)

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        ray = self.ray
        if name == "stop_round":
            calls = [(task, reports(), part()) for task, reports, part in self.training]
            for task, reports, part in calls:
                if reports is None or part is None or reports.done <= ray.now:
                    continue
                reports.value = [r._replace(status="late") for r in reports.value]
                part.value = PartialSum(task.round, task.empty_sum(self.host._trainer.exchange))
                reports.done = part.done = self.free = ray.now
            return None
        value = getattr(self.host, name)(
            *(a.value if isinstance(a, Ref) else stored(a) if isinstance(a, PackedGlobals) else a for a in arguments)
        )
        if name == "ready":
            value = replace(value, node_id="driver")
        if name in ("train", "train_and_hand_over", "train_each"):
            self.free = max(self.free, ray.now) + sum(map(ray.seconds, arguments[2]))
        if name not in ("train_and_hand_over", "hand_over", "train_each"):
            return Ref(value, self.free)
        first, *rest = (Ref(one, self.free) for one in value)
        if name == "train_each":
            return first, *rest
        (part,) = rest
        if name == "train_and_hand_over":
            self.training.append((arguments[0], weakref.ref(first), weakref.ref(part)))
        return first, part


@dataclass
class Call:
    handle: Handle
    name: str

    def options(self, **options: Any) -> Call:
        return self

    def remote(self, *arguments: Any) -> Any:
        return self.handle.call(self.name, arguments)


class RootsHere:
    """The actor of the root set, in this process."""

    def __init__(self, host: RootHost) -> None:
        self.host = host
        host.ready()

    def begin(self, round_: int, globals_: Ref) -> RootHere:
        return RootHere(self.host, round_, getattr(globals_, "value", globals_))


def drive(
    config: Config,
    folder: Path,
    seconds: Callable[[ClientTask], float],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[Callable[[ClientTask], float]], VirtualRay] = VirtualRay,
) -> tuple[list[Row], VirtualRay, np.ndarray]:
    """Run a config with one group of hosted clients and so many actors; its rows, the time at the end, and the model."""
    ray = made(seconds)
    for module in (actors, broadcast, inbox, rounds, slots):
        monkeypatch.setattr(module, "ray", ray)
    p = prepare(config)
    assert p.model is not None and p.sizes is not None and p.federation is not None
    folder.mkdir(exist_ok=True)
    (group,), names, model, files, stages = p.groups, p.names, p.model, RunFiles(folder), make_stages(config)
    terms = make_terms(config, group, p.plans[0], model.facts, model.exchange.sha256, JOB)
    keep = make_algorithm(config.algorithm).traits.state or keep_state(stages)
    site = Site(device="cpu", states=StatePlace(str(files.states)) if keep else None)
    pool = Pool(
        [Place(f"{group.name}/{n}", group.name, 0, group.resources) for n in range(number)],
        lambda place: Handle(ray, ClientHost(terms, site, p.federation)),
        p.sizes,
        members={group.name: group.members},
        restarts=0,
        retries=0,
        grace=math.inf,
        should_stop=lambda: False,
    )
    pool.wait_ready(1.0, True)
    seed, plan = config.privacy.insecure_seed, p.client_plan
    regime = Regime(config.seed, len(names), stages) if plan is None else Release(plan, seed, stages)
    accounts = {
        unit: Account.open_run(files.books, plans, JOB)
        for unit, plans in (
            (p.plans[0].unit if p.plans[0] else "record", p.plans[0] and dict.fromkeys(names, p.plans[0])),
            ("client", plan and dict.fromkeys(plan.subjects(names), plan)),
        )
        if plans
    }
    books = Books(*(_book(unit, account, regime, plan) for unit, account in accounts.items()))
    privacy = Guarantees(guarantee_plans(p))
    record = Record(config, files, books, regime, privacy, [], {})
    withdrawals = Withdrawals(names, dict, record.fault)
    about = config, names, rates(p.groups, len(names)), p.sizes, p.sampler, books, regime, privacy, record, withdrawals
    cohorts = CohortDraw(*about, p.availability)
    algorithm, server = make_algorithm(config.algorithm), make_server(config.server)
    rule, protocol = make_rule(config.aggregation), make_protocol(config.secure)
    weights = begun(algorithm, model.exchange, model.facts.layout, model.weights.take(), model.facts.another)
    loop = Loop(
        config=config,
        names=names,
        capacity=capacity(config, p.sizes),
        layout=model.facts.layout,
        algorithm=algorithm,
        exchange=model.exchange,
        frozen={},
        pool=pool,
        books=books,
        steps=make_steps(config, p.schedule, cohorts, names, p.groups, p.sizes, {}),
        record=record,
        server=server,
        rule=rule,
        regime=regime,
        evaluator=None,
        states=ClientStates(files.states, 1) if keep else None,
        begin=Holder(ModelState(weights, server.init(model.exchange.model_size), rule.begin(len(names), model.exchange.up_size))),
        privacy=privacy,
        withdrawals=withdrawals,
        roots=None if p.root is None else RootsHere(RootHost(config, p.root, model.facts, len(names), {})),  # type: ignore[arg-type]
        secure=None if protocol is None else Secure(protocol, JOB, config.cohort.min_clients, config.cohort.retries),
        noised=noised_evaluations(p, pool, books, record, None),
    )
    driver = Driver(loop, threading.Event())
    try:
        assert driver.run() == "completed"
    finally:
        for account in accounts.values():
            account.close()
    return files.rows(), ray, driver.weights


def _book(unit: str, account: Account, regime: Regime, plan: ClientPlan | None) -> RunBook | PopulationBook:
    if unit == "client" and plan is not None and plan.charging.whom == "everyone":
        return PopulationBook("clients", account, False, regime.due)
    return RunBook("clients" if unit == "client" else "records", unit, account, False)
