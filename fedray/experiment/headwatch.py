"""Notices when a cluster's head does not answer. Training continues without the head, so nothing else would report it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from fedray.faults import Fault

#: Seconds between two questions to the head, and seconds after which an unanswered one is reported.
_PERIOD, _PATIENCE = 3.0, 4.0


@contextmanager
def watching_head(tell: Callable[[Fault], None]) -> Iterator[None]:
    """Within the block, give ``tell`` a fault from another thread when the head stops answering and when it answers again."""
    over = threading.Event()
    threading.Thread(target=_watch, args=(over, tell), name="head-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(over: threading.Event, tell: Callable[[Fault], None]) -> None:
    away: float | None = None
    while not over.wait(_PERIOD):
        asked, answered = time.monotonic(), threading.Event()
        threading.Thread(target=_ask, args=(answered,), name="head-question", daemon=True).start()
        while not answered.wait(0.5):  # Ray's calls block while the head is away, so one open question is enough
            if over.is_set():
                return
            if away is None and time.monotonic() - asked > _PATIENCE:
                away = asked
                tell(Fault("node", "the cluster's head does not answer; training goes on, but no actor can be started until it is back."))
        if away is not None:
            tell(Fault("node", f"the cluster's head is back after {time.monotonic() - away:.0f} s."))
            away = None


def _ask(answered: threading.Event) -> None:
    while True:
        try:
            ray.nodes()
        except Exception:  # Ray raises errors of many kinds while its head restarts
            time.sleep(0.5)
        else:
            answered.set()
            return
