"""How a report writes tables, figures, times and parts of a config."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fedray.tracking.journal import number


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, and an empty line."""
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def part(given: Any) -> str:
    """Return a part of a config as text: ``kind`` with its arguments."""
    if not isinstance(given, Mapping):
        return str(given)
    rest = ", ".join(f"{k} {value(v)}" for k, v in given.items() if k != "kind" and v is not None)
    return f"{given.get('kind')}" + (f" ({rest})" if rest else "")


def value(given: Any) -> str:
    """Return a value of a config or summary as text."""
    if isinstance(given, float):
        return f"{given:.6g}"
    if isinstance(given, Mapping):
        return part(given) if "kind" in given else ", ".join(f"{k} {value(v)}" for k, v in given.items())
    return ", ".join(map(value, given)) if isinstance(given, list) else str(given)


def used(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config's ``training`` that something uses: without those of another optimiser and without what is off."""
    others = ("betas",) if training.get("optimizer") == "sgd" else ("momentum", "nesterov")
    return {k: v for k, v in training.items() if k not in others and v not in (None, {}, [], 0.0, False)}


def metric(name: str) -> str:
    """Return a metric's name as a reader knows it."""
    return name.removeprefix("eval/")


def figure(given: Any) -> str:
    """Return a result with four digits behind the point; what is no finite number as it is."""
    found = number(given)
    return str(given) if found is None else f"{found:.4f}"


def bound(given: Any) -> str:
    """Return an audit's bound as text; empty if there is none."""
    if given is None:
        return ""
    return f"{given:.4g}" if isinstance(given, int | float) and math.isfinite(given) else str(given)


def time_text(seconds: float) -> str:
    """Return a time since 1970 as date and time (UTC)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
