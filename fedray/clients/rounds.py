"""One round over all client actors: clients are handed out, partial sums come in, and what is lost is trained again.

Clients are handed out with the longest turns first, in shares that shrink, to whichever actor is free; where all turns together are short,
each actor gets one equal share at once. An actor adds its clients' updates up and hands over one partial sum when no client is left for it.
Clients whose partial sum did not arrive count as not trained. So no update is counted twice, and none is lost without a report when an actor
dies, stops answering, or its node leaves.

Where that is allowed, the actors of a large model on one node share one sum. If one of them is lost, the sum cannot be used, because it may
hold half an update: all clients in it are trained again, and the node's actors go on with sums of their own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from fedray.aggregation.each import RowsAt
from fedray.clients.actors import POLL, Actors, why_away
from fedray.clients.course import Course
from fedray.clients.inbox import Inbox, Kept, is_large, shares_sums
from fedray.clients.memory import killed_for_memory
from fedray.clients.messages import ClientReport, ClientTask, Packed, PartialSum, RoundTask, Status, by_version
from fedray.clients.nodes import look
from fedray.clients.nodesums import NodeSums
from fedray.clients.slots import RoundLog, Slot, left_with_its_node
from fedray.clients.suspects import Suspects
from fedray.clients.work import Queue, Work
from fedray.errors import Stopped
from fedray.faults import Fault
from fedray.spans import span

#: Seconds, the grace among them, after which an actor that was told to stop is not expected back from a client's turn.
_COMING_BACK = 5.0
_WORKING = ("training", "handing over", "adding up")


@dataclass(frozen=True)
class Rules:
    """The settings of :class:`fedray.clients.pool.Pool` that a round needs for failures."""

    grace: float
    node_sums: bool


class Round:
    """See :meth:`parts`.

    Args:
        actors: all client actors.
        work: the clients' queues, and how long their turns take.
        suspects: clients that are trained apart.
        rules: what to do about failures.
        task: the round.
        weights: the globals, or an object reference of them, by version of the model, for all versions that clients start from.
        notes: filled with every client's report and the faults of actors and nodes.
        course: what ends the round.
        authorize: called before a client is tried again; returns the task with its new reservation, or None to leave the client out.
        part_bytes: of one actor's part.
        charged: whether a client's second try is charged to its privacy budget.
    """

    def __init__(
        self,
        actors: Actors,
        work: Work,
        suspects: Suspects,
        rules: Rules,
        task: RoundTask,
        weights: Mapping[int, Any],
        notes: RoundLog,
        course: Course,
        authorize: Callable[[ClientTask], ClientTask | None],
        part_bytes: int = 0,
        charged: bool = True,
    ) -> None:
        suspects.begin()
        self._actors, self._work, self._rules, self._task, self._weights = actors, work, rules, task, weights
        self._notes, self._course, self._authorize = notes, course, authorize
        self._queues: dict[str, Queue] = {}
        self._large = is_large(part_bytes)
        shareable = rules.node_sums and not course.singly and course.pinned is None
        self._share = shares_sums(part_bytes, shareable, course.deadline, charged)
        self._sums = NodeSums()
        self._suspects = suspects
        self._parts = Inbox(ray.get_runtime_context().get_node_id(), rules.node_sums and not course.singly, actors.pulse.limit)
        self._stopped: float | None = None  # when the actors were told to stop, before all clients were done
        self._left: Status = "late"  # how clients end who are not done then
        self._arrived_updates = 0

    def parts(self, cohort: Sequence[ClientTask]) -> Iterator[PartialSum | RowsAt]:
        """Train a cohort; yields parts as they arrive, or where they lie, in any order.

        Raises:
            Stopped: the round was asked to stop; so were the actors.
            FedrayError: an actor failed outside any client's work.
        """
        self._queue(cohort)
        if self._share:
            self._sums.offer(self._actors, self._task)
        began = time.monotonic()
        while True:
            now = time.monotonic()
            if self._stopped is None and self._nobody_there():
                began = now  # the deadline counts from when there is an actor
            self._go_on(now, began)
            with span("transfer", "hand out"):
                self._hand_out()
            self._strand(now)
            yield from self._send()
            if self._actors.should_stop():  # asked when actors have their work: who answers may write files first
                self._tell_stop()
                raise Stopped("training was stopped in the middle of a round.")
            busy = [s for s in self._actors.slots if s.held or s.doing in _WORKING]
            if not busy and not self._parts and not any(self._queues.values()):
                return
            if self._stopped is not None and now - self._stopped > self._rules.grace:
                self._leave(busy)
                return
            self._actors.say_who_waits()
            deadline = None if self._stopped is not None else self._course.deadline
            yield from self._receive(POLL if deadline is None else min(POLL, max(0.0, began + deadline - now)))
            self._replace_silent()

    def _go_on(self, now: float, began: float) -> None:
        """Let clients join, or end the round where that is due."""
        course = self._course
        if self._stopped is not None:
            return
        if course.deadline is not None and now - began > course.deadline:
            self._stop(now, "the deadline passed before its turn")
        elif course.enough is not None and self._arrived_updates >= course.enough:
            self._left = "surplus"
            self._stop(now, "enough updates came before its turn")
        elif course.more is not None:
            joining = course.more()
            if joining is None:
                self._stop(now, "the run ended before its turn")
            elif joining:
                self._queue(self._suspects.admitted(joining, self._notes))

    def _stop(self, now: float, why: str) -> None:
        self._stopped = now
        self._end([c for q in self._queues.values() for c in q.clients()], self._left, why)
        self._queues.clear()
        self._tell_stop()

    # -- work goes out ---------------------------------------------------------------------------

    def _queue(self, clients: Sequence[ClientTask]) -> None:
        for name, (those, seconds) in self._work.by_queue(clients, self._course.pinned).items():
            self._queues.setdefault(name, Queue()).put(*self._suspects.last(those, seconds))

    def _nobody_there(self) -> bool:
        """Whether clients wait, and no actor is there that works or could."""
        waiting = {name for name, queue in self._queues.items() if queue}
        there = any(s.doing in _WORKING or (s.idle and self._course.serves(s.place) in waiting) for s in self._actors.slots)
        return bool(waiting) and not there

    def _hand_out(self) -> None:
        now = time.monotonic()
        serving = Counter(self._course.serves(s.place) for s in self._actors.slots if s.info is not None or self._awaited(s, now))
        for slot in self._actors.slots:
            if not slot.idle:
                continue
            serves = self._course.serves(slot.place)
            queue = self._queues.get(serves)
            # A client that may take its actor down again goes alone, to an actor with nothing to lose.
            if queue and not (slot.held and (self._course.singly or queue.first.index in self._suspects)):
                before = queue.seconds
                busy = sum(
                    max(0.0, s.until - now) for s in self._actors.slots if s.doing == "training" and self._course.serves(s.place) == serves
                )
                given = queue.take_one() if self._course.singly else queue.take(serving[serves], busy, self._suspects)
                slot.until = now + before - queue.seconds
                halvings = self._work.halvings(slot.place.queue)
                slot.given = [c._replace(halvings=halvings) for c in given] if halvings else given
                self._give(slot, last=not self._large and (self._course.singly or not queue or queue.short(serving[serves])))
            elif slot.held and not self._must_wait(slot):
                slot.pending, slot.sending = slot.handle.hand_over.options(num_returns=2).remote(self._task)
                slot.doing = "handing over"

    def _give(self, slot: Slot, last: bool) -> None:
        """Let an actor train what its slot was given; ``last``: and hand over its part."""
        weights, *more = [self._weights[version] for version in by_version(self._task.round, slot.given)]
        if self._task.collect == "each":  # handed over after each call, so that no actor holds many of them
            call = slot.handle.train_each.options(num_returns=1 + self._task.segments)
            slot.pending, *slot.sending = call.remote(self._task, weights, Packed(slot.given))
        elif last:
            call = slot.handle.train_and_hand_over.options(num_returns=2)
            slot.pending, slot.sending = call.remote(self._task, weights, Packed(slot.given), *more)
        else:
            slot.pending = slot.handle.train.remote(self._task, weights, Packed(slot.given), self._sums.given(slot), *more)
            slot.sending = None
        slot.doing = "training"

    def _must_wait(self, slot: Slot) -> bool:
        """Whether a large part stays where it is until another of its node, that is on its way to the driver, has arrived."""
        if not self._large or self._sums.into(slot) is not None or not self._parts.alone(slot.node):
            return False
        on_the_way = any(s.doing == "handing over" and s.node == slot.node for s in self._actors.slots)
        return on_the_way or any(k.node == slot.node for k in [*self._parts.resting, *self._parts.travelling.values()])

    def _unfinished(self, slot: Slot) -> bool:
        """Whether a slot may yet hand over a part for which its node's others wait; after the deadline nobody waits."""
        if slot.doing == "handing over":
            return True
        return self._stopped is None and (
            slot.doing == "training" or bool(slot.held) or bool(slot.idle and self._queues.get(self._course.serves(slot.place)))
        )

    def _awaited(self, slot: Slot, now: float) -> bool:
        return slot.doing == "starting" and now - slot.since <= self._actors.start_timeout

    def _strand(self, now: float) -> None:
        """End clients for whom there is no actor and none is to be expected."""
        stranded: list[tuple[Queue, Slot | None]] = []
        for name, queue in self._queues.items():
            slots = [s for s in self._actors.slots if self._course.serves(s.place) == name] if queue else []
            if queue and not any(s.info is not None or self._awaited(s, now) for s in slots):
                stranded.append((queue, next((s for s in slots if not s.abandoned), None)))
        nodes = look() if any(away is not None for _, away in stranded) else None
        for queue, away in stranded:
            reason = "no actor is left that could train it"
            if away is not None:
                reason = f"its actor is away for {now - away.since:.0f} s (clients.start_timeout): {away.place.key} {why_away(away, nodes)}"
            self._end(queue.clients(), "lost", reason)
            queue.clear()

    def _tell_stop(self) -> None:
        for slot in self._actors.slots:
            if slot.doing == "training":
                slot.handle.stop_round.options(concurrency_group="control").remote(self._task.round)

    def _send(self) -> Iterator[PartialSum | RowsAt]:
        """Set off what can go to the driver; yields sums that lie in its own node's memory, and where single updates lie."""
        if self._task.collect == "each":
            for at, whole in self._parts.found():
                if self._come(whole):
                    yield at
            return
        complete = self._sums.completed(self._parts.send(self._actors.slots, self._unfinished))
        for part, kept, why in self._parts.taken():
            if part is None:
                self._lose_parts(kept, why)
                continue
            common = complete[kept[0].node]
            if common is not None:
                common.forget()
            self._notes.reports += [r for k in kept for r in k.reports]
            yield part
            del part

    def _spoil(self, slot: Slot) -> list[ClientTask]:
        """Whose updates are lost with the sum that a slot's actor, which is gone, has shared."""
        lost = self._sums.spoil(slot, self._actors.slots, self._parts)
        if lost:
            text = f"{len(lost)} clients whose updates lay in the same sum as those of actor {slot.place.key} are trained again"
            self._notes.faults.append(Fault("actor", text))
        return lost

    # -- reports and parts come in ---------------------------------------------------------------

    def _receive(self, seconds: float) -> Iterator[PartialSum]:
        calls = {s.pending: s for s in self._actors.slots if s.pending is not None}
        refs = [*calls, *self._parts.travelling]
        with span("wait", "for actors"):
            found = ray.wait(refs, num_returns=1, timeout=seconds)[0]
        if found:
            for ref in ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
                with span("transfer", "receive"):
                    part = self._settle(calls[ref]) if ref in calls else self._arrived(ref)
                if part is not None:
                    yield part
                part = None  # what has been added up makes room in the store for the next

    def _settle(self, slot: Slot) -> PartialSum | None:
        """Take the result of a slot's pending call."""
        doing = slot.doing
        value, error = self._actors.result(slot)
        if error is not None:
            self._lose_actor(slot, error)
        elif doing == "training":
            slot.given = []
            self._work.learn(value)
            if self._suspects:
                self._suspects.ended_well(r.index for r in value)
            done = {r.index: r for r in value if r.status == "done"}
            if self._sums.spoilt(slot):
                self._take_back([ClientTask(r.index, r.name, r.attempt) for r in done.values()], "the sum that it was added to was lost")
            else:
                slot.held |= done
            self._notes.reports += [r._replace(status=self._left) if r.status == "late" else r for r in value if r.status != "done"]
            self._notes.faults += slot.fits([r.physical_batch for r in value if r.physical_batch is not None])
            if slot.sending is not None and slot.held:
                self._parts.keep(slot)
            slot.sending = None
        elif doing == "handing over":
            if slot.held:  # unless the sum that it added to was lost meanwhile
                self._parts.keep(slot, value)
            slot.sending = None
        elif doing == "adding up":
            kept = self._parts.added(slot)
            if value is None:
                self._lose_parts(kept, "the sum that its node shares is gone")
            else:
                self._notes.reports += [r for k in kept for r in k.reports]
            return value  # type: ignore[no-any-return]
        return None

    def _arrived(self, ref: Any) -> PartialSum | None:
        part, kept, why = self._parts.arrived(ref)
        if part is None:
            self._lose_parts([kept], why)
            return None
        return part if self._come(kept) else None

    def _come(self, kept: Kept) -> bool:
        """Take down that a part has come; whether it counts, because enough had not come before."""
        if self._course.enough is not None and self._arrived_updates >= self._course.enough:
            self._end(kept.clients(), "surplus", "enough updates came before its own")
            return False
        self._arrived_updates += len(kept.reports)
        self._notes.reports += kept.reports
        return True

    # -- what is lost is tried again -------------------------------------------------------------

    def _replace_silent(self) -> None:
        watched = self._parts.watched()
        for slot in self._actors.pulse.silent(s for s in self._actors.slots if s.doing not in (None, "starting") or s in watched):
            self._lose_actor(slot, self._actors.unreachable())
        self._replace_held_up()
        self._lose_parts(self._parts.overdue(), "its node is out of reach")

    def _replace_held_up(self) -> None:
        """An actor that answers, but has not come back from a turn long after it was told to stop, never will."""
        for slot in self._actors.slots:
            if slot.doing == "owing" and time.monotonic() > slot.due:
                self._actors.replace(slot, "it did not come back from a client's turn after the deadline (cohort.grace)", self._notes)

    def _lose_actor(self, slot: Slot, error: BaseException) -> None:
        given, held, adding = slot.given, [*slot.trained(), *self._spoil(slot)], self._parts.added(slot)
        suspected = len(given) == 1 and given[0].index in self._suspects and slot.place.client is None
        self._actors.died(slot, error, self._notes, counts=not suspected)
        self._parts.send_alone(k for k in adding if k.shared is None)
        held += [client for k in adding if k.shared is not None for client in k.clients()]
        if killed_for_memory(error):
            self._work.halve(slot.place.queue, given)
        if self._course.pinned is not None and (waiting := self._queues.get(self._course.serves(slot.place))):
            held += waiting.clients()  # the next actor there holds none of their keys
            waiting.clear()
        self._suspects.actor_died(given, suspected and not killed_for_memory(error) and not left_with_its_node(error), self._task.round + 1)
        self._take_back([*given, *held], "its actor died")

    def _lose_parts(self, parts: Sequence[Kept], why: str) -> None:
        for kept in parts:
            self._notes.faults.append(Fault("actor", f"the part of actor {kept.slot.place.key} was lost: {why}"))
            self._take_back(kept.clients(), "its part was lost")

    def _take_back(self, lost: Iterable[ClientTask], why: str) -> None:
        for client in lost:
            died = self._suspects.deaths(client.index)
            if self._stopped is not None:
                self._end([client], self._left, f"{why} after the deadline")
            elif self._course.pinned is not None:
                self._end([client], "lost", f"{why}, and no other actor has its keys")
            elif died:
                self._end([client], "lost", f"its actor died {died} times in its turn (cohort.retries)")
            elif (again := self._authorize(ClientTask(client.index, client.name, client.attempt + 1))) is None:
                self._end([client], "refused", f"{why}, and its privacy budget does not allow another try")
            else:
                self._notes.retries += 1
                self._queue([again])

    def _leave(self, busy: Sequence[Slot]) -> None:
        training = [slot for slot in busy if slot.doing == "training"]
        at_work = self._actors.who_is_at_work(training)
        for slot in training:
            slot.due = time.monotonic() + max(0.0, _COMING_BACK - self._rules.grace)
            self._suspects.held_up([c for c in slot.given if c.index in at_work.get(slot, (c.index,))])
        for slot in busy:
            self._end(slot.given, self._left, "it did not stop within cohort.grace")
            self._end(slot.trained(), self._left, "its actor did not hand over in time")
            slot.given, slot.held, slot.sending, slot.doing = [], {}, None, None if slot.pending is None else "owing"
        self._replace_held_up()
        for kept in self._parts.give_up():
            self._end(kept.clients(), self._left, "its part did not arrive in time")

    def _end(self, clients: Iterable[ClientTask], status: Status, reason: str) -> None:
        self._notes.reports += [ClientReport(c.index, c.name, status, c.attempt, error=reason) for c in clients]
