"""Which state of each client counts: a table of addresses, which the driver alone changes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedray.clients.messages import ClientReport, ClientTask
from fedray.clients.states import StateAddress
from fedray.errors import FedrayError
from fedray.parameters import Values

_PREFIX = "states."


class ClientStates:
    """The addresses of the states that count.

    A state counts from the moment at which its client's update does. Files without a state that counts are deleted, once no checkpoint
    that is kept names them.

    Args:
        directory: of the states' files, on this node.
        keep: number of checkpoints that are kept.
        saved: :meth:`tensors` of the checkpoint that the run goes on from.

    Raises:
        FedrayError: a file that the checkpoint names is gone or has been cut.
    """

    def __init__(self, directory: Path, keep: int, saved: Mapping[str, Values] | None = None) -> None:
        self._directory, self._saved = directory, deque[frozenset[str]](maxlen=max(1, keep))
        self._table, self._on_disk = _loaded(saved or {}), set[str]()
        for address in self._table.values():
            path = directory / address.file
            if not path.exists() or path.stat().st_size < address.offset + address.size:
                raise FedrayError(f"{path}: the checkpoint names client state in it that is gone; bring the file back from a copy.")

    def attached(self, cohort: Sequence[ClientTask]) -> list[ClientTask]:
        """The tasks, each with the address of its client's state."""
        return [client._replace(state=self._table.get(client.index)) for client in cohort]

    def commit(self, reports: Sequence[ClientReport], counted: Sequence[int]) -> None:
        """Take the new states of the clients whose updates count.

        Args:
            reports: of the round, in the order in which they came.
            counted: indices of the clients whose update is in the sum.
        """
        last = {r.index: r.state for r in reports if r.status == "done"}
        self._table |= {index: state for index in counted if (state := last.get(index)) is not None}

    def tensors(self) -> dict[str, Values]:
        """The table for a checkpoint; a file's name takes as many bytes as it has. What it names is on the disk afterwards."""
        if not self._table:
            return {}
        files = sorted({address.file for address in self._table.values()})
        for name in files:
            if name not in self._on_disk:  # the file of an earlier round does not grow any more
                with open(self._directory / name, "rb") as file:
                    os.fsync(file.fileno())
        self._on_disk = set(files)
        rows = sorted(self._table.items())
        position = {name: n for n, name in enumerate(files)}
        return {
            f"{_PREFIX}client": np.array([index for index, _ in rows], dtype=np.int64),
            f"{_PREFIX}at": np.array([[position[a.file], a.offset, a.size] for _, a in rows], dtype=np.int64),
            f"{_PREFIX}sha256": np.frombuffer(bytes.fromhex("".join(a.sha256 for _, a in rows)), dtype=np.uint8).reshape(-1, 32),
            f"{_PREFIX}files": np.frombuffer("\n".join(files).encode(), dtype=np.uint8),
        }

    def checkpointed(self, rounds: int) -> None:
        """Delete files that nothing needs, after a checkpoint.

        Args:
            rounds: completed rounds; files of later ones are still written.
        """
        self._saved.append(frozenset(address.file for address in self._table.values()))
        if len(self._saved) < (self._saved.maxlen or 1):  # an earlier start's checkpoints may name others
            return
        needed = frozenset[str]().union(*self._saved)
        for path in self._directory.glob("*.state"):
            if path.name not in needed and int(path.name.partition("-")[0]) < rounds:
                path.unlink(missing_ok=True)


def _loaded(saved: Mapping[str, Values]) -> dict[int, StateAddress]:
    if f"{_PREFIX}client" not in saved:
        return {}
    files = bytes(saved[f"{_PREFIX}files"]).decode().split("\n")
    rows = zip(saved[f"{_PREFIX}client"].tolist(), saved[f"{_PREFIX}at"].tolist(), saved[f"{_PREFIX}sha256"], strict=True)
    return {index: StateAddress(files[file], offset, size, bytes(digest).hex()) for index, (file, offset, size), digest in rows}
