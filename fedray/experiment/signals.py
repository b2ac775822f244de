"""Signals that end a run in good order: SIGTERM, the first Ctrl-C, and SIGHUP (a terminal that closes, a connection that is lost)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def caught(stop: list[int], *numbers: signal.Signals) -> Iterator[None]:
    """Within, these signals are only put into ``stop``; a second Ctrl-C ends at once.

    A SIGHUP that is ignored (under nohup) stays so. SIGTERM and SIGINT are to be caught after ``ray.init``, which installs its own handlers.

    Raises:
        KeyboardInterrupt: Ctrl-C, when a signal came before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    ours = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in ours}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def kept_from_children(number: signal.Signals) -> Iterator[None]:
    """Processes that are started within never get this signal.

    A terminal that closes sends SIGHUP to all processes that were started from it: it would end Ray's before the driver has saved the run.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
