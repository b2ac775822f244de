"""How many of a round's clients a rule assumes to be attackers: a number, or a share of those whose updates came."""

from __future__ import annotations

import math
from fractions import Fraction

from fedray.errors import ConfigError


def check_assumed(attackers: float) -> None:
    """Check the argument ``attackers`` of a rule: below 0.5 a share of a round's clients, from 1 their number.

    Raises:
        ConfigError: it is neither.
    """
    if not (0.0 <= attackers < 0.5 or (attackers >= 1.0 and attackers % 1 == 0)):
        raise ConfigError(
            f"aggregation.attackers: {attackers} is neither a share of a round's clients in [0, 0.5) nor a whole number of them from 1."
        )


def assumed(attackers: float, count: int, most: int) -> int:
    """The number of attackers among ``count`` clients: a share is rounded up to whole clients; no more than ``most``, and not below 0."""
    number = math.ceil(Fraction(str(attackers)) * count) if attackers < 1 else int(attackers)  # 0.07 * 100 is above 7 in float64
    return max(0, min(number, most))
