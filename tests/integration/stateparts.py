"""An algorithm with client state whose actor dies once, for the tests of client state."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedray.algorithms.algorithm import Update
from fedray.algorithms.scaffold import Scaffold
from fedray.algorithms.turn import Turn


def end_once(mark: str) -> None:
    """End this process, unless the file ``mark`` says that one has ended before; it is made."""
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return
    os._exit(1)


@dataclass(frozen=True)
class Dying(Scaffold):
    """SCAFFOLD; the first turn of round 1 with a state that finds no file ``mark`` makes it and ends its actor, after it has trained.

    Attributes:
        mark: path of the file.
    """

    mark: str = ""

    def local(self, turn: Turn) -> Update:
        update = super().local(turn)
        if turn.number == 1 and turn.state is not None:
            end_once(self.mark)
        return update
