"""Prints privacy figures and claims: spent figures are rounded up, remaining figures are rounded down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any


def rounded_up(value: float | str | None, decimals: int = 4, fixed: bool = False) -> str:
    """Return a spent figure as text that is never below its value.

    Args:
        value: the figure; a string such as "infinity" is returned as it is, and None gives "none".
        decimals: number of digits behind the point.
        fixed: whether to keep zeros at the end, as for tables.
    """
    return _text(value, decimals, fixed, ROUND_CEILING)


def rounded_down(value: float | str | None, decimals: int = 4, fixed: bool = False) -> str:
    """Return a remaining figure as text that is never above its value; arguments as for :func:`rounded_up`."""
    return _text(value, decimals, fixed, ROUND_FLOOR)


def as_given(value: float | None) -> str:
    """Return a setting as text with all its digits."""
    return "none" if value is None else repr(int(value)) if math.isfinite(value) and value == int(value) else repr(value)


def json_figure(value: float) -> float | str:
    """Return a figure for JSON, which has no infinity."""
    return "infinity" if math.isinf(value) else value


def three_digits(value: float) -> float:
    """Return a positive bound to three digits, rounded down."""
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return math.floor(value * scale * (1 + 1e-12)) / scale


def claim_text(summary: Mapping[str, Any]) -> str:
    """Return the claim of a privacy summary, with the reasons if it is void."""
    return ": ".join(filter(None, (str(summary.get("claim")), "; ".join(summary.get("claim_reasons") or ()))))


def _text(value: float | str | None, decimals: int, fixed: bool, rounding: str) -> str:
    if value is None or isinstance(value, str):
        return "none" if value is None else value
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    exact = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-decimals), context=Context(prec=400, rounding=rounding))
    return format(exact if fixed else exact.normalize(), "f")
