"""How a round of the pool goes on, and what ends it before all clients are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedray.clients.messages import ClientTask


@dataclass(frozen=True)
class Course:
    """How a round goes on, and what ends it.

    Attributes:
        deadline: seconds after which clients still training are late; None to wait.
        enough: updates with which the round ends, and clients that are not done are surplus; None: it waits for all of them.
        more: asked often for clients who join; the round ends when it has none any more (None), and clients that are not done are late.
    """

    deadline: float | None = None
    enough: int | None = None
    more: Callable[[], Sequence[ClientTask] | None] | None = None

    @property
    def singly(self) -> bool:
        """Whether each client's update is handed over as soon as it is there, as a part of its own."""
        return self.enough is not None or self.more is not None
