"""Clients that have withdrawn their data: they are told of once, drawn no more, and kept out of the round that is about to begin."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from fedray.clients.messages import ClientReport, ClientTask
from fedray.data.records import Numbered
from fedray.faults import Fault


class Withdrawals:
    """Who has withdrawn, as far as the driver knows.

    A silo says so when its actor starts and when it refuses a turn, and its word counts until the run's next start.

    Args:
        names: of the run's clients; others may have withdrawn from the same ledgers.
        look: gives a sentence for each client that has withdrawn as of now, by what can be looked up.
        tell: is told of each client once. Of all, and not only of those that were drawn: who was drawn may be secret, who withdraws is not.
    """

    def __init__(self, names: Sequence[str], look: Callable[[], Mapping[str, str]], tell: Callable[[Fault], None]) -> None:
        self._look, self._tell = look, tell
        self._names: Container[str] = names if isinstance(names, Numbered) else frozenset(names)
        self._said: dict[str, str] = {}  # by the silos themselves
        self._told = set[str]()

    def learn(self, said: Mapping[str, str]) -> None:
        """Take note of sentences, by client name."""
        self._said |= said

    def learn_from(self, reports: Sequence[ClientReport]) -> None:
        """Take note of who has refused its turn because it has withdrawn."""
        self._said |= {report.name: report.error for report in reports if report.status == "withdrawn"}

    def now(self, number: int, more: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """A sentence for each client that has withdrawn before round ``number`` (from 0), by its name; ``more``: by the run's books."""
        everyone = {**self._said, **self._look(), **(more or {})}
        found = {name: sentence for name, sentence in everyone.items() if name in self._names}
        for name, sentence in found.items():
            if name not in self._told:
                self._told.add(name)
                self._tell(Fault("client", f"round {number + 1}: {sentence}", number + 1, name))
        return found

    def admitted(self, number: int, cohort: Sequence[ClientTask]) -> tuple[Sequence[ClientTask], dict[str, str]]:
        """Who of a round's cohort may go on, and a sentence for each of the others."""
        found = self.now(number)
        out = {client.name: found[client.name] for client in cohort if client.name in found}
        return ([client for client in cohort if client.name not in out] if out else cohort), out
