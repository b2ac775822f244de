"""The driver: the loop over a run's rounds.

A plain class that runs inside one Ray actor (:mod:`fedray.experiment` starts it there). Everything that it uses comes in as
:class:`Loop`: cohorts are drawn by :mod:`fedray.rounds.drawing`, and :mod:`fedray.rounds.record` keeps what is written down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each, PartLost, RowsAt
from fedray.aggregation.exact import ExactSum
from fedray.aggregation.rule import Memory, Rule, combined
from fedray.algorithms.algorithm import Algorithm, Mean, Server, figured, stepped
from fedray.algorithms.serverschedule import server_in
from fedray.attacks.attackers import Attackers
from fedray.checkpoint import Saved
from fedray.clients.messages import ClientTask, PartialSum
from fedray.clients.pool import Pool, RoundLog
from fedray.config import Config
from fedray.errors import BudgetReached, Stopped
from fedray.exchange import Exchange
from fedray.faults import Fault
from fedray.frozen import model_digest
from fedray.holder import Holder
from fedray.parameters import Layout, Values, Vector
from fedray.privacy.regime import Regime
from fedray.rounds.agreed import AgreedData
from fedray.rounds.books import Books
from fedray.rounds.broadcast import Broadcast
from fedray.rounds.clientstates import ClientStates
from fedray.rounds.cohort import largest_cohort
from fedray.rounds.dispatch import Dispatch, Secure, UnderWay
from fedray.rounds.drawing import FailedRounds
from fedray.rounds.evaluator import MOST_CLASSES, Evaluators
from fedray.rounds.noisedevaluation import NoisedEvaluations
from fedray.rounds.record import OpenRow, Record, Traffic
from fedray.rounds.remembered import keep
from fedray.rounds.roots import RootAt, Roots
from fedray.rounds.round_metrics import Guarantees
from fedray.rounds.roundreceipts import RoundReceipts
from fedray.rounds.steps import StepPlan, Steps
from fedray.rounds.withdrawals import Withdrawals
from fedray.runfiles import Row
from fedray.spans import span
from fedray.training.unfreezing import frozen_in
from fedray.updates.download import Download, make_coder
from fedray.updates.pipeline import sent_bytes

#: Clients that an actor fine-tunes the model for within ``clients.start_timeout``.
_TUNED_AT_ONCE = 4


@dataclass(frozen=True)
class ModelState:
    """What goes from round to round.

    Attributes:
        globals: all fields that are broadcast, the model first, float32 ``[exchange.down_size]``.
        server: the server optimiser's vectors by name.
        rule: what the aggregation rule remembers.
        in_store: reference of the globals, where they lie in the object store already.
        earlier: globals that clients who still train have started from, by the number of rounds that were done.
    """

    globals: Vector
    server: dict[str, Vector]
    rule: Memory
    in_store: Any = None
    earlier: Mapping[int, Vector] = field(default_factory=dict)


@dataclass
class Loop:
    """Everything the loop uses, wired by the composition root; ``begin`` is what the first round starts from."""

    config: Config
    names: Sequence[str]
    capacity: float
    layout: Layout
    algorithm: Algorithm
    exchange: Exchange
    frozen: Mapping[str, Values]
    pool: Pool
    books: Books
    steps: Steps
    record: Record
    server: Server
    rule: Rule[Any]
    regime: Regime
    evaluator: Evaluators | None
    states: ClientStates | None
    begin: Holder[ModelState]
    privacy: Guarantees
    withdrawals: Withdrawals
    secure: Secure | None = None
    roots: Roots | None = None
    agreed: AgreedData | None = None
    noised: NoisedEvaluations | None = None
    receipts: RoundReceipts | None = None
    first_round: int = 0
    resumed: bool = False


class Driver:
    """Runs the rounds; see :meth:`run`."""

    def __init__(self, parts: Loop, stop: threading.Event) -> None:
        self._p, self._record, self._stop = parts, parts.record, stop
        begin = parts.begin.take()
        self._state, self._kept = begin.server, begin.rule
        coder = make_coder(parts.config.download)
        download = None if coder is None else Download(coder, parts.exchange.model_size, parts.config.seed)
        self._broadcast = Broadcast(parts.record.rounds, begin.globals, begin.in_store, begin.earlier, download)
        self._pacing = parts.steps.tensors()  # as of the last step
        about = (
            parts.regime,
            parts.privacy,
            parts.record,
            parts.withdrawals,
            parts.exchange,
            len(parts.names),
            parts.capacity,
            parts.rule.wants,
            parts.secure,
        )
        self._dispatch = Dispatch(parts.pool, parts.books, parts.states, *about, parts.agreed, parts.receipts)
        self._under_way: UnderWay | None = None
        self._attackers = Attackers.of(parts.config, parts.names)
        self._failures = FailedRounds(parts.config, parts.regime, bool(parts.privacy.lines), parts.record.tell)

    def run(self) -> str:
        """Run all rounds; returns ``completed``, ``budget_reached`` or ``interrupted``.

        Whatever way it ends, the last model is checkpointed and the metrics file is whole.

        Raises:
            FedrayError: the run failed; its last good state is checkpointed.
        """
        record, status = self._record, "completed"
        try:
            self._broadcast.share(record.rounds, self._p.steps.versions())
            pending = record.pending()
            if pending is not None:
                self._evaluate(pending)
            while record.rounds < self._p.config.rounds:
                with span("round", f"round {record.rounds + 1}"):
                    self._run_round()
            self._dispatch.end(self._under_way)
        except BudgetReached as end:
            status = "budget_reached"
            self._dispatch.end(self._under_way)
            record.note(str(end))
        except Stopped as end:
            status = "interrupted"
            record.note(f"{end} The run ends after round {record.rounds}; --resume continues it.")
        finally:
            self._save(force=True)
            self._finish_rows(evaluate=status != "interrupted")
            keep(self._p.config, self._p.rule, self._p.names, self._kept)
        return status

    @property
    def weights(self) -> Vector:
        """The model as it stands, or all where there are several, float32 ``[exchange.model_size]``; it comes first in what is broadcast."""
        return self._broadcast.globals[: self._p.exchange.model_size]

    @property
    def judged(self) -> dict[str, Values]:
        """What the aggregation rule remembers of single clients, arrays ``[clients]`` by name; none where who took part stays hidden."""
        return {} if self._p.regime.hides_clients else self._p.rule.of_clients(self._kept)

    def by_class(self, classes: int) -> npt.NDArray[np.int64] | None:
        """Records of the driver's test set of each class (rows) by the class that the model predicts, int64 ``[classes, classes]``.

        None where there is no such test set, where the task is another, or where there are fewer than two or too many classes to show.
        """
        if self._p.evaluator is None or not 2 <= classes <= MOST_CLASSES:
            return None
        self._broadcast.share(self._record.rounds, self._p.steps.versions())
        return self._p.evaluator.by_class(self._broadcast.whole, classes)

    def tick(self) -> bool:
        """Called often while the pool waits: do what can be done meanwhile; true when the run should stop."""
        self._record.flush(wait=False)
        self._p.steps.look_ahead(self._record.rounds + 1)
        return self._stop.is_set()

    # -- one round, as in the design -------------------------------------------------------------

    def _run_round(self) -> None:
        p, record, began, number = self._p, self._record, time.perf_counter(), self._record.rounds
        with span("cohort", "draw and authorize"):
            plan = p.steps.next(number)
        under = self._under_way = self._under_way or self._dispatch.begin(number, plan, self._broadcast.versions)
        root = None if p.roots is None else p.roots.begin(number, self._broadcast.newest)
        total, came, added = self._collect(under, plan)
        while isinstance(total, ExactSum) and not under.readable(total, added):
            again = self._dispatch.again(under, plan, self._broadcast.versions)
            if again is None:
                total, added = under.task.empty_sum(p.exchange), []
                break
            under = again
            total, more, added = self._collect(under, plan)
            came += more
        log_, trained, figures = under.log, time.perf_counter(), dict[str, float]()
        self._broadcast.trained(p.steps.versions())
        of_each = None
        if isinstance(total, Each):  # first, because clients whose updates are gone by now do not count
            total, of_each = self._of_each(total, log_, root)
        updates = total.count
        record.faults_of(log_)
        traffic = self._traffic(came, under)
        counts = self._failures.counts(number, plan.asked, updates, log_.reports)
        if counts and (updates or p.regime.noised):  # a sum of noise alone is released too: whether anyone took part must stay secret
            with span("aggregation", "mean"):
                mean, memory = of_each or self._of_sum(total, number, plan.divisor)
            del total, of_each, root  # with a large model, before there is another one
            with span("cohort", "commit"):
                p.books.commit(number, list(under.granted.values()), log_.reports)
                record.took_part([p.names[k] for k in sorted(set(added))], len(p.names))
            with span("aggregation", "server step"):
                figures = self._step(number, mean, updates, memory)
            del mean, memory
            if p.states is not None:  # last: a client's state counts only if its update does
                p.states.commit(log_.reports, added)
        else:
            added = []
        p.steps.learn(log_.reports)
        p.withdrawals.learn_from(log_.reports)
        with span("logging", "figures of the round"):
            row = record.round_done(under.permit, log_, updates, traffic, trained - began, plan, figures)
        if p.receipts is not None:
            used = {report.index for report in log_.reports if report.status == "done"} & set(added)
            p.receipts.round_done(number, sorted(used), model_digest(self.weights, p.frozen), p.books.heads())
        with span("transfer", "put weights"):
            self._broadcast.share(record.rounds, p.steps.versions())
        if self._under_way is not None:  # clients who are still training go on in the next round
            under.stepped(record.rounds)
        self._evaluate(row)
        record.took(row, time.perf_counter() - began)
        self._pacing = p.steps.tensors()
        self._save()

    def _collect(self, under: UnderWay, plan: StepPlan) -> tuple[ExactSum | Each, list[int], list[int]]:
        """What of the clients who train arrives for a step, the bytes of each part, and the indices of the clients whose updates are in it."""
        p, task, update_bytes, came, added = self._p, under.task, 4 * self._p.exchange.up_size, list[int](), list[int]()
        total: ExactSum | Each = task.empty_sum(p.exchange) if p.rule.wants == "sum" else Each(p.exchange.up_size, task.segments)
        for part in under.arriving:
            self._dispatch.check_receipts(part, under)
            if factor := p.steps.factor(part.clients):
                with span("aggregation", "merge"):
                    total = _joined(total, part, factor)
                added += part.clients
            else:
                under.log.lose(part.clients, "more steps of the model were made since it started than an update may be behind", "late")
            came.append(part.travelled or under.part_bytes if isinstance(part, PartialSum) else len(part.clients) * update_bytes)
            del part  # or its memory would be held until the next is here
            if plan.joining is not None and total.count == plan.enough:
                break
        else:
            self._under_way = None
        return total, came, added

    def _of_sum(self, total: ExactSum | Each, number: int, divisor: float | None) -> tuple[Vector, Memory]:
        """The mean of a round's sum, private where whole clients are protected, and what the rule remembers.

        Args:
            total: the sum.
            number: of the round, from 0.
            divisor: what the sum is divided by instead of its weight; None: its weight.
        """
        p = self._p
        assert isinstance(total, ExactSum)
        if p.regime.noised:
            return p.regime.mean(total.values, total.bits, number), self._kept
        weight = total.weight
        mean, memory = combined(p.rule, total, self._kept, p.exchange.up_size)
        return (mean if divisor is None else mean * np.float32(weight / divisor)), memory

    def _of_each(self, total: Each, log_: RoundLog, root: RootAt | None) -> tuple[Each, tuple[Vector, Memory] | None]:
        """The updates that can still be read, and what the rule makes of them; None where they are too few for the round to count."""
        p, total = self._p, replace(total, root=root)
        while total.count >= max(1, p.config.cohort.min_clients):
            try:
                with span("aggregation", "combine single updates"):
                    return total, combined(p.rule, self._attackers.seen(total), self._kept, p.exchange.up_size)
            except PartLost as lost:
                total = total.without(lost.part)
                log_.lose(lost.part.clients, "its update was lost before it was combined")
                text = f"the updates of {len(lost.part.clients)} clients were lost before they were combined: {lost}"
                log_.faults.append(Fault("actor", text))
        return total, None

    def _step(self, number: int, mean: Vector, updates: int, memory: Memory) -> dict[str, float]:
        """Move the globals; returns what the round's row shows of the mean, and of what the rule remembers."""
        p = self._p
        clients, server = p.regime.participants(updates), server_in(p.config.server, p.server, number, p.config.rounds)
        about = p.algorithm, server, p.layout, p.exchange
        came = Mean(p.exchange.views(mean, "up"), clients, clients / len(p.names))
        frozen = frozen_in(p.config.training, p.layout, number)
        figures = {} if p.config.privacy.regimes else figured(p.algorithm, came)  # code that may fail comes before the model moves
        self._broadcast.globals, self._state = stepped(*about, self._broadcast.globals, self._state, came, frozen)
        self._kept = memory
        told = {} if p.regime.hides_clients else p.rule.figures(memory)
        return figures | {f"aggregation/{name}": value for name, value in told.items()}

    def _save(self, force: bool = False) -> None:
        size, sent = self._p.exchange.model_size, self._broadcast
        rest = sent.globals[size:] if len(sent.globals) > size else None
        versions = sent.earlier() if self._pacing else {}
        state = Saved(self._record.rounds, self.weights, self._state, {}, rest, {}, self._kept, dict(self._pacing), versions)
        self._record.save(state, self._p.states, force)

    def _traffic(self, came: Sequence[int], under: UnderWay) -> Traffic:
        """What was sent in a round; ``came`` are the bytes of the partial sums or single updates that the driver received."""
        p = self._p
        homes = max(1, len({s.info.node_id for s in p.pool.slots if s.info is not None}))
        up, part = sum(came), max([under.part_bytes, *came])
        if p.regime.hides_clients:  # how many actors had something to hand over depends on who took part
            up = part * (homes if p.config.clients.node_sums else len(p.pool.slots))
            if under.task.collect == "each":
                up = 4 * p.exchange.up_size * largest_cohort(p.config.cohort, len(p.names))
        sent = sent_bytes(under.task.stages, p.exchange.up_size) if p.regime.has_stages else None
        if under.task.secure is not None:  # all values, masked or sealed
            sent = part
        return Traffic(up, homes * self._broadcast.sent, sent)

    # -- evaluation ------------------------------------------------------------------------------

    def _evaluate(self, row: Row) -> None:
        """Hand a round's row over to be written, with an evaluation of the model where one is due."""
        every, rounds, entry = self._p.config.evaluation.every, self._record.rounds, OpenRow(row)
        self._record.flush(wait=True)
        if (every and rounds % every == 0) or rounds == self._p.config.rounds:
            with span("evaluation", "begin"):
                self._start_evaluation(entry)
        self._record.open(entry)

    def _start_evaluation(self, entry: OpenRow) -> None:
        p, entry.evaluated = self._p, True
        if p.noised is not None:
            self._record.noised(entry, partial(p.noised.after, self._record.rounds, self._broadcast.newest))
        elif p.config.evaluation.federated:
            out = p.withdrawals.now(self._record.rounds)
            everyone = [ClientTask(i, name) for i, name in enumerate(p.names) if name not in out]
            everyone = everyone if p.states is None else p.states.attached(everyone)
            few = 0 if p.config.evaluation.fine_tune is None else _TUNED_AT_ONCE
            rows = p.pool.evaluate(everyone, self._broadcast.newest, p.config.clients.start_timeout, few)
            self._record.at_clients(entry, rows, central=p.evaluator is not None)
        if p.evaluator is not None:
            entry.evaluation = p.evaluator.begin(self._broadcast.whole)

    def _finish_rows(self, evaluate: bool) -> None:
        last = self._record.take_last() if evaluate else None
        if last is not None:
            if not last.evaluated:
                self._broadcast.share(self._record.rounds, self._p.steps.versions())
                self._start_evaluation(last)
            self._record.open(last)
        self._record.finish(final=evaluate)


def _joined(total: ExactSum | Each, part: PartialSum | RowsAt, factor: int) -> ExactSum | Each:
    """What has arrived, with one part more, which counts by a factor where it is a sum."""
    if isinstance(total, Each):
        assert isinstance(part, RowsAt)
        return total.joined(part)
    assert isinstance(part, PartialSum) and isinstance(part.total, ExactSum)
    return total.joined(part.total.discounted(factor))
