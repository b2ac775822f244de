"""What clients have kept, as the newest checkpoint of a run names it."""

from __future__ import annotations

from pathlib import Path

from fedray.checkpoint import load_latest
from fedray.clients.messages import ClientTask
from fedray.clients.states import StateFiles
from fedray.rounds.clientstates import ClientStates


def kept(output: Path, name: str, clients: int = 6) -> dict[int, bytes]:
    """The vector called ``name`` of each of the run's ``clients`` that keeps a state, by index."""
    saved = load_latest(output / "checkpoints")
    assert saved is not None
    states, files = ClientStates(output / "states", 1, saved.states), StateFiles(str(output / "states"))
    found = {t.index: t.state for t in states.attached([ClientTask(i, str(i)) for i in range(clients)]) if t.state is not None}
    return {index: files.read(state)[name].tobytes() for index, state in found.items()}
