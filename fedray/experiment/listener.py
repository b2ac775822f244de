"""The driver's events, and how followers read them."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

#: Least seconds between two answers to followers: rounds may be much shorter, and people read no faster.
GATHER = 0.1

#: Kinds of the event that is the last one of a run.
LAST = ("ended", "failed")


@dataclass(frozen=True)
class Batch:
    """Consecutive events.

    Attributes:
        teller: the driver process; a new name means that the driver was restarted and counts its events from 0 again.
        next: position of the first event that is not in this batch.
        events: pairs of kind and value.
    """

    teller: str
    next: int
    events: list[tuple[str, Any]] = field(default_factory=list)


class Events:
    """All events since this process started, for any number of followers. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[tuple[str, Any]] = []
        self._teller = secrets.token_hex(4)
        self._told = 0.0  # when a follower was last answered (monotonic seconds)

    def put(self, kind: str, value: Any) -> None:
        """Append one event; a :data:`fedray.faults.Listener`."""
        with self._changed:
            self._events.append((kind, value))
            self._changed.notify_all()

    def _over(self) -> bool:
        return self._events[-1][0] in LAST

    def since(self, teller: str, position: int, wait: float) -> Batch:
        """Return the events from ``position`` on; all events if ``teller`` names another process.

        Waits up to ``wait`` seconds for the first such event, then until :data:`GATHER` seconds after the previous answer for more.
        """
        with self._changed:
            start = position if teller == self._teller else 0
            if start >= len(self._events):
                self._changed.wait(wait)
            if start < len(self._events):
                self._changed.wait_for(self._over, max(0.0, self._told + GATHER - time.monotonic()))
                self._told = time.monotonic()
            return Batch(self._teller, len(self._events), self._events[start:])
