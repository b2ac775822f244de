"""Who trains: clients are charged, told what to do, and their parts let through if all in them ran what was reserved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fedray.aggregation.each import RowsAt, segments_for
from fedray.aggregation.exact import ExactSum
from fedray.clients.messages import ClientReport, ClientTask, PartialSum, RoundTask
from fedray.clients.pool import Pool
from fedray.clients.slots import RoundLog
from fedray.errors import ClaimVoid, Stopped
from fedray.exchange import Exchange
from fedray.faults import Fault
from fedray.privacy.receipt import check_receipt
from fedray.privacy.regime import Regime
from fedray.rounds.agreed import AgreedData
from fedray.rounds.books import Authorization, Books
from fedray.rounds.clientstates import ClientStates
from fedray.rounds.notes import grouped
from fedray.rounds.phases import Phases
from fedray.rounds.record import Record
from fedray.rounds.round_metrics import Guarantees
from fedray.rounds.roundreceipts import RoundReceipts
from fedray.rounds.steps import Joining, StepPlan
from fedray.rounds.withdrawals import Withdrawals
from fedray.secure.protocol import GivenUp, Order, Protocol
from fedray.spans import span
from fedray.traits import Wants


@dataclass
class UnderWay:
    """Clients who train: those of one round, or, where clients go on when the model makes a step, those of all rounds.

    Attributes:
        task: what the clients were told.
        permit: who was allowed to train since the last step.
        log: what has happened since then.
        part_bytes: of a part of an actor.
        granted: all that train, or have an update that is in no step yet, by index.
        arriving: their updates, as they come.
        phases: of a secure sum; None where sums are read as they are.
    """

    task: RoundTask
    permit: Authorization
    log: RoundLog
    part_bytes: int
    granted: dict[int, ClientTask] = field(default_factory=dict)
    arriving: Iterator[PartialSum | RowsAt] = field(default_factory=lambda: iter(()))
    phases: Phases | None = None

    def __post_init__(self) -> None:
        self.granted |= {c.index: c for c in self.permit.cohort}

    def join(self, permit: Authorization) -> None:
        """More clients were allowed to train."""
        before = self.permit
        cohort = [*before.cohort, *permit.cohort]
        self.permit = Authorization(before.round, cohort, before.refused | permit.refused, before.away | permit.away, before.begins)
        self.granted |= {c.index: c for c in permit.cohort}

    def readable(self, total: ExactSum, clients: Sequence[int]) -> bool:
        """Take what masks there are off a sum of these clients' updates; false where nobody may read it."""
        return self.phases is None or self.phases.after(total, clients)

    def stepped(self, number: int) -> None:
        """A step was made; what comes next is for round ``number``."""
        for report in self.log.taken().reports:
            self.granted.pop(report.index, None)
        self.permit = Authorization(number, [])


@dataclass(frozen=True)
class Secure:
    """How a run's sums are kept from being read before they are whole.

    Attributes:
        protocol: of the run.
        job: the run's name in the privacy ledgers.
        least: updates below which nobody may read a sum.
        retries: how often a round whose sum cannot be read is begun again.
    """

    protocol: Protocol
    job: str
    least: int
    retries: int


class Dispatch:
    """Lets clients train.

    Args:
        pool: trains them.
        books: charge them.
        states: of the clients, where they keep any.
        regime: the run's.
        privacy: the run's guarantees.
        record: is told who may not train.
        withdrawals: keep out who has withdrawn its data.
        exchange: of the algorithm.
        clients: number of all clients.
        capacity: the weight that sums are laid out for.
        wants: what the aggregation rule is given.
        secure: lets nobody read single updates; None where sums are read as they are.
        agreed: keeps out who does not hold what it registered; None where nothing was agreed on.
        receipts: of the run, where clients sign.
    """

    def __init__(
        self,
        pool: Pool,
        books: Books,
        states: ClientStates | None,
        regime: Regime,
        privacy: Guarantees,
        record: Record,
        withdrawals: Withdrawals,
        exchange: Exchange,
        clients: int,
        capacity: float,
        wants: Wants,
        secure: Secure | None,
        agreed: AgreedData | None = None,
        receipts: RoundReceipts | None = None,
    ) -> None:
        self._pool, self._books, self._states, self._regime, self._privacy, self._record = pool, books, states, regime, privacy, record
        self._exchange, self._clients, self._capacity, self._wants, self._secure = exchange, clients, capacity, wants, secure
        self._agreed, self._receipts, self._withdrawals = agreed, receipts, withdrawals
        self._ends = False  # nobody joins any more

    def begin(self, number: int, plan: StepPlan, versions: Mapping[int, Any]) -> UnderWay:
        """Let the clients of round ``number`` train, or, where there are no rounds, those who join from now on.

        Args:
            number: from 0.
            plan: whose updates make the step.
            versions: the globals that clients start from, by version; more may come.
        """
        permit = self._authorize(number, plan.cohort)
        return self._train(self._task(number, permit), permit, RoundLog(list(plan.left)), plan, versions)

    def again(self, under: UnderWay, plan: StepPlan, versions: Mapping[int, Any]) -> UnderWay | None:
        """Let the same clients train anew for a round whose secure sum cannot be read; None where that was done often enough, or none would.

        They have new keys, and new noise, and are charged again where a second try is. Who has helped to take masks off takes no part in
        another attempt, so the round is given up then, and the model stays as it was.
        """
        assert self._secure is not None and under.phases is not None
        log, number, attempt = under.log, under.task.round, under.task.attempt + 1
        why = "too few clients were left" if self._regime.hides_clients else str(under.phases.failed)
        lost, reported = f"the secure sum could not be read: {why}", {r.index for r in log.reports}
        log.lose([r.index for r in log.reports if r.status == "done"], lost)
        log.reports += [
            ClientReport(c.index, c.name, "lost", c.attempt, error=lost) for c in under.permit.cohort if c.index not in reported
        ]
        if attempt > self._secure.retries or isinstance(under.phases.failed, GivenUp):
            return None
        log.faults.append(Fault("round", f"the secure sum could not be read ({why}); the round is begun again with new keys", number + 1))
        clients = [(c, self._retry(under.granted, c._replace(attempt=attempt))) for c in under.permit.cohort]
        left = [
            ClientReport(c.index, c.name, "refused", attempt, error="its privacy budget does not allow another attempt of the secure sum")
            for c, allowed in clients
            if allowed is None
        ]
        permit = replace(under.permit, cohort=[allowed for _, allowed in clients if allowed is not None], begins=False)
        anew = RoundLog([*plan.left, *left], log.deaths, log.retries + len(permit.cohort), log.faults, log.nodes_left)
        return self._train(replace(under.task, attempt=attempt), permit, anew, plan, versions)

    def _train(self, task: RoundTask, permit: Authorization, log: RoundLog, plan: StepPlan, versions: Mapping[int, Any]) -> UnderWay:
        part_bytes = 8 * task.size(self._exchange) if self._wants == "sum" else 0  # single updates need not travel yet
        part_bytes *= 1 if self._secure is None else self._secure.protocol.expansion
        under, cohort = UnderWay(task, permit, log, part_bytes), permit.cohort
        if self._secure is not None and cohort:
            order = Order(self._secure.job, task.round, task.attempt, self._secure.least, task.agreed(self._exchange))
            under.phases = Phases(self._secure.protocol, order, task, self._pool, log)
            cohort = under.phases.before(cohort)
        under.arriving = self._pool.train(
            cohort,
            task,
            versions,
            log,
            deadline=plan.deadline,
            enough=plan.enough if plan.joining is None else None,
            more=None if plan.joining is None else partial(self._more, under, plan.joining),
            authorize=partial(self._retry, under.granted),
            part_bytes=part_bytes,
            charged=bool(self._privacy.lines),
            pinned=None if under.phases is None else under.phases.pinned,
        )
        return under

    def end(self, under: UnderWay | None) -> None:
        """The run ends: nobody joins any more, and clients who still train need not go on."""
        self._ends = True
        with suppress(Stopped):
            for _ in () if under is None else under.arriving:
                pass

    def check_receipts(self, part: PartialSum | RowsAt, under: UnderWay) -> None:
        """Fail closed: no part is added unless every client in it says that it ran what was reserved for it.

        Raises:
            ClaimVoid: a client does not.
        """
        if not self._privacy.lines and self._receipts is None:
            return
        reports = {r.index: r for r in under.log.reports if r.status == "done"}
        if self._receipts is not None:
            for index in part.clients:
                self._receipts.arrived(part, reports[index], under.task.segments)
        for index in part.clients:
            report, task = reports[index], under.granted[index]
            if report.attempt != task.attempt:
                raise ClaimVoid(f"client {report.name}: attempt {report.attempt} was handed over where {task.attempt} was reserved.")
            reservations = dict(task.reservations)
            for line in self._privacy.lines:
                reserved = {"reservation": reservations.get(line.unit), "exchange": self._exchange.sha256}
                expected = reserved | line.expected(index, task.steps, under.task)
                check_receipt(report.name, report.receipts.get(line.unit), expected)

    def _authorize(self, number: int, cohort: Sequence[ClientTask]) -> Authorization:
        changed: dict[str, str] = {}
        cohort, withdrawn = self._withdrawals.admitted(number, cohort)
        if self._agreed is not None:
            cohort, changed = self._agreed.admitted(number, cohort, self._record.fault)
        with span("cohort", "authorize"):
            permit = self._books.authorize(number, cohort if self._states is None else self._states.attached(cohort))
        self._withdrawals.learn(permit.withdrawn)
        self._withdrawals.now(number)
        self._record.left_out += len(permit.refused)
        for fault in grouped(Fault("client", text, number + 1, name) for name, text in (permit.refused | permit.away).items()):
            self._record.tell(fault)
        out = changed | withdrawn | permit.withdrawn
        return replace(permit, refused=permit.refused | out) if out else permit

    def _task(self, number: int, permit: Authorization) -> RoundTask:
        regime = self._regime
        if permit.begins:
            regime.begin(number)
        regime.taken(number, [c.index for c in permit.cohort])
        segments = segments_for(len(permit.cohort), self._exchange.up_size)
        about = regime.stages(number), regime.plan_sha256, self._clients
        secure = None if self._secure is None else self._secure.protocol.terms()
        return RoundTask(number, self._capacity, *about, collect=self._wants, segments=segments, secure=secure)

    def _more(self, under: UnderWay, joining: Joining) -> Sequence[ClientTask] | None:
        """Clients who start now, while others train; None where the run ends."""
        if self._ends:
            return None
        asked = joining(under.log.reports, under.granted)
        if not asked:
            return asked
        permit = self._authorize(self._record.rounds, asked)
        under.join(permit)
        return permit.cohort

    def _retry(self, granted: dict[int, ClientTask], client: ClientTask) -> ClientTask | None:
        anew = granted[client.index]._replace(attempt=client.attempt, reservations=(), steps=None)  # with its state, which the pool forgets
        again = self._books.retry(self._record.rounds, anew)
        if again is not None:
            granted[client.index] = again
        return again
