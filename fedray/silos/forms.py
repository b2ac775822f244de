"""How the things that a run and its silos exchange travel, where that is not field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Rows
from fedray.aggregation.exact import ExactSum
from fedray.aggregation.sealed import SealedSum
from fedray.aggregation.sparse import SparseValues
from fedray.clients.messages import PartialSum
from fedray.clients.terms import Terms
from fedray.config import Config
from fedray.models.facts import ModelFacts
from fedray.privacy.account import Decision, Reservation
from fedray.privacy.accounting.event_json import from_json, to_json
from fedray.privacy.accounting.events import Event
from fedray.privacy.ledger.chain import Withdrawal
from fedray.privacy.mechanisms.central import Clipped
from fedray.privacy.mechanisms.distributed import RingStep
from fedray.privacy.mechanisms.local_noise import GaussianStep, PrivUnitStep
from fedray.secure.ciphertexts import Ciphertexts
from fedray.silos.codec import Codec, Form
from fedray.updates.pipeline import make_stages
from fedray.updates.stage import Stage

_SECTIONS = {"lossy": "compression", "bound": "bound"}


@dataclass(frozen=True)
class ConfiguredStage:
    """A stage that the run's config names: the other side makes it from its own copy of the terms."""

    section: Literal["compression", "bound"]


@dataclass(frozen=True)
class SumGrid:
    """What a sum is besides its values; see :class:`ExactSum`."""

    size: int
    weight: float
    count: int
    bits: int
    capacity: float
    ones_from: int | None
    ones_bits: int


@dataclass(frozen=True)
class DenseSum:
    """All values of a sum, int64 ``[size]``."""

    grid: SumGrid
    values: npt.NDArray[np.int64]


@dataclass(frozen=True)
class FewValues:
    """The values of a sum that are not zero, int64 ``[n]``, at ascending positions, uint32 ``[n]``."""

    grid: SumGrid
    positions: npt.NDArray[np.uint32]
    values: npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncryptedSum:
    """A sum that nobody can read who has no key; see :class:`Ciphertexts`."""

    grid: SumGrid
    scheme: str
    public: bytes
    ciphertexts: list[bytes]


@dataclass(frozen=True)
class SingleUpdates:
    """Each client's own update, float32 ``[k, size]`` in blocks."""

    size: int
    blocks: list[npt.NDArray[np.float32]]
    weights: list[float]


@dataclass(frozen=True)
class WirePart:
    """A :class:`PartialSum` on its way."""

    round: int
    clients: list[int]
    sparse: bool
    signed: bytes
    total: DenseSum | FewValues | EncryptedSum | SingleUpdates


@dataclass(frozen=True)
class WireDecision:
    """A :class:`Decision` on its way: of a refusal its sentence alone, for what it follows from is the silo's own; a withdrawal as it is."""

    granted: list[str]
    refused: dict[str, str | Withdrawal]
    reservations: dict[str, Reservation]


def codec(config: Config | None = None, largest: int = 0) -> Codec:
    """How a run's messages travel.

    Args:
        config: of the terms, by which a task's stages are made; None: for messages without a task.
        largest: values that a sum may have which is not sent value by value.
    """
    own = {} if config is None else {_SECTIONS[stage.place]: stage for stage in make_stages(config)}

    def stage_to(stage: Stage) -> Any:
        section = _SECTIONS.get(stage.place)
        return stage if section is None else ConfiguredStage(cast(Any, section))

    def stage_of(sent: Any) -> Stage:
        return own[sent.section] if isinstance(sent, ConfiguredStage) else sent

    def part_of(sent: WirePart) -> PartialSum:
        if isinstance(sent.total, EncryptedSum | FewValues) and sent.total.grid.size > largest:
            raise ValueError(f"a sum of {sent.total.grid.size} values, where one has {largest} at most")
        return _part_of(sent)

    steps = ConfiguredStage | Clipped | GaussianStep | PrivUnitStep | RingStep
    return Codec({**_FORMS, Stage: Form(steps, stage_to, stage_of), PartialSum: Form(WirePart, _part_to, part_of)})


def _rows_to(rows: Rows) -> SingleUpdates:
    return SingleUpdates(rows.size, [np.asarray(block, dtype=np.float32) for block in rows.blocks], list(rows.weights))


def _rows_of(sent: SingleUpdates) -> Rows:
    if any(block.ndim != 2 or block.shape[1] != sent.size for block in sent.blocks) or sum(map(len, sent.blocks)) != len(sent.weights):
        raise ValueError("single updates of other sizes than they say")
    return Rows(sent.size, list(sent.blocks), list(sent.weights))


def _part_to(part: PartialSum) -> WirePart:
    total = part.total
    if isinstance(total, Rows):
        return WirePart(part.round, part.clients, part.sparse, part.signed, _rows_to(total))
    about = total.weight, total.count, total.bits, total.capacity, total.ones_from, total.ones_bits
    grid = SumGrid(len(total.values), *about)
    if isinstance(total, SealedSum):
        sealed = total.sealed
        if not isinstance(sealed, Ciphertexts):
            raise TypeError(f"a sum that is sealed as {type(sealed).__name__}")
        scheme, public, ciphertexts = sealed.written()
        return WirePart(part.round, part.clients, part.sparse, part.signed, EncryptedSum(grid, scheme, public, list(ciphertexts)))
    few = SparseValues.of(total.values) if part.sparse else None
    values = DenseSum(grid, total.values) if few is None else FewValues(grid, few.positions, few.values)
    return WirePart(part.round, part.clients, part.sparse, part.signed, values)


def _part_of(sent: WirePart) -> PartialSum:
    part = PartialSum(sent.round, ExactSum.of_integers(0, 1.0), sent.clients, None, sent.sparse, signed=sent.signed)
    total = sent.total
    if isinstance(total, SingleUpdates):
        return replace(part, total=_rows_of(total))
    g = total.grid
    if isinstance(total, EncryptedSum):
        sealed = Ciphertexts(total.scheme, total.public, total.ciphertexts)
        empty = ExactSum(np.zeros(g.size, dtype=np.int64), g.weight, g.count, g.bits, g.capacity, g.ones_from, g.ones_bits)
        return replace(part, total=SealedSum.of(empty, sealed), travelled=sealed.nbytes)
    values, travelled = total.values, 0
    if isinstance(total, FewValues):
        few = SparseValues(g.size, total.positions, total.values)
        if few.positions.shape != few.values.shape or few.positions.ndim != 1 or (np.diff(few.positions.astype(np.int64)) <= 0).any():
            raise ValueError("positions of values that are not ascending")
        values, travelled = few.dense(), few.nbytes
    if values.shape != (g.size,):
        raise ValueError(f"a sum of {values.shape} values that says {g.size}")
    return replace(part, total=ExactSum(values, g.weight, g.count, g.bits, g.capacity, g.ones_from, g.ones_bits), travelled=travelled)


def _decision_to(decision: Decision) -> WireDecision:
    refused = {name: why if isinstance(why, Withdrawal) else str(why) for name, why in decision.refused.items()}
    return WireDecision(decision.granted, refused, decision.reservations)


def _decision_of(sent: WireDecision) -> Decision:
    return Decision(sent.granted, cast(Any, sent.refused), sent.reservations)


def _read_terms(document: Mapping[str, Any]) -> Terms:
    return Terms.of(document)


_FORMS: dict[Any, Form] = {
    Terms: Form(dict[str, Any], Terms.document, _read_terms),
    ModelFacts: Form(dict[str, Any], ModelFacts.document, ModelFacts.of),
    Event: Form(dict[str, Any], to_json, from_json),
    Decision: Form(WireDecision, _decision_to, _decision_of),
    Rows: Form(SingleUpdates, _rows_to, _rows_of),
}
