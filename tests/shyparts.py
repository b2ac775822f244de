"""Secure aggregation some of whose members do not answer a phase in the first attempt of the first round."""

from __future__ import annotations

from dataclasses import dataclass

from fedray.secure.protocol import Order, Refused
from fedray.secure.secagg import SecAgg
from fedray.secure.secagg_member import SecAggMember
from fedray.secure.signing import Signer


@dataclass(frozen=True)
class Shy(SecAgg):
    """Secure aggregation.

    Attributes:
        phase: that members do not answer.
        shy: how many of them.
    """

    phase: str = ""
    shy: int = 0

    def member(self, order: Order, number: int, signer: Signer | None = None) -> SecAggMember:
        """See :class:`SecAgg`."""
        shy = number < self.shy and (order.round, order.attempt) == (0, 0)
        return ShyMember(self.roster, order, number, signer, self.phase if shy else "")


class ShyMember(SecAggMember):
    """A member that does not answer one phase."""

    def __init__(self, make_roster, order: Order, number: int, signer: Signer | None, phase: str) -> None:  # type: ignore[no-untyped-def]
        super().__init__(make_roster, order, number, signer)
        self._phase = phase

    def answer(self, phase: str, message: bytes) -> bytes:
        """See :meth:`SecAggMember.answer`."""
        if phase == self._phase:
            raise Refused(f"it is shy in the phase {phase}.")
        return super().answer(phase, message)
