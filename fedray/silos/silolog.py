"""A silo's log: what was asked of it, what it allowed and refused, and who decided. Lines of JSON in ``STATE/log.jsonl`` that only grow.

The log also says how much was done in a day, so it is durable before anything is done, and without it nothing is.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from fedray import logs
from fedray.errors import FedrayError

FILE = "log.jsonl"
#: What is counted in a day.
TRAINING, EVALUATION = "training", "evaluation"
#: A training whose charge was made is given to the client.
TRAINED = "trained"
_COUNTED = (TRAINING, TRAINED, EVALUATION)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class SiloLog:
    """Appends to a silo's log and counts what it says; several processes may append.

    Args:
        state: the silo's directory of what must outlive its process.
        now: tells the time.
    """

    def __init__(self, state: Path, now: Callable[[], datetime] = utc_now) -> None:
        self.path, self._now, self._lock = state / FILE, now, threading.Lock()
        self._read = 0  # bytes
        self._counted: list[tuple[datetime, str, dict[str, Any]]] = []

    def write(self, event: str, message: str, level: str = "INFO", **fields: Any) -> None:
        """Append a line; it is durable on return.

        Raises:
            FedrayError: it could not be written.
        """
        line = logs.record(level, message, time=self._now().timestamp(), event=event, **fields)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and _last_byte(self.path, size) != b"\n"  # a process was killed at it
                text = (b"\n" if torn else b"") + line.encode() + b"\n"
                if os.write(descriptor, text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FedrayError(
                f"{self.path}: the silo's log cannot be written ({error.strerror}), so nothing is done; free its disk."
            ) from None

    def lines(self) -> Iterator[dict[str, Any]]:
        """All lines that can be read, oldest first."""
        yield from (found for _, found in self._from(0))

    def on(self, day: date, event: str, local: Callable[[datetime], datetime]) -> int:
        """How many events of a kind (:data:`TRAINING`, :data:`EVALUATION`) fell on a day of the silo's time zone."""
        since = self._now() - timedelta(days=2)  # no day is longer, and older lines need no look at the time zone
        return sum(time > since and kind == event and local(time).date() == day for time, kind, _ in self._all_counted())

    def keys_of(self, job: str, event: str) -> list[tuple[int, int]]:
        """(round, attempt) of the events of a kind of one start of a run, oldest first; a training may be given to the client at once."""
        own = (
            f for _, kind, f in self._all_counted() if (kind == event or (event == TRAINED and f.get("trained"))) and f.get("job") == job
        )
        return [(int(fields["round"]), int(fields["attempt"])) for fields in own]

    def _all_counted(self) -> list[tuple[datetime, str, dict[str, Any]]]:
        with self._lock:
            for end, found in self._from(self._read):
                self._read = end
                if found.get("event") in _COUNTED:
                    self._counted.append((datetime.fromisoformat(found["time"]), found["event"], found))
            return list(self._counted)

    def _from(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The whole lines from a position on, each with the position after it."""
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                for line in file:
                    start += len(line)
                    found = logs.read(line.decode(errors="replace")) if line.endswith(b"\n") else None
                    if found is not None:
                        yield start, found
        except FileNotFoundError:
            return
        except OSError as error:
            raise FedrayError(f"{self.path}: the silo's log cannot be read ({error.strerror}), so nothing is done.") from None


def _last_byte(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(size - 1)
        return file.read(1)
