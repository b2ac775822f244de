"""How a round of the pool goes on, and what ends it before all clients are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedray.clients.messages import ClientTask
from fedray.clients.placement import Place


@dataclass(frozen=True)
class Course:
    """How a round goes on, and what ends it.

    Attributes:
        deadline: seconds after which clients still training are late; None to wait.
        enough: updates with which the round ends, and clients that are not done are surplus; None: it waits for all of them.
        more: asked often for clients who join; the round ends when it has none any more (None), and clients that are not done are late.
        pinned: name of the place whose actor alone can train a client, because it holds the client's keys, by the client's index. A client
            that loses its actor is lost then. None: any actor of the client's queue can train it.
    """

    deadline: float | None = None
    enough: int | None = None
    more: Callable[[], Sequence[ClientTask] | None] | None = None
    pinned: Mapping[int, str] | None = None

    @property
    def singly(self) -> bool:
        """Whether each client's update is handed over as soon as it is there, as a part of its own."""
        return self.enough is not None or self.more is not None

    def serves(self, place: Place) -> str:
        """Name of the queue whose clients the actor of a place trains."""
        return place.queue if self.pinned is None else place.key
