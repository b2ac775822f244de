"""What a run tells those who follow it: events, and faults among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

#: Receives each event of a run as (kind, value): ``joining`` (a sentence), ``started`` (facts about the run), ``row`` (a round's metrics),
#: ``note`` (a sentence), ``fault`` (a :class:`Fault`), ``signal`` (the number of a signal that stops the run).
Listener = Callable[[str, Any], None]

#: What a fault is of. ``round``: the round as a whole, for example one with too few updates. ``files``: the run's own files.
FaultKind = Literal["actor", "node", "client", "driver", "store", "tracking", "memory", "files", "round"]


@dataclass(frozen=True)
class Fault:
    """Something that went wrong and that the run goes on after, as far as it can.

    Attributes:
        kind: what failed.
        text: a sentence about it.
        round: in which round, from 1; None where that is not known yet.
        client: name of the client that failed.
        node: host name of the node that failed, or on which it happened.
    """

    kind: FaultKind
    text: str
    round: int | None = None
    client: str | None = None
    node: str | None = None

    def __str__(self) -> str:
        return self.text
