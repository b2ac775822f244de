"""Spans: how a process spends its time, recorded only for ``fedray run --profile``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, Self

#: Kinds of spans. A span of kind ``round`` is a whole round of the driver, which contains its other spans.
Kind = Literal["round", "compute", "wait", "transfer", "aggregation", "evaluation", "logging", "cohort"]


@dataclass(frozen=True)
class Span:
    """A period of time in one thread of a process.

    Attributes:
        kind: the kind of work.
        name: what was done.
        start: Unix seconds by this host's clock.
        seconds: duration.
        cpu: processor seconds of the thread in this time.
    """

    kind: Kind
    name: str
    start: float
    seconds: float
    cpu: float = 0.0


_kept: list[Span] | None = None


def keep_spans() -> None:
    """Record this process' spans from now on."""
    global _kept
    _kept = []


def taken_spans() -> list[Span]:
    """Return the spans that were recorded since the last call."""
    global _kept
    found, _kept = _kept, None if _kept is None else []
    return found or []


class span:
    """A context manager that records its duration if spans are recorded; otherwise it costs half a microsecond."""

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
