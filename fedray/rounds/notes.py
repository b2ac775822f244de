"""Notes of one round that say the same are one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fedray.clients.messages import ClientReport
from fedray.errors import place_in, readable

_NAMED = 3  # besides the first


def client_failures(round_: int, reports: Iterable[ClientReport]) -> tuple[list[tuple[str, str]], list[str]]:
    """What befell clients in a round: whom, and a sentence; and the tracebacks, of which those that say the same are shown once.

    Args:
        round_: from 1.
        reports: of all its turns.
    """
    told: list[tuple[str, str]] = []
    traces: dict[str, str] = {}
    for report in reports:
        if report.status in ("failed", "rejected", "lost", "late", "refused"):
            place = place_in(report.traceback)
            where = f"client {report.name} on {report.node or 'no node'}"
            told.append(
                (report.name, f"round {round_}: {where} {report.status}: {readable(report.error)}" + (f" ({place})" if place else ""))
            )
            if report.traceback:
                traces.setdefault(likeness(report.name, report.error), f"client {report.name}, round {round_}:\n{report.traceback}")
    return told, list(traces.values())


def one_line_each(told: Iterable[tuple[str, str]], what: str = "clients") -> list[str]:
    """Sentences, of which those that differ only in names and numbers become the first of them.

    Args:
        told: whom each is about, and the sentence.
        what: they are.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, text in told:
        groups.setdefault(likeness(name, text), []).append((name, text))
    return [_line(group, what) for group in groups.values()]


def likeness(name: str, text: str) -> str:
    """What sentences that say the same have in common."""
    named = text.replace(name, "#") if name else text
    return re.sub(r"[\w./-]*\d[\w./+-]*", "#", named)


def _line(group: list[tuple[str, str]], what: str) -> str:
    (_, first), *others = group
    if not others:
        return first
    names = ", ".join(name for name, _ in others[:_NAMED] if name) + (", ..." if len(others) > _NAMED else ".")
    stop = "" if first.endswith((".", "!", "?")) else "."
    return f"{first}{stop} The same holds for {len(others)} more {what}" + (f": {names}" if others[0][0] else ".")
