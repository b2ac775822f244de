"""What the driver tells whoever follows it."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from fedray.runfiles import Row

#: Seconds between two answers to followers: people read no faster, and a round may take a tenth of that.
GATHER = 0.1

#: Kinds of event after which there are no more.
LAST = ("ended", "failed")


@dataclass(frozen=True)
class Batch:
    """Some events.

    Attributes:
        teller: names the driver process; another name means that the driver was restarted and counts from 0 again.
        next: position to ask from the next time.
        events: (kind, value) pairs.
    """

    teller: str
    next: int
    events: list[tuple[str, Any]] = field(default_factory=list)


class Events:
    """All that happened since this process started, for any number of followers; safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[tuple[str, Any]] = []
        self._teller = secrets.token_hex(4)
        self._told = 0.0  # when a follower was last answered (monotonic seconds)

    def on_row(self, row: Row) -> None:
        """A round's line."""
        self.put("row", row)

    def on_note(self, text: str) -> None:
        """A sentence."""
        self.put("note", text)

    def put(self, kind: str, value: Any) -> None:
        """Append one event."""
        with self._changed:
            self._events.append((kind, value))
            self._changed.notify_all()

    def _over(self) -> bool:
        return self._events[-1][0] in LAST

    def since(self, teller: str, position: int, wait: float) -> Batch:
        """The events from ``position`` on, waiting up to ``wait`` seconds for one, and those that follow within :data:`GATHER` of the last answer.

        All of them where ``teller`` is another process.
        """
        with self._changed:
            start = position if teller == self._teller else 0
            if start >= len(self._events):
                self._changed.wait(wait)
            if start < len(self._events):
                self._changed.wait_for(self._over, max(0.0, self._told + GATHER - time.monotonic()))
                self._told = time.monotonic()
            return Batch(self._teller, len(self._events), self._events[start:])
