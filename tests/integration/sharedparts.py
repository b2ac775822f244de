"""A linear model whose actors misbehave with the sum that they share."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pools import in_actor, once
from torch import nn

from fedray.aggregation.exact import ExactSum
from fedray.aggregation.shared import SharedAt, SharedMemory, SharedSum
from fedray.clients import inbox

_real_add, _real_at, _real_offer = SharedSum._add_at, SharedSum.at.__func__, SharedMemory.__init__  # type: ignore[attr-defined]


class Held(nn.Module):
    """Linear; while the file ``hold`` is there, the training of client ``whose`` waits."""

    def __init__(self, hold: str = "", whose: int = -1) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.hold, self.whose = hold, whose

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and in_actor() and len(x) and bool((x[:, 0] == self.whose).all()):
            while self.hold and os.path.exists(self.hold):
                time.sleep(0.01)
        return self.linear(x)


def model(dies: str = "", mark: str = "", hold: str = "", whose: int = -1, opened: str = "", large: bool = False) -> nn.Module:
    """Factory for ``python:sharedparts:model``.

    Args:
        dies: which actor ends itself when it has added an update to a sum that others have added to, and before it says so: ``keeper``, ``other``
            or ``any``; one of them, once for each file ``mark``. ``no memory``: nobody can offer a sum. ``no entry``: one actor cannot open it.
        mark: see above.
        hold, whose: see :class:`Held`.
        opened: directory in which each process that opens a shared sum leaves its name.
        large: every model counts as a large one.
    """
    if large:
        inbox.LARGE = 0
    if in_actor():
        _spoil(dies, mark, opened)
    return Held(hold, whose)


def _spoil(dies: str, mark: str, opened: str) -> None:
    role, own, tokens = {"keeper": False}, {"sum": np.zeros(0)}, set[SharedAt]()

    def offer(self: SharedMemory, size: int) -> None:
        if dies == "no memory":
            raise OSError("no such memory")
        role["keeper"] = True
        _real_offer(self, size)

    def at(cls: type[SharedSum], where: SharedAt, empty: ExactSum) -> SharedSum:
        if dies == "no entry" and once(mark):
            raise PermissionError("not yours")
        if opened:
            (Path(opened) / str(os.getpid())).touch()
        if dies == "sender" and where in tokens and once(mark):
            os._exit(1)
        tokens.add(where)
        found: SharedSum = _real_at(cls, where, empty)
        own["sum"] = np.zeros_like(found.values)
        return found

    def add(self: SharedSum, start: int, numbers: Any) -> None:
        mine, until = dies == ("keeper" if role["keeper"] else "other"), time.monotonic() + 20
        while mine and not os.path.exists(mark) and not (self.values != own["sum"]).any() and time.monotonic() < until:
            time.sleep(0.01)
        others = bool((self.values != own["sum"]).any())
        _real_add(self, start, numbers)
        own["sum"][start : start + len(numbers)] += numbers
        if (mine or dies == "any") and others and once(mark):
            os._exit(1)

    SharedMemory.__init__ = offer  # type: ignore[method-assign]
    SharedSum.at = classmethod(at)  # type: ignore[assignment]
    SharedSum._add_at = add  # type: ignore[method-assign]
