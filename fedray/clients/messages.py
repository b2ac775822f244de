"""What the driver and the client actors send each other. Plain data, so that the transport can change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Rows
from fedray.aggregation.exact import FULL, ExactSum
from fedray.aggregation.shared import SharedAt, SharedSum
from fedray.aggregation.sparse import SparseValues
from fedray.clients.states import StateAddress
from fedray.config import Training
from fedray.data.silos import Silo
from fedray.exchange import Exchange
from fedray.traits import Wants
from fedray.updates.stage import Stage

#: A member's number in a protocol, and what it is asked.
Inquiry = tuple[int, bytes]
#: What an actor adds updates to.
Collected = ExactSum | Rows
Status = Literal["done", "failed", "rejected", "late", "lost", "refused", "withdrawn", "surplus"]


@dataclass(frozen=True)
class RoundTask:
    """What every client of a round is told beside the weights.

    Attributes:
        round: number of the round, from 0; it names all draws of its clients' turns.
        capacity: the weight that the exact sum is laid out for; the same for every part of a round.
        stages: what each update goes through before it is added up, in their order.
        plan: hash of the plan of a guarantee for whole clients, whose mechanism is one of the stages then.
        clients: size of the population, which no cohort exceeds.
        collect: what a part holds: the sum of its clients' updates, or each of them.
        segments: into how many ranges of columns single updates are cut.
        behind: steps that the model has made since the clients started, so that their updates go into the sum of round ``round + behind``.
        attempt: how often the round was begun before, because too few clients of a secure sum were left.
        secure: constants of the protocol under which clients mask their updates; None: they are added up as they are.
    """

    round: int
    capacity: float
    stages: tuple[Stage, ...] = ()
    plan: str | None = None
    clients: int = 0
    collect: Wants = "sum"
    segments: int = 1
    behind: int = 0
    attempt: int = 0
    secure: Mapping[str, Any] | None = None

    def started(self, version: int) -> RoundTask:
        """The task of this round for clients that start from an earlier ``version`` of the model: their turns are those of that round."""
        return self if version == self.round else replace(self, round=version, behind=self.round - version)

    def empty_part(self, exchange: Exchange) -> Collected:
        """What a part of this round starts from."""
        if self.collect == "sum":
            return self.empty_sum(exchange)
        return Rows(self.size(exchange))

    def empty_sum(self, exchange: Exchange) -> ExactSum:
        """What a sum of this round starts from."""
        size = self.size(exchange)
        if self.integer:
            return ExactSum.of_integers(size, self.capacity)
        return ExactSum.zero(size, self.capacity, None if self.weighed else exchange.ones_from, self.clients)

    def size(self, exchange: Exchange) -> int:
        """Number of values of what a client sends, after the stages."""
        size = exchange.up_size
        for stage in self.stages:
            size = stage.size(size)
        return size

    @property
    def integer(self) -> bool:
        """Whether integers of a ring are added up."""
        return any(stage.integer for stage in self.stages)

    @property
    def weighed(self) -> bool:
        """Whether updates are weighed by a stage, and each is added with weight 1."""
        return any(stage.weighs for stage in self.stages)

    @property
    def sparse(self) -> bool:
        """Whether parts travel as positions and values where that is smaller. Not where whole clients are protected: who took part would
        show in their sizes.
        """
        return self.plan is None and self.secure is None and any(stage.support != "all" for stage in self.stages)

    def receipt(self, unit: str) -> dict[str, Any]:
        """What a receipt for a protected unit must say of the stages: for whole clients the plan and the mechanism's constants, and for
        both units the constants of the other stages, where there are any.
        """
        others = {key: value for s in self.stages if s.place != "linear" for key, value in s.terms().items()}
        said: dict[str, Any] = {"stages": others} if others else {}
        if self.secure is not None:
            said["secure"] = dict(self.secure)
        if unit != "client":
            return said
        return {"plan": self.plan, **{key: value for s in self.stages if s.place == "linear" for key, value in s.terms().items()}, **said}

    def agreed(self, exchange: Exchange) -> str:
        """SHA-256 of all that decides what an update in this round's sum is, in hex: members of a secure sum must agree on it."""
        said = {"exchange": exchange.sha256, "capacity": self.capacity, "clients": self.clients, **self.receipt("client")}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class ClientTask(NamedTuple):
    """One client's turn. A tuple, as :class:`ClientReport`: there may be thousands a round, which are made and sent in a fraction of the time.

    Attributes:
        index, name: of the client.
        attempt: how often it was tried before in this round.
        reservations: unit (record, person, client) to the hash of the ledger's entry that charges this turn.
        steps: local steps, where fewer than the plan's were charged.
        state: where what the client keeps between its turns lies; None if there is nothing.
        halvings: how often the physical batch is halved, because actors were killed for the memory that this client took.
        version: of the model that it starts from, the number of steps that this has made; None: the round's.
        factor: by which its update counts, of :data:`fedray.aggregation.exact.FULL`.
        epochs: passes over its records, where they are fewer than its training section says.
    """

    index: int  # type: ignore[assignment]
    name: str
    attempt: int = 0
    reservations: tuple[tuple[str, str], ...] = ()
    steps: int | None = None
    halvings: int = 0
    state: StateAddress | None = None
    version: int | None = None
    factor: int = FULL
    epochs: int | None = None

    def section(self, training: Training) -> Training:
        """The training section as it is in this turn."""
        fewer = {name: value for name, value in (("steps", self.steps), ("epochs", self.epochs)) if value is not None}
        return training.model_copy(update=fewer) if fewer else training


class ClientReport(NamedTuple):
    """How one client's turn went.

    ``withdrawn`` is a client that has withdrawn its data; ``error`` is its sentence. ``surplus`` is a client that was asked beyond the number that counts, and came after the others.
    ``loss`` is None under differential privacy: it is computed from private records.
    ``traceback`` is the client's own, for ``failed``. ``receipts`` say for each protected unit what was run.
    ``physical_batch`` is what fitted into memory, where that was less than the config's.
    ``state`` is where the client's new state lies, which counts if the update does.
    ``signed`` is the client's signed receipt of a single update, where clients sign; that of a sum is with the sum.
    """

    index: int  # type: ignore[assignment]
    name: str
    status: Status
    attempt: int = 0
    records: int = 0
    seconds: float = 0.0
    loss: float | None = None
    error: str = ""
    traceback: str = ""
    node: str = ""
    receipts: Mapping[str, Mapping[str, Any]] = {}
    physical_batch: int | None = None
    state: StateAddress | None = None
    signed: bytes = b""


@dataclass(frozen=True)
class PartialSum:
    """The sum over the clients that one actor, or the actors of one node, trained in a round, or each one's update, and who they are.

    Attributes:
        round: number of the round.
        total: the sum, or the updates in the order of ``clients``. Where ``shared`` is set and it comes from an actor, it has no
            values, but the weight and count of what the actor added.
        clients: who was added.
        shared: where the values lie, to which others of the node add, too.
        sparse: the values travel as positions and values of those that are not zero, where that is smaller.
        travelled: bytes of the values on their way, where they travel otherwise than as integers of 64 bits each.
        signed: the client's signed receipt, where clients sign; the part is of that client alone.
    """

    round: int
    total: Collected
    clients: list[int] = field(default_factory=list)
    shared: SharedAt | None = None
    sparse: bool = False
    travelled: int = 0
    signed: bytes = b""

    def to_send(self) -> PartialSum:
        """The part without values that lie where the receiver finds them."""
        if self.shared is None or isinstance(self.total, Rows):
            return self
        return replace(self, total=_with_values(self.total, np.zeros(0, dtype=np.int64)))

    def __reduce__(self) -> Any:
        """A sparse part is packed for the way, and dense again where it arrives."""
        total = self.total
        packed = SparseValues.of(total.values) if self.sparse and isinstance(total, ExactSum) else None
        if packed is None or isinstance(total, Rows):
            return PartialSum, (self.round, total, self.clients, self.shared, self.sparse, self.travelled, self.signed)
        return _arrived, (self.round, _with_values(total, packed.values), self.clients, packed.positions, packed.size, self.signed)


def _arrived(
    round_: int, total: ExactSum, clients: list[int], positions: npt.NDArray[np.uint32], size: int, signed: bytes = b""
) -> PartialSum:
    packed = SparseValues(size, positions, total.values)
    return PartialSum(round_, _with_values(total, packed.dense()), clients, None, True, packed.nbytes, signed)


def _with_values(total: ExactSum, values: npt.NDArray[np.int64]) -> ExactSum:
    return ExactSum(values, total.weight, total.count, total.bits, total.capacity, total.ones_from, total.ones_bits)


def added_up(parts: Sequence[PartialSum]) -> PartialSum:
    """Parts of actors of this node as one.

    Raises:
        OSError: a sum that they share is gone.
    """
    total: ExactSum | None = None
    for where in dict.fromkeys(part.shared for part in parts):
        ours = [part.total for part in parts if part.shared == where and isinstance(part.total, ExactSum)]
        if where is None:
            found = replace(ours[0], values=ours[0].values.copy())
            for one in ours[1:]:
                found.merge(one)
        else:
            found = SharedSum.at(where, replace(ours[0], values=np.zeros(where.size, dtype=np.int64)))
            found.weight, found.count = sum(t.weight for t in ours), sum(t.count for t in ours)
        total = found if total is None else total.joined(found)
    assert total is not None
    clients, travelled = [index for part in parts for index in part.clients], 0 if parts[0].sparse else parts[0].travelled
    return PartialSum(parts[0].round, total, clients, sparse=parts[0].sparse, travelled=travelled)


@dataclass(frozen=True)
class HostInfo:
    """What an actor says of itself when it is ready; ``node`` is a host's name, ``node_id`` what Ray calls the node.

    ``silo`` and ``class_counts`` describe the data that it loaded itself (dedicated placement). ``terms`` is the hash of the terms by
    which it works (:class:`fedray.clients.terms.Terms`). ``changed`` says what of its data is not as registered; empty if nothing is.
    ``withdrawn`` says that it has withdrawn its data; empty if it has not.
    """

    node: str
    pid: int
    device: str
    threads: int
    silo: Silo | None = None
    class_counts: list[int] | None = None
    node_id: str = ""
    terms: str = ""
    changed: str = ""
    withdrawn: str = ""


@dataclass(frozen=True)
class LocalEvaluation:
    """Metrics of one client's held-out records: NaN where one is not defined for them, with why in ``failed`` where it raised an error.

    A metric of a further model has that before its name, as in ``global/accuracy``; see :data:`fedray.clientfigures.MODELS`. ``cluster`` says
    which of several global models the client takes; None where there is one.
    """

    name: str
    records: int
    metrics: dict[str, float]
    failed: dict[str, str] = field(default_factory=dict)
    cluster: int | None = None


@dataclass(frozen=True)
class NoisedEvaluation:
    """What a client tells of its held-out records under privacy.

    Attributes:
        name: of the client.
        records: public number of its held-out records.
        sums: of each statistic by name, in grid units, with noise; empty where there is a problem.
        receipt: of what was charged, for the ledger; None where there is a problem.
        problem: why it tells nothing, as a sentence; empty where it does.
        charged: it is charged all the same.
    """

    name: str
    records: int = 0
    sums: dict[str, list[int]] = field(default_factory=dict)
    receipt: dict[str, Any] | None = None
    problem: str = ""
    charged: bool = False


Message = TypeVar("Message", ClientTask, ClientReport)


def by_version(number: int, clients: Sequence[ClientTask]) -> Mapping[int, Sequence[ClientTask]]:
    """Clients by the version of the model that they start from, in the order in which the versions appear; ``number`` is the round's."""
    if {client.version for client in clients} <= {None}:
        return {number: clients}
    found: dict[int, list[ClientTask]] = {}
    for client in clients:
        found.setdefault(number if client.version is None else client.version, []).append(client)
    return found


class Packed(list[Message]):
    """A list of messages that travels as bare tuples, and arrives as a list: pickle, as Ray uses it, calls Python for each object of a class."""

    def __reduce__(self) -> Any:
        return _unpacked, (type(self[0]) if self else None, [tuple(message) for message in self])


def _unpacked(cls: type[Message], rows: Sequence[tuple[Any, ...]]) -> list[Message]:
    return [cls._make(row) for row in rows]
