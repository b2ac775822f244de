"""Samples the load of the driver's node for MLflow's page of system metrics, where the config asks for it.

Load, memory and traffic of a node vary with what is computed on it, so they are a side channel: where cohorts must stay secret the config is
refused, and elsewhere the privacy statement names it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from fedray.errors import ConfigError
from fedray.tracking.journal import Row

#: Seconds between samples.
INTERVAL = 10.0


class SystemMetrics:
    """Samples until :meth:`stop`, on a thread of its own.

    Args:
        log: is given a row for each sample: ``round`` is the number of the sample, the metrics begin with ``system/``.
        first: number of samples that an earlier start has made.
        interval: seconds between samples.

    Raises:
        ConfigError: the package psutil is missing.
    """

    def __init__(self, log: Callable[[Row], None], first: int = 0, interval: float = INTERVAL) -> None:
        self._psutil = _psutil()
        self._log, self._number, self._interval = log, first, interval
        self._process = self._psutil.Process(os.getpid())
        self._sent = self._traffic()
        self._psutil.cpu_percent()  # the first call has nothing to compare with
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="fedray-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no further sample."""
        self._stopped.set()
        self._thread.join(1.0)

    def _sample(self) -> None:
        while not self._stopped.wait(self._interval):
            self._number += 1
            memory, before, self._sent = self._psutil.virtual_memory(), self._sent, self._traffic()
            metrics = {
                "system/cpu_percent": float(self._psutil.cpu_percent()),
                "system/memory_percent": float(memory.percent),
                "system/memory_used_mb": round(memory.used / 1e6, 1),
                "system/driver_memory_mb": round(self._process.memory_info().rss / 1e6, 1),
                "system/network_sent_mb": round((self._sent[0] - before[0]) / 1e6, 3),
                "system/network_received_mb": round((self._sent[1] - before[1]) / 1e6, 3),
            }
            self._log({"round": self._number, "time": time.time(), "metrics": metrics})

    def _traffic(self) -> tuple[int, int]:
        found = self._psutil.net_io_counters()
        return found.bytes_sent, found.bytes_recv


def _psutil() -> Any:
    try:
        import psutil
    except ModuleNotFoundError:
        raise ConfigError(
            "tracking.system_metrics: needs the package psutil, which is missing; install it (pip install fedray[system]), or set the key to false."
        ) from None
    return psutil
