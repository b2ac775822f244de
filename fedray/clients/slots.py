"""A slot: a place and the actor that holds it now; the log of a round; whether actors answer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError

from fedray.clients.messages import ClientReport, ClientTask, HostInfo, Status
from fedray.clients.placement import Place
from fedray.errors import FedrayError
from fedray.faults import Fault

Doing = Literal["starting", "training", "handing over", "adding up", "owing"]


class Silent(FedrayError):
    """An actor left calls unanswered for too long."""


class Gone(FedrayError):
    """What an actor stands for, such as a silo outside the cluster, is gone; the actor counts as dead."""


def gone(error: BaseException) -> Gone | None:
    """The :class:`Gone` with which an actor's method ended; None where it ended otherwise."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Gone) else None


@dataclass(eq=False)
class Slot:
    """A place and the actor that holds it now.

    Attributes:
        handle, info: the actor; ``info`` is None until it is up.
        pending, doing: the call that it works on.
        given: clients that it was given and has not reported.
        until: when it should be done with them (monotonic seconds).
        held: reports of clients whose updates are in its part.
        sending: the part that it hands over.
        fitted: the physical batch that was last said to fit into its memory.
        deaths: actors that died here.
        abandoned: no actor is started here any more.
        due: when it must have come back from a late client's turn (monotonic seconds).
        since: when the actor was requested (monotonic seconds).
        last_notice: when the user was last told that it is still starting (monotonic seconds).
        ping, silence, asked: an unanswered question whether it is there, for how many seconds that has been, and when one was last put.
    """

    place: Place
    handle: Any = None
    info: HostInfo | None = None
    pending: Any = None
    doing: Doing | None = None
    given: list[ClientTask] = field(default_factory=list)
    until: float = 0.0
    held: dict[int, ClientReport] = field(default_factory=dict)
    sending: Any = None
    fitted: int | None = None
    deaths: int = 0
    abandoned: bool = False
    due: float = math.inf
    since: float = 0.0
    last_notice: float = 0.0
    ping: Any = None
    silence: float = 0.0
    asked: float = 0.0

    @property
    def idle(self) -> bool:
        """Ready for work."""
        return self.info is not None and self.pending is None

    @property
    def node(self) -> str:
        """Ray's name of the node that its actor is on; empty while it is not up."""
        return self.info.node_id if self.info is not None else ""

    def leave(self) -> None:
        """Forget the actor and its work."""
        self.handle = self.info = self.pending = self.doing = self.sending = self.ping = None
        self.given, self.held, self.silence, self.due = [], {}, 0.0, math.inf

    def fits(self, batches: Sequence[int]) -> list[Fault]:
        """Take down what fits into its actor's memory, and say so once. No client is named: who took part may be secret."""
        if not batches or min(batches) == self.fitted:
            return []
        self.fitted = min(batches)
        text = (
            f"actor {self.place.key} ran short of memory and trains with {self.fitted} records at once; "
            "set training.physical_batch to that, or give it more memory"
        )
        return [Fault("memory", text, node=self.info.node if self.info else None)]

    def trained(self) -> list[ClientTask]:
        """Whom it has trained without handing over."""
        return [ClientTask(r.index, r.name, r.attempt) for r in self.held.values()]


@dataclass
class RoundLog:
    """What happened to every client of a round, and to the actors.

    Attributes:
        reports: one for each client's turn that ended.
        deaths: actors that died.
        retries: turns that were given to another actor.
        faults: of actors and nodes; their round is not filled in.
        nodes_left: Ray's names of the nodes that left.
    """

    reports: list[ClientReport] = field(default_factory=list)
    deaths: int = 0
    retries: int = 0
    faults: list[Fault] = field(default_factory=list)
    nodes_left: set[str] = field(default_factory=set)

    def lose(self, clients: Sequence[int], why: str, status: Status = "lost") -> None:
        """Take down that clients' updates are gone, which had arrived, or that they do not count."""
        gone = set(clients)
        self.reports = [
            r._replace(status=status, error=why, loss=None, receipts={}, state=None) if r.status == "done" and r.index in gone else r
            for r in self.reports
        ]

    def taken(self) -> RoundLog:
        """What has happened so far, as a log of its own; this one begins anew."""
        found = replace(self)
        self.reports, self.deaths, self.retries, self.faults, self.nodes_left = [], 0, 0, [], set()
        return found

    def count(self, *status: Status) -> int:
        """Number of clients that ended in one of these ways."""
        ways = [r.status for r in self.reports]
        return sum(map(ways.count, status))


class Pulse:
    """Finds actors that do not answer while they work; Ray itself takes a minute to see that a node was cut off.

    Args:
        limit: seconds that a call may stay unanswered.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._looked = time.monotonic()

    def silent(self, slots: Iterable[Slot]) -> list[Slot]:
        """Ask those who were not asked lately; returns who has left a question unanswered for too long. Called often."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 1.0), now  # a driver that itself stood still blames nobody for it
        slots = list(slots)
        pings = {s.ping: s for s in slots if s.ping is not None}
        answered = ray.wait(list(pings), num_returns=len(pings), timeout=0)[0] if pings else []
        for slot in slots:
            if slot.ping is not None and slot.ping not in answered:
                slot.silence += passed
                continue
            slot.ping, slot.silence = None, 0.0
            if now - slot.asked > min(5.0, self.limit / 4):
                slot.ping, slot.asked = slot.handle.ping.options(concurrency_group="control").remote(), now
        return [s for s in slots if s.silence > self.limit]


def left_with_its_node(error: BaseException) -> bool:
    """Whether an actor's error says that its node is gone or out of reach, not the actor alone."""
    return isinstance(error, ActorUnavailableError | NodeDiedError | Silent) or "node has died" in str(error) or "node was" in str(error)
