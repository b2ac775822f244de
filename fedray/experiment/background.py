"""A function beside the main thread, whose exception is not lost."""

from __future__ import annotations

import threading
from typing import Any


class Background:
    """A function in a thread; its exception comes out at :meth:`result`."""

    def __init__(self, function: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def _run(self, function: Any) -> None:
        try:
            self._value = function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """Wait for the function; its value, or its exception."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value
