"""A run's rounds in this process, with its client actors' objects, algorithm, sampler and server, but without Ray and ledgers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each, Rows, RowsAt
from fedray.aggregation.exact import ExactSum
from fedray.aggregation.rule import combined, make_rule
from fedray.algorithms.algorithm import Mean, begun, make_algorithm, make_server, stepped
from fedray.algorithms.serverschedule import server_in
from fedray.audit.probes import Subject, train_one
from fedray.choices import Choice
from fedray.clients.groups import rates
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask
from fedray.clients.states import StateAddress, StatePlace
from fedray.clients.terms import Site, make_terms
from fedray.data.records import Federation
from fedray.errors import ConfigError
from fedray.exchange import MODEL
from fedray.parameters import Vector
from fedray.planning.preparation import Prepared
from fedray.privacy.recordplan import clips_persons
from fedray.rng import generator
from fedray.rounds.cohort import Population
from fedray.rounds.roots import RootHere, RootHost
from fedray.training.choose import choose_engine
from fedray.training.unfreezing import frozen_in


@dataclass(frozen=True)
class Released:
    """One client's update of a round, as the server sees it.

    Attributes:
        client: index of the client.
        round: number of the round, from 0.
        before: model at the start of the round, float32 ``[d]``.
        update: the update, float32 ``[d]``.
    """

    client: int
    round: int
    before: Vector
    update: Vector


def subjects(prepared: Prepared) -> list[Subject]:
    """The groups of clients of a run whose records are protected."""
    model, config = prepared.model, prepared.config
    assert model is not None
    built = model.facts.build()
    found = []
    for group, plan in zip(prepared.groups, prepared.plans, strict=True):
        if plan is not None:
            engine = choose_engine(group.training.engine, True, built, single=clips_persons(plan))[0]
            group = replace(group, training=group.training.model_copy(update={"engine": engine}))
            found.append(Subject(config, group, plan, model.facts))
    return found


class LocalRun:
    """Trains a federation as the run would; see the module's description.

    Args:
        prepared: the run.
        federation: records to train on, instead of the run's.
    """

    def __init__(self, prepared: Prepared, federation: Federation) -> None:
        assert prepared.model is not None
        self._prepared, self._config, self._model = prepared, prepared.config, prepared.model
        self._algorithm, self._server = make_algorithm(self._config.algorithm), make_server(self._config.server)
        self._rule = make_rule(self._config.aggregation)
        self._sizes = federation.sizes
        self._capacity = self._algorithm.largest_weight(self._sizes)
        self._hosts: dict[int, ClientHost] = {}
        self._states: dict[int, StateAddress] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="fedray-audit-") if self._algorithm.traits.state else None
        states = None if self._folder is None else StatePlace(self._folder.name)
        for group, plan in zip(prepared.groups, prepared.plans, strict=True):
            unmasked = self._config.model_copy(update={"secure": Choice(kind="none")})  # each update is looked at
            terms = make_terms(unmasked, group, plan, self._model.facts)
            host = ClientHost(terms, Site(device="cpu", states=states), federation)
            host.ready()
            self._hosts |= dict.fromkeys(group.members, host)
        self._everyone, self._rates = np.ones(len(prepared.names), dtype=np.bool_), rates(prepared.groups, len(prepared.names))
        self._exchange, facts = self._model.exchange, self._model.facts
        if MODEL not in self._exchange.up:
            raise ConfigError(
                "algorithm.kind: its clients send no model, in which an audit could look for records; audit another algorithm."
            )
        self._globals = begun(self._algorithm, self._exchange, facts.layout, self._model.weights.value.copy(), facts.another)
        self._state = self._server.init(self._exchange.model_size)
        self._kept = self._rule.begin(len(prepared.names), self._exchange.up_size)
        self._root = None
        if prepared.root is not None:
            self._root = RootHost(self._config, prepared.root, facts, len(prepared.names), {})
            self._root.ready()
        self.participations: npt.NDArray[np.int64] = np.zeros(len(prepared.names), dtype=np.int64)

    def run(self, rounds: int, seed: int) -> Iterator[Released]:
        """Run the rounds and yield each client's update as it is released.

        Args:
            rounds: number of rounds.
            seed: seed of the cohorts, which differ from the run's cohorts.

        Raises:
            FedrayError: a client failed.
        """
        for number in range(rounds):
            population = Population(
                self._everyone, self._rates, number, seed, self._sizes, np.ones(len(self._rates)), np.full(len(self._rates), np.inf)
            )
            cohort = self._prepared.sampler(population, generator(seed, "audit", "cohort", number).random(len(self._rates)))
            size, came = self._exchange.up_size, list[int]()
            total, rows = ExactSum.zero(size, self._capacity, self._exchange.ones_from, len(self._rates)), Rows(size)
            for i in cohort:
                if not self._sizes[i]:
                    continue
                task = ClientTask(int(i), self._prepared.names[i], state=self._states.get(int(i)))
                update, report, part = train_one(self._hosts[int(i)], self._globals, task, number, self._capacity, len(self._rates))
                self.participations[i] += 1
                if report.state is not None:
                    self._states[int(i)] = report.state
                assert isinstance(part.total, ExactSum)
                if self._rule.wants == "sum":
                    total.merge(part.total)
                else:
                    rows.add(update, part.total.weight)
                came.append(int(i))
                yield Released(int(i), number, self.weights, update[self._exchange.up["model"]])
            if came:
                root = None if self._root is None else RootHere(self._root, number, self._globals)
                got = total if self._rule.wants == "sum" else Each(size, root=root).joined(RowsAt.here(came, rows))
                vector, self._kept = combined(self._rule, got, self._kept, size)
                mean = Mean(self._exchange.views(vector, "up"), len(came), len(came) / len(self._rates))
                layout = self._model.facts.layout
                server = server_in(self._config.server, self._server, number, self._config.rounds)
                about = self._algorithm, server, layout, self._exchange, self._globals, self._state, mean
                self._globals, self._state = stepped(*about, frozen_in(self._config.training, layout, number))

    @property
    def weights(self) -> Vector:
        """The global model as it is now, float32 ``[layout.size]``."""
        return self._globals[: self._model.facts.layout.size]
