"""The queue in which each client waits for an actor, the time that its turn takes, and what fits into memory.

A queue is named after the group of clients whose actors serve it, or after the one client of a dedicated actor. All is kept in arrays, for
there may be millions of clients.
"""

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
_BRIEF = 1e-3  # seconds of a turn below which its own duration says less about the next than the queue's rate


class Work:
    """What is known of every client's turn.

    Args:
        sizes: the clients' numbers of records.
    """

    def __init__(self, sizes: npt.NDArray[np.int64]) -> None:
        self._queues: list[str] = []
        self._queue_of = np.zeros(len(sizes), dtype=np.int32)
        self._halvings: Counter[str] = Counter()
        self.learn_sizes(sizes)

    def assign(self, members: Mapping[str, Sequence[int]]) -> None:
        """Set the clients of each queue, by its name."""
        self._queues = list(members)
        self._rates = np.full(len(members), np.nan)
        for n, indices in enumerate(members.values()):
            self._queue_of[np.asarray(indices, dtype=np.int64)] = n

    def learn_sizes(self, sizes: npt.NDArray[np.int64]) -> None:
        """Set the clients' numbers of records, and forget the durations."""
        self._sizes = sizes
        self._rates = np.full(len(self._queues), np.nan)  # recent seconds for one record in each queue
        self._seconds = np.full(len(sizes), np.nan, dtype=np.float32)

    def learn(self, reports: Iterable[ClientReport]) -> None:
        """Learn from the durations of turns; a turn that was cut short would have taken at least that long."""
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
        queue, now = self._queue_of[indices[0]], sum(seconds) / max(records, 1.0)
        self._rates[queue] = now if np.isnan(self._rates[queue]) else (self._rates[queue] + now) / 2

    def queue_of(self, client: int) -> str:
        """Name of the queue in which a client waits."""
        return self._queues[int(self._queue_of[client])]

    def halvings(self, queue: str) -> int:
        """How often the physical batch is halved for a queue's clients, because actors were killed for their memory."""
        return self._halvings[queue]

    def halve(self, queue: str, killed: Iterable[ClientTask]) -> None:
        """Halve the physical batch, because an actor was killed for its memory with these clients; others that died with them halve nothing more."""
        self._halvings[queue] = max([self._halvings[queue], *(c.halvings + 1 for c in killed)])

    def longest_first(self, cohort: Sequence[ClientTask]) -> Waiting:
        """A cohort in the order in which it is handed out, with the seconds that each one's turn will take."""
        indices = np.fromiter((c.index for c in cohort), dtype=np.int64, count=len(cohort))
        seconds = self._seconds[indices].astype(np.float64)
        expected = self._sizes[indices] * np.nan_to_num(self._rates, nan=_SECONDS_A_RECORD)[self._queue_of[indices]]
        seconds = np.where(seconds >= _BRIEF, seconds, expected)
        order = np.lexsort((indices, -seconds))
        return [cohort[n] for n in order.tolist()], seconds[order]

    def by_queue(self, cohort: Sequence[ClientTask], pinned: Mapping[int, str] | None = None) -> dict[str, Waiting]:
        """:meth:`longest_first`, by the name of each one's queue; where clients are pinned to places, that is the place's name."""
        clients, seconds = self.longest_first(cohort)
        served = self._queue_of[[c.index for c in clients]]
        if pinned is None and (served == served[:1]).all():
            return {self._queues[served[0]]: (clients, seconds)} if clients else {}
        mine: dict[str, list[int]] = {}
        for n, client in enumerate(clients):
            mine.setdefault(self._queues[served[n]] if pinned is None else pinned[client.index], []).append(n)
        return {queue: ([clients[n] for n in those], seconds[those]) for queue, those in mine.items()}

    def pinned(self, cohort: Sequence[ClientTask], places: Mapping[str, Sequence[str]]) -> dict[int, str]:
        """A place for each client such that all places have about as much to do, by the client's index.

        Args:
            cohort: clients.
            places: names of those that serve a queue, by the queue's name. Clients whose queue has none are left out.
        """
        busy = {place: 0.0 for those in places.values() for place in those}
        found = dict[int, str]()
        for client, seconds in zip(*self.longest_first(cohort), strict=True):
            those = places.get(self.queue_of(client.index), ())
            if those:
                found[client.index] = place = min(those, key=busy.__getitem__)
                busy[place] += float(seconds)
        return found


class Queue:
    """The clients that wait for one of the actors of their queue."""

    def __init__(self) -> None:
        self._clients: list[ClientTask] = []  # all that were ever put here
        self._ends = np.zeros(1)  # seconds of their turns in total: before the first, after the first and so on
        self._next = 0
        self._shares = 0  # shares that were taken

    def __bool__(self) -> bool:
        return self._next < len(self._clients)

    @property
    def first(self) -> ClientTask:
        """The next client."""
        return self._clients[self._next]

    @property
    def seconds(self) -> float:
        """Seconds that the turns of all waiting clients will take."""
        return float(self._ends[-1] - self._ends[self._next])

    def clients(self) -> list[ClientTask]:
        """The waiting clients."""
        return self._clients[self._next :]

    def put(self, clients: Sequence[ClientTask], seconds: npt.NDArray[np.float64]) -> None:
        """Add clients and the seconds of their turns at the end."""
        self._clients += clients
        self._ends = np.concatenate((self._ends, self._ends[-1] + np.cumsum(seconds)))

    def take(self, actors: int, busy: float = 0.0, apart: Suspects | None = None) -> list[ClientTask]:
        """Take one actor's next share: most of its even share of the time that is left, all of it where the rest is worth no more than a call,
        and never less than :data:`LEAST`, if so much is left.

        Args:
            actors: number of actors that serve the queue.
            busy: seconds that they still need for the clients that they were given, in total.
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

    def take_one(self) -> list[ClientTask]:
        """Take the next client alone."""
        self._shares += 1
        return self._some(1)

    def short(self, actors: int) -> bool:
        """Whether one call for each actor is enough."""
        return float(self._ends[-1]) / actors <= WORTH_A_CALL

    def clear(self) -> None:
        """Remove all waiting clients."""
        self._clients, self._ends = self._clients[: self._next], self._ends[: self._next + 1]

    def _some(self, count: int) -> list[ClientTask]:
        taken = self._clients[self._next : self._next + count]
        self._next += len(taken)
        return taken
