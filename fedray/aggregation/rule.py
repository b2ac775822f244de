"""What an aggregation rule is, and how the config names one: from a round's updates to the vector that the algorithm's server half takes."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar, get_args

import numpy as np

from fedray import components
from fedray.aggregation.each import Each
from fedray.aggregation.exact import ExactSum
from fedray.aggregation.root import RootUse
from fedray.choices import Choice
from fedray.errors import ConfigError, FedrayError
from fedray.parameters import Values, Vector, read_only
from fedray.traits import Wants

#: What a rule remembers from round to round: arrays by name, which go into checkpoints as they are.
Memory = dict[str, Values]

Got = TypeVar("Got", ExactSum, Each)

_REMEMBERED = ("float64", "float32", "int64", "int32", "uint8", "bool")


class Rule(ABC, Generic[Got]):
    """An aggregation rule.

    Attributes:
        wants: what :meth:`combine` is given: ``each``, an :class:`fedray.aggregation.each.Each`, or ``sum``, an
            :class:`fedray.aggregation.exact.ExactSum`, which the rule may use up.
    """

    wants: ClassVar[Wants] = "each"

    def begin(self, clients: int, size: int) -> Memory:
        """What the rule remembers before the first round.

        Args:
            clients: size of the population.
            size: of the vectors.
        """
        return {}

    def held(self, updates: int) -> int:
        """Bytes that :meth:`combine` holds of so many updates, beside blocks of columns and vectors: 0 but for rules that compare pairs."""
        return 0

    def root(self) -> RootUse:
        """Whether :meth:`combine` makes use of ``got.root``, what the driver knows of a round from its public root set."""
        return "no"

    def of_clients(self, kept: Mapping[str, Values]) -> dict[str, Values]:
        """What is remembered of single clients, for a table: arrays ``[clients]`` by name, none in most rules."""
        return {}

    def figures(self, kept: Mapping[str, Values]) -> dict[str, float]:
        """What a round's row shows of what is remembered, by name; a few numbers, however many clients there are."""
        return {}

    def lasting(self) -> str | None:
        """File in which what is remembered outlives the run; None: it does not."""
        return None

    @abstractmethod
    def combine(self, got: Got, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The vector for all updates of a round, float32 ``[size]``, and what is remembered from then on; the same for the same arguments.

        Args:
            got: what came up, of at least one client; with single updates it may be asked again, when some of them have been lost.
            kept: what was remembered, read-only.
        """


def make_rule(part: Choice) -> Rule[Any]:
    """The rule of the config's ``aggregation`` section.

    Raises:
        ConfigError: unknown rule, what is none, or wrong arguments.
    """
    path = components.AGGREGATORS.path
    factory = components.find(components.AGGREGATORS, part.kind)
    if not (isinstance(factory, type) and issubclass(factory, Rule)):
        kind = f"the class {factory.__name__}" if isinstance(factory, type) else f"a {type(factory).__name__}"
        raise ConfigError(
            f"{path}: '{part.kind}' is {kind}; name a class derived from fedray.aggregation.rule.Rule (docs/rules.md shows how)."
        )
    if inspect.isabstract(factory):
        raise ConfigError(f"{path}: '{part.kind}' lacks combine (docs/rules.md shows one).")
    if factory.wants not in get_args(Wants):
        raise ConfigError(f"{path}: '{part.kind}' wants {factory.wants!r}; set wants to 'sum' or 'each'.")
    made: Rule[Any] = components.made(components.AGGREGATORS, part.kind, part.arguments)
    if made.wants == "sum" and made.root() != "no":
        raise ConfigError(f"{path}: '{part.kind}' wants the sum, and a root set is compared with single updates; set wants to 'each'.")
    return made


def combined(rule: Rule[Any], got: ExactSum | Each, kept: Mapping[str, Values], size: int) -> tuple[Vector, Memory]:
    """:meth:`Rule.combine`, with what it gives checked.

    Raises:
        PartLost: single updates cannot be read any more.
        FedrayError: the rule gave another shape, values that are not finite, or something that cannot be remembered.
    """
    name = type(rule).__name__
    given: Any = rule.combine(got, {key: read_only(value) for key, value in kept.items()})
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict)):
        raise FedrayError(
            f"aggregation.kind: {name}.combine gave a {type(given).__name__}; give the vector and a dict of what is remembered."
        )
    vector, remembered = np.asarray(given[0], dtype=np.float32), given[1]
    if vector.shape != (size,):
        raise FedrayError(f"aggregation.kind: {name}.combine gave an array of shape {vector.shape} for vectors of {size} values.")
    if rule.wants == "each" and not np.isfinite(vector).all():
        raise FedrayError(f"aggregation.kind: {name}.combine gave values that are NaN or infinite, with which the model would be lost.")
    for key, value in remembered.items():
        if not (isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype.name in _REMEMBERED):
            what = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise FedrayError(
                f"aggregation.kind: {name} would remember {key!r} as {what}; use NumPy arrays by name, of {', '.join(_REMEMBERED)}."
            )
    return vector, remembered
