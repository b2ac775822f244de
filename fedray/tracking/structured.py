"""Progress as JSON lines, for machines: the sentences of :class:`Progress` with their figures."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from fedray import logs
from fedray.faults import Fault
from fedray.tracking.closing_words import print_summary
from fedray.tracking.journal import Row
from fedray.tracking.terminal import Progress


class JsonProgress(Progress):
    """Writes a run's events as a structured log (:mod:`fedray.logs`).

    Args:
        run: the run's name, written in each line until the run's id is known.
        stream: where lines go; by default standard output.
    """

    def __init__(self, run: str, stream: TextIO | None = None) -> None:
        super().__init__(stream=io.StringIO())
        self._run, self._out = run, stream or sys.stdout
        self._fields: dict[str, Any] = {}

    def joining(self, text: str) -> None:
        """Write a sentence on what is done before the run starts."""
        self._write("INFO", text, event="joining")

    def start(self, info: Mapping[str, Any]) -> None:
        """Write the facts of a run that begins."""
        self._run = str(info.get("run") or self._run)
        self._fields = {"event": "started", "info": dict(info)}
        super().start(info)

    def row(self, row: Row) -> None:
        """Write the metrics of a finished round."""
        self._fields = {"event": "row", "round": row["round"], "metrics": row["metrics"]}
        super().row(row)

    def note(self, text: str) -> None:
        """A sentence that a person should read."""
        self._write("WARNING", text, event="note")

    def fault(self, fault: Fault) -> None:
        """Something that went wrong: a note with the fault's fields."""
        self._write("WARNING", fault.text, event="note", kind=fault.kind, round=fault.round, client=fault.client, node=fault.node)

    def ended(self, summary: Mapping[str, Any], output: str | Path, command: str) -> None:
        """Write how the run ended; see :func:`print_summary`."""
        text = io.StringIO()
        print_summary(summary, output, command, stream=text)
        self._write("INFO", text.getvalue().rstrip(), event="ended", summary=summary)

    def _say(self, line: str) -> None:
        self._write("INFO", line, **self._fields)

    def _write(self, level: str, message: str, **fields: Any) -> None:
        self._out.write(logs.record(level, message, run=self._run, **fields) + "\n")
        self._out.flush()
