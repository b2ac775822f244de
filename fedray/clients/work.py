"""Which lane trains each client, how long that takes and what fits into memory: arrays, for there may be millions of clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedray.clients.messages import ClientReport, ClientTask
from fedray.clients.suspects import Suspects

#: Seconds of work for which a call of its own is worth while.
WORTH_A_CALL = 0.03

#: Of an actor's even share, what it gets at once: one that takes half as long again as expected delays nobody then.
_MOST = 2 / 3

#: Seconds of work that an actor gets at the least, if so much is left: shares would become ever smaller towards a round's end, and each
#: costs a call, of two milliseconds or so.
LEAST = 0.01

#: Clients in the order in which they are handed out, and the seconds that their turns will take, float64.
Waiting = tuple[list[ClientTask], npt.NDArray[np.float64]]

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
        """Take the durations of turns; one that was cut short takes at least so long."""
        done: list[ClientReport] = []
        for report in reports:
            if report.status == "done":
                done.append(report)
            elif report.status == "late":
                self._seconds[report.index] = np.fmax(self._seconds[report.index], report.seconds)
        if not done:
            return
        indices, seconds = [r.index for r in done], [r.seconds for r in done]
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

    def longest_first(self, cohort: Sequence[ClientTask]) -> Waiting:
        """A cohort in the order in which it is handed out, with the seconds that each one's turn will take."""
        indices = np.fromiter((c.index for c in cohort), dtype=np.int64, count=len(cohort))
        seconds = self._seconds[indices].astype(np.float64)
        expected = self._sizes[indices] * np.nan_to_num(self._rates, nan=_SECONDS_A_RECORD)[self._lane_of[indices]]
        seconds = np.where(seconds >= _BRIEF, seconds, expected)
        order = np.lexsort((indices, -seconds))
        return [cohort[n] for n in order.tolist()], seconds[order]

    def by_lane(self, cohort: Sequence[ClientTask]) -> dict[str, Waiting]:
        """:meth:`longest_first`, by the lanes that serve them."""
        clients, seconds = self.longest_first(cohort)
        served = self._lane_of[[c.index for c in clients]]
        if (served == served[:1]).all():
            return {self._lanes[served[0]]: (clients, seconds)} if clients else {}
        mine = {lane: np.flatnonzero(served == lane) for lane in dict.fromkeys(served.tolist())}
        return {self._lanes[lane]: ([clients[n] for n in those.tolist()], seconds[those]) for lane, those in mine.items()}


class Queue:
    """Clients of one lane that wait for an actor."""

    def __init__(self) -> None:
        self._clients: list[ClientTask] = []  # whoever was put here
        self._ends = np.zeros(1)  # their turns' seconds, added up: before the first, after the first and so on
        self._next = 0
        self._shares = 0  # that were taken

    def __bool__(self) -> bool:
        return self._next < len(self._clients)

    @property
    def first(self) -> ClientTask:
        """Who is next."""
        return self._clients[self._next]

    @property
    def seconds(self) -> float:
        """That the turns of those who wait will take."""
        return float(self._ends[-1] - self._ends[self._next])

    def clients(self) -> list[ClientTask]:
        """Who waits."""
        return self._clients[self._next :]

    def put(self, clients: Sequence[ClientTask], seconds: npt.NDArray[np.float64]) -> None:
        """Add clients and the seconds of their turns at the end."""
        self._clients += clients
        self._ends = np.concatenate((self._ends, self._ends[-1] + np.cumsum(seconds)))

    def take(self, actors: int, busy: float = 0.0, apart: Suspects | None = None) -> list[ClientTask]:
        """Take one actor's next share: most of its even share of the time that is left, all of it where the rest is worth no more than a call,
        and never less than :data:`LEAST`, if so much is left.

        Args:
            actors: of the lane.
            busy: seconds that they still need for what they were given, added up.
            apart: clients that are taken by themselves; a share ends before the first of them.
        """
        self._shares += 1
        left, even = self._ends[self._next + 1 :] - self._ends[self._next], (self.seconds + busy) / actors
        # A short share may end a turn late, so that there is no call more; another is never longer than it should be, or than the least share.
        if self.short(actors):  # one call each
            share = self.seconds / max(1, actors - self._shares + 1)
            most = len(left) if self._shares >= actors else -(-len(self._clients) // actors)
            fitting = int(np.searchsorted(left, share * (1 - 1e-9), side="right")) + 1
        else:
            share = max(even if even <= 2 * WORTH_A_CALL else even * _MOST, LEAST)
            most = -(-len(self._clients) // actors)
            fitting = max(1, int(np.searchsorted(left, share * (1 + 1e-9), side="right")))
        count = min(fitting, most)
        if apart:
            count = next((k for k in range(1, count) if self._clients[self._next + k].index in apart), count)
        return self._some(1 if apart and self.first.index in apart else count)

    def short(self, actors: int) -> bool:
        """Whether one call for each actor is enough."""
        return float(self._ends[-1]) / actors <= WORTH_A_CALL

    def clear(self) -> None:
        """Forget everyone who waits."""
        self._clients, self._ends = self._clients[: self._next], self._ends[: self._next + 1]

    def _some(self, count: int) -> list[ClientTask]:
        taken = self._clients[self._next : self._next + count]
        self._next += len(taken)
        return taken
