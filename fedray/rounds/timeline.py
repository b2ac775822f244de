"""Simulated arrival: updates come in the order of a virtual time, in which clients have different speeds.

When a client is done follows from the run's seed, the client and the version of the model that it starts from, and never from training. So
nobody trains before the step that its update goes into is known: then all clients of the step train at once, each from its own version, with
any number of actors. The bytes of an asynchronous run do not depend on the machine.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedray.aggregation.exact import FULL
from fedray.choices import PacingChoice
from fedray.clients.groups import ClientGroup
from fedray.clients.messages import ClientReport, ClientTask
from fedray.config import Training
from fedray.parameters import Values
from fedray.rng import Keyed, generator
from fedray.rounds.drawing import CohortDraw
from fedray.rounds.pacing import Schedule
from fedray.rounds.steps import PREFIX, StepPlan

#: The virtual seconds of a turn, by the version of the model that it starts from and the client.
Seconds = Callable[[int, int], float]


def turn_seconds(pacing: PacingChoice, seed: int, groups: Sequence[ClientGroup], sizes: npt.NDArray[np.int64]) -> Seconds:
    """How long turns take: the records that a client trains on over its speed, give or take the jitter.

    Args:
        pacing: has the spread of speeds, the largest speed and the jitter.
        seed: of the run; draws each client's speed, and each turn's jitter.
        groups: of clients, each with its local training.
        sizes: the clients' numbers of records.
    """
    spread, jitter = pacing.spread or 20.0, 0.1 if pacing.jitter is None else pacing.jitter
    speeds = (pacing.records_per_second or 1000.0) * spread ** -generator(seed, "speeds").random(len(sizes))
    usual = np.empty(len(sizes))
    for group in groups:
        members = np.asarray(group.members)
        usual[members] = _work(group.training, sizes[members]) / speeds[members]
    keyed = Keyed(seed, "turn seconds")
    return lambda version, client: float(usual[client]) * (1 + jitter * (2 * keyed(version, client).random() - 1))


def _work(training: Training, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64] | float:
    """Records that turns train on; the same for all clients where their number of steps is given."""
    if training.epochs is not None:
        return np.maximum(sizes, 1) * float(training.epochs)
    return float(training.steps or 1) * float(training.batch_size or training.expected_batch or 1.0)


class Timeline:
    """The virtual time of a run.

    Args:
        schedule: of the run.
        seconds: of a turn.
        cohorts: draws the clients of a round; of a schedule that carries, it only knows who may start.
        names: of all clients.
        seed: of the run; draws who starts next.
        size: of the cohort that the config asks for.
        deadline: virtual seconds after which a round ends; None to wait.
        saved: :meth:`tensors` of the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        schedule: Schedule,
        seconds: Seconds,
        cohorts: CohortDraw,
        names: Sequence[str],
        seed: int,
        size: int,
        deadline: float | None = None,
        saved: Mapping[str, Values] | None = None,
    ) -> None:
        self._schedule, self._seconds, self._cohorts, self._names, self._seed = schedule, seconds, cohorts, names, seed
        self._size, self._deadline = size, math.inf if deadline is None else deadline
        self._clock, self._started, self._number = 0.0, 0, 0
        self._training: list[tuple[float, int, int]] = []  # when a client is done, the client, and its version; a heap
        self._busy = np.zeros(len(names), dtype=np.bool_)  # who trains, or has an update that is in no step yet
        if saved:
            self._load(saved)

    def next(self, number: int) -> StepPlan:
        """See :class:`fedray.rounds.steps.Steps`. A client has at most one update in a step."""
        self._number = number
        if self._schedule.carries:
            eligible = self._cohorts.eligible(number)
            return self._until_full(number, math.inf, lambda: self._fill(number, eligible))
        for client in self._cohorts.take(number).clients:
            self._start(number, client.index)
        plan = self._until_full(number, self._clock + self._deadline, lambda: None)
        return self._without_rest(number, plan)

    def factor(self, clients: Sequence[int]) -> int:
        """See :class:`fedray.rounds.steps.Steps`."""
        return FULL

    def look_ahead(self, number: int) -> None:
        """See :class:`fedray.rounds.steps.Steps`."""
        if not self._schedule.carries:
            self._cohorts.draw_ahead(number)

    def learn(self, reports: Sequence[ClientReport]) -> None:
        """See :class:`fedray.rounds.steps.Steps`; nothing here follows from them."""

    def versions(self) -> frozenset[int]:
        """See :class:`fedray.rounds.steps.Steps`. Versions whose updates will be too stale to count are not among them."""
        found = {version for _, _, version in self._training}
        return frozenset(version for version in found if self._schedule.factor(self._number + 1 - version))

    def tensors(self) -> Mapping[str, Values]:
        """See :class:`fedray.rounds.steps.Steps`."""
        rows = sorted(self._training)
        return {
            f"{PREFIX}clock": np.array([self._clock]),
            f"{PREFIX}done": np.array([done for done, _, _ in rows], dtype=np.float64),
            f"{PREFIX}training": np.array([[client, version] for _, client, version in rows], dtype=np.int64).reshape(-1, 2),
            f"{PREFIX}started": np.array([self._started], dtype=np.int64),
        }

    def _load(self, saved: Mapping[str, Values]) -> None:
        self._clock, self._started = float(saved[f"{PREFIX}clock"][0]), int(saved[f"{PREFIX}started"][0])
        rows = zip(saved[f"{PREFIX}done"].tolist(), saved[f"{PREFIX}training"].tolist(), strict=True)
        self._training = [(done, client, version) for done, (client, version) in rows]
        self._number = max((version for _, _, version in self._training), default=0)
        heapq.heapify(self._training)
        self._busy[[client for _, client, _ in self._training]] = True

    def _start(self, version: int, client: int) -> None:
        self._busy[client] = True
        self._started += 1
        heapq.heappush(self._training, (self._clock + self._seconds(version, client), client, version))

    def _fill(self, version: int, eligible: npt.NDArray[np.bool_]) -> None:
        """Start clients, each drawn from all that may and are not busy, until as many train as should."""
        while len(self._training) < self._schedule.concurrent(version):
            free = np.flatnonzero(eligible & ~self._busy)
            if not len(free):
                return
            self._start(version, int(free[generator(self._seed, "next client", self._started).integers(len(free))]))

    def _until_full(self, number: int, ends: float, fill: Callable[[], None]) -> StepPlan:
        """Let time pass until a step's updates are there, or until it ``ends``; ``fill`` starts clients where others are done."""
        needed = self._schedule.needed(number, self._size)
        cohort, staleness, left = list[ClientTask](), list[int](), list[ClientReport]()
        while needed is None or len(cohort) < needed:
            fill()
            if not self._training:
                break
            if self._training[0][0] > ends:
                self._clock = ends
                break
            self._clock, client, version = heapq.heappop(self._training)
            name, stale = self._names[client], number - version
            if factor := self._schedule.factor(stale):
                cohort.append(ClientTask(client, name, version=version, factor=factor))
                staleness.append(stale)
            else:
                left.append(ClientReport(client, name, "late", error=f"{stale} steps of the model were made since it started"))
                self._busy[client] = False
        self._busy[[client.index for client in cohort]] = False
        return StepPlan(sorted(cohort), left, seconds=self._clock, staleness=staleness)

    def _without_rest(self, number: int, plan: StepPlan) -> StepPlan:
        """The plan of a round that ends here for all who still train for it."""
        full = self._schedule.needed(number, self._size) == len(plan.cohort)
        why = "as many updates as count came before its own" if full else "the deadline passed before it was done"
        rest, self._training = sorted(client for _, client, _ in self._training), []
        self._busy[rest] = False
        left = [ClientReport(client, self._names[client], "surplus" if full else "late", error=why) for client in rest]
        return replace(plan, cohort=[c._replace(version=None) for c in plan.cohort], left=left, staleness=[])
