"""Mixing: another rule is given means of several updates in the place of the updates, and no such mean is ever held whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each, strips
from fedray.aggregation.root import RootUse
from fedray.aggregation.rule import Memory, Rule, make_rule
from fedray.choices import Choice
from fedray.errors import ConfigError
from fedray.parameters import Values, Vector

#: Names of what the other rule remembers begin with this.
_INNER = "rule."


@dataclass(frozen=True, eq=False)
class Mixed(Each):
    """Linear combinations of a round's updates, as if each were the update of a client; the clients are numbered from 0.

    Attributes:
        updates: which are combined.
        matrix: factors of the updates, a row for each combination, float64 ``[count, updates.count]``.
    """

    updates: Each = field(kw_only=True)
    matrix: npt.NDArray[np.float64] = field(kw_only=True)

    @cached_property
    def count(self) -> int:
        """Number of combinations."""
        return len(self.matrix)

    @cached_property
    def clients(self) -> list[int]:
        """Numbers of the combinations."""
        return [*range(self.count)]

    @cached_property
    def weights(self) -> npt.NDArray[np.float64]:
        """The combinations of the clients' weights, float64 ``[count]``."""
        return self.matrix @ self.updates.weights

    @cached_property
    def products(self) -> npt.NDArray[np.float64]:
        """As of the updates, without another look at them."""
        return self.matrix @ self.updates.products @ self.matrix.T

    def columns(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The values from ``start`` to ``stop`` of all combinations, float32 ``[count, stop - start]``."""
        columns = self.updates.columns(start, stop)
        found = np.empty((self.count, stop - start), dtype=np.float32)
        for low, high in strips(*columns.shape):
            found[:, low:high] = self.matrix @ columns[:, low:high].astype(np.float64)
        return found


def inner_rule(section: Mapping[str, Any]) -> Rule[Each]:
    """The rule of an argument ``rule: {kind: ...}``.

    Raises:
        ConfigError: no such rule, wrong arguments, or one that does not judge single updates.
    """
    if not isinstance(section.get("kind"), str):
        raise ConfigError("aggregation.rule.kind: is missing; name the rule that is given the mixed updates, such as median.")
    try:
        made = make_rule(Choice(**section))
    except ConfigError as error:
        raise ConfigError(str(error).replace("aggregation.", "aggregation.rule.", 1)) from None
    if made.wants != "each":
        raise ConfigError(
            f"aggregation.rule.kind: '{section['kind']}' takes a sum, which mixing does not change; name a rule of single updates."
        )
    if made.of_clients(made.begin(1, 1)):
        raise ConfigError(
            f"aggregation.rule.kind: '{section['kind']}' judges clients from round to round, and mixed updates are no client's; use it without "
            "mixing, or another rule here."
        )
    return made


class Mixing(Rule[Each]):
    """A rule that mixes the updates and gives them to another one, ``rule``, whose section it has as an argument."""

    rule: Mapping[str, Any]

    @cached_property
    def inner(self) -> Rule[Each]:
        """The other rule.

        Raises:
            ConfigError: as :func:`inner_rule`.
        """
        return inner_rule(self.rule)

    def root(self) -> RootUse:
        """As the other rule."""
        return self.inner.root()

    @abstractmethod
    def mixed(self, got: Each, kept: Mapping[str, Values]) -> tuple[npt.NDArray[np.float64], Memory]:
        """The factors of the updates in each mixed one, float64 ``[mixed, got.count]``, and what is remembered beside the other rule's."""

    def begin(self, clients: int, size: int) -> Memory:
        """What the other rule remembers, under names that begin with ``rule.``."""
        return {_INNER + name: value for name, value in self.inner.begin(clients, size).items()}

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """What the other rule makes of the mixed updates."""
        matrix, own = self.mixed(got, kept)
        inner = {name.removeprefix(_INNER): value for name, value in kept.items() if name.startswith(_INNER)}
        vector, remembered = self.inner.combine(Mixed(got.size, got.segments, root=got.root, updates=got, matrix=matrix), inner)
        return vector, own | {_INNER + name: value for name, value in remembered.items()}
