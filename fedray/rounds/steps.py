"""Whose updates make each step of the model, as the driver asks for it: here in real time, in :mod:`fedray.rounds.timeline` in a simulated one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fedray.aggregation.exact import FULL
from fedray.clients.messages import ClientReport, ClientTask
from fedray.parameters import Values
from fedray.rounds.pacing import Schedule

if TYPE_CHECKING:
    from fedray.rounds.drawing import CohortDraw

Joining = Callable[[Sequence[ClientReport], Collection[int]], list[ClientTask]]
#: Gives who of round ``number``'s cohort trains, and the reports of those that do not.
Slowed = Callable[[int, Sequence[ClientTask]], tuple[list[ClientTask], list[ClientReport]]]
#: What the names of a schedule's arrays in checkpoints begin with.
PREFIX = "pacing."


@dataclass(frozen=True)
class StepPlan:
    """Whose updates make a step.

    Attributes:
        cohort: who trains, with the versions of the model that they start from and the factors by which their updates count.
        left: reports of clients that were asked, but do not train, because others come first or the time is over.
        deadline: real seconds after which clients that still train are late; None to wait.
        enough: real updates that make the step, whoever is not done then; None to wait for all.
        joining: where clients join while others train, and go on when the step is made, who starts now. It is given the reports of turns since
            the last step, and who was allowed to train. The cohort is empty then.
        seconds: virtual seconds from the run's start to the step; None in real time.
        staleness: of each update of the cohort, in steps; empty where all start from the newest version.
        divisor: of the weighted sum of the updates; None: their weight.
    """

    cohort: list[ClientTask]
    left: list[ClientReport] = field(default_factory=list)
    deadline: float | None = None
    enough: int | None = None
    joining: Joining | None = None
    seconds: float | None = None
    staleness: list[int] = field(default_factory=list)
    divisor: float | None = None

    @property
    def asked(self) -> int:
        """Number of updates that there could be."""
        return len(self.cohort) + len(self.left) if self.joining is None else self.enough or 1


class Steps(Protocol):
    """Says whose updates make each step."""

    def next(self, number: int) -> StepPlan:
        """The step of round ``number``, from 0; asked once for each round.

        Raises:
            BudgetReached: too few clients have any privacy budget left.
        """
        ...

    def factor(self, clients: Sequence[int]) -> int:
        """By which the part of these clients counts that has just come, of :data:`fedray.aggregation.exact.FULL`; 0: not at all."""
        ...

    def look_ahead(self, number: int) -> None:
        """Prepare round ``number`` while the round before it is trained."""
        ...

    def learn(self, reports: Sequence[ClientReport]) -> None:
        """Take note of how the turns of a step went."""
        ...

    def versions(self) -> frozenset[int]:
        """Versions of the model that clients who still train have started from, before the step that was asked for last."""
        ...

    def tensors(self) -> Mapping[str, Values]:
        """What the next step follows from, for a checkpoint; the names begin with :data:`PREFIX`."""
        ...


class RealRounds:
    """Rounds in real time: each waits for its cohort, or for as many of it as the schedule needs.

    Args:
        schedule: of the run; it does not carry.
        cohorts: draws the clients of a round.
        size: of the cohort that the config asks for.
        deadline: seconds after which a round ends; None to wait.
        slowed: who of a round's cohort trains, and reports of those that do not, because they straggle; None where nobody does.
    """

    def __init__(self, schedule: Schedule, cohorts: CohortDraw, size: int, deadline: float | None, slowed: Slowed | None = None) -> None:
        self._schedule, self._cohorts, self._size, self._deadline, self._slowed = schedule, cohorts, size, deadline, slowed

    def next(self, number: int) -> StepPlan:
        """See :class:`Steps`."""
        drawn, left = self._cohorts.take(number), list[ClientReport]()
        cohort = drawn.clients
        if self._slowed is not None:
            cohort, left = self._slowed(number, cohort)
        enough = self._schedule.needed(number, self._size)
        return StepPlan(cohort, left, deadline=self._deadline, enough=enough, divisor=drawn.divisor)

    def factor(self, clients: Sequence[int]) -> int:
        """See :class:`Steps`."""
        return FULL

    def look_ahead(self, number: int) -> None:
        """See :class:`Steps`."""
        self._cohorts.draw_ahead(number)

    def learn(self, reports: Sequence[ClientReport]) -> None:
        """See :class:`Steps`."""
        self._cohorts.learn(reports)

    def versions(self) -> frozenset[int]:
        """See :class:`Steps`."""
        return frozenset()

    def tensors(self) -> Mapping[str, Values]:
        """See :class:`Steps`."""
        return self._cohorts.tensors()
