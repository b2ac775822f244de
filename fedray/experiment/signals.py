"""Signals that stop a run after a checkpoint: SIGTERM, the first Ctrl-C, and SIGHUP (a closed terminal, a lost connection)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def caught(stop: list[int], *numbers: signal.Signals) -> Iterator[None]:
    """Within the block, append these signals to ``stop``; Ctrl-C after another signal raises.

    A SIGHUP that is ignored (under nohup) stays ignored. SIGTERM and SIGINT must be caught after ``ray.init``, which sets its own handlers.

    Raises:
        KeyboardInterrupt: Ctrl-C after another signal.
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
    """Let processes that are started within the block ignore this signal.

    A terminal that closes sends SIGHUP to all processes that were started from it, which would end Ray's before the run is saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
