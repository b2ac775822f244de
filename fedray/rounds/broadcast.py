"""What is broadcast: the globals, in the versions of the model that clients start from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import ray

from fedray.parameters import Vector

#: Bytes of globals up to which they travel within each call: Ray would do the same with a call's argument, but not with an object.
_SMALL = 60_000


class Broadcast:
    """The globals.

    Args:
        version: of the model, the number of rounds that are done.
        globals_: of that version, all fields that are broadcast, the model first, float32 ``[exchange.down_size]``.
        in_store: reference of them, where they lie in the object store already.
        earlier: globals of earlier versions that clients who still train have started from, by version.

    Attributes:
        globals: the newest.
        versions: the globals as arguments of calls to actors, by version.
    """

    def __init__(self, version: int, globals_: Vector, in_store: Any = None, earlier: Mapping[int, Vector] | None = None) -> None:
        self.globals, self._newest = globals_, version
        self.versions = {number: _argument(given) for number, given in (earlier or {}).items()}
        if in_store is not None:
            self.versions[version] = in_store

    @property
    def newest(self) -> Any:
        """The newest globals as an argument of calls to actors."""
        return self.versions[self._newest]

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
            shared = self.versions[version] = _argument(self.globals)
            self.globals = self.globals if isinstance(shared, np.ndarray) else ray.get(shared)

    def trained(self, needed: Collection[int]) -> None:
        """A round was trained: unless its globals are ``needed`` by clients who still train, the store has room again when the next ones come.

        This process still has them open.
        """
        if self._newest not in needed:
            self.versions.pop(self._newest, None)

    def earlier(self) -> dict[int, Vector]:
        """The globals of earlier versions that are kept."""
        kept = {number: given for number, given in self.versions.items() if number != self._newest}
        return {number: given if isinstance(given, np.ndarray) else ray.get(given) for number, given in kept.items()}


def _argument(globals_: Vector) -> Any:
    return globals_.copy() if globals_.nbytes <= _SMALL else ray.put(globals_)
