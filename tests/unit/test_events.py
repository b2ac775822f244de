"""What followers of a run are told, and when."""

from __future__ import annotations

import threading
import time

import pytest

from fedray.experiment import listener as events
from fedray.experiment.listener import Events


def test_followers_get_everything_in_order_and_anew_from_a_new_process() -> None:
    told = Events()
    told.put("note", "a")
    first = told.since("", 0, 0.0)
    told.put("row", {"round": 1, "metrics": {}})
    second = told.since(first.teller, first.next, 0.0)
    assert [kind for kind, _ in first.events + second.events] == ["note", "row"]
    assert told.since("another", 7, 0.0).events == first.events + second.events
    assert told.since(second.teller, second.next, 0.0).events == []


def test_news_that_follow_at_once_come_together_but_the_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "GATHER", 30.0)
    told = Events()
    told.put("row", 1)
    first = told.since("", 0, 0.0)  # nobody was answered lately
    told.put("row", 2)
    answers: list[events.Batch] = []
    began = time.monotonic()
    follower = threading.Thread(target=lambda: answers.append(told.since(first.teller, first.next, 60.0)))
    follower.start()
    told.put("row", 3)
    told.put("ended", {})
    follower.join(20)
    assert not follower.is_alive()
    assert time.monotonic() - began < 20
    assert [value for _, value in answers[0].events] == [2, 3, {}]
