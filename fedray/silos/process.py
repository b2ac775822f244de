"""The process of a silo: its link and its host, until a signal ends it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from fedray import credentials
from fedray.silos.certificates import read_silo_credentials
from fedray.silos.dialer import Dialer
from fedray.silos.hosting import Hosting
from fedray.silos.siteconfig import SiteConfig


def run_silo(site: SiteConfig) -> None:
    """Take part in the runs of a federation until SIGTERM or SIGINT; then the order that is worked on is finished and its answer kept.

    Raises:
        FedrayError: the silo has no identity, or another process has its state.
    """
    credentials.load()
    state, stop = Path(site.state), threading.Event()
    _log_to(state)
    read = partial(read_silo_credentials, Path(site.identity))
    read()
    hosting = Hosting(site)
    dialer = Dialer(site.gateway, read, hosting.handle, hosting.control, state)
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the site's file
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        dialer.run(stop)
    finally:
        hosting.end()


def _log_to(state: Path) -> None:
    """Write down what happens to ``silo.log`` in the state, and to standard error."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    logger = logging.getLogger("fedray")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in (logging.FileHandler(state / "silo.log", encoding="utf-8"), logging.StreamHandler(sys.stderr)):
        handler.setFormatter(form)
        logger.addHandler(handler)
