"""The privacy books as the round sees them: authorize before training, commit before the model changes.

Hosted clients are entered in the run's own book, by the driver. A dedicated client keeps the book of
its silo itself, in its actor, on its own volume; the driver only asks. Where whole clients are protected
by secret cohorts, one entry of the driver's book covers all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedray.clients.messages import ClientReport, ClientTask
from fedray.clients.pool import Pool
from fedray.errors import BudgetReached
from fedray.privacy.account import Account, Reservation
from fedray.privacy.figures import Figures, Spent
from fedray.privacy.ledger.chain import EVERYONE


@dataclass(frozen=True)
class Authorization:
    """Who may train in a round; who was refused by its budget, or was away, and why (one sentence each, by client name).

    ``begins`` is true where a charge was made in this round; false where an earlier charge covers it.
    """

    round: int
    cohort: list[ClientTask]
    refused: dict[str, str] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    begins: bool = True


class Books(Protocol):
    """What the round needs of the books."""

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Reserve one round for each client; those over budget are refused."""
        ...

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """Reserve once more for a client that is tried again: new noise is a new release. None where the budget does not allow it."""
        ...

    def commit(self, permit: Authorization, trained: Sequence[ClientReport]) -> None:
        """Note whose updates went into the model, with their receipts."""
        ...

    def exhausted(self, round_: int) -> set[str]:
        """Clients that may not take part in a round any more; ``clients`` for all of them."""
        ...

    def lines(self, rounds: int | None = None) -> dict[str, list[Spent]]:
        """Figures by protected unit, subjects with equal ones together; empty where no privacy is claimed.

        With ``rounds`` as if everyone had taken part in each of so many rounds, where who did is secret.
        """
        ...

    def figures(self, rounds: int | None = None) -> dict[str, list[Figures]]:
        """Each subject's figures by protected unit, in the subjects' order; ``rounds`` as for :meth:`lines`."""
        ...

    def parts(self) -> dict[str, dict[str, Any]]:
        """This run's entries in books that outlive it, by the name of the book."""
        ...

    def heads(self) -> dict[str, str]:
        """Hash of the last entry of each book, by name: what a checkpoint pins, so that a rolled-back book is noticed."""
        ...


class NoBooks:
    """Runs without differential privacy."""

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Everyone may train."""
        return Authorization(round_, list(cohort))

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """Always."""
        return client

    def commit(self, permit: Authorization, trained: Sequence[ClientReport]) -> None:
        """Nothing to note."""

    def exhausted(self, round_: int) -> set[str]:
        """None."""
        return set()

    def lines(self, rounds: int | None = None) -> dict[str, list[Spent]]:
        """None."""
        return {}

    def figures(self, rounds: int | None = None) -> dict[str, list[Figures]]:
        """None."""
        return {}

    def parts(self) -> dict[str, dict[str, Any]]:
        """None."""
        return {}

    def heads(self) -> dict[str, str]:
        """None."""
        return {}


class RunBook:
    """A book of the driver in which each client of a cohort is charged.

    Args:
        name: of the book, ``records`` or ``clients``.
        unit: what it protects.
        account: the book, open.
        lasting: it outlives the run.
    """

    def __init__(self, name: str, unit: str, account: Account, lasting: bool) -> None:
        self._name, self._unit, self._account, self._lasting = name, unit, account, lasting

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Reserve for all clients of one attempt with one write to disk."""
        granted: list[ClientTask] = []
        refused: dict[str, str] = {}
        for attempt in sorted({c.attempt for c in cohort}):
            clients = {c.name: c for c in cohort if c.attempt == attempt}
            decision = self._account.authorize(round_, attempt, list(clients))
            granted += [_reserved(clients[name], self._unit, decision.reservations[name]) for name in decision.granted]
            refused |= {name: str(refusal) for name, refusal in decision.refused.items()}
        return Authorization(round_, granted, refused)

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """Reserve another attempt."""
        return next(iter(self.authorize(round_, [client]).cohort), None)

    def commit(self, permit: Authorization, trained: Sequence[ClientReport]) -> None:
        """One commit entry a client."""
        for attempt in sorted({r.attempt for r in trained}):
            self._account.commit(permit.round, attempt, {r.name: r.receipts.get(self._unit) for r in trained if r.attempt == attempt})

    def exhausted(self, round_: int) -> set[str]:
        """From the book."""
        return _exhausted(self._account.groups())

    def lines(self, rounds: int | None = None) -> dict[str, list[Spent]]:
        """From the book."""
        return {self._unit: self._account.groups(rounds)}

    def figures(self, rounds: int | None = None) -> dict[str, list[Figures]]:
        """From the book."""
        return {self._unit: self._account.figures(rounds)}

    def parts(self) -> dict[str, dict[str, Any]]:
        """The book's entries of this run; none where the book is the run's own."""
        return {self._name: self._account.part()} if self._lasting else {}

    def heads(self) -> dict[str, str]:
        """Of the one book."""
        return {self._name: self._account.head}


class PopulationBook(RunBook):
    """A book of the driver in which one entry covers all clients, whether their secret coin fell or not.

    Args:
        due: whether a round needs a charge, or an earlier one covers it.
    """

    def __init__(self, name: str, account: Account, lasting: bool, due: Callable[[int], bool]) -> None:
        super().__init__(name, "client", account, lasting)
        self._due = due
        self._charged = 0
        self._entry = ""

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Charge everyone for the rounds that begin here.

        Raises:
            BudgetReached: the charge would exceed the budget.
        """
        begins = self._due(round_)
        if begins:
            decision = self._account.authorize(round_, 0, [EVERYONE])
            for refusal in decision.refused.values():
                raise BudgetReached(f"the privacy budget of all clients is reached: {refusal}")
            self._charged, self._entry = round_, decision.reservations[EVERYONE].id
        return Authorization(round_, [self._with_entry(c) for c in cohort], begins=begins)

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """The sum is released once, with one noise, however often a client was asked for its part: nothing is charged."""
        return self._with_entry(client)

    def commit(self, permit: Authorization, trained: Sequence[ClientReport]) -> None:
        """That a sum is released; who is in it is nobody's business."""
        self._account.commit(self._charged, 0, {EVERYONE: None})

    def exhausted(self, round_: int) -> set[str]:
        """All, where this round is not paid and cannot be."""
        return super().exhausted(round_) if self._due(round_) else set()

    def _with_entry(self, client: ClientTask) -> ClientTask:
        return client._replace(reservations=(*client.reservations, ("client", self._entry)))


class SiloBooks:
    """Each dedicated client keeps its own book; asked through its actor."""

    def __init__(self, pool: Pool, clients: Sequence[ClientTask], unit: str, timeout: float) -> None:
        self._pool, self._unit, self._timeout = pool, unit, timeout
        self._clients = list(clients)
        self._known: dict[str, Figures] = {}
        self._heads: dict[str, str] = {}

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Ask every silo; one whose actor is away is left out of this round.

        An actor found dead is replaced, and the new one asked once. If the old one had reserved before it
        died, the silo is charged twice: its ledger never says less than what may have been run.
        """
        permit = Authorization(round_, [])
        waiting = list(cohort)
        for last in (False, True):
            self._pool.settle(self._timeout)
            waiting = self._ask_for(permit, waiting, last)
        return permit

    def _ask_for(self, permit: Authorization, clients: Sequence[ClientTask], last: bool) -> list[ClientTask]:
        """Enter the answers in ``permit``; returns those whose actor was found dead (none when ``last``)."""
        there = {c.index for c in clients if self._pool.handle_of(c.index) is not None}
        answers = self._pool.ask("authorize", {c.index: (permit.round, c.attempt) for c in clients}, self._timeout)
        dead = []
        for client in clients:
            name, decision = client.name, answers.get(client.index)
            if decision is not None:
                permit.refused.update({n: str(refusal) for n, refusal in decision.refused.items()})
                permit.cohort.extend([_reserved(client, self._unit, r) for r in decision.reservations.values()])
            elif client.index not in there:
                permit.away[name] = f"{name}: its actor is away."
            elif self._pool.handle_of(client.index) is not None:
                permit.away[name] = f"{name}: its actor did not answer within {self._timeout:g} s."
            elif last:
                permit.away[name] = f"{name}: its actor died while it was asked."
            else:
                dead.append(client)
        return dead

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """Left to the client's next actor, which reserves before it trains (see ``ClientHost.train``)."""
        return client

    def commit(self, permit: Authorization, trained: Sequence[ClientReport]) -> None:
        """Tell the silos; a silo that is away keeps its reservation, which is the charge."""
        for client in trained:
            handle = self._pool.handle_of(client.index)
            if handle is not None:
                handle.commit.remote(permit.round, client.attempt, client.receipts.get(self._unit))

    def exhausted(self, round_: int) -> set[str]:
        """As each silo says."""
        return {f.name for f in self._ask_figures() if f.exhausted}

    def lines(self, rounds: int | None = None) -> dict[str, list[Spent]]:
        """One group a silo."""
        return {self._unit: [Spent(f, [f.name]) for f in self._ask_figures(rounds)]}

    def figures(self, rounds: int | None = None) -> dict[str, list[Figures]]:
        """The latest that each silo said."""
        return {self._unit: self._ask_figures(rounds)}

    def heads(self) -> dict[str, str]:
        """As each silo last said."""
        return dict(self._heads)

    def parts(self) -> dict[str, dict[str, Any]]:
        """Each silo's entries of this run."""
        return self._ask("ledger_part")

    def _ask_figures(self, rounds: int | None = None) -> list[Figures]:
        for name, (figures, head) in self._ask("spent", rounds).items():
            self._known[name], self._heads[name] = figures, head
        return [self._known[c.name] for c in self._clients if c.name in self._known]

    def _ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        names = {c.index: c.name for c in self._clients}
        return {names[i]: answer for i, answer in self._pool.ask(method, dict.fromkeys(names, arguments), self._timeout).items()}


class JointBooks:
    """Two units at once: whole clients in the driver's book, records in theirs."""

    def __init__(self, records: Books, clients: Books) -> None:
        self._records, self._clients = records, clients

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Both must allow it. A client that only its records' budget stops contributes nothing, which its other charge covers."""
        first = self._clients.authorize(round_, cohort)
        second = self._records.authorize(round_, first.cohort)
        return Authorization(round_, second.cohort, first.refused | second.refused, first.away | second.away, first.begins)

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """Both must allow it."""
        again = self._clients.retry(round_, client)
        return None if again is None else self._records.retry(round_, again)

    def commit(self, permit: Authorization, trained: Sequence[ClientReport]) -> None:
        """In both."""
        self._clients.commit(permit, trained)
        self._records.commit(permit, trained)

    def exhausted(self, round_: int) -> set[str]:
        """In either."""
        return self._clients.exhausted(round_) | self._records.exhausted(round_)

    def lines(self, rounds: int | None = None) -> dict[str, list[Spent]]:
        """Records first."""
        return self._records.lines(rounds) | self._clients.lines(rounds)

    def figures(self, rounds: int | None = None) -> dict[str, list[Figures]]:
        """Records first."""
        return self._records.figures(rounds) | self._clients.figures(rounds)

    def parts(self) -> dict[str, dict[str, Any]]:
        """Of both."""
        return self._records.parts() | self._clients.parts()

    def heads(self) -> dict[str, str]:
        """Of both."""
        return self._records.heads() | self._clients.heads()


def _exhausted(groups: Sequence[Spent]) -> set[str]:
    return {name for group in groups if group.figures.exhausted for name in group.names}


def _reserved(client: ClientTask, unit: str, reservation: Reservation) -> ClientTask:
    return client._replace(reservations=(*client.reservations, (unit, reservation.id)), steps=reservation.steps or client.steps)
