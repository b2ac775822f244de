"""Notices while a cluster's head is away. Training goes on without it, so nobody else would say so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

#: Seconds between questions to the head, and that one may take.
_PERIOD, _PATIENCE = 3.0, 4.0


@contextmanager
def watching_head(tell: Callable[[str, str], None]) -> Iterator[None]:
    """Within: ``tell("node", sentence)`` when the head stops answering, and when it is back; called from another thread."""
    over = threading.Event()
    threading.Thread(target=_watch, args=(over, tell), name="head-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(over: threading.Event, tell: Callable[[str, str], None]) -> None:
    away: float | None = None
    while not over.wait(_PERIOD):
        asked, answered = time.monotonic(), threading.Event()
        threading.Thread(target=_ask, args=(answered,), name="head-question", daemon=True).start()
        while not answered.wait(0.5):  # Ray's calls block while the head is away: one question is enough
            if over.is_set():
                return
            if away is None and time.monotonic() - asked > _PATIENCE:
                away = asked
                tell("node", "the cluster's head does not answer; training goes on, but no actor can be started until it is back.")
        if away is not None:
            tell("node", f"the cluster's head is back after {time.monotonic() - away:.0f} s.")
            away = None


def _ask(answered: threading.Event) -> None:
    while True:
        try:
            ray.nodes()
        except Exception:  # Ray raises many kinds while its head comes back
            time.sleep(0.5)
        else:
            answered.set()
            return
