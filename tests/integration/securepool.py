"""Secure sums over a pool of actors, one for each client, whose driver is the test itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pools import Ground

from fedray.aggregation.exact import ExactSum
from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.placement import Place
from fedray.clients.pool import Pool, RoundLog
from fedray.clients.slots import Slot
from fedray.rounds.phases import Phases
from fedray.secure.protocol import Ask, Conduct, Member, Order, Protocol, TooFew, Train, make_protocol

CAPACITY = 1e4


@dataclass
class Attempt:
    """One attempt of one round.

    Attributes:
        pool: has the actors.
        phases: of the attempt.
        log: of what happened.
        said: what the driver was answered, by phase and client.
        parts: the vectors that arrived, by client.
        total: the sum, unmasked if it could be.
        failed: why it could not be.
    """

    pool: Pool
    log: RoundLog = field(default_factory=RoundLog)
    phases: Phases | None = None
    said: dict[str, Mapping[int, bytes]] = field(default_factory=dict)
    parts: dict[int, Any] = field(default_factory=dict)
    total: Any = None
    failed: TooFew | None = None

    def slot(self, client: int) -> Slot:
        """Of the actor that has a client's keys."""
        assert self.phases is not None
        return next(slot for slot in self.pool.slots if slot.place.key == self.phases.pinned[client])

    def kill(self, clients: Iterable[int]) -> None:
        """End the processes of some clients, as the system would."""
        for client in clients:
            info = self.slot(client).info
            assert info is not None
            os.kill(info.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Watched(Protocol):
    """The driver's half of a protocol, with a call before each phase."""

    inner: Protocol
    attempt: Attempt
    before: Callable[[str, Attempt], None]
    trust = "a test"

    @property
    def patience(self) -> float:
        return self.inner.patience

    def conduct(self, order: Order, members: int) -> Conduct:
        conduct = self.inner.conduct(order, members)
        step = next(conduct)
        while True:
            phase = step.phase if isinstance(step, Ask) else "train" if isinstance(step, Train) else "total"
            self.before(phase, self.attempt)
            said = yield step
            self.attempt.said[phase] = said
            try:
                step = conduct.send(said)
            except StopIteration as end:
                correction = end.value
                return correction  # type: ignore[no-any-return]

    def member(self, order: Order, number: int) -> Member:
        return self.inner.member(order, number)


def nothing(phase: str, attempt: Attempt) -> None:
    """What usually happens before a phase."""


class Silos(Ground):
    """The clients of :class:`pools.Ground` under secure aggregation."""

    def __init__(self, **sections: Any) -> None:
        given: dict[str, Any] = {
            "clients": {"resources": {"cpu": 0.5}},
            "cohort": {"kind": "all", "min_clients": 3},
            "secure": {"kind": "secagg", "fewest": 6, "threshold": 0.75},
        }
        super().__init__(**given | sections)
        self.exchange = make_algorithm(self.config.algorithm).exchange(self.model.facts.layout)
        self.protocol = make_protocol(self.config.secure)
        self.cohort = [ClientTask(i, name) for i, name in enumerate(self.prepared.names)]

    def silos(self) -> Pool:
        """A pool in which each client has an actor of its own."""
        group, names = self.prepared.groups[0], self.prepared.names
        places = [Place(name, name, 0, group.resources) for name in names]
        return self.pool(places, members={name: [i] for i, name in enumerate(names)})

    def attempt(self, pool: Pool, number: int, attempt: int = 0, before: Callable[[str, Attempt], None] = nothing) -> Attempt:
        """Have all clients train for a round, and take the masks off if that is possible."""
        assert self.protocol is not None
        made = Attempt(pool)
        task = RoundTask(number, CAPACITY, attempt=attempt, secure=self.protocol.terms())
        order = Order("", number, attempt, self.config.cohort.min_clients, task.agreed(self.exchange))
        made.phases = phases = Phases(Watched(self.protocol, made, before), order, task, pool, made.log)
        ready, total = phases.before(self.cohort), task.empty_sum(self.exchange)
        for part in pool.train(ready, task, self.weights, made.log, pinned=phases.pinned):
            (client,) = part.clients
            assert isinstance(part.total, ExactSum)
            made.parts[client] = part.total.values.copy()
            total = total.joined(part.total)
        phases.after(total, list(made.parts))
        made.total, made.failed = total.values, phases.failed
        return made

    def in_the_clear(self, pool: Pool, number: int) -> Any:
        """What each client's update adds to the sum of a round, int64 ``[clients, size]``; the pool is of a run without secure sums."""
        rows = []
        for client in self.cohort:
            (part,) = pool.train([client], RoundTask(number, CAPACITY), self.weights, RoundLog())
            assert isinstance(part.total, ExactSum)
            rows.append(part.total.values.copy())
        return np.stack(rows)
