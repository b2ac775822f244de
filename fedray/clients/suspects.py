"""Clients whose code may end their actor or not return: they are trained apart, so that no other client is lost with them.

An actor that ended does not say which client's turn it was. So all clients that it was given become suspects: each is trained alone from then
on, after all others, by an actor that holds no updates, until one of its turns has ended well. A client that was alone too often in one round
when its actor ended is left out for the rest of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fedray.clients.messages import ClientReport, ClientTask
from fedray.clients.slots import RoundLog


class Suspects:
    """The suspects of a run.

    Args:
        retries: how often a client is tried again in a round, whose actor died in its turn.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._apart: set[int] = set()
        self._deaths: Counter[int] = Counter()  # of actors in whose call a client was, in this round
        self._alone: set[int] = set()  # who was the only one in such a call
        self._held_up: Counter[int] = Counter()  # in how many calls of the run a client was the one that did not end well
        self._out: dict[int, str] = {}

    def __bool__(self) -> bool:
        return bool(self._apart)

    def __contains__(self, client: int) -> bool:
        return client in self._apart

    def begin(self) -> None:
        """A round begins: deaths are counted anew."""
        self._deaths.clear()
        self._alone.clear()

    def admitted(self, cohort: Sequence[ClientTask], notes: RoundLog) -> Sequence[ClientTask]:
        """A cohort without those that are left out for the rest of the run; ``notes`` get their reports."""
        out = [c for c in cohort if c.index in self._out] if self._out else []
        notes.reports += [ClientReport(c.index, c.name, "lost", c.attempt, error=self._out[c.index]) for c in out]
        return [c for c in cohort if c.index not in self._out] if out else cohort

    def last(self, clients: list[ClientTask], seconds: npt.NDArray[np.float64]) -> tuple[list[ClientTask], npt.NDArray[np.float64]]:
        """Clients that wait and the seconds of their turns, suspects behind all others, who did it most often last."""
        if not self._apart:
            return clients, seconds
        order = sorted(range(len(clients)), key=lambda n: (clients[n].index in self._apart, self._held_up[clients[n].index]))
        return [clients[n] for n in order], seconds[order]

    def actor_died(self, given: Sequence[ClientTask], to_blame: bool, round_: int) -> None:
        """An actor has ended while it worked on these; ``to_blame``: through nothing but a single suspect's own doing, in round ``round_``."""
        self.held_up(given)
        self._deaths.update(client.index for client in given)
        if len(given) == 1:
            self._alone.add(given[0].index)
        if to_blame and (deaths := self.deaths(given[0].index)):
            why = f"its actor died {deaths} times in its turn in round {round_}, so it is left out for the rest of the run"
            self._out[given[0].index] = why

    def held_up(self, given: Sequence[ClientTask]) -> None:
        """An actor did not come back from the turn of one of these clients."""
        self._apart.update(client.index for client in given)
        if len(given) == 1:
            self._held_up[given[0].index] += 1

    def ended_well(self, clients: Iterable[int]) -> None:
        """These clients' turns have ended, and their actor lives."""
        self._apart.difference_update(clients)

    def deaths(self, client: int) -> int:
        """In how many turns of this round a client's actor died, where that is too often and the client's own doing; else 0."""
        return self._deaths[client] if client in self._alone and self._deaths[client] > self._retries else 0
