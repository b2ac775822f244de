"""The privacy books as the round sees them: authorize before training, commit before the model changes.

Hosted clients are entered in the run's own book, by the driver. A dedicated client keeps the book of
its silo itself, in its actor, on its own volume; the driver only asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from fedray.clients.messages import ClientTask
from fedray.clients.pool import Pool
from fedray.errors import FedrayError
from fedray.privacy.record import Account, Figures

#: Name of the book that the driver keeps.
RUN_BOOK = "records"


@dataclass(frozen=True)
class Permit:
    """Who may train in a round; who was refused by its budget, or was away, and why (one sentence each, by client name)."""

    round: int
    cohort: list[ClientTask]
    refused: dict[str, str] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)


class Books(Protocol):
    """What the round needs of the books."""

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Permit:
        """Reserve one round for each client; those over budget are refused."""
        ...

    def retry(self, round_: int, client: ClientTask) -> bool:
        """Reserve once more for a client that is tried again: new noise is a new release."""
        ...

    def commit(self, permit: Permit, trained: Sequence[ClientTask]) -> None:
        """Note whose updates went into the model."""
        ...

    def figures(self) -> list[Figures]:
        """Each client's figures, in the clients' order; empty where no privacy is claimed."""
        ...

    def parts(self) -> dict[str, dict[str, Any]]:
        """This run's entries in books that outlive it, by the name of the book."""
        ...

    def heads(self) -> dict[str, str]:
        """Hash of the last entry of each book, by name: what a checkpoint pins, so that a rolled-back book is noticed."""
        ...


class NoBooks:
    """Runs without differential privacy."""

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Permit:
        """Everyone may train."""
        return Permit(round_, list(cohort))

    def retry(self, round_: int, client: ClientTask) -> bool:
        """Always."""
        return True

    def commit(self, permit: Permit, trained: Sequence[ClientTask]) -> None:
        """Nothing to note."""

    def figures(self) -> list[Figures]:
        """None."""
        return []

    def parts(self) -> dict[str, dict[str, Any]]:
        """None."""
        return {}

    def heads(self) -> dict[str, str]:
        """None."""
        return {}


class RunBook:
    """All clients in one book, kept by the driver (hosted placement)."""

    def __init__(self, account: Account, lasting: bool) -> None:
        self._account, self._lasting = account, lasting

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Permit:
        """Reserve for all clients of one attempt with one write to disk."""
        granted: list[ClientTask] = []
        refused: dict[str, str] = {}
        for attempt in sorted({c.attempt for c in cohort}):
            clients = {c.name: c for c in cohort if c.attempt == attempt}
            decision = self._account.authorize(round_, attempt, list(clients))
            granted += [clients[name] for name in decision.granted]
            refused |= {name: str(refusal) for name, refusal in decision.refused.items()}
        return Permit(round_, granted, refused)

    def retry(self, round_: int, client: ClientTask) -> bool:
        """Reserve another attempt."""
        return bool(self.authorize(round_, [client]).cohort)

    def commit(self, permit: Permit, trained: Sequence[ClientTask]) -> None:
        """One commit entry a client."""
        for attempt in sorted({c.attempt for c in trained}):
            self._account.commit(permit.round, attempt, [c.name for c in trained if c.attempt == attempt])

    def figures(self) -> list[Figures]:
        """From the book."""
        return self._account.figures()

    def parts(self) -> dict[str, dict[str, Any]]:
        """The book's entries of this run; none where the book is the run's own."""
        return {RUN_BOOK: self._account.part()} if self._lasting else {}

    def heads(self) -> dict[str, str]:
        """Of the one book."""
        return {RUN_BOOK: self._account.head}


class SiloBooks:
    """Each dedicated client keeps its own book; asked through its actor."""

    def __init__(self, pool: Pool, clients: Sequence[ClientTask], timeout: float) -> None:
        self._pool, self._timeout = pool, timeout
        self._clients = list(clients)
        self._known: dict[str, Figures] = {}
        self._heads: dict[str, str] = {}

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Permit:
        """Ask every silo; one whose actor is away is left out of this round.

        An actor found dead is replaced, and the new one asked once. If the old one had reserved before it
        died, the silo is charged twice: its ledger never says less than what may have been run.
        """
        permit = Permit(round_, [])
        waiting = list(cohort)
        for last in (False, True):
            self._pool.settle(self._timeout)
            waiting = self._ask_for(permit, waiting, last)
        return permit

    def _ask_for(self, permit: Permit, clients: Sequence[ClientTask], last: bool) -> list[ClientTask]:
        """Enter the answers in ``permit``; returns those whose actor was found dead (none when ``last``)."""
        handles = {c: self._pool.handle_of(c.index) for c in clients}
        refs = {c: h.authorize.remote(permit.round, c.attempt) for c, h in handles.items() if h is not None}
        permit.away.update({c.name: f"{c.name}: its actor is away." for c, h in handles.items() if h is None})
        dead = []
        for client, ref in refs.items():
            try:
                decision = ray.get(ref, timeout=self._timeout)
            except RayActorError as error:
                self._pool.lost(client.index, error)
                if last:
                    permit.away[client.name] = f"{client.name}: its actor died while it was asked."
                else:
                    dead.append(client)
            except GetTimeoutError:
                permit.away[client.name] = f"{client.name}: its actor did not answer within {self._timeout:g} s."
            except RayTaskError as error:
                cause = getattr(error, "cause", None)
                raise cause if isinstance(cause, FedrayError) else error from None
            else:
                permit.refused.update({name: str(refusal) for name, refusal in decision.refused.items()})
                permit.cohort.extend([client] if decision.granted else [])
        return dead

    def retry(self, round_: int, client: ClientTask) -> bool:
        """Left to the client's next actor, which reserves before it trains (see ``ClientHost.train``)."""
        return True

    def commit(self, permit: Permit, trained: Sequence[ClientTask]) -> None:
        """Tell the silos; a silo that is away keeps its reservation, which is the charge."""
        for client in trained:
            handle = self._pool.handle_of(client.index)
            if handle is not None:
                handle.commit.remote(permit.round, client.attempt)

    def figures(self) -> list[Figures]:
        """The latest that each silo said."""
        for name, (figures, head) in self._ask("spent").items():
            self._known[name], self._heads[name] = figures, head
        return [self._known[c.name] for c in self._clients if c.name in self._known]

    def heads(self) -> dict[str, str]:
        """As each silo last said."""
        return dict(self._heads)

    def parts(self) -> dict[str, dict[str, Any]]:
        """Each silo's entries of this run."""
        return self._ask("ledger_part")

    def _ask(self, method: str) -> dict[str, Any]:
        refs = {c.name: getattr(h, method).remote() for c in self._clients if (h := self._pool.handle_of(c.index)) is not None}
        answers = {}
        for name, ref in refs.items():
            try:
                answers[name] = ray.get(ref, timeout=self._timeout)
            except (RayActorError, GetTimeoutError):
                continue
        return answers
