"""Where a round's time went (``fedray run --profile``): as a table, and as a trace for a viewer."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedray.spans import Span

#: The kinds of work that time is spent on, in the table's order.
KINDS = ("cohort", "compute", "wait", "transfer", "aggregation", "evaluation", "logging", "other")

DRIVER = "driver"


def summarize(driver: Sequence[Span], actors: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """Compute the seconds per round by kind of work. The first round, which includes warm-up, counts only if it is the only one.

    Args:
        driver: the driver's spans; those of kind ``round`` are the rounds.
        actors: each client actor's spans, by the actor's key.

    Returns:
        JSON data: ``rounds`` (how many count), ``seconds_per_round``, ``actors_seen``, seconds per round of each of :data:`KINDS` for the
        ``driver`` and for the mean actor (``actors``), and the processor seconds among them (``cpu``). An actor waits whenever it does
        nothing else.
    """
    rounds = sorted((s for s in driver if s.kind == "round"), key=lambda s: s.start)
    rounds = rounds[1:] or rounds
    count, total = max(1, len(rounds)), sum(s.seconds for s in rounds)
    mine, my_cpu = _by_kind(driver, rounds)
    both = [_by_kind(spans, rounds) for spans in actors.values()]
    theirs = [found for found, _ in both]
    for found in theirs:
        found["wait"] = max(0.0, total - sum(found.values()))
    return {
        "rounds": len(rounds),
        "actors_seen": len(actors),
        "seconds_per_round": total / count,
        "driver": {kind: mine.get(kind, 0.0) / count for kind in KINDS},
        "actors": {kind: sum(f.get(kind, 0.0) for f in theirs) / count / max(1, len(theirs)) for kind in KINDS},
        "cpu": {"driver": my_cpu / count, "actors": sum(cpu for _, cpu in both) / count / max(1, len(both))},
    }


def table(profile: Mapping[str, Any]) -> str:
    """Return the result of :func:`summarize` as a text table."""
    seconds, seen = profile["seconds_per_round"], profile["actors_seen"]
    names = "the actor" if seen == 1 else f"{seen} actors, each"
    lines = [f"{'':<12} {'driver':>10} {'':>5}   {names:>16}"]
    for kind in KINDS:
        cells = [profile["driver"][kind], profile["actors"][kind]]
        shares = [c / seconds if seconds else 0.0 for c in cells]
        lines.append(f"{kind:<12} {1e3 * cells[0]:>7.1f} ms {shares[0]:>5.0%}   {1e3 * cells[1]:>7.1f} ms {shares[1]:>5.0%}")
    cpu = [1e3 * profile["cpu"][place] for place in ("driver", "actors")]
    lines.append(f"{'processor':<12} {cpu[0]:>7.1f} ms {'':>5}   {cpu[1]:>7.1f} ms")
    lines.append(f"{'a round':<12} {1e3 * seconds:>7.1f} ms         (mean of {profile['rounds']})")
    return "\n".join(lines)


def chrome_trace(driver: Sequence[Span], actors: Mapping[str, Sequence[Span]]) -> str:
    """Return all spans as JSON in Chrome's trace event format (chrome://tracing, ui.perfetto.dev): one row per process, in microseconds."""
    events: list[dict[str, Any]] = []
    everyone: dict[str, Sequence[Span]] = {DRIVER: driver, **actors}
    begins = min((s.start for spans in everyone.values() for s in spans), default=0.0)
    for number, (name, spans) in enumerate(everyone.items()):
        events.append({"name": "process_name", "ph": "M", "pid": number, "args": {"name": name}})
        events += [
            {
                "name": s.name,
                "cat": s.kind,
                "ph": "X",
                "pid": number,
                "tid": 0,
                "ts": round(1e6 * (s.start - begins), 1),
                "dur": round(1e6 * s.seconds, 1),
            }
            for s in spans
        ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _by_kind(spans: Sequence[Span], rounds: Sequence[Span]) -> tuple[dict[str, float], float]:
    """Return the seconds by kind within rounds, and the processor seconds.

    A span counts without the spans inside it; the time of a round that no span covers is ``other``.
    """
    starts = [r.start for r in rounds]
    seconds: dict[str, float] = {}
    cpu = 0.0
    open_: list[Span] = []
    for s in sorted(spans, key=lambda s: (s.start, -s.seconds)):
        at = bisect.bisect_right(starts, s.start) - 1
        if at < 0 or s.start > rounds[at].start + rounds[at].seconds:
            continue
        kind = "other" if s.kind == "round" else s.kind
        seconds[kind] = seconds.get(kind, 0.0) + s.seconds
        while open_ and s.start >= open_[-1].start + open_[-1].seconds:
            open_.pop()
        if open_:
            around = "other" if open_[-1].kind == "round" else open_[-1].kind
            seconds[around] -= s.seconds
        else:
            cpu += s.cpu
        open_.append(s)
    return seconds, cpu
