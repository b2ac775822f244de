"""What a client signs for each update that leaves it: what left, what was run for it, and under which charge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedray.aggregation.each import Rows
from fedray.clients.messages import ClientReport, Collected, RoundTask
from fedray.errors import FedrayError
from fedray.exchange import Exchange
from fedray.parameters import fingerprint
from fedray.privacy.receiptchain import ReceiptChain
from fedray.secure.identities import read_key


@dataclass(frozen=True)
class SigningPlace:
    """Where a client's key and its chain of receipts are, on its own machine.

    Attributes:
        key: file of the private key.
        chain: file of the receipts.
        pinned: hash of a receipt of this run that the chain must hold (the driver knows it).
    """

    key: str
    chain: str
    pinned: str | None = None


class ReceiptSigner:
    """Signs for one client.

    Args:
        place: of its key and its receipts.
        client: its name.
        job: name of the run, followed by ``/n`` for its n-th start.

    Raises:
        ConfigError: the key cannot be used.
        LedgerError: the receipts cannot be gone on with; see :class:`fedray.privacy.receiptchain.ReceiptChain`.
    """

    def __init__(self, place: SigningPlace, client: str, job: str) -> None:
        own = read_key(Path(place.key), "clients.signing.key")
        self._chain = ReceiptChain(Path(place.chain), own, client, job, place.pinned)
        self._turns: dict[int, tuple[RoundTask, ClientReport]] = {}

    def trained(self, task: RoundTask, reports: Sequence[ClientReport]) -> None:
        """Take down whose updates were added to the part that leaves next."""
        self._turns |= {report.index: (task, report) for report in reports if report.status == "done"}

    def leaving(self, total: Collected, clients: Sequence[int], terms: str, exchange: Exchange) -> bytes:
        """The receipt for the part that leaves now, as a line that is on disk already; empty where no update is in it.

        Args:
            total: what leaves.
            clients: whose updates are in it.
            terms: hash of the terms by which the client works.
            exchange: the exchanged fields.

        Raises:
            FedrayError: updates of several turns are in it, which one receipt cannot stand for.
        """
        if not clients:
            return b""
        if len(clients) != 1:
            raise FedrayError("a part with the updates of several turns was to leave, and a signed receipt is for one update alone.")
        task, report = self._turns.pop(clients[0])
        said = {
            "round": task.round,
            "attempt": report.attempt,
            "terms": terms,
            "task": task.agreed(exchange),
            "secure": None if task.secure is None else dict(task.secure),
            "ran": {unit: dict(receipt) for unit, receipt in report.receipts.items()},
            "update": what_left(total),
        }
        return self._chain.sign(said).line

    def after(self, number: int) -> Sequence[bytes]:
        """This run's receipts after its ``number``-th."""
        return self._chain.after(number)

    def close(self) -> None:
        """Let go of the file of receipts."""
        self._chain.close()


def what_left(total: Collected) -> Mapping[str, Any]:
    """What a receipt says of an update: its form, its length, its weight, and the SHA-256 of its bytes (little-endian), as JSON data."""
    if isinstance(total, Rows):
        return {"form": "float32", "values": total.size, "weight": total.weight, "sha256": fingerprint(*total.blocks)}
    about = {"values": len(total.values), "bits": total.bits, "weight": total.weight}
    if not total.readable:
        return {"form": "sealed", **about, "sha256": sha256(total.data()).hexdigest()}
    return {"form": "int64", **about, "sha256": fingerprint(total.values)}
