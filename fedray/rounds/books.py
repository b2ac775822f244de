"""The privacy books as a round sees them: clients are charged before they train, and their receipts are entered before the model changes.

There is one book for each protected unit of a run. The driver keeps the book of hosted clients. A dedicated client keeps the book of its
silo itself, in its actor, on its own volume, and the driver only asks. Where cohorts are secret, one entry of the driver's book charges
all clients at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedray.clients.messages import ClientReport, ClientTask, by_version
from fedray.clients.pool import Pool
from fedray.errors import BudgetReached
from fedray.privacy.account import Account, Reservation
from fedray.privacy.evaluationplan import EvaluationPlan
from fedray.privacy.figures import Figures, Spent
from fedray.privacy.ledger.chain import EVALUATION, EVERYONE, Withdrawal
from fedray.privacy.refusal import Refusal


@dataclass(frozen=True)
class Authorization:
    """Who may train in a round.

    Attributes:
        round: number of the round, from 0.
        cohort: the clients that may train, with their reservations.
        refused: one sentence for each client whose privacy budget does not allow the round, by client name.
        away: one sentence for each client whose silo could not be asked, by client name.
        withdrawn: one sentence for each client that has withdrawn its data, by client name.
        begins: a charge was made in this round; false where an earlier charge covers it.
    """

    round: int
    cohort: list[ClientTask]
    refused: dict[str, str] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    begins: bool = True
    withdrawn: dict[str, str] = field(default_factory=dict)

    def enter(self, refused: Mapping[str, Refusal | Withdrawal]) -> None:
        """Add whom a book refuses, with its sentence."""
        for name, why in refused.items():
            (self.withdrawn if isinstance(why, Withdrawal) else self.refused)[name] = str(why)


@dataclass(frozen=True)
class BooksView:
    """What the books of a run say before a round.

    Attributes:
        groups: figures by protected unit, subjects with equal figures together; empty where no privacy is claimed.
        exhausted: clients that may not take part in the round; ``clients`` stands for all of them.
        withdrawn: one sentence for each client that has withdrawn its data, by client name, as far as the driver's books say.
    """

    groups: dict[str, list[Spent]] = field(default_factory=dict)
    exhausted: frozenset[str] = frozenset()
    withdrawn: Mapping[str, str] = field(default_factory=dict)


class RunBook:
    """A book of the driver in which each client of a cohort is charged.

    Args:
        name: of the book, ``records`` or ``clients``.
        unit: what it protects.
        account: the book, open.
        lasting: the book outlives the run.
    """

    def __init__(self, name: str, unit: str, account: Account, lasting: bool) -> None:
        self._name, self.unit, self._account, self._lasting = name, unit, account, lasting

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Charge all clients of one attempt with one write to the disk."""
        result = Authorization(round_, [])
        for attempt in sorted({c.attempt for c in cohort}):
            clients = {c.name: c for c in cohort if c.attempt == attempt}
            decision = self._account.authorize(round_, attempt, list(clients))
            result.cohort.extend(_reserved(clients[name], self.unit, decision.reservations[name]) for name in decision.granted)
            result.enter(decision.refused)
        return result

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """Charge another attempt."""
        return next(iter(self.authorize(round_, [client]).cohort), None)

    def commit(self, round_: int, trained: Sequence[ClientReport]) -> None:
        """Enter the receipt of each client."""
        for attempt in sorted({r.attempt for r in trained}):
            self._account.commit(round_, attempt, {r.name: r.receipts.get(self.unit) for r in trained if r.attempt == attempt})

    def charge_evaluation(self, round_: int, cohort: Sequence[ClientTask], plan: EvaluationPlan) -> Authorization:
        """Charge the evaluation after a round to all clients, with one write to the disk."""
        decision, clients = self._account.authorize(round_, 0, [c.name for c in cohort], plan), {c.name: c for c in cohort}
        granted = [_reserved(clients[name], self.unit, decision.reservations[name]) for name in decision.granted]
        result = Authorization(round_, granted)
        result.enter(decision.refused)
        return result

    def commit_evaluation(self, round_: int, receipts: Mapping[str, Mapping[str, Any]]) -> None:
        """Enter the receipt of each client that has answered."""
        self._account.commit(round_, 0, receipts, evaluates=True)

    def view(self, rounds: int, everyone: bool) -> BooksView:
        """Read the account; see :meth:`Books.view`."""
        view = _view(self.unit, self._account.groups(rounds if everyone else None))
        return replace(view, withdrawn={name: str(why) for name, why in self._account.withdrawn().items()})

    def earlier_rounds(self) -> set[int]:
        """The rounds, from 0, whose training earlier starts of this run charged."""
        return set(self._account.earlier_rounds)

    def heads(self) -> dict[str, str]:
        """Hash of the book's last entry."""
        return {self._name: self._account.head}

    def lacking(self, run: str) -> int:
        """Number of clients that another run, or a query, has not charged in this book."""
        return len(self._account.lacking(run))

    def parts(self) -> dict[str, dict[str, Any]]:
        """This run's entries, where the book outlives it."""
        return {self._name: self._account.part()} if self._lasting else {}


class PopulationBook(RunBook):
    """A book of the driver in which one entry charges all clients, whether they are drawn or not.

    Args:
        name: of the book.
        account: the book, open.
        lasting: the book outlives the run.
        due: whether a round needs a charge; else an earlier one covers it.
    """

    def __init__(self, name: str, account: Account, lasting: bool, due: Callable[[int], bool]) -> None:
        super().__init__(name, "client", account, lasting)
        self._due = due
        self._charged, self._entry = 0, ""  # the round of the last charge, and its entry

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
        """Nothing is charged: the sum is released once, with one noise, however often a client is asked for its update."""
        return self._with_entry(client)

    def commit(self, round_: int, trained: Sequence[ClientReport]) -> None:
        """Record that this round's sum was released. The participants are not recorded, because cohorts are secret."""
        self._account.commit(self._charged, 0, {EVERYONE: None})

    def view(self, rounds: int, everyone: bool) -> BooksView:
        """As of the account. Nobody is exhausted in a round that an earlier charge covers."""
        view = super().view(rounds, everyone)
        return view if self._due(rounds) else replace(view, exhausted=frozenset())

    def _with_entry(self, client: ClientTask) -> ClientTask:
        return client._replace(reservations=(*client.reservations, ("client", self._entry)))


class SiloBooks:
    """The books of dedicated clients. Each client keeps its own, and is asked through its actor.

    Args:
        pool: has the actors.
        clients: all clients.
        unit: what the books protect.
        timeout: seconds that an actor has to answer.
    """

    def __init__(self, pool: Pool, clients: Sequence[ClientTask], unit: str, timeout: float) -> None:
        self._pool, self.unit, self._timeout = pool, unit, timeout
        self._clients = list(clients)
        self._known: dict[str, Figures] = {}
        self._heads: dict[str, str] = {}

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Ask every silo; one whose actor is away is left out of this round.

        An actor found dead is replaced, and the new one asked once. If the old one had reserved before it
        died, the silo is charged twice: its ledger never says less than what may have been run.
        """
        result = Authorization(round_, [])
        waiting = list(cohort)
        for last in (False, True):
            self._pool.settle(self._timeout)
            waiting = self._ask_for(result, waiting, last)
        return result

    def _ask_for(self, result: Authorization, clients: Sequence[ClientTask], last: bool) -> list[ClientTask]:
        """Enter the answers in ``result``; returns the clients whose actor was found dead (none when ``last``)."""
        there = {c.index for c in clients if self._pool.handle_of(c.index) is not None}
        answers = self._pool.ask("authorize", {c.index: (result.round, c.attempt) for c in clients}, self._timeout)
        dead = []
        for client in clients:
            name, decision = client.name, answers.get(client.index)
            if decision is not None:
                result.enter(decision.refused)
                result.cohort.extend([_reserved(client, self.unit, r) for r in decision.reservations.values()])
            elif client.index not in there:
                result.away[name] = f"{name}: its actor is away."
            elif self._pool.handle_of(client.index) is not None:
                result.away[name] = f"{name}: its actor did not answer within {self._timeout:g} s."
            elif last:
                result.away[name] = f"{name}: its actor died while it was asked."
            else:
                dead.append(client)
        return dead

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """Leave the charge to the client's next actor, which reserves before it trains (see ``ClientHost.train``)."""
        return client

    def commit(self, round_: int, trained: Sequence[ClientReport]) -> None:
        """Tell the silos; a silo that is away keeps its reservation, which is the charge."""
        for client in trained:
            handle = self._pool.handle_of(client.index)
            if handle is not None:
                handle.commit.remote(round_, client.attempt, client.receipts.get(self.unit))

    def charge_evaluation(self, round_: int, cohort: Sequence[ClientTask], plan: EvaluationPlan) -> Authorization:
        """Leave the charge to each client's actor, which reserves before it reads its held-out records."""
        return Authorization(round_, list(cohort))

    def commit_evaluation(self, round_: int, receipts: Mapping[str, Mapping[str, Any]]) -> None:
        """Nothing: each silo has entered its own receipt."""

    def view(self, rounds: int, everyone: bool) -> BooksView:
        """Ask every silo; of one that does not answer, what it said last."""
        for name, (figures, head) in self._ask("spent", rounds if everyone else None).items():
            self._known[name], self._heads[name] = figures, head
        return _view(self.unit, [Spent(self._known[c.name], [c.name]) for c in self._clients if c.name in self._known])

    def earlier_rounds(self) -> set[int]:
        """The rounds, from 0, whose training earlier starts of this run charged to any silo."""
        entries = [entry for part in self.parts().values() for entry in part["entries"]]
        return {int(e["round"]) for e in entries if e.get("kind") == "reserve" and e.get("purpose") != EVALUATION}

    def heads(self) -> dict[str, str]:
        """Hash of the last entry of each silo's book, as each silo last said."""
        return dict(self._heads)

    def lacking(self, run: str) -> int:
        """Number of silos that another run, or a query, has not charged, or that do not answer."""
        return len(self._clients) - sum(not found for found in self._ask("of_ledger", "lacking", run).values())

    def parts(self) -> dict[str, dict[str, Any]]:
        """Each silo's entries of this run."""
        return self._ask("of_ledger", "part")

    def _ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        names = {c.index: c.name for c in self._clients}
        return {names[i]: answer for i, answer in self._pool.ask(method, dict.fromkeys(names, arguments), self._timeout).items()}


class Books:
    """All books of a run: none without privacy, two where records and whole clients are protected.

    Args:
        books: in the order of the run's guarantees: records before clients.
    """

    def __init__(self, *books: RunBook | SiloBooks) -> None:
        self._books = books

    def authorize(self, round_: int, cohort: Sequence[ClientTask]) -> Authorization:
        """Charge one round to each client, in every book: that whose model it starts from. Clients over a budget are refused.

        Whole clients are charged first: a client that only the budget of its records stops contributes nothing, which its other charge
        covers.
        """
        result = Authorization(round_, list(cohort))
        for book in reversed(self._books):
            asked, result = result.cohort, replace(result, cohort=[])
            for version, clients in by_version(round_, asked).items():
                found = book.authorize(version, clients)
                begins = result.begins and (found.begins or version != round_)
                cohort = [*result.cohort, *found.cohort]
                withdrawn = result.withdrawn | found.withdrawn
                result = Authorization(round_, cohort, result.refused | found.refused, result.away | found.away, begins, withdrawn)
        return result

    def retry(self, round_: int, client: ClientTask) -> ClientTask | None:
        """Charge a client that is tried again: new noise is a new release. None where a budget does not allow it."""
        again: ClientTask | None = client
        for book in reversed(self._books):
            again = None if again is None else book.retry(round_ if client.version is None else client.version, again)
        return again

    def commit(self, round_: int, granted: Sequence[ClientTask], reports: Sequence[ClientReport]) -> None:
        """Enter whose updates changed the model, with their receipts.

        Args:
            round_: that of the step.
            granted: who was allowed to train for it.
            reports: of their turns.
        """
        done = {r.index: r for r in reports if r.status == "done"} if self._books else {}
        for book in reversed(self._books):
            for version, clients in by_version(round_, granted).items():
                book.commit(version, [done[c.index] for c in clients if c.index in done])

    def charge_evaluation(self, round_: int, cohort: Sequence[ClientTask], plan: EvaluationPlan) -> Authorization:
        """Charge the evaluation after a round to each client, in the book of its records. Clients over their budget are refused."""
        (book,) = self._books
        return book.charge_evaluation(round_, cohort, plan)

    def commit_evaluation(self, round_: int, receipts: Mapping[str, Mapping[str, Any]]) -> None:
        """Enter what left the clients in the evaluation after a round."""
        (book,) = self._books
        book.commit_evaluation(round_, receipts)

    def view(self, rounds: int, everyone: bool = False) -> BooksView:
        """What the books say after ``rounds`` rounds of the run.

        Args:
            rounds: rounds done; the next one has this number.
            everyone: give the figures as if every client had taken part in each of the rounds, for where the cohorts are secret.
        """
        views = [book.view(rounds, everyone) for book in self._books]
        groups = {unit: groups for view in views for unit, groups in view.groups.items()}
        withdrawn = {name: said for view in views for name, said in view.withdrawn.items()}
        return BooksView(groups, frozenset().union(*(view.exhausted for view in views)), withdrawn)

    def earlier_rounds(self) -> set[int]:
        """The rounds, from 0, whose training earlier starts of this run charged in any book."""
        return set().union(*(book.earlier_rounds() for book in self._books))

    def heads(self) -> dict[str, str]:
        """Hash of the last entry of each book, by name. A checkpoint pins them, so that a book that was rolled back is noticed."""
        return {name: head for book in self._books for name, head in book.heads().items()}

    def lacking(self, run: str, unit: str = "record") -> int | None:
        """Number of subjects for which the book of a unit does not hold the charge of another run; None if no book is of that unit."""
        return next((book.lacking(run) for book in self._books if book.unit == unit), None)

    def parts(self) -> dict[str, dict[str, Any]]:
        """This run's entries in books that outlive it, by the name of the book."""
        return {name: part for book in self._books for name, part in book.parts().items()}


def _view(unit: str, groups: list[Spent]) -> BooksView:
    return BooksView({unit: groups}, frozenset(name for group in groups if group.figures.exhausted for name in group.names))


def _reserved(client: ClientTask, unit: str, reservation: Reservation) -> ClientTask:
    return client._replace(reservations=(*client.reservations, (unit, reservation.id)), steps=reservation.steps or client.steps)
