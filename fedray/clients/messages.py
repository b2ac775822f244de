"""What the driver and the client actors send each other. Plain data, so that the transport can change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedray.aggregation.exact import ExactSum

Status = Literal["done", "failed", "rejected", "late", "lost", "refused"]


@dataclass(frozen=True)
class RoundTask:
    """What every client of a round is told beside the weights.

    Attributes:
        round: number of the round, from 0.
        capacity: the weight that the exact sum is laid out for; the same for every part of a round.
    """

    round: int
    capacity: float


@dataclass(frozen=True)
class ClientTask:
    """One client's turn: index and name, and how often it was tried before in this round."""

    index: int
    name: str
    attempt: int = 0


@dataclass(frozen=True)
class ClientReport:
    """How one client's turn went.

    ``loss`` is None under differential privacy: it is computed from private records.
    ``traceback`` is the client's own, for ``failed``.
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
