"""The failed clients of a round as faults, and faults with equal sentences as one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from fedray.clients.messages import ClientReport
from fedray.errors import place_in, readable
from fedray.faults import Fault

_NAMED = 3  # besides the first
_WORD = re.compile(r"[\w./+-]+")  # found in one pass, however long the text is


def client_failures(round_: int, reports: Iterable[ClientReport]) -> tuple[list[Fault], list[str]]:
    """The clients that failed in a round; and their tracebacks, of which those that say the same are given once.

    Args:
        round_: from 1.
        reports: of all its turns.
    """
    faults: list[Fault] = []
    traces: dict[str, str] = {}
    for report in reports:
        if report.status in ("failed", "rejected", "lost", "late", "refused", "withdrawn"):
            place = place_in(report.traceback)
            who = f"client {report.name} on {report.node or 'no node'} {report.status}"
            said = readable(report.error)
            text = f"round {round_}: {who}: {said}" + (f" ({place})" if place and place not in said else "")
            faults.append(Fault("client", text, round_, report.name, report.node or None))
            if report.traceback:
                traces.setdefault(likeness(report.name, report.error), f"client {report.name}, round {round_}:\n{report.traceback}")
    return faults, list(traces.values())


def grouped(faults: Iterable[Fault], what: str = "clients") -> list[Fault]:
    """Faults of which those whose sentences differ only in names and numbers become one: the first, which says how many more there are.

    Args:
        faults: of one round.
        what: whom they are about, in the plural.
    """
    groups: dict[str, list[Fault]] = {}
    for fault in faults:
        groups.setdefault(likeness(fault.client or "", fault.text), []).append(fault)
    return [_one(group, what) for group in groups.values()]


def likeness(name: str, text: str) -> str:
    """What sentences that say the same have in common."""
    named = text.replace(name, "#") if name else text
    return _WORD.sub(lambda word: "#" if any(map(str.isdigit, word[0])) else word[0], named)


def _one(group: list[Fault], what: str) -> Fault:
    first, *others = group
    if not others:
        return first
    names = ", ".join(fault.client for fault in others[:_NAMED] if fault.client) + (", ..." if len(others) > _NAMED else ".")
    stop = "" if first.text.endswith((".", "!", "?")) else "."
    more = f"{stop} The same holds for {len(others)} more {what}" + (f": {names}" if others[0].client else ".")
    return replace(first, text=first.text + more)
