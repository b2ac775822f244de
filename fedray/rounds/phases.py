"""The phases of a secure sum at the driver: clients are asked as its protocol says, before and after they train."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence

from fedray.aggregation.exact import ExactSum
from fedray.clients.members import TRAIN
from fedray.clients.messages import ClientReport, ClientTask, RoundTask
from fedray.clients.pool import Pool
from fedray.clients.slots import RoundLog
from fedray.faults import Fault
from fedray.secure.protocol import Ask, Conduct, Correction, Messages, Order, Protocol, TooFew, Train
from fedray.spans import span


class Phases:
    """One attempt of one round under a protocol.

    Args:
        protocol: of the run.
        order: the attempt.
        task: the round, as its clients are told.
        pool: has the clients' actors.
        log: is given who is lost on the way.

    Attributes:
        pinned: name of the place of each client's actor, by the client's index.
        failed: why the sum of this attempt cannot be read; None while it can.
    """

    def __init__(self, protocol: Protocol, order: Order, task: RoundTask, pool: Pool, log: RoundLog) -> None:
        self._protocol, self._order, self._task, self._pool, self._log = protocol, order, task, pool, log
        self._members: list[ClientTask] = []  # by number
        self._numbers: dict[int, int] = {}  # by the client's index
        self._conduct: Conduct | None = None
        self._trained = False
        self.pinned: dict[int, str] = {}
        self.failed: TooFew | None = None

    def before(self, cohort: Sequence[ClientTask]) -> list[ClientTask]:
        """Take the clients through the phases before the training; returns those that train. Members' numbers say nothing of who they are."""
        self.pinned = self._pool.pinned(cohort)
        self._lose([c for c in cohort if c.index not in self.pinned], "its actor is away")
        self._members = [c for c in cohort if c.index in self.pinned]
        secrets.SystemRandom().shuffle(self._members)
        self._numbers = {c.index: number for number, c in enumerate(self._members)}
        self._conduct = self._protocol.conduct(self._order, len(self._members))
        train = self._go_on(None)
        if train is None:
            return []
        ready = self._answers(TRAIN, train.inbox)
        return [c for c in cohort if self._numbers.get(c.index) in ready]

    def after(self, total: ExactSum, clients: Collection[int]) -> bool:
        """Take the clients through the phases after the training, and take the masks off; false where nobody may read the sum.

        Args:
            total: the sum; changed in place.
            clients: indices of those whose updates are in it.
        """
        self._trained = True
        if self.failed is None:
            self._go_on({self._numbers[client]: b"" for client in clients}, total)
        return self.failed is None

    def _go_on(self, said: Messages | None, total: ExactSum | None = None) -> Train | None:
        """Conduct the protocol until its members train, or to its end."""
        assert self._conduct is not None
        try:
            with span("wait", "members of the secure sum"):
                step = next(self._conduct) if said is None else self._conduct.send(said)
                while not isinstance(step, Train):
                    step = self._conduct.send(self._answers(step.phase, step.messages) if isinstance(step, Ask) else _whole(total))
                return step
        except TooFew as few:
            self.failed = few
        except StopIteration as end:
            assert total is not None
            self._correct(end.value, total)
        return None

    def _correct(self, correction: Correction | None, total: ExactSum) -> None:
        try:
            if correction is not None:
                with span("aggregation", "take masks off"):
                    correction(total.values)
        except TooFew as few:
            self.failed = few

    def _answers(self, phase: str, messages: Messages) -> dict[int, bytes]:
        """What members answer, by their numbers; those that do not, or refuse, are lost where they have not trained yet."""
        inquiries = {self._members[number].index: (number, message) for number, message in messages.items()}
        found = self._pool.consult(self._task, phase, inquiries, self.pinned, self._protocol.patience)
        refused = {client: said for client, said in found.items() if isinstance(said, str)}
        if self._trained:  # the updates are in the sum already, with or without this answer
            for why in refused.values():
                self._log.faults.append(Fault("client", f"a client does not go on with the secure sum in the phase {phase}: {why}"))
        else:
            silent = [self._members[number] for number in messages if self._members[number].index not in found]
            self._lose(silent, f"its actor did not answer in the phase {phase} of the secure sum")
            for client, why in refused.items():
                self._lose([self._members[self._numbers[client]]], f"it does not go on with the secure sum in the phase {phase}: {why}")
        return {self._numbers[client]: said for client, said in found.items() if isinstance(said, bytes)}

    def _lose(self, clients: Sequence[ClientTask], why: str) -> None:
        self._log.reports += [ClientReport(c.index, c.name, "lost", c.attempt, error=why) for c in clients]


def _whole(total: ExactSum | None) -> Messages:
    assert total is not None
    return {0: total.data()}
