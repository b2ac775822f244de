"""Silos outside the cluster, as the places of a run: the gateway that they dial, and what each is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedray.clients.placement import Place
from fedray.clients.slots import Slot
from fedray.clients.terms import Terms
from fedray.planning.preparation import Prepared
from fedray.rounds.roundreceipts import RoundReceipts
from fedray.silos.calls import SiloOpening
from fedray.silos.remoteclient import part_from, start_gateway, start_remote


class Outside:
    """The silos of a run, with a gateway on this node.

    Args:
        prepared: the run.
        profile: whether they keep spans.

    Raises:
        FedrayError: the gateway cannot listen.
    """

    def __init__(self, prepared: Prepared, profile: bool) -> None:
        choice = prepared.config.clients.gateway
        assert choice is not None
        self._prepared, self._profile = prepared, profile
        self._gateway = start_gateway(choice.listen, choice.identity)

    def start(self, place: Place, terms: Terms, pinned: str | None, receipts: RoundReceipts | None) -> Any:
        """Start what stands for a silo in the cluster; returns its handle at once.

        Args:
            place: the silo's.
            terms: the run's, for the silo.
            pinned: hash of an entry that its ledger must hold.
            receipts: of the run, where its clients sign.
        """
        p, groups = self._prepared, self._prepared.groups
        assert place.client is not None
        alike = p.config.cohort.availability is None and {(g.rate, g.every) for g in groups} == {(groups[0].rate, 1)}
        about = groups[place.group].every, len(p.names), max(g.rate for g in groups), alike
        signed = None if receipts is None else receipts.last_of(place.client.name)
        opening = SiloOpening(place.client, pinned, *about, self._profile, receipts is not None, signed)
        return start_remote(self._gateway, terms, opening, p.config.clients.unreachable_after)

    def close(self, slots: Sequence[Slot]) -> None:
        """Tell the silos that are there that the run is over, and end the gateway."""
        part_from(self._gateway, [slot.handle for slot in slots if slot.info is not None])
