"""Structured logs: with ``FEDRAY_LOG=json`` a run prints one JSON object per line.

Keys: ``time`` (UTC, ISO 8601), ``level``, ``run``, ``message`` (the sentence for people); ``event`` (joining, started, row, note, ended,
error) for reports of the run, ``logger`` for records of Python's logging; where known ``round``, ``client``, ``metrics`` (of a round),
``info`` (facts at the start), ``summary`` (at the end), ``traceback``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

#: Environment variable that chooses the form of logs.
FORM = "FEDRAY_LOG"

_EXTRA = ("round", "client")


def structured() -> bool:
    """Return whether this process logs JSON."""
    return os.environ.get(FORM) == "json"


def record(level: str, message: str, *, time: float | None = None, **fields: Any) -> str:
    """Return one line of a structured log without its newline; fields that are None are left out."""
    stamp = datetime.now(UTC) if time is None else datetime.fromtimestamp(time, UTC)
    line = {"time": stamp.isoformat(timespec="milliseconds"), "level": level}
    line |= {k: v for k, v in fields.items() if v is not None} | {"message": message}
    return json.dumps(line, default=str)


def read(line: str) -> dict[str, Any] | None:
    """Return the object of a structured line; None for any other text."""
    if not line.startswith('{"time": '):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("message"), str) else None


def render(line: str) -> str:
    """Return a line of a log as text for people; a line that is not structured is returned as it is."""
    found = read(line)
    if found is None:
        return line
    text = str(found["message"])
    if found.get("event") == "note":
        return f"note: {text}"
    if "event" not in found:
        text = f"{found.get('level')} {found.get('logger')}: {text}"
        return f"{text}\n{found['traceback'].rstrip()}" if "traceback" in found else text
    return text


def error(text: str) -> str:
    """Return the text with which the command ends: one structured line, or text that fits the terminal."""
    return record("ERROR", text, event="error") if structured() else shown(text, sys.stderr)


def shown(text: str, stream: TextIO) -> str:
    """Return a text as it is, or in lines that fit if the stream is a terminal."""
    return fitted(text, shutil.get_terminal_size().columns) if stream.isatty() else text


def fitted(text: str, width: int) -> str:
    """Return a text in lines of at most ``width`` characters; words stay whole, so that paths can be copied, and further lines are indented."""
    lines = [
        textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
    ]
    return "\n".join("\n".join(part) for part in lines)


class JsonFormatter(logging.Formatter):
    """Formats Python's log records as lines of a structured log; ``extra={"round": 3, "client": "a"}`` become keys."""

    def __init__(self, run: str | None = None) -> None:
        """Write ``run``, the run's name, in each line."""
        super().__init__()
        self._run = run

    def format(self, entry: logging.LogRecord) -> str:
        """Return one line."""
        fields: Mapping[str, Any] = {key: getattr(entry, key, None) for key in _EXTRA}
        trace = "".join(traceback.format_exception(*entry.exc_info)) if entry.exc_info else None
        return record(entry.levelname, entry.getMessage(), time=entry.created, run=self._run, logger=entry.name, **fields, traceback=trace)


def setup(run: str | None = None) -> None:
    """Let Python's logging write structured lines to standard error if ``FEDRAY_LOG`` asks for them. May be called again."""
    if not structured():
        return
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
    for handler in root.handlers:
        handler.setFormatter(JsonFormatter(run))
