"""From the config's ``aggregation`` section to the rule that turns a round's sum into a mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt

from fedray import components
from fedray.aggregation.exact import ExactSum
from fedray.choices import Choice
from fedray.errors import ConfigError

#: From the sum, which the rule may use up, to the vector that the server's optimiser takes, float32 ``[size]``.
Aggregator = Callable[[ExactSum], npt.NDArray[np.float32]]


def make_aggregator(part: Choice) -> Aggregator:
    """The rule of the config's ``aggregation`` section: a function of the sum and of the section's other keys.

    Raises:
        ConfigError: unknown rule, one that takes no sum, or wrong arguments.
    """
    rule = components.find(components.AGGREGATORS, part.kind)
    if not callable(rule):
        raise ConfigError(f"aggregation.kind: '{part.kind}' is a {type(rule).__name__}; name a function of the round's sum.")
    own = [p.name for p in islice(inspect.signature(rule).parameters.values(), 1) if p.kind is not p.KEYWORD_ONLY]
    if not own:
        raise ConfigError(f"aggregation.kind: '{part.kind}' takes no argument; name a function of the round's sum.")
    return partial(rule, **components.check_arguments(rule, part.arguments, "aggregation", own=own))
