"""Which lane trains each client, how long that takes and what fits into memory: arrays, for there may be millions of clients."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedray.clients.messages import ClientReport, ClientTask

#: Seconds of work for which a call of its own is worth while.
WORTH_A_CALL = 0.03

_SECONDS_A_RECORD = 1e-4  # until anyone has trained once
_BRIEF = 1e-3  # seconds of a turn below which its own duration says less about the next than the lane's rate


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
        self._rates = np.full(len(members), np.nan)
        for n, indices in enumerate(members.values()):
            self._lane_of[np.asarray(indices, dtype=np.int64)] = n

    def learn_sizes(self, sizes: npt.NDArray[np.int64]) -> None:
        """Take the numbers of records, and forget the durations."""
        self._sizes = sizes
        self._rates = np.full(len(self._lanes), np.nan)  # seconds a record in each lane, of late
        self._seconds = np.full(len(sizes), np.nan, dtype=np.float32)

    def learn(self, reports: Iterable[ClientReport]) -> None:
        """Take the durations of turns."""
        reports = [r for r in reports if r.status == "done"]
        if not reports:
            return
        indices, seconds = [r.index for r in reports], [r.seconds for r in reports]
        self._seconds[indices] = seconds
        records = float(self._sizes[indices].sum())
        lane, now = self._lane_of[indices[0]], sum(seconds) / max(records, 1.0)
        self._rates[lane] = now if np.isnan(self._rates[lane]) else (self._rates[lane] + now) / 2

    def lane(self, client: int) -> str:
        """The lane that serves a client."""
        return self._lanes[int(self._lane_of[client])]

    def halvings(self, lane: str) -> int:
        """How often the physical batch is halved in a lane, because actors were killed for their memory."""
        return self._halvings[lane]

    def halve(self, lane: str, killed: Iterable[ClientTask]) -> None:
        """Take note that an actor was killed for its memory with these clients; others that died with them halve nothing more."""
        self._halvings[lane] = max([self._halvings[lane], *(c.halvings + 1 for c in killed)])

    def longest_first(self, cohort: Sequence[ClientTask]) -> list[tuple[ClientTask, float]]:
        """A cohort in the order in which it is handed out, with the seconds that each one's turn will take."""
        indices = np.fromiter((c.index for c in cohort), dtype=np.int64, count=len(cohort))
        seconds = self._seconds[indices].astype(np.float64)
        expected = self._sizes[indices] * np.nan_to_num(self._rates, nan=_SECONDS_A_RECORD)[self._lane_of[indices]]
        seconds = np.where(seconds >= _BRIEF, seconds, expected)
        order = np.lexsort((indices, -seconds))
        return list(zip([cohort[n] for n in order.tolist()], seconds[order].tolist(), strict=True))

    def by_lane(self, cohort: Sequence[ClientTask]) -> dict[str, list[tuple[ClientTask, float]]]:
        """:meth:`longest_first`, by the lanes that serve them."""
        lanes: dict[str, list[tuple[ClientTask, float]]] = {}
        ordered = self.longest_first(cohort)
        served = self._lane_of[[c.index for c, _ in ordered]]
        if (served == served[:1]).all():
            return {self._lanes[served[0]]: ordered} if ordered else {}
        for lane, item in zip(served.tolist(), ordered, strict=True):
            lanes.setdefault(self._lanes[lane], []).append(item)
        return lanes


class Queue:
    """Clients of one lane that wait for an actor.

    Attributes:
        seconds: that the turns of those who wait will take.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[ClientTask, float]] = deque()
        self.seconds = 0.0
        self._all, self._all_seconds = 0, 0.0  # whoever was put here
        self._shares = 0  # that were taken

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def first(self) -> ClientTask:
        """Who is next."""
        return self._waiting[0][0]

    def clients(self) -> list[ClientTask]:
        """Who waits."""
        return [client for client, _ in self._waiting]

    def put(self, clients: Sequence[tuple[ClientTask, float]]) -> None:
        """Add clients and the seconds of their turns at the end."""
        self._waiting.extend(clients)
        seconds = sum(seconds for _, seconds in clients)
        self.seconds += seconds
        self._all += len(clients)
        self._all_seconds += seconds

    def pop(self) -> ClientTask:
        """Take the first."""
        client, seconds = self._waiting.popleft()
        self.seconds -= seconds
        return client

    def take(self, actors: int, busy: float = 0.0) -> list[ClientTask]:
        """Take one actor's next share: half of its even share of the time that is left, but as much as is worth a call where that leaves no
        other actor with more.

        Args:
            actors: of the lane.
            busy: seconds that they still need for what they were given, added up.
        """
        self._shares += 1
        short, even = self.short(actors), (self.seconds + busy) / actors
        if short:  # one call each
            share = self.seconds / max(1, actors - self._shares + 1)
        else:
            share = max(even / 2, min(WORTH_A_CALL, even))
        most = len(self._waiting) if short and self._shares >= actors else -(-self._all // actors)
        taken: list[ClientTask] = []
        seconds = 0.0
        while self._waiting and len(taken) < most:
            # A short share may end a turn late, so that there is no call more; another is never longer than it should be.
            if taken and (seconds > share * (1 - 1e-9) if short else seconds + self._waiting[0][1] > share * (1 + 1e-9)):
                break
            seconds += self._waiting[0][1]
            taken.append(self.pop())
        return taken

    def short(self, actors: int) -> bool:
        """Whether one call for each actor is enough."""
        return self._all_seconds / actors <= WORTH_A_CALL

    def clear(self) -> None:
        """Forget everyone."""
        self._waiting.clear()
        self.seconds = 0.0
