"""The pool: hands work to client actors, waits, retries, and replaces actors that died.

Work is handed out longest first, in chunks that shrink, to whichever actor is free. An actor adds
its clients' updates up and hands over one part when there is nothing left for it; clients whose
part was not handed over count as not trained, so nothing is counted twice and nothing is lost
silently when an actor dies.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from fedray.clients.messages import ClientReport, ClientTask, HostInfo, LocalEvaluation, Part, RoundTask
from fedray.clients.placement import Place
from fedray.errors import FedrayError, Stopped, cause_of, first_line

log = logging.getLogger(__name__)

_POLL = 0.25  # seconds between looks at the stop flag and the deadline while waiting
Doing = Literal["starting", "training", "handing over", "owing"]


@dataclass
class Slot:
    """A place and the actor that holds it now."""

    place: Place
    handle: Any = None
    info: HostInfo | None = None
    pending: Any = None
    doing: Doing | None = None
    given: list[ClientTask] = field(default_factory=list)
    held: dict[int, ClientReport] = field(default_factory=dict)
    deaths: int = 0
    abandoned: bool = False

    @property
    def idle(self) -> bool:
        """Ready for work."""
        return self.handle is not None and self.pending is None and not self.abandoned


@dataclass
class RoundLog:
    """What happened to every client of a round, and to the actors."""

    reports: list[ClientReport] = field(default_factory=list)
    deaths: int = 0
    retries: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, *status: str) -> int:
        """Number of clients that ended in one of these ways."""
        return sum(r.status in status for r in self.reports)


class Pool:
    """All client actors of a run."""

    def __init__(
        self,
        places: Sequence[Place],
        start: Callable[[Place], Any],
        sizes: npt.NDArray[np.int64],
        *,
        restarts: int,
        retries: int,
        grace: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.slots = [Slot(place) for place in places]
        self._start, self._sizes = start, sizes
        self._restarts, self._retries, self._grace = restarts, retries, grace
        self._should_stop = should_stop
        self._seconds: dict[int, float] = {}
        self._between = RoundLog()  # what befell actors outside a round; the next round's log tells it
        self._lane_of = {s.place.client.index: s.place.lane for s in self.slots if s.place.client is not None}
        for slot in self.slots:
            self._launch(slot)

    def assign_lanes(self, lane_of: dict[int, str]) -> None:
        """Tell which lane serves which client (hosted placement)."""
        self._lane_of = dict(lane_of)

    def learn_sizes(self, sizes: npt.NDArray[np.int64]) -> None:
        """Take the clients' record counts, where only their actors knew them."""
        self._sizes = sizes

    # -- life of actors --------------------------------------------------------------------------

    def wait_ready(self, timeout: float, everyone: bool) -> dict[str, HostInfo]:
        """Wait until actors are up: all of them, or one in each lane.

        Raises:
            FedrayError: they are not after ``timeout`` seconds; says which, and what the cluster has.
        """
        limit = time.monotonic() + timeout
        while True:
            waiting = [s for s in self.slots if s.info is None and not s.abandoned]
            lanes = {s.place.lane for s in self.slots} - {s.place.lane for s in self.slots if s.info is not None}
            gone = [s for s in self.slots if s.abandoned]
            if gone and (everyone or {s.place.lane for s in gone} & lanes):
                raise FedrayError(f"client actor {gone[0].place.key} cannot start; its last error is above.")
            if not waiting or (not everyone and not lanes):
                return {s.place.key: s.info for s in self.slots if s.info is not None}
            if self._should_stop():
                raise Stopped("stopped while client actors were starting.")
            if time.monotonic() > limit:
                raise FedrayError(self._stuck(waiting, timeout))
            refs = {s.pending: s for s in waiting if s.pending is not None}
            done, _ = ray.wait(list(refs), num_returns=1, timeout=_POLL)
            for ref in done:
                self._settle(refs[ref], None, RoundLog())

    def settle(self, timeout: float) -> None:
        """Wait for actors that are being replaced; those that are not up after ``timeout`` seconds stay away."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit and not self._should_stop():
            starting = {s.pending: s for s in self.slots if s.doing == "starting"}
            if not starting:
                return
            done, _ = ray.wait(list(starting), num_returns=1, timeout=_POLL)
            for ref in done:
                self._settle(starting[ref], None, self._between)

    def lost(self, client: int, error: BaseException) -> None:
        """Replace the actor of a dedicated client that someone else found dead."""
        for slot in self.slots:
            if slot.place.lane == self._lane_of[client] and slot.info is not None:
                self._died(slot, error, self._between)

    def broadcast(self, method: str, *arguments: Any, timeout: float) -> dict[str, Any]:
        """Call a method on every actor that is up; name of the place to result."""
        live = [s for s in self.slots if s.info is not None and s.handle is not None]
        refs = [getattr(s.handle, method).remote(*arguments) for s in live]
        try:
            values = ray.get(refs, timeout=timeout)
        except GetTimeoutError:
            raise FedrayError(f"client actors did not answer '{method}' within {timeout:g} s.") from None
        except RayTaskError as error:
            raise cause_of(error, f"client actors failed in '{method}'") from None
        return {s.place.key: v for s, v in zip(live, values, strict=True)}

    def handle_of(self, client: int) -> Any:
        """The actor that serves a dedicated client, or None while it is away."""
        lane = self._lane_of[client]
        return next((s.handle for s in self.slots if s.place.lane == lane and s.info is not None), None)

    def shutdown(self) -> None:
        """End all actors."""
        for slot in self.slots:
            if slot.handle is not None:
                ray.kill(slot.handle)
            slot.handle = slot.pending = slot.info = None

    def _launch(self, slot: Slot) -> None:
        slot.info, slot.held, slot.given = None, {}, []
        slot.handle = self._start(slot.place)
        slot.pending, slot.doing = slot.handle.ready.remote(), "starting"

    def _died(self, slot: Slot, error: BaseException, notes: RoundLog) -> None:
        """Replace an actor; its clients must have been taken back before."""
        slot.deaths += 1
        notes.deaths += 1
        where = f" on {slot.info.node} (pid {slot.info.pid})" if slot.info else ""
        notes.notes.append(f"actor {slot.place.key}{where} died while {slot.doing}: {first_line(error)}")
        log.warning("%s", notes.notes[-1])
        if slot.handle is not None:
            ray.kill(slot.handle)
        slot.handle = slot.pending = slot.info = slot.doing = None
        if slot.deaths > self._restarts:
            slot.abandoned = True
            notes.notes.append(f"actor {slot.place.key} is given up after {slot.deaths} deaths; see clients.restarts")
            log.error("%s", error)
        else:
            self._launch(slot)

    def _stuck(self, waiting: Sequence[Slot], timeout: float) -> str:
        place = waiting[0].place
        asks = {k: v for k, v in place.resources.model_dump().items() if v}
        return (
            f"{len(waiting)} of {len(self.slots)} client actors are not up after {timeout:g} s (clients.start_timeout), first {place.key}, "
            f"which asks for {asks}; the cluster has {_readable(ray.cluster_resources())}, free {_readable(ray.available_resources())}."
        )

    # -- a round ---------------------------------------------------------------------------------

    def train(
        self,
        cohort: Sequence[ClientTask],
        task: RoundTask,
        weights: Any,
        notes: RoundLog,
        *,
        deadline: float | None = None,
        authorize: Callable[[ClientTask], ClientTask | None] = lambda client: client,
    ) -> Iterator[Part]:
        """Train a cohort; yields parts as actors hand them over, in any order.

        Args:
            cohort: who trains.
            task: the round.
            weights: object reference of the global model.
            notes: filled with every client's report and what befell the actors.
            deadline: seconds after which clients still training are late.
            authorize: asked before a client is tried again, gives the task with its new reservation; None leaves it out (its budget is spent).

        Raises:
            Stopped: the pool was asked to stop; the actors were told.
            FedrayError: an actor failed outside any client's work.
        """
        between, self._between = self._between, RoundLog()
        notes.deaths, notes.notes = notes.deaths + between.deaths, notes.notes + between.notes
        queues: dict[str, deque[ClientTask]] = {}
        suspects: dict[int, int] = {}  # clients in whose turn an actor died, and how often
        for client in sorted(cohort, key=lambda c: (-self._expected(c.index), c.index)):
            queues.setdefault(self._lane_of[client.index], deque()).append(client)
        began, told = time.monotonic(), None
        while True:
            if self._should_stop():
                self._tell_stop(task.round)
                raise Stopped("training was stopped in the middle of a round.")
            now = time.monotonic()
            if deadline is not None and told is None and now - began > deadline:
                told = now
                self._late([c for q in queues.values() for c in q], notes, "the deadline passed before its turn")
                queues.clear()
                self._tell_stop(task.round)
            self._hand_out(queues, suspects, task, weights)
            self._strand(queues, notes)
            busy = [s for s in self.slots if s.doing in ("training", "handing over")]
            if not busy and not any(queues.values()):
                return
            if told is not None and now - told > self._grace:
                self._leave(busy, notes)
                return
            refs = {s.pending: s for s in self.slots if s.pending is not None}
            until = _POLL if deadline is None or told is not None else min(_POLL, max(0.0, began + deadline - now))
            done, _ = ray.wait(list(refs), num_returns=1, timeout=until)
            for ref in done:
                slot = refs[ref]
                given, held = slot.given, [ClientTask(r.index, r.name, r.attempt) for r in slot.held.values()]
                part = self._settle(slot, task, notes)
                if part is not None:
                    yield part
                elif slot.info is None:  # it died
                    for client in given:
                        suspects[client.index] = suspects.get(client.index, 0) + 1
                    self._take_back([*given, *held], queues, suspects, notes, authorize, late=told is not None)

    def evaluate(self, cohort: Sequence[ClientTask], weights: Any, timeout: float) -> list[LocalEvaluation]:
        """Evaluate at the clients; clients whose actor is away are left out."""
        work: dict[int, list[ClientTask]] = {}
        live: dict[str, list[int]] = {}
        for i, slot in enumerate(self.slots):
            if slot.info is not None and slot.pending is None:
                live.setdefault(slot.place.lane, []).append(i)
        for n, client in enumerate(cohort):
            slots = live.get(self._lane_of[client.index])
            if slots:
                work.setdefault(slots[n % len(slots)], []).append(client)
        refs = [self.slots[i].handle.evaluate.remote(weights, clients) for i, clients in work.items()]
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout) if refs else ([], [])
        rows: list[LocalEvaluation] = []
        for ref in done:
            try:
                rows += ray.get(ref)
            except RayActorError as error:
                log.warning("an actor died while evaluating: %s", first_line(error))
            except RayTaskError as error:
                raise cause_of(error, "evaluation at the clients failed") from error
        return sorted(rows, key=lambda r: r.name)

    def _hand_out(self, queues: dict[str, deque[ClientTask]], suspects: dict[int, int], task: RoundTask, weights: Any) -> None:
        for slot in self.slots:
            if not slot.idle:
                continue
            queue = queues.get(slot.place.lane)
            # A client that may take its actor down again goes alone, to an actor with nothing to lose.
            if queue and not (slot.held and queue[0].index in suspects):
                actors = sum(s.place.lane == slot.place.lane and not s.abandoned for s in self.slots)
                size = 1 if suspects else max(1, len(queue) // (2 * actors))
                slot.given = [queue.popleft() for _ in range(size)]
                slot.pending, slot.doing = slot.handle.train.remote(task, weights, slot.given), "training"
            elif slot.held:
                slot.pending, slot.doing = slot.handle.collect.remote(task), "handing over"

    def _settle(self, slot: Slot, task: RoundTask | None, notes: RoundLog) -> Part | None:
        """Take the result of a slot's pending call. After a death ``slot.info`` is None."""
        doing, ref = slot.doing, slot.pending
        try:
            value = ray.get(ref)
        except RayTaskError as error:
            raise cause_of(error, f"client actor {slot.place.key} failed while {doing}") from error
        except RayError as error:
            slot.given, slot.held = [], {}
            self._died(slot, error, notes)
            return None
        slot.pending = slot.doing = None
        if doing == "starting":
            slot.info = value
            return None
        if doing == "owing" or task is None:
            slot.given, slot.held = [], {}
            return None
        if doing == "handing over":
            notes.reports += slot.held.values()
            slot.held = {}
            return value  # type: ignore[no-any-return]
        slot.given = []
        for report in value:
            self._seconds[report.index] = report.seconds
            if report.status == "done":
                slot.held[report.index] = report
            else:
                notes.reports.append(report)
        return None

    def _take_back(
        self,
        lost: Sequence[ClientTask],
        queues: dict[str, deque[ClientTask]],
        suspects: dict[int, int],
        notes: RoundLog,
        authorize: Callable[[ClientTask], ClientTask | None],
        late: bool,
    ) -> None:
        if late:
            self._late(lost, notes, "its actor died after the deadline")
            return
        for client in lost:
            if suspects.get(client.index, 0) > self._retries:
                reason = f"its actor died {suspects[client.index]} times in its turn (cohort.retries)"
                notes.reports.append(ClientReport(client.index, client.name, "lost", client.attempt, error=reason))
            elif (again := authorize(ClientTask(client.index, client.name, client.attempt + 1))) is None:
                reason = "its actor died, and its privacy budget does not allow another try"
                notes.reports.append(ClientReport(client.index, client.name, "refused", client.attempt, error=reason))
            else:
                notes.retries += 1
                queues.setdefault(self._lane_of[client.index], deque()).append(again)

    def _strand(self, queues: dict[str, deque[ClientTask]], notes: RoundLog) -> None:
        for lane, queue in queues.items():
            if queue and all(s.abandoned for s in self.slots if s.place.lane == lane):
                for client in queue:
                    reason = "no actor is left that could train it"
                    notes.reports.append(ClientReport(client.index, client.name, "lost", client.attempt, error=reason))
                queue.clear()

    def _late(self, clients: Sequence[ClientTask], notes: RoundLog, reason: str) -> None:
        notes.reports += [ClientReport(c.index, c.name, "late", c.attempt, error=reason) for c in clients]

    def _leave(self, busy: Sequence[Slot], notes: RoundLog) -> None:
        for slot in busy:
            self._late(slot.given, notes, "it did not stop within cohort.grace")
            self._late([ClientTask(r.index, r.name, r.attempt) for r in slot.held.values()], notes, "its actor did not hand over in time")
            slot.given, slot.held, slot.doing = [], {}, "owing"

    def _tell_stop(self, round_: int) -> None:
        for slot in self.slots:
            if slot.doing == "training":
                slot.handle.stop_round.options(concurrency_group="control").remote(round_)

    def _expected(self, index: int) -> float:
        return self._seconds.get(index, float(self._sizes[index]) * 1e-4)


def _readable(resources: dict[str, float]) -> str:
    shown = {k: v for k, v in resources.items() if not k.startswith(("node:", "object_store", "memory", "accelerator_type"))}
    return ", ".join(f"{k} {v:g}" for k, v in sorted(shown.items())) or "nothing"
