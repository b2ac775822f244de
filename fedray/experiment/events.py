"""What the driver tells whoever started it."""

from __future__ import annotations

import threading
from typing import Any

from fedray.runfiles import Row


class Events:
    """What the driver tells whoever started it; read from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[tuple[str, Any]] = []

    def on_row(self, row: Row) -> None:
        """A round's line."""
        self.put("row", row)

    def on_note(self, text: str) -> None:
        """A sentence."""
        self.put("note", text)

    def put(self, kind: str, value: Any) -> None:
        """Append one event."""
        with self._lock:
            self._events.append((kind, value))

    def take(self) -> list[tuple[str, Any]]:
        """The events since the last call; taking them drops them."""
        with self._lock:
            events, self._events = self._events, []
            return events
