"""What algorithms and aggregation rules declare of themselves, for all that must not know them by name: the choice of an engine, and the
rules of privacy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What an algorithm may read of a client's records besides the engine's own training.
Reading = Literal["loss", "count", "records"]

#: What an aggregation rule is given of a round: the exact sum of all updates, or each update for itself.
Wants = Literal["sum", "each"]


@dataclass(frozen=True)
class Traits:
    """What an algorithm declares of itself; the engine is chosen, and privacy claims are refused, by these and never by a name.

    Attributes:
        gradients: ``engine``: a turn calls ``turn.train()`` once, without arguments, so that an engine may train many clients at once;
            ``adjusted``: it changes gradients, starts elsewhere, or trains more than once, always through ``turn.train``;
            ``composed``: it also makes the gradient of a step of several, or adds to the loss.
        reads: what it makes of the records besides: their mean loss, how many there are (as in a number of local steps), or anything,
            because it is given the records themselves.
        state: clients keep vectors between their turns.
        passes: trainings over the records in one turn; each would have to be charged. 0: clients do not train.
        divides: the driver divides by what the clients send, which noise can make zero or negative.
        adapted: the model that is measured at a client is made by gradients over the client's training records.
        sets: the driver makes the next model itself, which no server optimiser moves.
        singles: the sum of what clients send tells values of single clients.
        exact: clients send digits of whole numbers (:mod:`fedray.algorithms.totals`), of which nothing but the plain sum has a meaning.
    """

    gradients: Literal["engine", "adjusted", "composed"] = "engine"
    reads: frozenset[Reading] = frozenset()
    state: bool = False
    passes: int = 1
    divides: bool = False
    adapted: bool = False
    sets: bool = False
    singles: bool = False
    exact: bool = False

    @property
    def together(self) -> bool:
        """Whether an engine may train many clients at once: a turn needs nothing of its own before the training."""
        return self.gradients == "engine" and not self.state and self.reads <= {"count"}

    @property
    def composes(self) -> bool:
        """Whether an engine must be able to make gradients of several, or of more than the run's loss."""
        return self.gradients == "composed"
