"""What clients keep between their turns: vectors in files that only grow, one for each actor and round.

A turn appends its client's new state and reports the address; the driver decides which addresses count. So a turn whose update was
lost leaves the client's earlier state as it was, and any actor can train any client.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.errors import FedrayError
from fedray.parameters import Vector

_LENGTH = 4  # bytes that say how long the names' JSON is


class StateAddress(NamedTuple):
    """Where one client's state lies.

    Attributes:
        file: name of the file.
        offset, size: of the state in it, in bytes.
        sha256: of these bytes, hexadecimal.
    """

    file: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class StatePlace:
    """Where the states of a run are.

    Attributes:
        directory: their directory on the driver's node.
        node: what Ray calls that node; empty where every process reaches the directory.
        keeper: an actor there (:class:`StateFiles`), for actors of other nodes.
    """

    directory: str
    node: str = ""
    keeper: Any = None


def keep_states(directory: str) -> StatePlace:
    """A place for states: a directory on this node, with a keeper for the actors of other nodes."""
    here = ray.get_runtime_context().get_node_id()
    options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
    return StatePlace(directory, here, ray.remote(StateFiles).options(**options).remote(directory))


class StateFiles:
    """Appends states to files of its own, and reads all.

    Args:
        directory: of the files.
    """

    def __init__(self, directory: str) -> None:
        self._directory, self._own = Path(directory), uuid.uuid4().hex
        self._name = ""

    def append(self, round_: int, state: Mapping[str, Vector]) -> StateAddress:
        """Keep a client's state, float32 vectors by name.

        Args:
            round_: number of the round; each has files of its own, so that old ones can be deleted.
            state: what is kept.
        """
        names = json.dumps([[name, len(vector)] for name, vector in state.items()]).encode()
        vectors = [np.ascontiguousarray(vector, dtype="<f4").tobytes() for vector in state.values()]
        content = b"".join([len(names).to_bytes(_LENGTH, "little"), names, *vectors])
        self._name = f"{round_:06d}-{self._own}.state"
        self._directory.mkdir(parents=True, exist_ok=True)
        with open(self._directory / self._name, "ab") as file:
            offset = file.tell()
            file.write(content)
        return StateAddress(self._name, offset, len(content), hashlib.sha256(content).hexdigest())

    def read(self, address: StateAddress) -> dict[str, Vector]:
        """The state at an address, float32 vectors by name.

        Raises:
            FedrayError: it is gone, or it is not what was written.
        """
        path = self._directory / address.file
        try:
            with open(path, "rb") as file:
                content = os.pread(file.fileno(), address.size, address.offset)
        except OSError as error:
            raise FedrayError(f"{path}: a client's state cannot be read ({error.strerror}); bring the file back.") from None
        if hashlib.sha256(content).hexdigest() != address.sha256:
            raise FedrayError(f"{path}: a client's state is not what was written; the file is damaged. Bring it back from a copy.")
        start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
        found: dict[str, Vector] = {}
        for name, size in json.loads(content[_LENGTH:start]):
            found[name] = np.frombuffer(content, dtype="<f4", count=size, offset=start).astype(np.float32)
            start += 4 * size
        return found


class KeptStates:
    """The same from another node, by way of the keeper.

    Args:
        keeper: the actor.
    """

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def append(self, round_: int, state: Mapping[str, Vector]) -> StateAddress:
        """See :meth:`StateFiles.append`."""
        found: StateAddress = ray.get(self._keeper.append.remote(round_, dict(state)))
        return found

    def read(self, address: StateAddress) -> dict[str, Vector]:
        """See :meth:`StateFiles.read`."""
        found: dict[str, Vector] = ray.get(self._keeper.read.remote(address))
        return found


def states_at(place: StatePlace, node: str) -> StateFiles | KeptStates:
    """How a process on ``node`` reaches the states of a run."""
    return StateFiles(place.directory) if place.keeper is None or place.node == node else KeptStates(place.keeper)
