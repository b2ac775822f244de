"""Where a process spends its time: spans, kept only where somebody asked for them (``fedray run --profile``)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, Self

#: What a span was spent on; ``round`` is a whole round of the driver's, in which the others lie.
Kind = Literal["round", "compute", "wait", "transfer", "aggregation", "evaluation", "logging", "cohort"]


@dataclass(frozen=True)
class Span:
    """One stretch of time in one thread of a process.

    Attributes:
        kind: what it was spent on.
        name: what was done.
        start: Unix seconds, by this host's clock.
        seconds: how long it took.
        cpu: seconds of it that the thread was on a processor.
    """

    kind: Kind
    name: str
    start: float
    seconds: float
    cpu: float = 0.0


_kept: list[Span] | None = None


def keep_spans() -> None:
    """Keep this process' spans from now on."""
    global _kept
    _kept = []


def taken_spans() -> list[Span]:
    """What was kept since the last call."""
    global _kept
    found, _kept = _kept, None if _kept is None else []
    return found or []


class span:
    """A context whose time is kept, where spans are; else it costs half a microsecond."""

    __slots__ = ("_began", "_kind", "_name")

    def __init__(self, kind: Kind, name: str) -> None:
        self._kind: Kind = kind
        self._name = name

    def __enter__(self) -> Self:
        self._began = None if _kept is None else (time.perf_counter(), time.thread_time())
        return self

    def __exit__(self, *_: object) -> None:
        if _kept is not None and self._began is not None:
            began, cpu = self._began
            seconds = time.perf_counter() - began
            _kept.append(Span(self._kind, self._name, time.time() - seconds, seconds, time.thread_time() - cpu))
