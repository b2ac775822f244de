"""How the parts of a round reach the driver: one from each node, where actors share one, else one from each actor.

An actor that has no more clients hands its partial sum over by leaving it in its node's object store. When all actors of a node are done,
one of them adds their partial sums up, and only the result is sent. A partial sum outlives its actor, but not its node.

Actors of a large model add into one sum in their node's memory (:mod:`fedray.aggregation.shared`); what they hand over then is only who
is in it. When all of them have, the driver takes the sum as it lies there, where that is its own node, else one of them sends it. Such a sum
does not outlive any of its actors.

Parts with single updates, for rules that want each of them, are neither added up nor sent: the driver gets to know where they lie.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from fedray.aggregation.each import Rows, RowsAt
from fedray.aggregation.shared import SharedAt
from fedray.clients.messages import ClientReport, ClientTask, PartialSum, added_up
from fedray.clients.slots import Slot, gone
from fedray.errors import cause_of, first_line

#: Bytes of a part above which a node's actors share a sum, or hand theirs to the driver one after the other: all at once may be more than fits.
LARGE = 2**26

#: Seconds after which a part with single updates counts as lost that does not come; Ray gives it up earlier where its node is known to be gone.
_GONE = 600.0


def is_large(part_bytes: int) -> bool:
    """Whether a part of a round is so large that not all actors' parts may be on their way at once."""
    return part_bytes > LARGE


def shares_sums(part_bytes: int, node_sums: bool, deadline: float | None, charged: bool) -> bool:
    """Whether a node's actors add into one sum.

    Args:
        part_bytes: of a sum.
        node_sums: the config's wish.
        deadline: of a round; who is late may be adding when the sum is read.
        charged: whether a client's second try is charged to its privacy budget: if a shared sum is lost, all clients
            on that node are trained again, and each retry would be charged.
    """
    return is_large(part_bytes) and node_sums and deadline is None and not charged


@dataclass(eq=False)
class Kept:
    """A part in a node's object store.

    Attributes:
        slot, handle: who left it; the slot's actor may be another by now.
        node: Ray's name of the node.
        ref: the part; of single updates the references of its segments.
        reports: of the clients in it.
        shared: where its values lie, if not in the store.
        alone: it travels by itself, because adding up failed.
        since: when it began to travel (monotonic seconds).
    """

    slot: Slot
    handle: Any
    node: str
    ref: Any
    reports: list[ClientReport]
    shared: SharedAt | None = None
    alone: bool = False
    since: float = 0.0

    @property
    def orphaned(self) -> bool:
        """Whether its actor is gone, so that no answer shows whether the node can be reached."""
        return self.slot.handle is not self.handle

    def clients(self) -> list[ClientTask]:
        """Whose updates are in it."""
        return [ClientTask(r.index, r.name, r.attempt) for r in self.reports]


@dataclass
class Inbox:
    """The parts of a round that have not reached the driver.

    Args:
        here: Ray's name of the driver's node, whose parts need not travel.
        sums: whether nodes add their parts up.
        patience: seconds that a part of an actor that is gone may travel.
    """

    here: str
    sums: bool
    patience: float
    resting: list[Kept] = field(default_factory=list)
    travelling: dict[Any, Kept] = field(default_factory=dict)
    adding: dict[Slot, list[Kept]] = field(default_factory=dict)
    lying: list[list[Kept]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.resting or self.travelling or self.adding or self.lying)

    def alone(self, node: str) -> bool:
        """Whether the parts of a node go to the driver by themselves."""
        return not self.sums or not node or node == self.here

    def keep(self, slot: Slot, shared: SharedAt | None = None) -> None:
        """Take over what a slot has just handed over; ``shared`` is where its values lie."""
        self.resting.append(Kept(slot, slot.handle, slot.node, slot.sending, list(slot.held.values()), shared))
        slot.held, slot.sending = {}, None

    def spoil(self, shared: SharedAt) -> list[Kept]:
        """Give up the parts whose values lie in a sum that is worthless."""
        lost = [k for k in self.resting if k.shared == shared]
        self.resting = [k for k in self.resting if k.shared != shared]
        return lost

    def watched(self) -> set[Slot]:
        """Slots whose actors tell whether these parts' nodes are in reach."""
        return {k.slot for k in [*self.resting, *self.travelling.values()] if not k.orphaned}

    def send(self, slots: Sequence[Slot], unfinished: Callable[[Slot], bool]) -> list[str]:
        """Set off what can go: sums of nodes whose actors are all done, and parts that go by themselves.

        Args:
            slots: all of the pool.
            unfinished: whether a slot may yet hand over a part.

        Returns:
            Nodes whose shared sum is complete: nothing may be added to it any more.
        """
        complete: list[str] = []
        resting, self.resting = self.resting, []
        for node in dict.fromkeys(k.node for k in resting):
            of_node = [k for k in resting if k.node == node]
            alone = [k for k in of_node if not k.shared and (k.alone or k.orphaned or self.alone(node))]
            together = [k for k in of_node if k not in alone]
            if together and any(s.node == node and unfinished(s) for s in slots):
                self.resting += together
                together = []
            adder = next((s for s in slots if s.node == node and s.idle), None)
            shared = any(k.shared for k in together)
            if shared and (node == self.here or adder is not None):
                complete.append(node)
            if shared and node == self.here:
                self.lying.append(together)
            elif together and (shared or len(together) > 1) and adder is not None:
                adder.pending, adder.doing = adder.handle.merge.remote(*(k.ref for k in together)), "adding up"
                self.adding[adder] = together
            elif shared:  # no actor is left that could send it
                self.resting += together
            else:
                alone += together
            for kept in alone:
                kept.since = time.monotonic()
                self.travelling[kept.ref] = kept
        return complete

    def found(self) -> Iterator[tuple[RowsAt, Kept]]:
        """Where parts with single updates lie, and whose they are. The driver owns the references, so they outlive their actors, and may
        be moved to disk where a store is full.
        """
        while self.resting:
            kept = self.resting.pop()
            yield RowsAt([r.index for r in kept.reports], partial(_segment, kept.ref)), kept

    def taken(self) -> Iterator[tuple[PartialSum | None, list[Kept], str]]:
        """Sums that lie in the memory of the driver's own node, and whose parts they are; None where one is gone, and why."""
        while self.lying:
            together = self.lying.pop()
            try:
                yield added_up(ray.get([k.ref for k in together], timeout=self.patience)), together, ""
            except (RayError, GetTimeoutError, OSError) as error:
                yield None, together, first_line(error)

    def arrived(self, ref: Any) -> tuple[PartialSum | None, Kept, str]:
        """Take a part that has travelled; None where it was lost on the way, and why.

        Raises:
            FedrayError: its actor had failed.
        """
        kept = self.travelling.pop(ref)
        try:
            return ray.get(ref, timeout=self.patience), kept, ""
        except RayTaskError as error:
            if (away := gone(error)) is not None:
                return None, kept, first_line(away)
            raise cause_of(error, f"client actor {kept.slot.place.key} failed while handing over") from error
        except (RayError, GetTimeoutError) as error:
            return None, kept, first_line(error)

    def added(self, slot: Slot) -> list[Kept]:
        """The parts that a slot was adding up."""
        return self.adding.pop(slot, [])

    def send_alone(self, parts: Iterable[Kept]) -> None:
        """Let parts travel by themselves: who was to add them up is gone."""
        for kept in parts:
            kept.alone = True
            self.resting.append(kept)

    def overdue(self) -> list[Kept]:
        """Give up parts that have travelled too long and whose actors are gone."""
        now = time.monotonic()
        late = [k for k in self.travelling.values() if k.orphaned and now - k.since > self.patience]
        for kept in late:
            del self.travelling[kept.ref]
        return late

    def give_up(self) -> list[Kept]:
        """Give up all of them."""
        left = [*self.resting, *self.travelling.values(), *(k for parts in [*self.adding.values(), *self.lying] for k in parts)]
        self.resting, self.travelling, self.adding, self.lying = [], {}, {}, []
        return left


def _segment(refs: Sequence[Any], number: int) -> Rows | str:
    """A segment of a part's single updates, or why it is gone."""
    try:
        rows: Rows = ray.get(refs[number], timeout=_GONE)
    except (RayError, GetTimeoutError) as error:
        return first_line(error)
    return rows
