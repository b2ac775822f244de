"""The pool: the client actors of a run, and the rounds that they train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import RowsAt
from fedray.clients.actors import Actors
from fedray.clients.course import Course
from fedray.clients.messages import ClientTask, HostInfo, Inquiry, LocalEvaluation, NoisedEvaluation, PartialSum, RoundTask
from fedray.clients.nodes import Node, look
from fedray.clients.placement import Place
from fedray.clients.rounds import Round, Rules
from fedray.clients.slots import RoundLog, Slot
from fedray.clients.suspects import Suspects
from fedray.clients.work import Work
from fedray.spans import Span

__all__ = ["Pool", "RoundLog"]

log = logging.getLogger(__name__)

#: Clients of one actor who evaluate in one call, whose answers are lost with it.
_TOGETHER = 16


class Pool:
    """All client actors of a run.

    Args:
        places: where actors go.
        start: starts one.
        sizes: the clients' numbers of records.
        members: the clients of each queue (hosted placement).
        restarts: how often the actor of one place is replaced.
        retries: how often a client is tried again in a round, whose actor died in its turn.
        grace: seconds that clients have to stop after a deadline.
        unreachable_after: seconds for which a working actor may leave calls unanswered.
        start_timeout: seconds for which a round waits for actors that are being placed and started.
        node_sums: add parts up on the nodes.
        grow: what to add now, given all places, those whose actors are not up, and the cluster's nodes.
        should_stop: polled while waiting.
        note: is given sentences for the user, such as why an actor is not up yet.
        terms: hash of the terms by which the actor of a place must work; None: it is not compared.
    """

    def __init__(
        self,
        places: Sequence[Place],
        start: Callable[[Place], Any],
        sizes: npt.NDArray[np.int64],
        *,
        restarts: int,
        retries: int,
        grace: float,
        members: Mapping[str, Sequence[int]] | None = None,
        unreachable_after: float = 30.0,
        start_timeout: float = 120.0,
        node_sums: bool = True,
        grow: Callable[[Sequence[Place], Sequence[Place], Sequence[Node]], Sequence[Place]] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        note: Callable[[str], None] = log.info,
        terms: Callable[[Place], str] | None = None,
    ) -> None:
        self._work = Work(sizes)
        self._work.assign(members or {p.queue: [p.client.index] for p in places if p.client is not None})
        self._rules, self._grow = Rules(grace, node_sums), grow
        self._suspects, self._unmeasured = Suspects(retries), set[int]()
        self._open = False  # clients join and leave a round
        self._actors = Actors(
            places,
            start,
            restarts=restarts,
            unreachable_after=unreachable_after,
            start_timeout=start_timeout,
            should_stop=should_stop,
            note=note,
            terms=terms,
        )

    @property
    def slots(self) -> list[Slot]:
        """All slots, with and without an actor that is up."""
        return self._actors.slots

    def learn_sizes(self, sizes: npt.NDArray[np.int64]) -> None:
        """Take the clients' record counts, where only their actors knew them; durations seen so far are forgotten."""
        self._work.learn_sizes(sizes)

    def wait_ready(self, timeout: float, everyone: bool) -> dict[str, HostInfo]:
        """Wait until actors are up; see :meth:`fedray.clients.actors.Actors.wait_ready`."""
        return self._actors.wait_ready(timeout, everyone)

    def settle(self, timeout: float) -> None:
        """Wait for actors that are being replaced; those that are not up ``timeout`` seconds after they were asked for stay away."""
        self._actors.settle(timeout)

    def broadcast(self, method: str, *arguments: Any, timeout: float) -> dict[str, Any]:
        """Call a method on every actor that is up; see :meth:`fedray.clients.actors.Actors.broadcast`."""
        return self._actors.broadcast(method, *arguments, timeout=timeout)

    def shutdown(self) -> None:
        """End all actors."""
        self._actors.shutdown()

    def spans(self, timeout: float) -> dict[str, list[Span]]:
        """Where the time of each actor went, of those that answer in time."""
        answers = self._actors.ask("spans", {s: () for s in self.slots if s.info is not None}, timeout)
        return {slot.place.key: found for slot, found in answers.items()}

    # -- dedicated clients -----------------------------------------------------------------------

    def handle_of(self, client: int) -> Any:
        """The actor that serves a dedicated client, or None while it is away."""
        slot = self._slot_of(client)
        return None if slot is None else slot.handle

    def ask(self, method: str, arguments: Mapping[int, tuple[Any, ...]], timeout: float) -> dict[int, Any]:
        """Call a method on dedicated clients' actors; client to answer, for those that answered in time.

        Actors that die or fall silent meanwhile are replaced, and their :meth:`handle_of` is None. Those that are away are not asked, nor, while clients
        join and leave, those that train, whose answer would wait for the end of a turn.

        Raises:
            FedrayError: the method failed.
        """
        slots = {slot: client for client in arguments if (slot := self._slot_of(client)) is not None}
        slots = {slot: client for slot, client in slots.items() if not (self._open and slot.doing == "training")}
        answers = self._actors.ask(method, {slot: arguments[client] for slot, client in slots.items()}, timeout)
        return {slots[slot]: answer for slot, answer in answers.items()}

    def _slot_of(self, client: int) -> Slot | None:
        queue = self._work.queue_of(client)
        return next((s for s in self.slots if s.place.queue == queue and s.info is not None), None)

    # -- a round ---------------------------------------------------------------------------------

    def pinned(self, cohort: Sequence[ClientTask]) -> dict[int, str]:
        """For each client the name of the place whose actor holds its half of a protocol, by its index.

        Actors that are being started are waited for first, and clients whose actor stays away are left out.
        """
        self._take_room()
        self._actors.settle(self._actors.start_timeout)
        places: dict[str, list[str]] = {}
        for slot in self.slots:
            if slot.idle:
                places.setdefault(slot.place.queue, []).append(slot.place.key)
        return self._work.pinned(cohort, places)

    def consult(
        self, task: RoundTask, phase: str, messages: Mapping[int, Inquiry], pinned: Mapping[int, str], timeout: float
    ) -> dict[int, bytes | str]:
        """Ask the members of a protocol that some clients are.

        Args:
            task: the round.
            phase: what they are asked.
            messages: for each client that is asked, by its index.
            pinned: names of the places of their actors.
            timeout: seconds to wait for answers.

        Returns:
            For each client that answered its answer, or why it refuses. Actors that die or fall silent meanwhile are replaced.
        """
        slots = {slot.place.key: slot for slot in self.slots}
        asked: dict[Slot, dict[int, Inquiry]] = {}
        for client, message in messages.items():
            asked.setdefault(slots[pinned[client]], {})[client] = message
        answers = self._actors.ask("consult", {slot: (task, phase, those) for slot, those in asked.items()}, timeout)
        return {client: said for of_slot in answers.values() for client, said in of_slot.items()}

    def train(
        self,
        cohort: Sequence[ClientTask],
        task: RoundTask,
        weights: Any,
        notes: RoundLog,
        *,
        deadline: float | None = None,
        enough: int | None = None,
        more: Callable[[], Sequence[ClientTask] | None] | None = None,
        authorize: Callable[[ClientTask], ClientTask | None] = lambda client: client,
        part_bytes: int = 0,
        charged: bool = True,
        pinned: Mapping[int, str] | None = None,
    ) -> Iterator[PartialSum | RowsAt]:
        """Train a cohort; yields parts as they arrive, or where they lie if the round collects single updates, in any order.

        Args:
            cohort: who trains.
            task: the round.
            weights: the globals, or an object reference of them; by version of the model, where clients start from several.
            notes: filled with every client's report and the faults of actors and nodes.
            deadline: seconds after which clients still training are late.
            enough, more, pinned: see :class:`fedray.clients.course.Course`.
            authorize: called before a client is tried again; returns the task with its new reservation, or None where its budget is spent.
            part_bytes: of one actor's part; large ones come one after the other.
            charged: whether a client's second try is charged to its privacy budget; if not, a node's actors may add large updates into one sum.

        Raises:
            Stopped: the pool was asked to stop; so were the actors.
            FedrayError: an actor failed outside any client's work.
        """
        between, self._actors.between = self._actors.between, RoundLog()
        notes.deaths, notes.faults = notes.deaths + between.deaths, notes.faults + between.faults
        notes.nodes_left |= between.nodes_left
        self._take_room()
        versions = weights if isinstance(weights, Mapping) else {task.round: weights}
        course = Course(deadline, enough, more, pinned)
        about = self._actors, self._work, self._suspects, self._rules, task, versions, notes, course, authorize, part_bytes, charged
        self._open = more is not None
        try:
            yield from Round(*about).parts(self._suspects.admitted(cohort, notes))
        finally:
            self._open = False

    def evaluate(self, cohort: Sequence[ClientTask], weights: Any, timeout: float, few: int = 0) -> list[LocalEvaluation]:
        """Evaluate at the clients; clients whose actor is away are left out.

        Where an actor ends or does not answer, each of its clients is evaluated by itself, and whoever that happens to again is left out,
        from then on.

        Args:
            cohort: who is asked.
            weights: the globals, or an object reference of them.
            timeout: seconds to wait for the clients who are asked at a time.
            few: of how many clients an actor is asked at a time, about; 0: of all.
        """
        most = few * len(self.slots) or max(1, len(cohort))
        found = [row for start in range(0, len(cohort), most) for row in self._evaluated(cohort[start : start + most], weights, timeout)]
        return sorted(found, key=lambda r: r.name)

    def _evaluated(self, cohort: Sequence[ClientTask], weights: Any, timeout: float) -> list[LocalEvaluation]:
        found: list[LocalEvaluation] = []
        work, alone = self._shared_out([c for c in cohort if c.index not in self._unmeasured], 0), list[ClientTask]()
        while work:
            answers = self._actors.ask("evaluate", {slot: (weights, clients) for slot, clients in work.items()}, timeout)
            found += [row for rows in answers.values() for row in rows]
            for slot, clients in work.items():
                if slot in answers:
                    continue
                if slot.info is not None:
                    self._actors.replace(slot, f"it did not come back from an evaluation within {timeout:g} s", self._actors.between)
                if len(clients) > 1:
                    alone += clients
                elif slot.place.client is None:
                    self._unmeasured.add(clients[0].index)
                    self._actors.note(f"client {clients[0].name} is not evaluated any more: its evaluation ends or holds up its actor.")
            if alone:
                self._actors.settle(timeout)
            work = self._shared_out(alone, 1)
            taken = {c.index for clients in work.values() for c in clients}
            alone = [c for c in alone if c.index not in taken]
        return found

    def within_reach(self, cohort: Sequence[ClientTask]) -> list[ClientTask]:
        """The clients whose actor could evaluate now; actors that are being replaced are waited for."""
        self._actors.settle(self._actors.start_timeout)
        return [c for clients in self._shared_out(cohort, 0).values() for c in clients]

    def evaluate_once(self, cohort: Sequence[ClientTask], weights: Any, round_: int, timeout: float) -> list[NoisedEvaluation]:
        """What clients tell of their held-out records with noise; those whose actor ends or does not answer tell nothing.

        Nobody is asked twice: another answer would have noise of its own, and be a release that nobody charged.

        Args:
            cohort: who is asked, with their reservations.
            weights: the globals, or an object reference of them.
            round_: after which the evaluation takes place, from 0.
            timeout: seconds to wait for the answers of a few clients of each actor, who are asked at a time.
        """
        found, left = list[NoisedEvaluation](), list(cohort)
        while left:
            work = self._shared_out(left, _TOGETHER)
            if not work:
                self._actors.settle(self._actors.start_timeout)
                work = self._shared_out(left, _TOGETHER)
            answers = self._actors.ask("evaluate_noised", {slot: (weights, clients, round_) for slot, clients in work.items()}, timeout)
            for slot in work:
                if slot not in answers and slot.info is not None:
                    self._actors.replace(slot, f"it did not come back from an evaluation within {timeout:g} s", self._actors.between)
            found += [one for told in answers.values() for one in told]
            asked = {c.index for clients in work.values() for c in clients}
            left = [c for c in left if c.index not in asked] if asked else []
        return sorted(found, key=lambda one: one.name)

    def _shared_out(self, clients: Sequence[ClientTask], most: int) -> dict[Slot, list[ClientTask]]:
        """Clients for each actor that is free, at most ``most`` each, 0 for any number; some may be left over."""
        idle: dict[str, list[Slot]] = {}
        for slot in self.slots:
            if slot.idle:
                idle.setdefault(slot.place.queue, []).append(slot)
        work: dict[Slot, list[ClientTask]] = {}
        for n, client in enumerate(clients):
            slots = idle.get(self._work.queue_of(client.index), [])
            if slots and not (most and len(work.get(slots[n % len(slots)], ())) >= most):
                work.setdefault(slots[n % len(slots)], []).append(client)
        return work

    def _take_room(self) -> None:
        """Add actors where the cluster has gained room for them."""
        nodes = look() if self._grow is not None else None
        if nodes is None or self._grow is None:
            return
        unplaced = [s.place for s in self.slots if s.doing == "starting"]
        more = self._grow([s.place for s in self.slots], unplaced, nodes)
        if more:
            self._actors.note(f"the cluster has room for {len(more)} more client actors, which join: {more[0].key} to {more[-1].key}.")
            self._actors.add(more)
