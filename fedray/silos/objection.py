"""What a silo objects to: one sentence that names the setting, the line of the policy, and what to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedray.errors import shortened
from fedray.silos.policyconfig import Policy


@dataclass(frozen=True)
class Objection:
    """One reason why a silo does not take part.

    Attributes:
        rule: key of the policy; empty where the terms contradict themselves, or an order its terms.
        file, line: of the policy; None where the key does not stand in it.
        setting: what was asked, such as ``training.loss``.
        value: of the setting.
        text: the whole sentence.
    """

    rule: str
    file: str
    line: int | None
    setting: str
    value: Any
    text: str

    def __str__(self) -> str:
        return self.text


def object_to(policy: Policy, rule: str, setting: str, value: Any, allowed: str, change: str) -> Objection:
    """An objection by a line of the policy; ``allowed`` is a clause on what that line allows."""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else shortened(str(value))
    text = f"{setting}: {printable(shown)} is refused by {policy.where(rule)} ({rule}: {allowed}); {change}."
    return Objection(rule, policy._file, policy.line(rule), setting, value, text)


def contradiction(setting: str, value: Any, why: str) -> Objection:
    """An objection to something that does not follow from the run's own terms."""
    return Objection("", "", None, setting, value, f"{setting}: {printable(why)}; this silo refuses it, and its log has a note of it.")


def printable(text: str) -> str:
    """A text that came over the wire, without what a terminal would take for orders."""
    return "".join(c if c.isprintable() else "?" for c in text)
