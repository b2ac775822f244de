"""Before each round, clients that do not hold the data that they registered are left out, and it is said what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedray.clients.messages import ClientTask
from fedray.clients.pool import Pool
from fedray.faults import Fault


class AgreedData:
    """Keeps clients out of rounds.

    Args:
        sha256: of the registration.
        clients: how many are registered.
        changed: the clients whose data changed as of now, with a sentence for each.
    """

    def __init__(self, sha256: str, clients: int, changed: Callable[[], Mapping[str, str]]) -> None:
        self._sha256, self._clients, self._changed = sha256, clients, changed
        self._told: dict[str, str] = {}

    def admitted(
        self, number: int, cohort: Sequence[ClientTask], tell: Callable[[Fault], None]
    ) -> tuple[Sequence[ClientTask], dict[str, str]]:
        """Who of a cohort may go on, and a sentence for each of the others.

        What changed is told once, of all clients and not only of those that were drawn: who was drawn may be secret.

        Args:
            number: of the round, from 0.
            cohort: who was drawn.
            tell: is told of each client that is found changed.
        """
        changed = self._changed()
        for name, sentence in changed.items():
            if self._told.get(name) != sentence:
                self._told[name] = sentence
                tell(Fault("client", f"{sentence[:-1]}; it takes part in no round until it does.", number + 1, name))
        return [c for c in cohort if c.name not in changed], {c.name: changed[c.name] for c in cohort if c.name in changed}

    def summary(self) -> dict[str, Any]:
        """What the run's summary says: the registration's hash, the number of clients, and what was found changed."""
        return {"registration_sha256": self._sha256, "clients": self._clients, "changed": dict(sorted(self._told.items()))}


def held_by_actors(pool: Pool, timeout: float) -> Callable[[], Mapping[str, str]]:
    """Each dedicated client's own finding about the records that its actor loaded last; actors that are being replaced are waited for."""

    def changed() -> Mapping[str, str]:
        pool.settle(timeout)
        return {slot.place.key: slot.info.changed for slot in pool.slots if slot.info is not None and slot.info.changed}

    return changed


def said_of(summary: Mapping[str, Any]) -> str:
    """An :meth:`AgreedData.summary` as a sentence."""
    changed, clients = summary["changed"], summary["clients"]
    begins = (
        f"registration sha256 {summary['registration_sha256']} of {clients} clients, whose records, count and schema were compared with it"
    )
    if not changed:
        return f"{begins}: no client was found changed"
    return f"{begins}: these were found changed and left out of rounds: {' '.join(changed.values())}"
