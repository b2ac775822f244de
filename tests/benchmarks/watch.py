"""Runs a command that writes ``ROUND``, or ``ROUND`` and the Unix time, after each round, and measures it from outside: wall and CPU seconds, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil


class Peak:
    """The largest memory (proportional set size) that a process and its descendants held at once, looked at every three seconds, which costs a hundredth of a core a GiB."""

    def __init__(self, pid: int, every: float = 3.0) -> None:
        self._root, self.mib, self._every = psutil.Process(pid), 0.0, every
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while self._root.is_running() and self._root.status() != psutil.STATUS_ZOMBIE:
            self.mib = max(self.mib, sum(each(self._root, lambda p: p.memory_full_info().pss)) / 2**20)
            time.sleep(self._every)


def each(root: psutil.Process, figure: Any) -> Iterator[float]:
    """A figure of a process and of each descendant that lives."""
    with suppress(psutil.Error):
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                yield figure(process)


class Watched:
    """A command under way.

    Args:
        command: to run.
        skip: rounds at the start that do not count.
        rounds: that there will be.
        limit: seconds after which it is killed.
        cwd, environment: where and with what.
    """

    def __init__(
        self,
        command: Sequence[str],
        skip: int,
        rounds: int,
        limit: float = 900.0,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._skip, self._all, self._limit = skip, rounds, limit
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read after the command's end
        self._began = time.time()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self._tree = psutil.Process(self._process.pid)
        self._rounds: list[float] = []
        self._cpu: dict[int, float] = {}
        self._peak = Peak(self._process.pid)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def result(self) -> dict[str, Any]:
        """Wait for the end.

        Returns:
            ``seconds``: of the rounds that count; ``s_per_round``: their median; ``cpu_s_per_round`` of all processes; ``first_round_after_s``
            from the command's start; ``peak_pss_mib`` of all processes.

        Raises:
            RuntimeError: the command failed, or took too long.
        """
        timer = threading.Timer(self._limit, self._kill)
        timer.start()
        try:
            code = self._process.wait()
        finally:
            timer.cancel()
            self._kill()
        self._reader.join(10)
        if code != 0 or len(self._rounds) != self._all:
            self._errors.seek(0)
            raise RuntimeError(
                f"{' '.join(self._process.args)} ended with {code} after {len(self._rounds)} rounds: {self._errors.read()[-2000:]}"
            )  # type: ignore[arg-type]
        seconds = np.diff(self._rounds)[self._skip - 1 :]
        first, last = self._skip, self._all
        return {
            "s_per_round": float(np.median(seconds)),
            "cpu_s_per_round": (self._cpu[last] - self._cpu[first]) / (last - first),
            "first_round_after_s": self._rounds[0],
            "peak_pss_mib": self._peak.mib,
            "seconds": [round(float(s), 5) for s in seconds],
        }

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, at = line.strip().partition(" ")
            if word == "ROUND":
                self._rounds.append((float(at) if at else time.time()) - self._began)
                if len(self._rounds) in (self._skip, self._all):
                    self._cpu[len(self._rounds)] = sum(each(self._tree, lambda p: sum(p.cpu_times()[:2])))

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
