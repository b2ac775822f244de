"""Which lane trains each client, how long that takes and what fits into memory: arrays, for there may be millions of clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedray.clients.messages import ClientReport, ClientTask

_SECONDS_A_RECORD = 1e-4  # until a client has trained once


class Work:
    """What is known of every client's turn.

    Args:
        sizes: the clients' numbers of records.
    """

    def __init__(self, sizes: npt.NDArray[np.int64]) -> None:
        self._lanes: list[str] = []
        self._lane_of = np.zeros(len(sizes), dtype=np.int32)
        self._halvings: Counter[str] = Counter()
        self.learn_sizes(sizes)

    def assign(self, members: Mapping[str, Sequence[int]]) -> None:
        """Say which clients each lane serves."""
        self._lanes = list(members)
        for n, indices in enumerate(members.values()):
            self._lane_of[np.asarray(indices, dtype=np.int64)] = n

    def learn_sizes(self, sizes: npt.NDArray[np.int64]) -> None:
        """Take the numbers of records, and forget the durations."""
        self._sizes = sizes
        self._seconds = np.full(len(sizes), np.nan, dtype=np.float32)

    def learn(self, reports: Iterable[ClientReport]) -> None:
        """Take the durations of turns."""
        for report in reports:
            self._seconds[report.index] = report.seconds

    def lane(self, client: int) -> str:
        """The lane that serves a client."""
        return self._lanes[int(self._lane_of[client])]

    def halvings(self, lane: str) -> int:
        """How often the physical batch is halved in a lane, because actors were killed for their memory."""
        return self._halvings[lane]

    def halve(self, lane: str, killed: Iterable[ClientTask]) -> None:
        """Take note that an actor was killed for its memory with these clients; others that died with them halve nothing more."""
        self._halvings[lane] = max([self._halvings[lane], *(c.halvings + 1 for c in killed)])

    def expected(self, client: int) -> float:
        """Seconds that a client's turn will take."""
        seconds = float(self._seconds[client])
        return float(self._sizes[client]) * _SECONDS_A_RECORD if np.isnan(seconds) else seconds

    def longest_first(self, cohort: Iterable[ClientTask]) -> list[ClientTask]:
        """A cohort in the order in which it is handed out."""
        return sorted(cohort, key=lambda c: (-self.expected(c.index), c.index))
