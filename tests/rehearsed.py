"""A run's rounds in this process, without Ray: client actors' objects, any split of clients to them, any order in which their parts come."""

from __future__ import annotations

import itertools
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each, Rows, RowsAt
from fedray.aggregation.rule import combined, make_rule
from fedray.algorithms.algorithm import Mean, ServerState, begun, make_algorithm, make_server, stepped
from fedray.algorithms.serverschedule import server_in
from fedray.attacks.attackers import Attackers
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientReport, ClientTask, LocalEvaluation, RoundTask
from fedray.clients.states import StateFiles, StatePlace
from fedray.clients.terms import Site, Terms, make_terms
from fedray.config import Config
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.models.facts import first_model
from fedray.parameters import Vector, get_vector, set_vector
from fedray.rounds.clientstates import ClientStates
from fedray.rounds.roots import RootHere, RootHost
from fedray.training.losses import outputs_for
from fedray.training.unfreezing import frozen_in
from fedray.updates.download import Download, make_coder
from fedray.updates.pipeline import keep_state, make_stages

Indices = npt.NDArray[np.int64]


def label_skewed(seed: int = 0, clients: int = 10) -> tuple[Federation, Records]:
    """scikit-learn's digits, pixels / 16: each client has 1 to 4 shards of records that are sorted by label; a fifth is the test set."""

    def deal(by_label: Indices, draws: np.random.Generator) -> list[Indices]:
        shards_of = draws.integers(1, 5, clients)
        shards = np.array_split(by_label, int(shards_of.sum()))
        dealt = draws.permutation(len(shards))
        firsts = np.cumsum(shards_of) - shards_of
        return [np.concatenate([shards[n] for n in dealt[first : first + k]]) for k, first in zip(shards_of, firsts, strict=True)]

    return _digits(seed, deal)


def few_shards(seed: int = 0, clients: int = 10, shards: int = 20) -> tuple[Federation, Records]:
    """As :func:`label_skewed`, but each client draws 1 to 4 of the shards by itself, so that some records have several owners and some none."""

    def deal(by_label: Indices, draws: np.random.Generator) -> list[Indices]:
        parts = np.array_split(by_label, shards)
        return [np.concatenate([parts[n] for n in draws.choice(shards, k, replace=False)]) for k in draws.integers(1, 5, clients)]

    return _digits(seed, deal)


def _digits(seed: int, deal: Callable[[Indices, np.random.Generator], list[Indices]]) -> tuple[Federation, Records]:
    """Digits as ``deal`` gives the training rows, sorted by label, to clients; and the test set."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, draws = (x / 16).astype(np.float32), np.random.default_rng(seed)
    order = draws.permutation(len(x))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    parts = deal(train[np.argsort(y[train], kind="stable")], draws)
    rows, offsets = np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    names = [f"client-{k}" for k in range(len(parts))]
    return Federation(names, Records(x[rows], y[rows]), offsets, None, None, None, 10), Records(x[test], y[test])


def half_rotated(seed: int = 0, clients: int = 10) -> Federation:
    """scikit-learn's digits, dealt at random, which the second half of the clients see turned by 90 degrees; each tests on a fifth."""
    dealt = _digits(seed, lambda rows, draws: np.array_split(draws.permutation(rows), clients))[0]
    federation = with_client_tests(dealt, seed)
    assert federation.client_test is not None and federation.client_test_offsets is not None

    def turned(records: Records, offsets: Indices) -> Records:
        x, first = records.x.copy(), int(offsets[clients // 2])
        x[first:] = np.rot90(x[first:].reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
        return Records(x, records.y)

    train, test = turned(federation.train, federation.offsets), turned(federation.client_test, federation.client_test_offsets)
    return replace(federation, train=train, client_test=test)


def with_client_tests(federation: Federation, seed: int = 0) -> Federation:
    """The federation with a fifth of each client's records, drawn by ``seed``, held out at the client."""
    draws, train, test = np.random.default_rng(seed), list[Indices](), list[Indices]()
    for first, end in itertools.pairwise(federation.offsets.tolist()):
        rows = first + draws.permutation(end - first)
        test.append(rows[: len(rows) // 5])
        train.append(rows[len(rows) // 5 :])
    (kept, offsets), (held, held_offsets) = (
        (np.concatenate(parts), np.cumsum([0, *map(len, parts)], dtype=np.int64)) for parts in (train, test)
    )
    x, y = federation.train.x, federation.train.y
    return replace(
        federation,
        train=Records(x[kept], y[kept]),
        offsets=offsets,
        client_test=Records(x[held], y[held]),
        client_test_offsets=held_offsets,
    )


def config_of(algorithm: Mapping[str, Any], **sections: Any) -> Config:
    """Softmax regression on digits by ``algorithm``."""
    training = {"lr": 0.1, "batch_size": 10, "epochs": 2}
    base = {"name": "t", "rounds": 1, "data": {"source": "sklearn:digits"}, "model": {"kind": "softmax"}}
    return build_config({**base, "training": training, "algorithm": dict(algorithm), **sections})


class Rehearsed:
    """The rounds of one run.

    Args:
        config: the run.
        federation: its clients.
        root: its root set, as the records of one client.
    """

    def __init__(self, config: Config, federation: Federation, root: Federation | None = None) -> None:
        self.algorithm, self.server, self.rule = make_algorithm(config.algorithm), make_server(config.server), make_rule(config.aggregation)
        self.attackers = Attackers.of(config, federation.names)
        self._config, self._federation, self.stages = config, self.attackers.changed(federation), make_stages(config)
        self._group = make_groups(config, federation.names)[0]
        shape = federation.train.x.shape[1:]
        outputs = outputs_for(config.training.loss, federation.classes)
        self.model, self._facts = first_model(config.model, shape, outputs, config.seed, personal=self.algorithm.personal)
        self.layout = self._facts.layout
        self.exchange = self.algorithm.exchange(self.layout)
        first = get_vector(self.model, self.layout)
        self.globals: Vector = begun(self.algorithm, self.exchange, self.layout, first, self._facts.another)
        self.state: ServerState = self.server.init(self.exchange.model_size)
        self.memory = self.rule.begin(len(federation.names), self.exchange.up_size)
        self.round = 0
        self._folder = tempfile.TemporaryDirectory()
        self.states = ClientStates(Path(self._folder.name), 1)
        self._hosts: list[ClientHost] = []
        self.root = None if root is None else RootHost(config, root, self._facts, len(federation.names), {})
        if self.root is not None:
            self.root.ready()

    def host(self, k: int) -> ClientHost:
        """The k-th actor."""
        while len(self._hosts) <= k:
            self._hosts.append(ClientHost(*self._given(), self._federation))
            self._hosts[-1].ready()
        return self._hosts[k]

    def _given(self) -> tuple[Terms, Site]:
        states = StatePlace(self._folder.name) if self.algorithm.traits.state or keep_state(self.stages) else None
        return make_terms(self._config, self._group, None, self._facts), Site(device="cpu", states=states)

    def kept(self) -> dict[int, dict[str, bytes]]:
        """What each client keeps, by its index."""
        files, tasks = StateFiles(self._folder.name), [ClientTask(i, name) for i, name in enumerate(self._federation.names)]
        found = {t.index: t.state for t in self.states.attached(tasks) if t.state is not None}
        return {index: {name: v.tobytes() for name, v in files.read(state).items()} for index, state in found.items()}

    def restart(self) -> None:
        """Go on as from a checkpoint, with other actors."""
        self.states = ClientStates(Path(self._folder.name), 1, self.states.tensors())
        self._hosts = []

    def train(self, split: Sequence[Sequence[int]], order: Sequence[int] | None = None) -> None:
        """One round: the clients that each actor trains, and the order in which the actors' parts come."""
        sizes, names = self._federation.sizes, self._federation.names
        capacity = self.algorithm.largest_weight(sizes)
        task = RoundTask(self.round, capacity, self.stages, clients=len(names), collect=self.rule.wants)
        received = self.received()
        parts, reports = [], list[ClientReport]()
        for k, clients in enumerate(split):
            tasks = self.states.attached([ClientTask(i, names[i]) for i in clients])
            reports += self.host(k).train(task, received, tasks)
            assert all(r.status == "done" for r in reports), [r.error or r.traceback for r in reports]
            parts.append(pickle.loads(pickle.dumps(self.host(k).collect(task))))
        root = None if self.root is None else RootHere(self.root, self.round, received)
        total, each = task.empty_sum(self.exchange), Each(self.exchange.up_size, root=root)
        for k in order or range(len(parts)):
            came = parts[k].total
            if isinstance(came, Rows):
                each = each.joined(RowsAt.here(parts[k].clients, came))
            else:
                total.merge(came)
        got = total if self.rule.wants == "sum" else self.attackers.seen(each)
        vector, self.memory = combined(self.rule, got, self.memory, self.exchange.up_size)
        mean = Mean(self.exchange.views(vector, "up"), got.count, got.count / len(names))
        frozen = frozen_in(self._config.training, self.layout, self.round)
        server = server_in(self._config.server, self.server, self.round, self._config.rounds)
        self.globals, self.state = stepped(self.algorithm, server, self.layout, self.exchange, self.globals, self.state, mean, frozen)
        self.states.commit(reports, [r.index for r in reports])
        self.round += 1
        self.states.checkpointed(self.round)

    def received(self) -> Vector:
        """The globals as actors have them, after they have travelled."""
        coder = make_coder(self._config.download)
        if coder is None:
            return self.globals
        packed = Download(coder, self.exchange.model_size, self._config.seed).packed(self.globals, self.round)
        vector: Vector = pickle.loads(pickle.dumps(packed))
        return vector

    def measured(self) -> list[Vector]:
        """The exchanged part of the model that each client evaluates."""
        tasks = self.states.attached([ClientTask(i, name) for i, name in enumerate(self._federation.names)])
        return [get_vector(self.host(0)._trainer.measured(self.received(), task), self.layout) for task in tasks]

    def at_clients(self) -> list[LocalEvaluation]:
        """What each client evaluates on its own held-out records."""
        tasks = self.states.attached([ClientTask(i, name) for i, name in enumerate(self._federation.names)])
        return self.host(0).evaluate(self.globals, tasks)

    def client_accuracies(self) -> list[float]:
        """The accuracy of each client's model on its own held-out records."""
        return [row.metrics["accuracy"] for row in self.at_clients()]

    def client_accuracy(self) -> float:
        """Mean over the clients, of what each evaluates on its own held-out records."""
        return float(np.mean(self.client_accuracies()))

    def accuracy(self, test: Records) -> float:
        """Of the global model."""
        import torch

        set_vector(self.model, self.layout, self.globals[: self.layout.size])
        with torch.no_grad():
            found = self.model(torch.from_numpy(test.x)).argmax(1).numpy()
        return float((found == test.y).mean())
