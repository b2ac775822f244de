"""Secure aggregation whose members write their secrets to files that only the test reads, and whose driver waits where the test looks into it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fedray.algorithms.algorithm import Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import Turn
from fedray.secure.protocol import Ask, Conduct, Correction, Order, Ring
from fedray.secure.roster import Roster
from fedray.secure.secagg import SecAgg
from fedray.secure.secagg_member import SecAggMember
from fedray.secure.signing import Signer
from fedray.secure.wire import unpack


@dataclass(frozen=True)
class Telling(SecAgg):
    """Secure aggregation.

    Attributes:
        where: directory of the files.
        drops: name of a client that ends its process after it has trained, before its masked update is added to a sum.
    """

    where: str = ""
    drops: str = ""

    def enrol(self, client: str) -> Callable[[Order, int], SecAggMember]:
        """See :class:`SecAgg`."""
        maker = super().enrol(client)
        signer = maker.keywords["signer"] if isinstance(maker, partial) else None
        return lambda order, number: TellingMember(self, client, self.roster, order, number, signer)

    def conduct(self, order: Order, members: int) -> Conduct:
        """Wait before the answers of each phase are used, and once the masks are off."""
        conduct = super().conduct(order, members)
        step = next(conduct)
        while True:
            said = yield step
            self._wait(step.phase if isinstance(step, Ask) else "train")
            try:
                step = conduct.send(said)
            except StopIteration as end:
                return partial(self._correct, end.value)

    def _correct(self, correction: Correction, values: Ring) -> None:
        correction(values)
        self._wait("done")

    def _wait(self, phase: str) -> None:
        where = Path(self.where)
        (where / f"{phase}.at").write_text(str(os.getpid()))
        while not (where / f"{phase}.go").exists():
            time.sleep(0.02)


class TellingMember(SecAggMember):
    """A member that tells the test what nobody else may know."""

    def __init__(
        self,
        protocol: Telling,
        client: str,
        make_roster: Callable[[Order, bytes], Roster],
        order: Order,
        number: int,
        signer: Signer | None,
    ) -> None:
        super().__init__(make_roster, order, number, signer)
        self._protocol, self._client = protocol, client
        own = self._secrets
        self._tell("channel", own.channel.private_bytes_raw())
        self._tell("pairs", own.pairs.private_bytes_raw())
        self._tell("seed", own.seed)
        self._tell("public", own.pairs.public_key().public_bytes_raw())

    def answer(self, phase: str, message: bytes) -> bytes:
        said = super().answer(phase, message)
        if phase == "shares":
            for other, key in self._secrets.channels.items():
                self._tell(f"channel-{other}", key)
        return said

    def ready(self, inbox: bytes, model: bytes) -> None:
        super().ready(inbox, model)
        assert self._masks is not None
        plus, minus = iter(self._masks[0][1:]), iter(self._masks[1])
        for other in unpack(inbox):
            self._tell(f"pair-{other}", next(plus if other > self._number else minus))

    def mask(self, values: Ring) -> None:
        self._tell("update", values.tobytes())
        if self._client == self._protocol.drops:
            os._exit(1)
        super().mask(values)
        self._tell("masked", values.tobytes())

    def _tell(self, what: str, secret: bytes) -> None:
        (Path(self._protocol.where) / f"{self._client}.{self._number}.{what}").write_bytes(secret)


@dataclass(frozen=True)
class TellingFedAvg(FedAvg):
    """FedAvg whose clients write down how far their model has moved.

    Attributes:
        where: directory of the files.
    """

    where: str = ""

    def local(self, turn: Turn) -> Update:
        """See :class:`FedAvg`."""
        update = super().local(turn)
        for name, values in update.values.items():
            vector = values if isinstance(values, np.ndarray) else values.vector()
            (Path(self.where) / f"{turn.client}.{name}.float").write_bytes(vector.astype(np.float32).tobytes())
        return update
