"""Real arrival without rounds: clients train one after the other while the model makes steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedray.clients.messages import ClientReport, ClientTask
from fedray.parameters import Values
from fedray.rng import generator
from fedray.rounds.drawing import CohortDraw
from fedray.rounds.pacing import Schedule
from fedray.rounds.steps import StepPlan


class Flow:
    """Says who starts, and by what factor an update counts when it comes. Which one comes when is not decided by the seed.

    Args:
        schedule: of the run; it carries.
        cohorts: knows who may start.
        names: of all clients.
        seed: of the run; draws who starts next.
    """

    def __init__(self, schedule: Schedule, cohorts: CohortDraw, names: Sequence[str], seed: int) -> None:
        self._schedule, self._cohorts, self._names, self._seed = schedule, cohorts, names, seed
        self._number, self._started, self._staleness = 0, 0, list[int]()
        self._training: dict[int, int] = {}  # version by client
        self._eligible: npt.NDArray[np.bool_] = np.zeros(len(names), dtype=np.bool_)
        self._busy = self._eligible.copy()  # who trains, or whose turn has ended since the last step

    def next(self, number: int) -> StepPlan:
        """See :class:`fedray.rounds.steps.Steps`."""
        self._number, self._eligible, self._staleness = number, self._cohorts.eligible(number), []
        self._busy[:] = False
        self._busy[list(self._training)] = True
        return StepPlan([], enough=self._schedule.needed(number, len(self._names)), staleness=self._staleness, joining=self._joining)

    def _joining(self, ended: Sequence[ClientReport], allowed: Collection[int]) -> list[ClientTask]:
        """Who starts now. Nobody starts twice before a step: a client has at most one update in it, and one charge for a version."""
        gone = {report.index for report in ended}
        self._training = {client: version for client, version in self._training.items() if client in allowed and client not in gone}
        tasks = list[ClientTask]()
        while len(self._training) < self._schedule.concurrent(self._number):
            free = np.flatnonzero(self._eligible & ~self._busy)
            if not len(free):
                break
            client = int(free[generator(self._seed, "next client", self._started).integers(len(free))])
            self._started += 1
            self._busy[client], self._training[client] = True, self._number
            tasks.append(ClientTask(client, self._names[client], version=self._number))
        return tasks

    def factor(self, clients: Sequence[int]) -> int:
        """See :class:`fedray.rounds.steps.Steps`."""
        (client,) = clients
        staleness = self._number - self._training.pop(client)
        factor = self._schedule.factor(staleness)
        if factor:
            self._staleness.append(staleness)
        return factor

    def look_ahead(self, number: int) -> None:
        """See :class:`fedray.rounds.steps.Steps`."""

    def learn(self, reports: Sequence[ClientReport]) -> None:
        """See :class:`fedray.rounds.steps.Steps`; nothing here follows from them."""

    def versions(self) -> frozenset[int]:
        """See :class:`fedray.rounds.steps.Steps`; a client that is tried again needs its version."""
        return frozenset(self._training.values())

    def tensors(self) -> Mapping[str, Values]:
        """See :class:`fedray.rounds.steps.Steps`. Whoever trains when a run ends starts anew with the next."""
        return {}
