"""What the driver tells whoever follows it."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field
from typing import Any

from fedray.runfiles import Row


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

    def since(self, teller: str, position: int, wait: float) -> Batch:
        """The events from ``position`` on, waiting up to ``wait`` seconds for one; all of them where ``teller`` is another process."""
        with self._changed:
            start = position if teller == self._teller else 0
            if start >= len(self._events):
                self._changed.wait(wait)
            return Batch(self._teller, len(self._events), self._events[start:])
