"""Find and kill Ray's worker processes; wait for conditions."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil


def actors(title: str) -> list[psutil.Process]:
    """Processes of this process's own Ray whose title contains ``title``, e.g. ``ClientHost.train`` while that method runs."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if line.startswith("ray::") and title in line:
            found.append(process)
    return found


def kill(title: str, seconds: float = 120.0) -> int:
    """SIGKILL one process with that title, waiting for one to appear; returns its pid."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        for process in actors(title):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return process.pid
    raise AssertionError(f"no process with title {title} within {seconds} s")


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Poll until ``condition`` is true."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")
