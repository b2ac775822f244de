"""The life of client actors: started, waited for, asked, and replaced when they die or fall silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from fedray.clients.messages import HostInfo
from fedray.clients.nodes import Node, describe, has_process, look, total, why_waiting
from fedray.clients.placement import Place
from fedray.clients.slots import Pulse, RoundLog, Silent, Slot, gone, left_with_its_node
from fedray.clients.terms import check_terms
from fedray.errors import FedrayError, Stopped, cause_of, first_line
from fedray.faults import Fault

log = logging.getLogger(__name__)

#: Seconds between looks at the stop flag and the deadline while waiting.
POLL = 0.25
#: Seconds after which an actor that is not up is reported, and after which again.
FIRST_WORD, NEXT_WORD = 10.0, 30.0
#: Seconds for which an actor may take to say where its silo is.
_SAID_WITHIN = 2.0


class Actors:
    """Client actors, each in its slot.

    Args:
        places: where actors go.
        start: starts one.
        restarts: how often an actor is replaced.
        unreachable_after: seconds for which a working actor may leave calls unanswered.
        start_timeout: seconds for which others wait for an actor that is being placed and started.
        should_stop: polled while waiting.
        note: is given sentences for the user, such as why an actor is not up yet.
        terms: hash of the terms by which the actor of a place must work; None: it is not compared.
    """

    def __init__(
        self,
        places: Sequence[Place],
        start: Callable[[Place], Any],
        *,
        restarts: int,
        unreachable_after: float,
        start_timeout: float,
        should_stop: Callable[[], bool],
        note: Callable[[str], None],
        terms: Callable[[Place], str] | None = None,
    ) -> None:
        self.slots = [Slot(place) for place in places]
        self.pulse = Pulse(unreachable_after)
        self.start_timeout = start_timeout
        self.should_stop = should_stop
        self.note = note
        self.between = RoundLog()  # faults outside a round, which the next round's log takes over
        self._start, self._restarts, self._terms = start, restarts, terms
        for slot in self.slots:
            self._launch(slot)

    def add(self, places: Sequence[Place]) -> None:
        """Start more actors."""
        for place in places:
            self.slots.append(Slot(place))
            self._launch(self.slots[-1])

    def wait_ready(self, timeout: float, everyone: bool) -> dict[str, HostInfo]:
        """Wait until actors are up: all of them, or one for each queue of clients.

        Raises:
            FedrayError: they are not after ``timeout`` seconds; says which, and what would satisfy them.
        """
        limit = time.monotonic() + timeout
        while True:
            waiting = [s for s in self.slots if s.info is None and not s.abandoned]
            queues = {s.place.queue for s in self.slots} - {s.place.queue for s in self.slots if s.info is not None}
            gone = [s for s in self.slots if s.abandoned]
            if gone and (everyone or {s.place.queue for s in gone} & queues):
                raise FedrayError(f"client actor {gone[0].place.key} cannot start; its last error is above.")
            if not waiting or (not everyone and not queues):
                return {s.place.key: s.info for s in self.slots if s.info is not None}
            if self.should_stop():
                raise Stopped("stopped while client actors were starting.")
            if time.monotonic() > limit:
                blocking = waiting if everyone else [s for s in waiting if s.place.queue in queues]
                raise FedrayError(self.stuck(blocking, timeout))
            self._receive_starting()

    def settle(self, timeout: float) -> None:
        """Wait for actors that are being replaced, each for ``timeout`` seconds from when it was asked for."""
        while not self.should_stop():
            now = time.monotonic()
            if not any(s.doing == "starting" and now - s.since < timeout for s in self.slots):
                return
            self._receive_starting()

    def _receive_starting(self) -> None:
        self.say_who_waits()
        starting = {s.pending: s for s in self.slots if s.doing == "starting"}
        done, _ = ray.wait(list(starting), num_returns=1, timeout=POLL)
        for ref in done:
            _, error = self.result(starting[ref])
            if error is not None:
                self.died(starting[ref], error, self.between)

    def ask(self, method: str, arguments: Mapping[Slot, tuple[Any, ...]], timeout: float) -> dict[Slot, Any]:
        """Call a method on actors that are up, all at once.

        Returns:
            The answers by slot. Actors that died or do not answer pings are replaced meanwhile (their ``info`` is None
            then); others that are missing were too slow.

        Raises:
            FedrayError: the method failed.
        """
        refs = {getattr(s.handle, method).remote(*values): s for s, values in arguments.items() if s.info is not None}
        limit = time.monotonic() + timeout
        answers: dict[Slot, Any] = {}
        while refs and time.monotonic() < limit:
            done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=min(POLL, max(0.0, limit - time.monotonic())))
            for ref in done:
                slot = refs.pop(ref)
                try:
                    answers[slot] = ray.get(ref, timeout=self.pulse.limit)
                except RayTaskError as error:
                    if (away := gone(error)) is None:
                        raise cause_of(error, f"client actors failed in '{method}'") from error
                    self.died(slot, away, self.between)
                except (RayError, GetTimeoutError) as error:
                    self.died(slot, error, self.between)
            for slot in self.pulse.silent(refs.values()):
                refs = {ref: s for ref, s in refs.items() if s is not slot}
                self.died(slot, self.unreachable(), self.between)
        return answers

    def who_is_at_work(self, slots: Sequence[Slot]) -> dict[Slot, Sequence[int]]:
        """The clients whose turn it is with some actors, by what these say themselves; those that do not answer at once are left out."""
        asked = {slot: slot.handle.at_work.options(concurrency_group="control").remote() for slot in slots}
        answered = ray.wait(list(asked.values()), num_returns=len(asked), timeout=POLL)[0] if asked else []
        found: dict[Slot, Sequence[int]] = {}
        for slot, ref in asked.items():
            with suppress(RayError):
                if ref in answered:
                    found[slot] = ray.get(ref)
        return found

    def broadcast(self, method: str, *arguments: Any, timeout: float) -> dict[str, Any]:
        """Call a method on every actor that is up; name of the place to result. Who dies meanwhile is left out.

        Raises:
            FedrayError: it failed, or actors were too slow.
        """
        slots = [s for s in self.slots if s.info is not None]
        answers = self.ask(method, dict.fromkeys(slots, arguments), timeout)
        if not answers or any(s.info is not None and s not in answers for s in slots):
            raise FedrayError(f"client actors did not answer '{method}' within {timeout:g} s.")
        return {s.place.key: value for s, value in answers.items()}

    def shutdown(self) -> None:
        """End all actors."""
        for slot in self.slots:
            if slot.handle is not None:
                ray.kill(slot.handle)
            slot.leave()

    # -- one actor -------------------------------------------------------------------------------

    def result(self, slot: Slot) -> tuple[Any, BaseException | None]:
        """The answer to a slot's pending call, or the error with which its actor is gone: then :meth:`died` must follow.

        Raises:
            FedrayError: the actor failed outside any client's work, or works by other terms.
        """
        try:
            value = ray.get(slot.pending, timeout=self.pulse.limit)
        except RayTaskError as error:
            if (away := gone(error)) is not None:
                return None, away
            raise cause_of(error, f"client actor {slot.place.key} failed while {slot.doing}") from error
        except (RayError, GetTimeoutError) as error:
            return None, error
        if slot.doing == "starting":
            if self._terms is not None:
                check_terms(slot.place.key, value.terms, self._terms(slot.place))
            slot.info = value
        slot.pending = slot.doing = None
        return value, None

    def replace(self, slot: Slot, why: str, log_: RoundLog) -> None:
        """Replace an actor that lives, but does not come back from client code: that is no fault of its place."""
        log_.deaths += 1
        log_.faults.append(_fault(slot, f"{_named(slot)} is replaced: {why}"))
        ray.kill(slot.handle)
        self._launch(slot)

    def died(self, slot: Slot, error: BaseException, log_: RoundLog, counts: bool = True) -> None:
        """Replace an actor; its clients must have been taken back before.

        Args:
            slot: the actor's.
            error: with which it is gone.
            log_: is given the fault.
            counts: whether its place may be to blame, so that after some deaths there it is given up.
        """
        slot.deaths += counts
        log_.deaths += 1
        doing = f" while {slot.doing}" if slot.doing else ""
        text = f"{_named(slot)} died{doing}: {first_line(error)}"
        node = slot.node if left_with_its_node(error) else ""
        if not node:
            log_.faults.append(_fault(slot, text))
        elif node not in log_.nodes_left:
            log_.nodes_left.add(node)
            assert slot.info is not None
            keys = [s.place.key for s in self.slots if s.node == node]
            whole = f"node {slot.info.node} ({node[:8]}) left or is out of reach, and with it {', '.join(keys)}: {text}"
            log_.faults.append(Fault("node", whole, node=slot.info.node))
        log.warning("%s", text)
        if slot.handle is not None:
            ray.kill(slot.handle)  # returns at once, even while the head is away
        slot.leave()
        if slot.deaths > self._restarts:
            slot.abandoned = True
            log_.faults.append(_fault(slot, f"actor {slot.place.key} is given up after {slot.deaths} deaths; see clients.restarts"))
            log.error("%s", error)
        else:
            self._launch(slot)

    def unreachable(self) -> Silent:
        """Why an actor that does not answer is replaced."""
        return Silent(f"it did not answer for {self.pulse.limit:g} s (clients.unreachable_after)")

    def _launch(self, slot: Slot) -> None:
        slot.leave()
        slot.since = time.monotonic()
        slot.last_notice = slot.since + FIRST_WORD - NEXT_WORD
        slot.handle = self._start(slot.place)
        slot.pending, slot.doing = slot.handle.ready.remote(), "starting"

    # -- why actors are not up -------------------------------------------------------------------------

    def say_who_waits(self) -> None:
        """A note about actors that have been awaited for a while, and why."""
        now = time.monotonic()
        late = [s for s in self.slots if s.doing == "starting" and now - s.last_notice > NEXT_WORD]
        if not late:
            return
        for slot in late:
            slot.last_notice = now
        nodes = look()
        alike = sorted(late, key=lambda s: s.place.resources.model_dump_json())
        for _, group in groupby(alike, key=lambda s: s.place.resources.model_dump_json()):
            slots = list(group)
            waits = now - min(s.since for s in slots)
            self.note(f"{_who(slots)} not up after {waits:.0f} s; {slots[0].place.key} {why_away(slots[0], nodes)}.")

    def stuck(self, waiting: Sequence[Slot], timeout: float) -> str:
        """Why actors are not up; a sentence."""
        nodes = look()
        have = f"{len(nodes)} nodes with {total(nodes)}" if nodes is not None else "no head that answers"
        return (
            f"{len(waiting)} of {len(self.slots)} client actors are not up after {timeout:g} s (clients.start_timeout), "
            f"first {waiting[0].place.key}, which {why_away(waiting[0], nodes)}; the cluster has {have}."
        )


def why_away(slot: Slot, nodes: Sequence[Node] | None) -> str:
    """What a slot's actor asks for, and why it is not up; a clause. ``nodes``: see :func:`fedray.clients.nodes.look`."""
    if slot.place.remote:
        return _whereabouts(slot)
    if nodes is not None and has_process(slot.handle):
        return "has its process, which loads programs or data"
    resources = slot.place.resources
    return f"asks for {describe(resources)}; {why_waiting(resources, nodes)}"


def _whereabouts(slot: Slot) -> str:
    """What the actor that stands for a silo outside the cluster says of it."""
    try:
        found: str = ray.get(slot.handle.whereabouts.options(concurrency_group="control").remote(), timeout=_SAID_WITHIN)
    except RayError:
        return "has not dialled the gateway yet, or loads its records (its own log says what keeps it)"
    return found


def _fault(slot: Slot, text: str) -> Fault:
    return Fault("actor", text, node=slot.info.node if slot.info else None)


def _named(slot: Slot) -> str:
    return f"actor {slot.place.key}" + (f" on {slot.info.node} (pid {slot.info.pid})" if slot.info else "")


def _who(slots: Sequence[Slot]) -> str:
    names = ", ".join(s.place.key for s in slots[:3]) + (f" and {len(slots) - 3} more" if len(slots) > 3 else "")
    return f"client actor {names} is" if len(slots) == 1 else f"{len(slots)} client actors ({names}) are"
