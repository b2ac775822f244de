"""What client code may change in its process beside the model: torch's switches, numpy's, the environment.

A client's turn (and its evaluation) runs within :meth:`Surroundings.kept`, after which everything is as it was when the actor began, so
that what one client's code leaves behind meets no other's turn. Generators of numpy and Python are seeded anew in each turn.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
import torch.nn.modules.module as modules
from torch.overrides import _pop_mode
from torch.utils import deterministic
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode

from fedray.clients.devices import end_if_lost
from fedray.errors import FedrayError, Stopped, UpdateRejected, own_place
from fedray.training.dploop import precision_switches

#: How a state is read, and how it is put back.
State = tuple[Callable[[], Any], Callable[[Any], Any]]

#: Signals whose handlers are put back, where that can be done.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


def _attribute(owner: Any, name: str) -> State:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _modes(length: Callable[[], int], pop: Callable[[], Any]) -> State:
    """A stack of torch's modes, of which those are taken off that were left on it."""

    def shorten(wanted: int) -> None:
        while length() > wanted:
            pop()

    return length, shorten


def _device_context() -> Any:
    return getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)


def _environment() -> dict[bytes, bytes]:
    """As Python keeps it: decoding it takes longer than all else here."""
    return dict(os.environ._data)  # type: ignore[attr-defined]


def _set_environment(wanted: dict[bytes, bytes]) -> None:
    for name in set(os.environb) - set(wanted):
        del os.environb[name]
    os.environb.update(wanted)


def _set_filters(wanted: list[Any]) -> None:
    warnings.filters[:] = wanted  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _handlers() -> list[Any] | None:
    """None in threads that may not set them, and their client code neither."""
    mine = threading.current_thread() is threading.main_thread()
    return [signal.getsignal(number) for number in _SIGNALS] if mine else None


def _set_handlers(wanted: list[Any] | None) -> None:
    for number, handler in zip(_SIGNALS, wanted or (), strict=False):
        signal.signal(number, handler)


#: Torch's tables of hooks on all modules of the process.
_TABLES = [table for name, table in vars(modules).items() if name.startswith("_global_") and isinstance(table, dict)]


def _hooks() -> list[list[Any]]:
    return [list(table) for table in _TABLES]


def _set_hooks(wanted: list[list[Any]]) -> None:
    for table, kept in zip(_TABLES, wanted, strict=True):
        for key in set(table) - set(kept):
            del table[key]


def _states() -> list[State]:
    """All that is put back, cheapest ways to read it; modes first, since they see every call of torch."""
    c, cudnn, matmul = torch._C, torch.backends.cudnn, torch.get_float32_matmul_precision
    states: list[State] = [
        (_device_context, torch.set_default_device),
        _modes(c._len_torch_function_stack, _pop_mode),
        _modes(c._len_torch_dispatch_stack, _pop_dispatch_mode),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        _attribute(deterministic, "fill_uninitialized_memory"),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (c._is_multithreading_enabled, c._set_multithreading_enabled),
        (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        (matmul, torch.set_float32_matmul_precision),
        *(_attribute(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
        *(_attribute(switch, "fp32_precision") for switch in precision_switches()),  # after the older ones, which move these
        (_hooks, _set_hooks),
        (np.geterr, lambda value: np.seterr(**value)),
        (np.geterrcall, np.seterrcall),
        (_environment, _set_environment),
        (os.getcwd, os.chdir),
        (_handlers, _set_handlers),
        (lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, lambda value: signal.setitimer(signal.ITIMER_REAL, 0)),
        (lambda: list(warnings.filters), _set_filters),
        (socket.getdefaulttimeout, socket.setdefaulttimeout),
        (sys.getrecursionlimit, sys.setrecursionlimit),
        (sys.gettrace, sys.settrace),
        (sys.getprofile, sys.setprofile),
        (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
        *(_attribute(sys, name) for name in ("stdout", "stderr", "excepthook")),
    ]
    for kind in ("cpu", "cuda"):
        states.append((lambda kind=kind: torch.is_autocast_enabled(kind), lambda value, kind=kind: torch.set_autocast_enabled(kind, value)))  # type: ignore[misc]
        states.append((lambda kind=kind: torch.get_autocast_dtype(kind), lambda value, kind=kind: torch.set_autocast_dtype(kind, value)))  # type: ignore[misc]
    return states


#: What client code runs within; see :meth:`Surroundings.kept`.
Kept = Callable[[Callable[[], int] | None], AbstractContextManager[None]]


def unchanged(seed: Callable[[], int] | None) -> AbstractContextManager[None]:
    """For parts of fedray's own alone, which change nothing."""
    return nullcontext()


class Surroundings:
    """The process as it is now, to which it is put back."""

    def __init__(self) -> None:
        self._found: list[tuple[State, Any]] = []
        for state in _states():
            with suppress(RuntimeError):  # of torch's older switches of precision, where code has used its newer ones
                self._found.append((state, state[0]()))

    def restore(self) -> None:
        """Put back what differs; what cannot be read or put back any more is left."""
        torch.set_flush_denormal(False)
        for (read, put), wanted in self._found:
            try:
                if read() == wanted:
                    continue
            except Exception:  # as of a directory that was deleted
                pass
            with suppress(Exception):
                put(wanted)

    @contextmanager
    def kept(self, seed: Callable[[], int] | None) -> Iterator[None]:
        """Within it client code runs; from torch's defaults, and afterwards everything is as it was.

        Args:
            seed: gives that of numpy's and Python's global generators; None: from the operating system.
        """
        number = None if seed is None else seed()
        np.random.seed(None if number is None else number % 2**32)
        random.seed(number)
        try:
            with torch.inference_mode(False):  # puts back, at its end, what was switched off and on within
                yield
        finally:
            self.restore()


@contextmanager
def speaking() -> Iterator[None]:
    """Where client code asks to end the process (``SystemExit``, ``KeyboardInterrupt``), that is an error of its own with its name.

    Raises:
        FedrayError: it did.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise FedrayError(f"code of the run's own asked to end its process: {described(error)}") from error


def described(error: BaseException) -> str:
    """What client code raised, as ``Class: text (file, line, function)``; a text that cannot be had is left out."""
    try:
        text = str(error)
    except BaseException:
        text = "its text cannot be read"
    place = own_place(error)
    return type(error).__name__ + (f": {text}" if text else "") + (f" ({place})" if place else "")


def told(error: BaseException) -> str:
    """The traceback of what client code raised."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:
        return described(error)


def ended(error: BaseException) -> dict[str, Any]:
    """What is reported of a turn that an error has ended: ``status``, ``error`` and, where the client's code failed, ``traceback``."""
    if isinstance(error, Stopped | UpdateRejected):
        return {"status": "late" if isinstance(error, Stopped) else "rejected", "error": str(error)}
    end_if_lost(error)
    return {"status": "failed", "error": str(error) if isinstance(error, FedrayError) else described(error), "traceback": told(error)}
