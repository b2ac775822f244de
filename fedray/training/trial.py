"""Trying a user's code in a forked child: what ends its process ends the child alone.

A child that computes on one thread, as torch's own data loaders fork theirs.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

#: Seconds within which a trial must be over.
_PATIENCE = 60.0


def tried(call: Callable[[], T], otherwise: T) -> T:
    """What ``call`` gives, computed in a child of this process; ``otherwise`` where the child ends before it answers, or takes too long.

    Args:
        call: may do what it likes to its process; its answer must be small, and one that pickle takes.
        otherwise: see above.

    Raises:
        Exception: whatever ``call`` raises.
    """
    if sys.platform != "linux":
        return call()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            try:
                answer: tuple[bool, object] = True, call()
            except Exception as error:
                answer = False, error
            os.write(theirs, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(theirs)
    try:
        ready = select.select([ours], [], [], _PATIENCE)[0]
        found = os.read(ours, 2**16) if ready else b""
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not found:
        return otherwise
    good, value = pickle.loads(found)
    if not good:
        raise value
    return value  # type: ignore[no-any-return]
