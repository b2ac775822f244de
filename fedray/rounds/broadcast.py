"""What is broadcast: the globals, in the versions of the model that clients start from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import ray

from fedray.parameters import Vector
from fedray.updates.download import Download, PackedGlobals

#: Bytes of globals up to which they travel within each call: Ray would do the same with a call's argument, but not with an object.
_SMALL = 60_000


class Broadcast:
    """The globals.

    Args:
        version: of the model, the number of rounds that are done.
        globals_: of that version, all fields that are broadcast, the model first, float32 ``[exchange.down_size]``.
        in_store: reference of them, where they lie in the object store already.
        earlier: globals of earlier versions that clients who still train have started from, as these received them, by version.
        download: how the globals go down; None: as they are.

    Attributes:
        globals: the newest, as the server has them.
        versions: the globals as arguments of calls to actors, which receive them decoded, by version.
        sent: bytes of the newest globals as they travel.
    """

    def __init__(
        self,
        version: int,
        globals_: Vector,
        in_store: Any = None,
        earlier: Mapping[int, Vector] | None = None,
        download: Download | None = None,
    ) -> None:
        self.globals, self._newest, self._download, self.sent = globals_, version, download, globals_.nbytes
        self.versions = {number: _argument(given) for number, given in (earlier or {}).items()}
        if in_store is not None and download is None:
            self.versions[version] = in_store

    @property
    def newest(self) -> Any:
        """The newest globals as an argument of calls to actors."""
        return self.versions[self._newest]

    @property
    def whole(self) -> Any:
        """The newest globals as the server has them, as an argument of calls to actors."""
        return self.newest if self._download is None else _argument(self.globals)

    def share(self, version: int, needed: Collection[int] = ()) -> None:
        """Put the globals, which are those of ``version`` now, where actors get them, unless they are there: into the store, from which a
        node fetches them once, or, where they are few, into each call.

        In the store they lie once for all processes of this node, this one among them.

        Args:
            version: see above.
            needed: earlier versions that are kept, too.
        """
        self._newest = version
        for other in set(self.versions) - {version, *needed}:
            del self.versions[other]
        if version not in self.versions:
            travels = self.globals if self._download is None else self._download.packed(self.globals, version)
            shared, self.sent = _argument(travels), travels.nbytes
            self.versions[version] = shared
            if travels is self.globals and not isinstance(shared, np.ndarray):
                self.globals = ray.get(shared)

    def trained(self, needed: Collection[int]) -> None:
        """A round was trained: unless its globals are ``needed`` by clients who still train, the store has room again when the next ones come.

        This process still has them open.
        """
        if self._newest not in needed:
            self.versions.pop(self._newest, None)

    def earlier(self) -> dict[int, Vector]:
        """The globals of earlier versions that are kept, as clients received them."""
        return {number: _received(given) for number, given in self.versions.items() if number != self._newest}


def _argument(globals_: Vector | PackedGlobals) -> Any:
    if globals_.nbytes > _SMALL:
        return ray.put(globals_)
    return globals_.copy() if isinstance(globals_, np.ndarray) else globals_


def _received(given: Any) -> Vector:
    """What an actor has that was called with this argument."""
    if isinstance(given, PackedGlobals):
        return given.whole()
    return given if isinstance(given, np.ndarray) else ray.get(given)
