"""What the driver and the client actors send each other. Plain data, so that the transport can change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedray.aggregation.exact import ExactSum
from fedray.privacy.mechanisms.base import ClientStep

Status = Literal["done", "failed", "rejected", "late", "lost", "refused"]


@dataclass(frozen=True)
class RoundTask:
    """What every client of a round is told beside the weights.

    Attributes:
        round: number of the round, from 0.
        capacity: the weight that the exact sum is laid out for; the same for every part of a round.
        step: what is done to each update before it leaves, where whole clients are protected.
        plan: hash of that guarantee's plan.
    """

    round: int
    capacity: float
    step: ClientStep | None = None
    plan: str | None = None

    def empty_sum(self, dimension: int) -> ExactSum:
        """What the parts of this round start from, for updates of ``dimension`` values."""
        if self.step is None:
            return ExactSum.zero(dimension, self.capacity)
        size = self.step.size(dimension)
        return ExactSum.of_integers(size, self.capacity) if self.step.integer else ExactSum.zero(size, self.capacity)


@dataclass(frozen=True)
class ClientTask:
    """One client's turn.

    Attributes:
        index, name: of the client.
        attempt: how often it was tried before in this round.
        reservations: unit (record, client) to the hash of the ledger's entry that charges this turn.
        steps: local steps, where fewer than the plan's were charged.
    """

    index: int
    name: str
    attempt: int = 0
    reservations: tuple[tuple[str, str], ...] = ()
    steps: int | None = None


@dataclass(frozen=True)
class ClientReport:
    """How one client's turn went.

    ``loss`` is None under differential privacy: it is computed from private records.
    ``traceback`` is the client's own, for ``failed``. ``receipts`` say for each protected unit what was run.
    """

    index: int
    name: str
    status: Status
    attempt: int = 0
    records: int = 0
    seconds: float = 0.0
    loss: float | None = None
    error: str = ""
    traceback: str = ""
    node: str = ""
    receipts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """The sum over the clients that one actor trained in a round, and who they are."""

    round: int
    total: ExactSum
    clients: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class HostInfo:
    """What an actor says of itself when it is ready.

    The fields from ``records`` on describe the data that it loaded itself (dedicated placement).
    """

    node: str
    pid: int
    device: str
    threads: int
    records: int | None = None
    shape: tuple[int, ...] | None = None
    classes: int | None = None
    columns: tuple[str, ...] = ()
    tokens: bool = False
    class_counts: list[int] | None = None


@dataclass(frozen=True)
class LocalEvaluation:
    """Metrics of one client's held-out records."""

    name: str
    records: int
    metrics: dict[str, float]
