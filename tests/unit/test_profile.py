"""Spans of a run, and what is made of them: a table of a round's time, and a trace."""

from __future__ import annotations

import json

import pytest

from fedray import spans
from fedray.experiment.profile import KINDS, chrome_trace, summarize, table
from fedray.spans import Kind, Span, span


def made(*rows: tuple[Kind, float, float]) -> list[Span]:
    return [Span(kind, kind, start, seconds, 0.3 * seconds) for kind, start, seconds in rows]


DRIVER = made(
    ("round", 0.0, 9.0),  # warms up: does not count
    ("wait", 1.0, 8.0),
    ("round", 10.0, 1.0),
    ("cohort", 10.0, 0.1),
    ("wait", 10.2, 0.5),
    ("logging", 10.3, 0.2),  # within the wait
    ("round", 11.0, 2.0),
    ("wait", 11.5, 1.0),
    ("evaluation", 14.0, 5.0),  # after the last round
)
ACTORS = {"a": made(("compute", 10.0, 0.6), ("aggregation", 10.5, 0.1), ("compute", 11.0, 1.0)), "b": made(("compute", 11.0, 1.4))}


def test_each_second_of_a_round_is_counted_once() -> None:
    found = summarize(DRIVER, ACTORS)
    assert (found["rounds"], found["actors_seen"], found["seconds_per_round"]) == (2, 2, 1.5)
    assert sum(found["driver"].values()) == pytest.approx(1.5)
    assert sum(found["actors"].values()) == pytest.approx(1.5)
    assert found["cpu"]["driver"] == pytest.approx(0.3 * 1.5)  # nested spans are in the round's already
    assert found["cpu"]["actors"] == pytest.approx(0.3 * 3.0 / 4)
    expected = {"cohort": 0.05, "wait": 0.65, "logging": 0.1, "other": 0.7, "evaluation": 0.0}
    assert {k: found["driver"][k] for k in expected} == pytest.approx(expected)
    assert found["actors"]["compute"] == pytest.approx((0.5 + 1.0 + 1.4) / 4)
    assert found["actors"]["aggregation"] == pytest.approx(0.1 / 4)


def test_a_single_round_counts_and_no_round_divides_nothing() -> None:
    assert summarize(DRIVER[:2], {})["seconds_per_round"] == 9.0
    empty = summarize([], {})
    assert empty["rounds"] == 0
    assert "a round" in table(empty)


def test_the_table_has_a_line_for_each_kind() -> None:
    lines = table(summarize(DRIVER, ACTORS)).splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(KINDS)
    assert "2 actors, each" in lines[0]
    assert "1500.0 ms" in lines[-1]
    assert lines[-2].split()[:2] == ["processor", "450.0"]
    assert next(line for line in lines if line.startswith("wait")).split()[1:4] == ["650.0", "ms", "43%"]


def test_the_trace_is_what_viewers_read() -> None:
    events = json.loads(chrome_trace(DRIVER, ACTORS))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert list(names.values()) == ["driver", "a", "b"]
    whole = [e for e in events if e["ph"] == "X"]
    assert len(whole) == len(DRIVER) + 4
    assert min(e["ts"] for e in whole) == 0.0
    (first,) = [e for e in whole if names[e["pid"]] == "b"]
    assert (first["cat"], first["ts"], first["dur"]) == ("compute", 11e6, 1.4e6)


def test_spans_are_kept_only_where_somebody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_kept", None)
    with span("compute", "unseen"):
        pass
    assert spans.taken_spans() == []
    with span("wait", "began unseen"):
        spans.keep_spans()
    with pytest.raises(ValueError), span("wait", "it fails"):
        raise ValueError
    (found,) = spans.taken_spans()
    assert (found.kind, found.name) == ("wait", "it fails")
    assert found.seconds >= 0
    assert found.cpu >= 0
    assert spans.taken_spans() == []
