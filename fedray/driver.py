"""The driver: the round loop.

A plain class that runs inside one Ray actor (:mod:`fedray.experiment` starts it there). It holds no
part of the wiring: everything it uses comes in as :class:`Loop`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import ray

from fedray.aggregation.exact import ExactSum
from fedray.algorithms.algorithm import Server
from fedray.checkpoint import Saved
from fedray.clients.messages import ClientTask, PartialSum, RoundTask
from fedray.clients.pool import Pool, RoundLog
from fedray.config import Config
from fedray.data.records import positions
from fedray.errors import BudgetReached, ClaimVoid, Elsewhere, FedrayError, RoundFailed, Stopped
from fedray.frozen import model_digest
from fedray.parameters import Layout, Values, Vector
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.receipt import check_receipt
from fedray.privacy.release import Release
from fedray.rng import generator
from fedray.rounds.books import Authorization, Books
from fedray.rounds.cohort import Population, Sampler
from fedray.rounds.evaluator import Evaluators, PendingEvaluation
from fedray.rounds.notes import client_failures, one_line_each
from fedray.rounds.quality import Quality, numbers_only
from fedray.rounds.round_metrics import Guarantees, round_metrics
from fedray.runfiles import Row, RunFiles
from fedray.spans import span

log = logging.getLogger(__name__)

#: Failed rounds in a row after which the run ends.
MAX_FAILED_ROUNDS = 3


class Callback(Protocol):
    """What else wants to know: tracker, progress, the user's own."""

    def on_row(self, row: Row) -> None:
        """A round's line is complete."""
        ...

    def on_note(self, text: str) -> None:
        """Something befell the run that a person should read."""
        ...


@dataclass
class Loop:
    """Everything the loop uses, wired by the composition root."""

    config: Config
    files: RunFiles
    names: Sequence[str]
    sizes: npt.NDArray[np.int64]
    rates: npt.NDArray[np.float64]
    capacity: float
    layout: Layout
    frozen: Mapping[str, Values]
    sampler: Sampler
    pool: Pool
    books: Books
    server: Server
    aggregate: Callable[[ExactSum], Vector]
    release: Release | None
    evaluator: Evaluators | None
    weights: Vector
    server_state: dict[str, Vector]
    first_round: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False
    callbacks: list[Callback] = field(default_factory=list)
    privacy: Guarantees = field(default_factory=Guarantees)
    in_store: Any = None  # where the weights lie already

    @property
    def noised(self) -> bool:
        """Whether the model sees the round's sum only through the driver's half of a mechanism."""
        return self.release is not None and self.release.plan.regime != "local"


@dataclass
class _Open:
    """A round whose line still waits for its evaluation."""

    row: Row
    evaluation: PendingEvaluation | None = None


#: Bytes of weights up to which they travel within each call: Ray would do the same with a call's argument, but not with an object.
_SMALL = 60_000


class Driver:
    """Runs the rounds; see :meth:`run`."""

    def __init__(self, parts: Loop, stop: threading.Event) -> None:
        self._p, self._stop = parts, stop
        self._round = parts.first_round
        self._weights, self._state = parts.weights, parts.server_state
        parts.weights, parts.server_state = np.empty(0, dtype=np.float32), {}  # they move on; nobody keeps where they began
        self._saved = parts.first_round if parts.resumed else -1
        self._open: list[_Open] = []
        self._quality = Quality(parts.config.evaluation, self._note)
        for row in parts.files.rows():
            self._quality.remember(row)
        counted = ("actor_deaths", "nodes_left", "driver_restarts", "client_failures", "late", "retries")
        self._faults = dict.fromkeys(counted, 0) | parts.meta.get("faults", {})
        self._traffic: dict[str, float] = {"bytes_up": 0, "bytes_down": 0, "seconds": 0.0, "clients": 0, **parts.meta.get("traffic", {})}
        self._failed_rounds = self._left_out = 0
        self._shared, parts.in_store = parts.in_store, None  # the weights as an argument of calls to actors
        self._position: Callable[[str], int] | None = None
        self._ahead: tuple[int, list[ClientTask]] | None = None  # a round and its cohort, drawn during the one before

    def run(self) -> str:
        """Run all rounds; returns ``completed``, ``budget_reached`` or ``interrupted``.

        Whatever way it ends, the last model is checkpointed and the metrics file is whole.

        Raises:
            FedrayError: the run failed; its last good state is checkpointed.
        """
        status = "completed"
        try:
            self._share()
            self._resume_row()
            while self._round < self._p.config.rounds:
                with span("round", f"round {self._round + 1}"):
                    self._run_round()
        except BudgetReached as end:
            status = "budget_reached"
            self._note(str(end))
        except Stopped as end:
            status = "interrupted"
            self._note(f"{end} The run ends after round {self._round}; --resume continues it.")
        finally:
            self._save(force=True)
            self._finish_rows(evaluate=status != "interrupted")
        return status

    # -- one round, as in the design -------------------------------------------------------------

    def _share(self) -> None:
        """Put the weights where actors get them, unless they are there: into the store, from which a node fetches them once, or, where
        they are few, into each call.

        In the store they lie once for all processes of this node, this one among them.
        """
        if self._shared is not None:
            return
        if self._weights.nbytes <= _SMALL:
            self._shared = self._weights.copy()
        else:
            self._shared = ray.put(self._weights)
            self._weights = ray.get(self._shared)

    def _run_round(self) -> None:
        p, began, number = self._p, time.perf_counter(), self._round
        log_ = RoundLog()
        with span("cohort", "draw and authorize"):
            cohort = self._drawn(number)
            permit = p.books.authorize(number, cohort)
        self._left_out += len(permit.refused)
        for line in one_line_each([*permit.refused.items(), *permit.away.items()]):
            self._note(line)
        task = self._task(number, permit)
        total = task.empty_sum(p.layout.size)
        parts = 0
        granted = {c.index: c for c in permit.cohort}
        arriving = p.pool.train(
            permit.cohort,
            task,
            self._shared,
            log_,
            deadline=p.config.cohort.deadline,
            authorize=partial(self._retry, granted),
            part_bytes=total.values.nbytes,
            charged=bool(p.privacy.lines),
        )
        for part in arriving:
            self._check_receipts(part, granted, log_, task)
            with span("aggregation", "merge"):
                total = total.joined(part.total)
            del part  # or its memory would be held until the next is here
            parts += 1
        trained, updates = time.perf_counter(), total.count
        self._shared = None  # now, so that the store has room again when the next ones come; this process still has them open
        self._faults_of(log_)
        try:
            self._check_enough(cohort, total, log_)
        except RoundFailed as failure:
            self._failed(failure)
        else:
            if updates or p.noised:  # a sum of noise alone is released too: emptiness is nobody's business
                with span("aggregation", "mean"):
                    delta = p.release.mean(total.values, total.bits, number) if p.noised and p.release else p.aggregate(total)
                del total  # with a large model, before there is another one
                with span("cohort", "commit"):
                    p.books.commit(permit, [r for r in log_.reports if r.status == "done"])
                with span("aggregation", "server step"):
                    self._weights, self._state = self._step(delta)
                del delta
        self._round += 1
        with span("logging", "figures of the round"):
            row = self._row(permit, log_, updates, parts, trained - began)
        with span("transfer", "put weights"):
            self._share()
        self._evaluate(row, self._shared)
        row["metrics"] |= p.privacy.durations(round=time.perf_counter() - began)
        self._traffic["seconds"] += time.perf_counter() - began
        self._save()

    def _task(self, number: int, permit: Authorization) -> RoundTask:
        release = self._p.release
        if release is None:
            return RoundTask(number, self._p.capacity)
        if permit.begins:
            release.begin(number)
        release.taken(number, [c.index for c in permit.cohort])
        return RoundTask(number, self._p.capacity, release.client_step(number), release.plan.sha256)

    def _retry(self, granted: dict[int, ClientTask], client: ClientTask) -> ClientTask | None:
        again = self._p.books.retry(self._round, client)
        if again is not None:
            granted[client.index] = again
        return again

    def _check_receipts(self, part: PartialSum, granted: Mapping[int, ClientTask], log_: RoundLog, round_task: RoundTask) -> None:
        """Fail closed: no part is added unless every client in it says that it ran what was reserved for it."""
        p = self._p
        if not p.privacy.lines:
            return
        reports = {r.index: r for r in log_.reports if r.status == "done"}
        for index in part.clients:
            report, task = reports[index], granted[index]
            if report.attempt != task.attempt:
                raise ClaimVoid(f"client {report.name}: attempt {report.attempt} was handed over where {task.attempt} was reserved.")
            reservations = dict(task.reservations)
            for line in p.privacy.lines:
                expected = line.expected(index, task.steps, round_task)
                check_receipt(report.name, report.receipts.get(line.unit), {"reservation": reservations.get(line.unit), **expected})

    def _step(self, delta: Vector) -> tuple[Vector, dict[str, Vector]]:
        weights, state = self._p.server.step(self._weights, delta, self._state)
        buffers = self._p.layout.mask("buffer")
        if buffers.any():  # running statistics are averaged, not optimised
            weights[buffers] = self._weights[buffers] + delta[buffers]
        return weights, state

    def _drawn(self, number: int) -> list[ClientTask]:
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == number else self._draw(number)

    def _draw_ahead(self) -> None:
        """Draw the next cohort while this one is trained, where nobody is charged, so that nothing of this round decides about it."""
        p, following = self._p, self._round + 1
        if self._ahead is None and p.release is None and not p.privacy.lines and following < p.config.rounds:
            with span("cohort", "draw ahead"):
                self._ahead = following, self._draw(following)

    def _draw(self, number: int) -> list[ClientTask]:
        p = self._p
        eligible = self._not_exhausted(number)
        if eligible.sum() < max(1, p.config.cohort.min_clients):
            raise BudgetReached(p.privacy.sentence(p.books.lines(), int(eligible.sum()), p.config.cohort.min_clients))
        release, seed, drawn_from = p.release, p.config.seed, eligible
        if release is None:
            coins = generator(seed, "cohort", number).random(len(p.names))
        else:  # who takes part is part of the mechanism, and secret
            coins = release.coins(number)
            if p.noised:  # who is charged for being drawn is drawn like all others, and left out only then
                allowed = release.eligible(number)
                drawn_from = np.ones_like(eligible) if allowed is None else allowed
        drawn = p.sampler(Population(drawn_from, p.rates, number, seed), coins)
        indices = drawn[eligible[drawn]]
        if not p.noised and len(indices) < p.config.cohort.min_clients:  # nobody is charged for a round that cannot count
            self._note(f"round {number + 1}: the cohort came out as {len(indices)} clients, fewer than cohort.min_clients; it is skipped.")
            return []
        return [ClientTask(i, p.names[i]) for i in indices.tolist()]

    def _not_exhausted(self, number: int) -> npt.NDArray[np.bool_]:
        p = self._p
        eligible = np.ones(len(p.names), dtype=np.bool_)
        exhausted = p.books.exhausted(number)
        if EVERYONE in exhausted:
            eligible[:] = False
        elif exhausted:
            self._position = self._position or positions(p.names)
            eligible[[self._position(name) for name in exhausted]] = False
        self._left_out = len(eligible) - int(eligible.sum())
        return eligible

    def _check_enough(self, cohort: Sequence[ClientTask], total: ExactSum, log_: RoundLog) -> None:
        p, needed = self._p, self._p.config.cohort.min_clients
        if p.release is not None and p.release.plan.regime == "client":
            # Drop-outs change nothing that is released; but a run in which nobody trains any more is none.
            self._failed_rounds = 0 if total.count or not cohort else self._failed_rounds + 1
            if self._failed_rounds >= MAX_FAILED_ROUNDS:
                raise FedrayError(f"every client of {MAX_FAILED_ROUNDS} rounds in a row failed; see the log for each client's error.")
        elif cohort and total.count < needed:
            bad = next((r for r in log_.reports if r.status != "done"), None)
            came_of = Elsewhere(bad.traceback) if bad and bad.traceback and not p.privacy.lines else None
            # This sentence ends in the summary, which the tracking store gets; a client's own words may hold private values.
            why = f"; {bad.name} {bad.status}{': ' + bad.error if not p.privacy.lines else ''}" if bad else ""
            arrived = f"{total.count} updates of {len(cohort)} clients" if p.release is None else "too few updates"
            raise RoundFailed(
                f"round {self._round + 1}: {arrived} arrived, cohort.min_clients asks for {needed}{why if p.release is None else ''}"
            ) from came_of
        else:
            self._failed_rounds = 0

    def _failed(self, failure: RoundFailed) -> None:
        self._failed_rounds += 1
        self._note(f"{failure} The model stays as it was.")
        if self._failed_rounds >= min(MAX_FAILED_ROUNDS, self._p.config.rounds):
            raise RoundFailed(
                f"{failure} That was round {self._failed_rounds} in a row; see the log for each client's error."
            ) from failure.__cause__

    # -- what is written down --------------------------------------------------------------------

    def _row(self, permit: Authorization, log_: RoundLog, updates: int, parts: int, train_seconds: float) -> Row:
        p, number = self._p, self._round
        homes = max(1, len({s.info.node_id for s in p.pool.slots if s.info is not None}))
        if p.release is not None:  # how many actors had something to hand over depends on who took part
            parts = homes if p.config.clients.node_sums else len(p.pool.slots)
        up, down = parts * p.layout.size * 8, homes * p.layout.size * 4
        self._traffic["bytes_up"] += up
        self._traffic["bytes_down"] += down
        self._traffic["clients"] += updates
        metrics = round_metrics(p.config, number - 1, permit, log_, updates)
        metrics |= {**p.privacy.durations(train=train_seconds), "traffic/uplink_mb": up / 1e6, "traffic/downlink_mb": down / 1e6}
        metrics |= self._figures()
        if p.release is not None and p.release.plan.adaptive is not None:
            metrics["privacy/clip"] = p.release.clip
        return numbers_only({"round": number, "time": p.privacy.stamp(), "metrics": metrics})

    def _figures(self, final: bool = False) -> dict[str, float]:
        p = self._p
        return p.privacy.metrics(p.books.lines(self._round if p.privacy.secret else None), self._round, self._left_out, final)

    def _evaluate(self, row: Row, weights_ref: Any) -> None:
        p, every = self._p, self._p.config.evaluation.every
        self._flush(wait=True)
        entry = _Open(row)
        if (every and self._round % every == 0) or self._round == p.config.rounds:
            with span("evaluation", "begin"):
                self._start_evaluation(entry, weights_ref)
        self._open.append(entry)

    def _start_evaluation(self, entry: _Open, weights_ref: Any) -> None:
        p = self._p
        if p.config.evaluation.federated:
            everyone = [ClientTask(i, name) for i, name in enumerate(p.names)]
            rows = p.pool.evaluate(everyone, weights_ref, timeout=p.config.clients.start_timeout)
            entry.row["metrics"] |= self._quality.at_clients(entry.row["round"], rows, central=p.evaluator is not None)
        if p.evaluator is not None:
            entry.evaluation = p.evaluator.begin(weights_ref)

    def tick(self) -> bool:
        """Called often while the pool waits: do what can be done meanwhile; true when the run should stop."""
        self._flush(wait=False)
        self._draw_ahead()
        return self._stop.is_set()

    def _flush(self, wait: bool) -> None:
        while self._open:
            entry = self._open[0]
            if entry.evaluation is not None:
                if not wait and not entry.evaluation.ready():
                    return
                try:
                    with span("evaluation", "wait for it" if wait else "take it"):
                        entry.row["metrics"] |= entry.evaluation.result()
                except FedrayError as error:
                    self.befallen("actor", f"round {entry.row['round']} could not be evaluated: {error}")
            self._open.pop(0)
            with span("logging", "a round's line"):
                self._write(entry.row)

    def _write(self, row: Row) -> None:
        row = self._quality.finished(row)
        self._p.files.append_row(row)
        for callback in self._p.callbacks:
            callback.on_row(row)

    def _resume_row(self) -> None:
        """A run that died between a checkpoint and its round's line writes that line first."""
        pending = self._p.meta.get("pending")
        if pending is not None and all(r["round"] != pending["round"] for r in self._p.files.rows()):
            self._evaluate(pending, self._shared)

    def _finish_rows(self, evaluate: bool) -> None:
        if evaluate and self._open and self._open[-1].evaluation is None and "eval" not in str(self._open[-1].row["metrics"].keys()):
            self._share()
            self._start_evaluation(self._open[-1], self._shared)
        if evaluate and self._open:
            self._open[-1].row["metrics"] |= self._figures(final=True)
        self._flush(wait=True)

    def _save(self, force: bool = False) -> None:
        p, every = self._p, self._p.config.checkpoint.every
        if self._round == self._saved or not (force or (every and self._round % every == 0)):
            return
        meta: dict[str, Any] = {
            **{key: p.meta.get(key) for key in ("identity", "frozen_sha256", "run", "mlflow")},
            "ledger_heads": p.books.heads(),
            "release": None if p.release is None else p.release.state(),
            "pending": self._open[-1].row if self._open else None,
            "faults": self._faults,
            "traffic": self._traffic,
        }
        with span("logging", "checkpoint"):
            p.files.save_checkpoint(Saved(self._round, self._weights, self._state, meta), p.config.checkpoint.keep)
        self._saved = self._round

    def _faults_of(self, log_: RoundLog) -> None:
        self._faults["actor_deaths"] += log_.deaths
        self._faults["retries"] += log_.retries
        self._faults["client_failures"] += log_.count("failed", "rejected", "lost")
        self._faults["late"] += log_.count("late")
        self._faults["nodes_left"] += len(log_.nodes_left)
        for note in log_.notes:
            self._fault("node" if note.startswith("node ") else "memory" if "short of memory" in note else "actor", note)
        about, shown = client_failures(self._round + 1, log_.reports)
        for _, text in about if self._p.release is None else ():
            self._fault("client", text)
        for text in shown:
            log.warning("%s", text)
        for line in one_line_each([("", note) for note in log_.notes], "actors") + one_line_each(about):
            self._note(line)

    def befallen(self, kind: str, text: str) -> None:
        """A fault: a note, and a line of the run's faults for its report. ``kind``: actor, node, client, driver, store, tracking, memory."""
        self._fault(kind, text)
        self._note(text)

    def _fault(self, kind: str, text: str) -> None:
        self._faults["driver_restarts"] += kind == "driver"
        self._p.files.append_fault(self._round + 1, kind, text)

    def _note(self, text: str) -> None:
        log.info("%s", text)
        for callback in self._p.callbacks:
            callback.on_note(text)

    def result(self) -> dict[str, Any]:
        """Figures for the summary."""
        seconds, rounds = self._traffic["seconds"], max(1, self._round)
        hidden = self._p.release is not None  # how many clients took part is nobody's business
        last = (self._quality.last or {}).get("metrics", {})
        return {
            "rounds": self._round,
            "model_sha256": model_digest(self._weights, self._p.frozen),
            "final": {k: v for k, v in last.items() if k.startswith(("eval/", "fairness/"))},
            "best": self._quality.best,
            "left_out": self._left_out,
            "performance": {
                "seconds_per_round": seconds / rounds,
                "clients_per_second": None if hidden else self._traffic["clients"] / seconds if seconds else 0.0,
                "bytes_up": int(self._traffic["bytes_up"]),
                "bytes_down": int(self._traffic["bytes_down"]),
            },
            "faults": {
                k: v for k, v in self._faults.items() if not hidden or k in ("actor_deaths", "nodes_left", "driver_restarts", "retries")
            },
        }

    @property
    def weights(self) -> Vector:
        """The model as it stands."""
        return self._weights
