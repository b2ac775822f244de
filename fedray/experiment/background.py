"""Runs a function in a thread and keeps its exception."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Calls a function in a daemon thread, which does not keep the process from ending; :meth:`result` returns or raises what it did."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, args=(function,), daemon=True).start()

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:
            self._future.set_exception(error)

    def result(self) -> T:
        """Wait for the function to end, and return its value or raise its exception."""
        return self._future.result()
