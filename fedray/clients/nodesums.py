"""The sums that actors of one node share in a round; see :mod:`fedray.clients.inbox`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedray.aggregation.shared import SharedAt
from fedray.clients.actors import Actors
from fedray.clients.inbox import Inbox
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.slots import Slot

#: Seconds within which an actor says where the sum is that its node shares.
_OFFER = 10.0


@dataclass(frozen=True)
class NodeSum:
    """A sum that a node's actors share, and the slot of the actor that keeps it."""

    at: SharedAt
    keeper: Slot

    def forget(self) -> None:
        """Tell the keeper that the driver has it open, so that its memory goes with the driver's."""
        if self.keeper.handle is not None:
            self.keeper.handle.forget_sum.options(concurrency_group="control").remote(self.at)


class NodeSums:
    """The shared sums of a round. There are none until they are offered."""

    def __init__(self) -> None:
        self._sums: dict[str, NodeSum] = {}  # by node, while it may be added to
        self._into: dict[Slot, SharedAt | None] = {}  # where slots add what they train; None: to sums of their own
        self._spoilt: set[SharedAt] = set()

    def offer(self, actors: Actors, task: RoundTask) -> None:
        """Have an actor of each node keep a sum for those that are there, and those that come."""
        keepers = {slot.node: slot for slot in reversed(actors.slots) if slot.idle and slot.node}
        for slot, at in actors.ask("offer_sum", dict.fromkeys(keepers.values(), (task,)), _OFFER).items():
            if at is not None and slot.info is not None:
                self._sums[slot.node] = NodeSum(at, slot)

    def given(self, slot: Slot) -> SharedAt | None:
        """A slot is given clients: where it adds their updates, or None where that is a sum of its own."""
        common = self._sums.get(slot.node)
        self._into[slot] = None if common is None else common.at
        return self._into[slot]

    def into(self, slot: Slot) -> SharedAt | None:
        """Where a slot has added what it trained, if that is no sum of its own."""
        return self._into.get(slot)

    def spoilt(self, slot: Slot) -> bool:
        """Whether what a slot has added to was lost meanwhile."""
        return self._into.get(slot) in self._spoilt

    def completed(self, nodes: Iterable[str]) -> dict[str, NodeSum | None]:
        """Give up the sums of nodes to which nothing is added any more, by node."""
        return {node: self._sums.pop(node, None) for node in nodes}

    def spoil(self, slot: Slot, slots: Iterable[Slot], parts: Inbox) -> list[ClientTask]:
        """Whose updates are lost with the sum that a slot's actor, which is gone, has shared."""
        mine, common = self._into.pop(slot, None), self._sums.get(slot.node)
        if common is None or (slot is not common.keeper and mine != common.at):
            return []
        del self._sums[slot.node]
        self._spoilt.add(common.at)
        lost = [client for kept in parts.spoil(common.at) for client in kept.clients()]
        for other in slots:
            if other is not slot and self._into.get(other) == common.at:
                lost += other.trained()
                other.held = {}
        return lost
