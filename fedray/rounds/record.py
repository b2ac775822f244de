"""What a run writes down: one row of metrics for each round, its faults, its checkpoints, and the figures of its summary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedray.checkpoint import Saved
from fedray.clientfigures import FRONTS
from fedray.clients.messages import LocalEvaluation
from fedray.clients.pool import RoundLog
from fedray.config import Config
from fedray.errors import FedrayError
from fedray.faults import Fault, Listener
from fedray.participation import append_participants
from fedray.privacy.regime import Regime
from fedray.rounds.books import Authorization, Books
from fedray.rounds.clientstates import ClientStates
from fedray.rounds.clusters import Clusters
from fedray.rounds.evaluator import PendingEvaluation
from fedray.rounds.notes import client_failures, grouped
from fedray.rounds.quality import Quality, numbers_only
from fedray.rounds.round_metrics import Guarantees, round_metrics
from fedray.rounds.steps import StepPlan
from fedray.runfiles import Row, RunFiles
from fedray.spans import span

log = logging.getLogger(__name__)

#: The kinds of fault that a run counts. Where whole clients are protected only those of actors, nodes and drivers are shown.
_COUNTED = ("actor_deaths", "nodes_left", "driver_restarts", "client_failures", "late", "retries")
_SHOWN = ("actor_deaths", "nodes_left", "driver_restarts", "retries")


@dataclass
class OpenRow:
    """A row that is not written yet.

    Attributes:
        row: as far as it is known.
        evaluated: an evaluation of its round has been asked for.
        evaluation: the central one, where it is under way.
    """

    row: Row
    evaluated: bool = False
    evaluation: PendingEvaluation | None = None


@dataclass(frozen=True)
class Traffic:
    """Bytes that were sent in a round.

    Attributes:
        up: of the partial sums that the driver received, as they travelled.
        down: of what was broadcast to nodes.
        update: that one client's update takes after the config's stages; None where there are none.
    """

    up: int
    down: int
    update: int | None = None

    def metrics(self) -> dict[str, float]:
        """``traffic/`` metrics of a round."""
        sent = {} if self.update is None else {"traffic/sent_mb": self.update / 1e6}
        return {"traffic/uplink_mb": self.up / 1e6, "traffic/downlink_mb": self.down / 1e6, **sent}


class Record:
    """Keeps the rows, faults and traffic of one run, and writes its checkpoints.

    Args:
        config: the run.
        files: where they are written.
        books: the privacy books, whose figures are in the rows.
        regime: the run's, whose state is in the checkpoints.
        privacy: the run's guarantees.
        listeners: receive rows, notes and faults.
        meta: facts of the last checkpoint and of this start.
        rounds: how many are done already.
        resumed: there is a checkpoint of them.

    Attributes:
        rounds: rounds done so far.
        left_out: clients without a turn because their privacy budget is used up.
    """

    def __init__(
        self,
        config: Config,
        files: RunFiles,
        books: Books,
        regime: Regime,
        privacy: Guarantees,
        listeners: Sequence[Listener],
        meta: dict[str, Any],
        rounds: int = 0,
        resumed: bool = False,
    ) -> None:
        self._config, self._files, self._books, self._regime, self._privacy = config, files, books, regime, privacy
        self._listeners, self._meta = listeners, meta
        self.rounds, self.left_out = rounds, 0
        self._saved = rounds if resumed else -1
        self._open: list[OpenRow] = []
        self._quality = Quality(config.evaluation, self.tell)
        self._clusters = Clusters(files.root, config.evaluation.headline.removeprefix("eval/"))
        for row in files.rows():
            self._quality.remember(row)
        self._faults: dict[str, int] = dict.fromkeys(_COUNTED, 0) | meta.get("faults", {})
        self._traffic: dict[str, float] = {"bytes_up": 0, "bytes_down": 0, "seconds": 0.0, "clients": 0, **meta.get("traffic", {})}

    # -- rows ------------------------------------------------------------------------------------

    def pending(self) -> Row | None:
        """The row that a run had not written when it died after a checkpoint; None where there is none."""
        row = self._meta.get("pending")
        return row if row is not None and all(r["round"] != row["round"] for r in self._files.rows()) else None

    def round_done(
        self,
        permit: Authorization,
        log_: RoundLog,
        updates: int,
        traffic: Traffic,
        train_seconds: float,
        plan: StepPlan,
        figures: dict[str, float],
    ) -> Row:
        """Count one more round; returns its row.

        Args:
            permit: who was allowed to train.
            log_: how the clients' turns went.
            updates: clients whose update is in the sum.
            traffic: what was sent.
            train_seconds: until the last part of the sum was there.
            plan: whose updates were to make the step.
            figures: of the algorithm.
        """
        self.rounds += 1
        self._traffic["bytes_up"] += traffic.up
        self._traffic["bytes_down"] += traffic.down
        self._traffic["clients"] += updates
        metrics = round_metrics(self._config, self.rounds - 1, permit, log_, updates, plan, self._regime.hides_clients)
        seconds = {} if plan.seconds is None else {"virtual": plan.seconds}
        metrics |= {**self._privacy.durations(train=train_seconds, **seconds), **traffic.metrics()}
        metrics |= self._figures() | self._regime.figures() | figures
        return numbers_only({"round": self.rounds, "time": self._privacy.stamp(), "metrics": metrics})

    def took_part(self, clients: Sequence[str], of: int) -> None:
        """Write down whose updates are in the step that is about to be made, where that is no secret; ``of``: number of all clients."""
        if not self._regime.hides_clients:
            append_participants(self._files.root, self.rounds + 1, clients, of)

    def took(self, row: Row, seconds: float) -> None:
        """Add to a row how long its round took, with all but what is written of it."""
        row["metrics"] |= self._privacy.durations(round=seconds)
        self._traffic["seconds"] += seconds

    def open(self, entry: OpenRow) -> None:
        """Take a row that is written as soon as its evaluation is done."""
        self._open.append(entry)

    def take_last(self) -> OpenRow | None:
        """Give the last row back, where it is not written yet."""
        return self._open.pop() if self._open else None

    def at_clients(self, entry: OpenRow, rows: Sequence[LocalEvaluation], central: bool) -> None:
        """Add to a row what the clients measured; ``central``: there is a central test set, too."""
        number = entry.row["round"]
        entry.row["metrics"] |= self._quality.at_clients(number, rows, central) | self._clusters.take(number, rows)

    def noised(self, entry: OpenRow, evaluate: Callable[[], dict[str, float]]) -> None:
        """Add to a row what charged evaluation at the clients gives, and what is spent then.

        A row that has its figures from before the driver died keeps them: they were released and charged, and others would be charged again.
        """
        known = entry.row["metrics"]
        if not any(f"eval/{name}" in known for name in self._config.evaluation.metrics):
            entry.row |= numbers_only({**entry.row, "metrics": known | evaluate() | self._figures()})

    def flush(self, wait: bool) -> None:
        """Write the rows whose evaluation is done; with ``wait`` all of them."""
        while self._open:
            entry = self._open[0]
            if entry.evaluation is not None:
                if not wait and not entry.evaluation.ready():
                    return
                try:
                    with span("evaluation", "wait for it" if wait else "take it"):
                        entry.row["metrics"] |= entry.evaluation.result()
                except FedrayError as error:
                    number = entry.row["round"]
                    self.fault(Fault("actor", f"round {number} could not be evaluated: {error}", number))
            self._open.pop(0)
            with span("logging", "a round's line"):
                self._write(entry.row)

    def finish(self, final: bool) -> None:
        """Write all rows; with ``final`` the last one has the figures of the summary."""
        if final and self._open:
            self._open[-1].row["metrics"] |= self._figures(final=True)
        self.flush(wait=True)

    def _figures(self, final: bool = False) -> dict[str, float]:
        groups = self._books.view(self.rounds, everyone=self._privacy.secret).groups
        return self._privacy.metrics(groups, self.rounds, self.left_out, final)

    def _write(self, row: Row) -> None:
        row = self._quality.finished(row)
        self._files.append_row(row)
        self._listen("row", row)

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self, state: Saved, states: ClientStates | None = None, force: bool = False) -> None:
        """Write a checkpoint where one is due, or with ``force`` where this round has none.

        Args:
            state: what goes from round to round; the record adds its own facts, and the table of the clients' states.
            states: of the clients, where they keep any.
            force: a checkpoint need not be due.
        """
        checkpoint = self._config.checkpoint
        if self.rounds == self._saved or not (force or (checkpoint.every and self.rounds % checkpoint.every == 0)):
            return
        meta: dict[str, Any] = {
            **{key: self._meta.get(key) for key in ("identity", "frozen_sha256", "run", "mlflow")},
            "ledger_heads": self._books.heads(),
            "release": self._regime.state(),
            "pending": self._open[-1].row if self._open else None,
            "faults": self._faults,
            "traffic": self._traffic,
        }
        with span("logging", "checkpoint"):
            table = {} if states is None else states.tensors()
            self._files.save_checkpoint(replace(state, round=self.rounds, meta=meta, states=table), checkpoint.keep)
            if states is not None:
                states.checkpointed(self.rounds)
        self._saved = self.rounds

    # -- faults and notes ------------------------------------------------------------------------

    def faults_of(self, log_: RoundLog) -> None:
        """Write down what failed in the round that is under way."""
        self._faults["actor_deaths"] += log_.deaths
        self._faults["retries"] += log_.retries
        self._faults["client_failures"] += log_.count("failed", "rejected", "lost")
        self._faults["late"] += log_.count("late")
        self._faults["nodes_left"] += len(log_.nodes_left)
        for fault in log_.faults:
            self._append(fault)
        clients, tracebacks = client_failures(self.rounds + 1, log_.reports)
        for fault in () if self._regime.hides_clients else clients:
            self._append(fault)
        for text in tracebacks:
            log.warning("%s", text)
        for fault in grouped(log_.faults, "actors") + grouped(clients):
            self.tell(fault)

    def fault(self, fault: Fault) -> None:
        """Append a fault to the faults file, and pass it on to the listeners."""
        self._append(fault)
        self.tell(fault)

    def tell(self, fault: Fault) -> None:
        """Pass a fault on to the listeners, without writing it to the faults file."""
        log.info("%s", fault.text)
        self._listen("fault", self._in_round(fault))

    def note(self, text: str) -> None:
        """Pass a sentence for the user on to the listeners."""
        log.info("%s", text)
        self._listen("note", text)

    def _append(self, fault: Fault) -> None:
        self._faults["driver_restarts"] += fault.kind == "driver"
        self._files.append_fault(self._in_round(fault))

    def _in_round(self, fault: Fault) -> Fault:
        return fault if fault.round is not None else replace(fault, round=self.rounds + 1)

    def _listen(self, kind: str, value: Any) -> None:
        for listener in self._listeners:
            listener(kind, value)

    # -- the summary -----------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Figures for the summary."""
        seconds, rounds = self._traffic["seconds"], max(1, self.rounds)
        hidden = self._regime.hides_clients
        last = (self._quality.last or {}).get("metrics", {})
        return {
            "rounds": self.rounds,
            "final": {k: v for k, v in last.items() if k.startswith(("eval/", "noise/", *FRONTS))},
            "best": self._quality.best,
            "left_out": self.left_out,
            "performance": {
                "seconds_per_round": seconds / rounds,
                "clients_per_second": None if hidden else self._traffic["clients"] / seconds if seconds else 0.0,
                "bytes_up": int(self._traffic["bytes_up"]),
                "bytes_down": int(self._traffic["bytes_down"]),
            },
            "faults": {k: v for k, v in self._faults.items() if not hidden or k in _SHOWN},
        }
