"""Typed data as JSON and raw arrays, and back: what both sides of a link understand without a word of Python on the way.

What a value is follows from annotations that both sides have, never from the message: a message can only fill in the fields of the type
that is expected. An unknown field, a missing one, a wrong type or shape, and an array that nothing refers to are refused. Nothing here is
pickled, imported or called by a name that came in a message.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from fedray.errors import FedrayError, shortened

Buffer = memoryview | bytes
#: The largest whole number that travels: arrays' sizes, counts, seeds of 128 bits.
_LARGEST = 2**160
_DTYPES = {np.dtype(kind).str: np.dtype(kind) for kind in ("<f4", "<i8", "<u4")}


class Malformed(FedrayError):
    """A message is not what its type says."""


@dataclass(frozen=True)
class Form:
    """How values of a type travel that are not the sum of their fields.

    Attributes:
        kind: the type that travels in their place.
        to: from a value to what travels.
        of: back; a ``LookupError``, ``TypeError``, ``ValueError`` or ``FedrayError`` says that there is no such value.
    """

    kind: Any
    to: Callable[[Any], Any]
    of: Callable[[Any], Any]


@dataclass
class Codec:
    """Packs and unpacks values.

    Attributes:
        forms: types to how they travel, where that is not by their fields.
    """

    forms: Mapping[Any, Form] = field(default_factory=dict)

    def pack(self, kind: Any, value: Any) -> tuple[Any, list[Buffer]]:
        """A value of a type as JSON data and buffers.

        Raises:
            Malformed: it is not of the type.
        """
        buffers: list[Buffer] = []
        return self._packed(kind, value, buffers, ""), buffers

    def unpack(self, kind: Any, data: Any, buffers: Sequence[Buffer] = ()) -> Any:
        """The value of a type that :meth:`pack` made.

        Raises:
            Malformed: there is none; says where.
        """
        reading = _Reading(buffers)
        value = self._unpacked(kind, data, reading, "")
        if len(reading.used) != len(buffers):
            _refuse("", f"{len(buffers) - len(reading.used)} arrays came that nothing refers to")
        return value

    # -- a value goes out ------------------------------------------------------------------------

    def _packed(self, kind: Any, value: Any, buffers: list[Buffer], at: str) -> Any:
        form = self.forms.get(kind)
        if form is not None:
            return self._packed(form.kind, form.to(value), buffers, at)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return _plain(value, at)
        if origin in (typing.Union, types.UnionType):
            if _plainly(arguments):
                return None if value is None else self._packed(_something(arguments), value, buffers, at)
            number = self._member(arguments, value, at)
            return [number, self._packed(arguments[number], value, buffers, at)]
        if origin is Literal:
            return value if value in arguments else _refuse(at, f"is {value!r}, which is none of {arguments}")
        if kind in (None, type(None)):
            return None if value is None else _refuse(at, "should be nothing")
        if kind is bytes:
            buffers.append(bytes(value))
            return len(buffers) - 1
        if kind in (bool, str):
            return value if isinstance(value, kind) else _refuse(at, f"should be {kind.__name__}, but is {type(value).__name__}")
        if kind in (int, float):
            return _number(kind, value, at)
        if origin is np.ndarray:
            return _array(arguments, value, buffers, at)
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
            if len(value) != len(arguments):
                _refuse(at, f"should have {len(arguments)} entries, but has {len(value)}")
            return [self._packed(a, v, buffers, f"{at}[{n}]") for n, (a, v) in enumerate(zip(arguments, value, strict=True))]
        if _is_list(origin):
            return [self._packed(arguments[0], v, buffers, f"{at}[{n}]") for n, v in enumerate(value)]
        if _is_mapping(origin):
            keys, values = arguments
            if keys is str:
                return {_text(k, at): self._packed(values, v, buffers, f"{at}[{k}]") for k, v in value.items()}
            return [[self._packed(keys, k, buffers, at), self._packed(values, v, buffers, f"{at}[{k}]")] for k, v in value.items()]
        if type(value) is not kind:
            _refuse(at, f"should be a {getattr(kind, '__name__', kind)}, but is a {type(value).__name__}")
        return {
            name: self._packed(hint, getattr(value, name), buffers, _below(at, name))
            for name, hint in _fields(typing.cast(Hashable, kind)).items()
        }

    def _member(self, kinds: Sequence[Any], value: Any, at: str) -> int:
        """Which of a union's types a value is of."""
        for n, kind in enumerate(kinds):
            if type(value) is kind:
                return n
        return _refuse(at, f"is a {type(value).__name__}, which is none of {[str(kind) for kind in kinds]}")

    # -- a value comes in ------------------------------------------------------------------------

    def _unpacked(self, kind: Any, data: Any, reading: _Reading, at: str) -> Any:
        form = self.forms.get(kind)
        if form is not None:
            inner = self._unpacked(form.kind, data, reading, at)
            try:
                return form.of(inner)
            except Malformed:
                raise
            except (LookupError, TypeError, ValueError, AttributeError, FedrayError) as error:
                _refuse(at, f"{type(error).__name__}: {error}")
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return _plain(data, at)
        if origin in (typing.Union, types.UnionType):
            return self._one_of(arguments, data, reading, at)
        if origin is Literal:
            fits = any(type(data) is type(one) and data == one for one in arguments)
            return data if fits else _refuse(at, f"is {shortened(repr(data))}, which is none of {arguments}")
        if kind in (None, type(None)):
            return None if data is None else _refuse(at, "should be null")
        if kind is bytes:
            return bytes(reading.take(data, at))
        if kind in (bool, str):
            return data if type(data) is kind else _refuse(at, f"should be {kind.__name__}, but is {shortened(repr(data))}")
        if kind in (int, float):
            return _read_number(kind, data, at)
        if origin is np.ndarray:
            return _read_array(arguments, data, reading, at)
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
            if not isinstance(data, list) or len(data) != len(arguments):
                _refuse(at, f"should be a list of {len(arguments)}")
            return tuple(self._unpacked(a, v, reading, f"{at}[{n}]") for n, (a, v) in enumerate(zip(arguments, data, strict=True)))
        if _is_list(origin):
            if not isinstance(data, list):
                _refuse(at, "should be a list")
            items = [self._unpacked(arguments[0], v, reading, f"{at}[{n}]") for n, v in enumerate(data)]
            return tuple(items) if origin is tuple else items
        if _is_mapping(origin):
            return self._mapping(arguments, data, reading, at)
        hints = _fields(typing.cast(Hashable, kind))
        if not isinstance(data, dict):
            _refuse(at, "should be an object")
        if data.keys() != hints.keys():
            odd = sorted(map(str, data.keys() ^ hints.keys()))
            _refuse(at, f"has other fields than {kind.__name__}: {shortened(', '.join(odd))}")
        values = {name: self._unpacked(hint, data[name], reading, _below(at, name)) for name, hint in hints.items()}
        try:
            return kind(**values)
        except (TypeError, ValueError, FedrayError) as error:
            _refuse(at, str(error))

    def _one_of(self, kinds: Sequence[Any], data: Any, reading: _Reading, at: str) -> Any:
        if _plainly(kinds):
            return None if data is None else self._unpacked(_something(kinds), data, reading, at)
        if not isinstance(data, list) or len(data) != 2 or type(data[0]) is not int or not 0 <= data[0] < len(kinds):
            _refuse(at, f"should be one of {len(kinds)} kinds, by number")
        return self._unpacked(kinds[data[0]], data[1], reading, at)

    def _mapping(self, arguments: Sequence[Any], data: Any, reading: _Reading, at: str) -> dict[Any, Any]:
        keys, values = arguments
        if keys is str:
            if not isinstance(data, dict):
                _refuse(at, "should be an object")
            return {key: self._unpacked(values, entry, reading, f"{at}[{key}]") for key, entry in data.items()}
        if not isinstance(data, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in data):
            _refuse(at, "should be a list of pairs")
        found = {self._unpacked(keys, key, reading, at): self._unpacked(values, entry, reading, f"{at}[{key}]") for key, entry in data}
        return found if len(found) == len(data) else _refuse(at, "has a key twice")


class _Reading:
    """Buffers of a message, each of which is referred to once."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers, self.used = buffers, set[int]()

    def take(self, number: Any, at: str) -> memoryview:
        if type(number) is not int or not 0 <= number < len(self._buffers) or number in self.used:
            _refuse(at, f"refers to no array of its own ({shortened(repr(number))})")
        self.used.add(number)
        return memoryview(self._buffers[number]).cast("B")


def parse(text: bytes) -> Any:
    """JSON data, with NaN and Infinity as Python writes them.

    Raises:
        Malformed: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"a message is not valid JSON ({error}).") from None


def written(data: Any) -> bytes:
    """JSON data as text, without blanks."""
    return json.dumps(data, separators=(",", ":")).encode()


def _refuse(at: str, what: str) -> NoReturn:
    raise Malformed(f"a message is not as its type says: {at or 'it'}: {what}.")


def _below(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _is_list(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _plainly(kinds: Sequence[Any]) -> bool:
    """Whether a union is one type or nothing, so that null says which."""
    return len(kinds) == 2 and type(None) in kinds


def _something(kinds: Sequence[Any]) -> Any:
    """The other type of such a union."""
    return next(kind for kind in kinds if kind is not type(None))


@lru_cache(maxsize=256)
def _fields(kind: Any) -> dict[str, Any]:
    """The annotations of the fields of a named tuple or a dataclass, by name."""
    hints = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        return {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return {name: hints[name] for name in kind._fields}
    raise TypeError(f"{kind} has no form in which it travels")


def _text(value: Any, at: str) -> str:
    return value if isinstance(value, str) else _refuse(at, f"the key {value!r} should be a text")


def _number(kind: Any, value: Any, at: str) -> Any:
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and isinstance(value, float)):
        _refuse(at, f"should be {kind.__name__}, but is {type(value).__name__}")
    return value


def _read_number(kind: Any, data: Any, at: str) -> Any:
    if (type(data) is int and abs(data) < _LARGEST) or (kind is float and type(data) is float):
        return data
    return _refuse(at, f"should be {kind.__name__}, but is {shortened(repr(data))}")


def _array(arguments: Sequence[Any], value: npt.NDArray[Any], buffers: list[Buffer], at: str) -> Any:
    wanted = _dtype(arguments)
    if not isinstance(value, np.ndarray) or value.dtype != wanted:
        _refuse(at, f"should be an array of {wanted}")
    values = np.ascontiguousarray(value, dtype=wanted)
    buffers.append(values.data.cast("B") if values.size else b"")
    return {"array": len(buffers) - 1, "dtype": wanted.str, "shape": list(value.shape)}


def _read_array(arguments: Sequence[Any], data: Any, reading: _Reading, at: str) -> npt.NDArray[Any]:
    wanted = _dtype(arguments)
    if not isinstance(data, dict) or data.keys() != {"array", "dtype", "shape"} or data["dtype"] != wanted.str:
        _refuse(at, f"should be an array of {wanted}")
    shape = data["shape"]
    if not isinstance(shape, list) or not 0 < len(shape) <= 8 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        _refuse(at, f"has no shape of an array ({shortened(repr(shape))})")
    content = reading.take(data["array"], at)
    if math.prod(shape) * wanted.itemsize != len(content):
        _refuse(at, f"has {len(content)} bytes where {wanted} {tuple(shape)} has {math.prod(shape) * wanted.itemsize}")
    return np.frombuffer(content, dtype=wanted).reshape(shape)


def _dtype(arguments: Sequence[Any]) -> np.dtype[Any]:
    (scalar,) = typing.get_args(arguments[1])
    return _DTYPES[np.dtype(scalar).newbyteorder("<").str]


def _plain(value: Any, at: str, depth: int = 0) -> Any:
    """JSON data as it is; tuples become lists, and arrays' numbers Python's."""
    if isinstance(value, np.integer | np.floating | np.bool_):
        value = value.item()
    if value is None or isinstance(value, bool | str | float) or (isinstance(value, int) and abs(value) < _LARGEST):
        return value
    if depth > 32:
        _refuse(at, "is nested too deeply")
    if isinstance(value, Mapping):
        return {_text(k, at): _plain(v, f"{at}[{k}]", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, at, depth + 1) for v in value]
    return _refuse(at, f"a {type(value).__name__} is no JSON data")
