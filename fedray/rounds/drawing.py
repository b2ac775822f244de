"""Draws the cohort of each round from the clients that may still take part, and says when a round has too few of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.messages import ClientReport, ClientTask
from fedray.config import Config
from fedray.data.records import positions
from fedray.errors import BudgetReached, Elsewhere, FedrayError, RoundFailed
from fedray.faults import Fault
from fedray.parameters import Values
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.regime import Regime
from fedray.rounds.availability import Availability
from fedray.rounds.books import Books
from fedray.rounds.cohort import READING, WEIGHING, Population, Sampler
from fedray.rounds.importance import chances
from fedray.rounds.record import Record
from fedray.rounds.round_metrics import Guarantees
from fedray.rounds.withdrawals import Withdrawals
from fedray.spans import span

_LOSSES = "pacing.losses"  # name of the clients' last losses in a checkpoint
#: Failed rounds in a row after which the run ends.
MAX_FAILED_ROUNDS = 3


@dataclass(frozen=True)
class Drawn:
    """A round's cohort.

    Attributes:
        clients: who is asked, with the factors by which their updates count.
        divisor: of the weighted sum of their updates; None: the weight of the updates that arrive.
    """

    clients: list[ClientTask]
    divisor: float | None = None


class CohortDraw:
    """Draws cohorts.

    Args:
        config: the run.
        names: of all clients, in index order.
        rates: a factor in [0, 1] for each client, float64 ``[clients]``.
        records: number of training records of each client, int64 ``[clients]``.
        sampler: the configured one.
        books: know whose privacy budget is used up.
        regime: decides about participation.
        privacy: the run's guarantees.
        record: keeps how many clients are left out, and is given a fault for each round that is skipped.
        withdrawals: say who has withdrawn its data.
        availability: says who can take part in a round; None: everybody always can.
    """

    def __init__(
        self,
        config: Config,
        names: Sequence[str],
        rates: npt.NDArray[np.float64],
        records: npt.NDArray[np.int64],
        sampler: Sampler,
        books: Books,
        regime: Regime,
        privacy: Guarantees,
        record: Record,
        withdrawals: Withdrawals,
        availability: Availability | None = None,
    ) -> None:
        self._availability, self._withdrawals = availability, withdrawals
        self._config, self._names, self._rates, self._sampler = config, names, rates, sampler
        self._books, self._regime, self._privacy, self._record = books, regime, privacy, record
        self._position: Callable[[str], int] | None = None
        self._ahead: tuple[int, Drawn] | None = None  # a round and its cohort, drawn during the one before
        self._reads, self._weighs = config.cohort.kind in READING, config.cohort.kind in WEIGHING
        weight = make_algorithm(config.algorithm).weight
        self._weights = np.array([weight(int(n)) for n in records]) if self._weighs else np.ones(len(names))
        self._records, self._losses = records, np.full(len(names), np.inf)

    def take(self, number: int) -> Drawn:
        """The cohort of round ``number`` (from 0); empty where the round cannot count, so that nobody is charged for it.

        Raises:
            BudgetReached: too few clients have any privacy budget left.
        """
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == number else self.draw(number)

    def draw_ahead(self, number: int) -> None:
        """Draw the cohort of round ``number`` while the round before it is trained. This is done only where nobody is charged and no losses
        are read, so that nothing in the round before decides about the cohort.
        """
        if self._ahead is None and not self._privacy.lines and not self._reads and number < self._config.rounds:
            with span("cohort", "draw ahead"):
                self._ahead = number, self.draw(number)

    def draw(self, number: int) -> Drawn:
        """:meth:`take` without what was drawn ahead."""
        eligible, needed = self._with_budget(number), self._config.cohort.min_clients
        there = self._regime.drawn_from(number, eligible)
        if self._availability is not None:
            there = there & self._availability.at(number)
        about = self._records, self._weights, self._losses
        population = Population(there, self._rates, number, self._config.seed, *about)
        drawn = self._sampler(population, self._regime.coins(number))
        indices = drawn[eligible[drawn]]
        if not self._regime.noised and len(indices) < needed:
            text = f"round {number + 1}: the cohort came out as {len(indices)} clients, fewer than cohort.min_clients; it is skipped."
            self._record.tell(Fault("round", text, number + 1))
            return Drawn([])
        if not self._weighs:
            return Drawn([ClientTask(i, self._names[i]) for i in indices.tolist()])
        weights = population.drawable
        _, factors, share = chances(weights, self._config.cohort.arguments["size"])
        tasks = [ClientTask(i, self._names[i], factor=int(factors[i])) for i in indices.tolist()]
        return Drawn(tasks, share * float(weights.sum()))

    def learn(self, reports: Sequence[ClientReport]) -> None:
        """Remember the losses of turns, where the next cohort depends on them."""
        if self._reads:
            for report in reports:
                if report.status == "done" and report.loss is not None:
                    self._losses[report.index] = report.loss

    def tensors(self) -> Mapping[str, Values]:
        """What the next cohort depends on, for a checkpoint; the names begin with :data:`fedray.rounds.steps.PREFIX`."""
        return {_LOSSES: self._losses.copy()} if self._reads else {}

    def load(self, saved: Mapping[str, Values]) -> None:
        """Restore a checkpoint's :meth:`tensors`."""
        if _LOSSES in saved:
            self._losses = saved[_LOSSES].astype(np.float64)

    def eligible(self, number: int) -> npt.NDArray[np.bool_]:
        """Who may start in round ``number`` (from 0), where clients start one by one, bool ``[clients]``.

        Raises:
            BudgetReached: too few clients have any privacy budget left.
        """
        return self._with_budget(number) & (self._rates > 0)

    def _with_budget(self, number: int) -> npt.NDArray[np.bool_]:
        """Who may take part in a round by the books, and has not withdrawn, bool ``[clients]``.

        Raises:
            BudgetReached: too few.
            RoundFailed: too few, because the others have withdrawn.
        """
        view, needed = self._books.view(number), self._config.cohort.min_clients
        eligible = self._eligible(view.exhausted)
        withdrawn = self._withdrawals.now(number, view.withdrawn)
        self._exclude(eligible, withdrawn)
        if eligible.sum() < max(1, needed):
            if withdrawn:
                raise RoundFailed(
                    f"{int(eligible.sum())} clients may still train, cohort.min_clients asks for {max(1, needed)}: {len(withdrawn)} of "
                    f"{len(self._names)} have withdrawn their data, first {next(iter(withdrawn.values()))}"
                )
            raise BudgetReached(self._privacy.sentence(view.groups, int(eligible.sum()), needed))
        return eligible

    def _eligible(self, exhausted: Collection[str]) -> npt.NDArray[np.bool_]:
        eligible = np.ones(len(self._names), dtype=np.bool_)
        if EVERYONE in exhausted:
            eligible[:] = False
        else:
            self._exclude(eligible, exhausted)
        self._record.left_out = len(eligible) - int(eligible.sum())
        return eligible

    def _exclude(self, eligible: npt.NDArray[np.bool_], names: Collection[str]) -> None:
        if names:
            self._position = self._position or positions(self._names)
            eligible[[self._position(name) for name in names]] = False


class FailedRounds:
    """Decides which rounds count, and ends the run after :data:`MAX_FAILED_ROUNDS` in a row that do not.

    Args:
        config: the run.
        regime: the run's.
        charged: the clients' turns are charged to a privacy budget, so no error message of a client is shown: it may hold private values.
        tell: is given one fault for each round that does not count.
    """

    def __init__(self, config: Config, regime: Regime, charged: bool, tell: Callable[[Fault], None]) -> None:
        self._config, self._regime, self._charged, self._tell = config, regime, charged, tell
        self._in_a_row = 0

    def counts(self, number: int, asked: int, updates: int, reports: Sequence[ClientReport]) -> bool:
        """Whether round ``number`` (from 0) has enough ``updates`` of the clients that were ``asked`` to change the model.

        Raises:
            RoundFailed: it has too few, as the rounds before it.
            FedrayError: every client failed in each of the last rounds.
        """
        needed = self._config.cohort.min_clients
        if self._regime.counts_without_updates:  # but a run in which every client fails must end
            self._in_a_row = 0 if updates or not asked else self._in_a_row + 1
            if self._in_a_row >= MAX_FAILED_ROUNDS:
                raise FedrayError(f"every client of {MAX_FAILED_ROUNDS} rounds in a row failed; see the log for each client's error.")
            return True
        if not asked or updates >= needed:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        bad = next((r for r in reports if r.status not in ("done", "surplus")), None)
        # This sentence ends in the summary, which the tracking store gets; a client's own words may hold private values.
        why = f"; {bad.name} {bad.status}{': ' + bad.error if not self._charged else ''}" if bad else ""
        hidden = self._regime.hides_clients
        arrived = "too few updates" if hidden else f"{updates} updates of {asked} clients"
        failure = f"round {number + 1}: {arrived} arrived, cohort.min_clients asks for {needed}{'' if hidden else why}"
        failure += "" if failure.endswith((".", "!", "?")) else "."
        self._tell(Fault("round", f"{failure} The model stays as it was.", number + 1))
        if self._in_a_row >= min(MAX_FAILED_ROUNDS, self._config.rounds):
            cause = Elsewhere(bad.traceback) if bad and bad.traceback and not self._charged else None
            raise RoundFailed(f"{failure} That was round {self._in_a_row} in a row; see the log for each client's error.") from cause
        return False
