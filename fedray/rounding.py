"""Privacy figures in words: where digits of a number are cut, what was spent is rounded up, and what is left is rounded down."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def rounded_up(value: float | str | None, decimals: int = 4, fixed: bool = False) -> str:
    """A figure that was spent: never a digit below it.

    Args:
        value: the figure; a string, such as "infinity", stays what it is, and None is "none".
        decimals: digits behind the point.
        fixed: with all of them, for tables; else without zeros at the end.
    """
    return _text(value, decimals, fixed, ROUND_CEILING)


def rounded_down(value: float | str | None, decimals: int = 4, fixed: bool = False) -> str:
    """A figure that is left: never a digit above it. See :func:`rounded_up`."""
    return _text(value, decimals, fixed, ROUND_FLOOR)


def as_given(value: float | None) -> str:
    """A setting, to all its digits."""
    return "none" if value is None else repr(int(value)) if math.isfinite(value) and value == int(value) else repr(value)


def _text(value: float | str | None, decimals: int, fixed: bool, rounding: str) -> str:
    if value is None or isinstance(value, str):
        return "none" if value is None else value
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    exact = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-decimals), context=Context(prec=400, rounding=rounding))
    return format(exact if fixed else exact.normalize(), "f")
