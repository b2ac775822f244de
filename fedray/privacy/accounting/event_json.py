"""The JSON form of a privacy event, which names no Python modules.

An event is an object with one key, its kind. The value holds the event's fields: an object with their names, or, of an event with one
field, the value of that field. A rate is the pair [numerator, denominator].
"""

from __future__ import annotations

import json
from fractions import Fraction
from functools import lru_cache
from typing import Any

from fedray.errors import LedgerError
from fedray.privacy.accounting.events import KINDS, Event, field_types


def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON data; :func:`from_json` gives an equal event back."""
    body = {name: _value(getattr(event, name)) for name, _, _ in field_types(event.kind)}
    return {event.kind: body if len(body) > 1 else next(iter(body.values()))}


def from_json(data: Any) -> Event:
    """An event from JSON data.

    Raises:
        LedgerError: not an event of this schema; the sentence says what is wrong.
    """
    if not isinstance(data, dict) or len(data) != 1:
        raise LedgerError(f"event {data!r}: should be an object with exactly one key that names the mechanism.")
    ((kind, body),) = data.items()
    event = KINDS.get(kind)
    if event is None:
        raise LedgerError(f"event '{kind}': is not known to this version; it reads {', '.join(KINDS)}.")
    types = field_types(kind)
    names = [name for name, _, _ in types]
    if len(names) == 1:
        body = {names[0]: body}
    elif not isinstance(body, dict) or set(body) != set(names):
        raise LedgerError(f"event {kind}: should hold exactly {', '.join(names)}, but is {body!r}.")
    made: Event = event(*(_read(where, body[name], type_) for name, where, type_ in types))
    return made


def canonical(event: Event) -> str:
    """The unique JSON text of an event: sorted keys, no blanks."""
    return json.dumps(to_json(event), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@lru_cache(maxsize=4096)
def from_canonical(text: str) -> Event:
    """The event of a canonical text; equal texts share one object."""
    return from_json(json.loads(text))


def _value(value: Any) -> Any:
    if isinstance(value, Event):
        return to_json(value)
    if isinstance(value, Fraction):
        return [value.numerator, value.denominator]
    return [to_json(each) for each in value] if isinstance(value, tuple) else value


def _read(where: str, value: Any, type_: Any) -> Any:
    """A field's value from JSON data; the event itself refuses values out of range."""
    if type_ is float:
        if type(value) not in (int, float):
            raise LedgerError(f"event {where}: should be a number, but is {value!r}.")
        return float(value)
    if type_ is Fraction:
        if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value) and value[1] > 0):
            raise LedgerError(f"event {where}: should be a pair of whole numbers [numerator, denominator], but is {value!r}.")
        return Fraction(value[0], value[1])
    if type_ in (int, str):
        return value
    if type_ == tuple[Event, ...]:
        if not isinstance(value, list):
            raise LedgerError(f"event {where}: should be a list of events, but is {value!r}.")
        return tuple(from_json(each) for each in value)
    return from_json(value)
