"""What a model or a loss keeps between calls, besides its parameters.

Whatever a call leaves behind (a running maximum in an attribute, a scale taken from the first batch, a list at the top of a module) couples
the records that come after to those that came before, within a step, between steps and between clients. None of it is clipped or noised.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import random
import sys
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedray.errors import PrivacyRefusal
from fedray.training.engine import LossFn
from fedray.training.fast.sequential import observed
from fedray.training.losses import Loss

T = TypeVar("T")

#: Packages whose own objects keep nothing of a batch; theirs that hold others' values are read by name below.
_OTHERS = frozenset((*sys.stdlib_module_names, "torch", "numpy", "fedray", "opacus", "ray", "mlflow"))
#: Modules of layers whose forward passes write nothing but buffers, which an exchange sets anew.
_KNOWN = ("torch.nn.modules.", "fedray.models.")
#: Values that are looked at, at most: a program may be reachable from a function.
_MOST = 50_000
#: How a path begins that lies in the model object, of which each client can be given its own.
OWN = "model."


def keeps_nothing(model: nn.Module) -> bool:
    """Whether a model consists of layers that are known to keep nothing between calls but parameters and buffers."""
    return all(type(m).__module__.startswith(_KNOWN) and not observed(m) for m in model.modules())


def fresh_models(model: nn.Module, build: Callable[[], nn.Module]) -> Callable[[], nn.Module] | None:
    """What gives models as ``model`` is now, of which none has seen what another did; None where all may share one.

    Args:
        model: has seen no client's records yet.
        build: makes a model in the same way; used where this one cannot be copied.
    """
    if keeps_nothing(model):
        return None
    try:
        return functools.partial(copy.deepcopy, copy.deepcopy(model))
    except Exception:  # a user's model may hold anything
        return build


def kept(model: nn.Module, loss: LossFn, batches: Iterable[tuple[Tensor, Tensor]], own: bool = True) -> str | None:
    """Where something differs after a model and a loss have been run, as a path; None where nothing does.

    Attributes of the model, of its layers, classes and of the loss are compared, the variables that their functions close over, and those at
    the top of modules that they name. The parameters' values count, too: a forward pass that writes them keeps something there.

    Args:
        model: in training mode.
        loss: per-record loss.
        batches: (x, y) to run, forward and backward.
        own: whether what lies in the model object counts.
    """
    before = _values(model, loss)
    for x, y in batches:
        losses = loss(model(x), y)
        if losses.requires_grad:
            losses.sum().backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
        after = _values(model, loss)
        changed = [
            path for path in before.keys() | after.keys() if before.get(path) != after.get(path) and (own or not path.startswith(OWN))
        ]
        if changed:
            return min(changed)
    return None


def left_by(model: nn.Module, loss: Loss, run: Callable[[], T]) -> tuple[T, str | None]:
    """What a call of a model and its loss gives, and where something of theirs differs after it, as a path; None where nothing does."""
    if keeps_nothing(model) and not loss.own:
        return run(), None
    before = _values(model, loss)
    given, after = run(), _values(model, loss)
    return given, min((path for path in before.keys() | after.keys() if before.get(path) != after.get(path)), default=None)


def kept_refusal(path: str) -> PrivacyRefusal:
    """That a model or a loss keeps something, at a path of :func:`kept`."""
    return PrivacyRefusal(
        f"{'model' if path.startswith(OWN) else 'model, training.loss'}: keeps something between calls ({path} changes when a batch is "
        "computed), which would carry one record's data to others without clip or noise; compute it anew in every call, or fix it "
        "when the model is made.",
        "privacy.preflight.kept",
    )


def _values(model: nn.Module, loss: LossFn) -> dict[str, str]:
    reader = _Reader()
    reader.read(OWN.removesuffix("."), model)
    reader.read("loss", getattr(loss, "function", loss))  # a user's own, within fedray's Loss
    return reader.found


class _Reader:
    """Walks through objects and notes what they hold, by path."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._seen: dict[int, Any] = {}  # the objects stay alive, so that none gets another's number

    def read(self, path: str, value: Any) -> None:
        """Note a value and what can be reached from it."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
            self.found[path] = repr(value)
            return
        if id(value) in self._seen or len(self._seen) > _MOST:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Parameter):
            self.found[f"{path}.requires_grad"] = repr(value.requires_grad)
            for name, part in vars(value).items():
                self.read(f"{path}.{name}", part)
        data = _data(value)
        if data is not None:
            self.found[path] = data
            return
        for name, part in _parts(path, value):
            self.read(name, part)


def _data(value: Any) -> str | None:
    """A text that differs where two values do, of an object that holds plain data; None of any other."""
    if isinstance(value, Tensor):
        return _digest(value.detach()) if value.layout == torch.strided and not value.is_meta else repr(value)
    if isinstance(value, torch.Generator):
        return _digest(value.get_state())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _digest_bytes(value.tobytes(), value.shape, value.dtype)
    if isinstance(value, (np.generic, bytearray, array, itertools.count, itertools.cycle, range, slice)):
        return repr(value)
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False))
    if isinstance(value, random.Random):
        return repr(hash(value.getstate()))
    if isinstance(value, (set, frozenset)):
        return repr(sorted(map(repr, value)))
    return None


def _digest(values: Tensor) -> str:
    flat = values.cpu().contiguous().reshape(-1)
    return _digest_bytes(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"", values.shape, values.dtype)


def _digest_bytes(data: bytes, shape: tuple[int, ...], dtype: Any) -> str:
    return f"{tuple(shape)} {dtype} {hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, with a path each."""
    if isinstance(value, nn.Module):
        for name, part in vars(value).items():
            inner = part.items() if name in ("_parameters", "_modules", "_buffers") and isinstance(part, Mapping) else [(name, part)]
            yield from ((f"{path}.{key}", held) for key, held in inner if key != "training")
        yield from _of_class(type(value))
    elif isinstance(value, Mapping):
        yield f"{path} (entries)", len(value)
        yield from ((f"{path}[{key!r}]", part) for key, part in list(value.items()))
    elif isinstance(value, (list, tuple, deque)) or (isinstance(value, np.ndarray) and value.dtype == object):
        yield f"{path} (entries)", len(value)
        yield from ((f"{path}[{n}]", part) for n, part in enumerate(list(value)))
    elif isinstance(value, functools.partial):
        yield from ((f"{path}.func", value.func), (f"{path}.args", value.args), (f"{path}.keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from ((f"{path}.__self__", value.__self__), (f"{path}.__func__", value.__func__))
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, types.SimpleNamespace) or not _foreign(type(value)):
        yield from ((f"{path}.{name}", part) for name, part in getattr(value, "__dict__", {}).items())
        slots = [name for kind in type(value).__mro__ for name in _names(getattr(kind, "__slots__", ()))]
        yield from ((f"{path}.{name}", getattr(value, name)) for name in slots if hasattr(value, name) and name != "__dict__")
        yield from _of_class(type(value))


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """Attributes and functions of a class and those that it builds on."""
    for one in kind.__mro__:
        if _foreign(one):
            continue
        for name, part in list(vars(one).items()):
            part = getattr(part, "__func__", part.fget if isinstance(part, property) else part)
            if isinstance(part, types.FunctionType) or not (name.startswith("__") or isinstance(part, types.GetSetDescriptorType)):
                yield f"{one.__qualname__}.{name}", part


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function closes over, its attributes and defaults, and the variables at the top of modules that it names."""
    if function.__module__ is not None and function.__module__.partition(".")[0] in _OTHERS:
        return
    called = function.__qualname__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"{called}.{name}", cell.cell_contents
        except ValueError:  # not assigned yet
            yield f"{called}.{name}", None
    yield from ((f"{called}.{name}", part) for name, part in vars(function).items())
    yield f"{called}.__defaults__", function.__defaults__ or ()
    yield f"{called}.__kwdefaults__", function.__kwdefaults__ or {}
    names = set(_named_in(function.__code__))
    for name in sorted(names & function.__globals__.keys()):
        part = function.__globals__[name]
        if not isinstance(part, types.ModuleType):
            yield f"{function.__module__}.{name}", part
        elif part.__name__.partition(".")[0] not in _OTHERS:
            yield from ((f"{part.__name__}.{inner}", vars(part)[inner]) for inner in sorted(names & vars(part).keys()))


def _named_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named_in(constant)


def _foreign(kind: type) -> bool:
    """Whether a class is of a package whose own objects keep nothing of a batch."""
    return (kind.__module__ or "").partition(".")[0] in _OTHERS


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
