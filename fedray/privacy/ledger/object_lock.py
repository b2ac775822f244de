"""The lock of a book in an object store: an object that names its holder, who renews it while its process lives.

No clocks are compared. A writer that finds the lock watches it, and takes it over if it is not renewed for
:data:`LEASE` seconds, or at once if its holder was a process of this machine that has ended. A holder that
was only slow cannot harm the book: the position of its next block is taken.

Source: Gray & Cheriton 1989, Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache Consistency
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from fedray.errors import LedgerError, StoreError
from fedray.stores.s3 import TIMEOUTS, Bucket, Taken

#: Seconds between two renewals of a lock, and seconds without a renewal after which it may be taken over.
RENEW, LEASE = 10.0, 35.0

_LOOK = 0.5  # seconds between two looks at another writer's lock


class ObjectLock:
    """The lock of one book, held from the construction of this object to :meth:`release`.

    Attributes:
        lost: the writer that took it over, in words; empty while it is held.
    """

    def __init__(self, bucket: Bucket, book: str, job: str, wait: float) -> None:
        """Take the lock.

        Args:
            bucket: the directory of the book.
            book: name of the book.
            job: the run that takes it.
            wait: seconds to wait for a living holder to end.

        Raises:
            LedgerError: another writer holds it, or the store ignores conditions on writes.
            StoreError: the store cannot be reached.
        """
        self.lost = ""
        self._bucket, self._book, self._key = bucket, bucket.path / book, f"{book}.holder"
        self._token = secrets.token_hex(8)
        self._names = {"job": job, "pid": os.getpid(), "host": socket.gethostname(), "process": _process(os.getpid()), "token": self._token}
        self._renewals = 0
        self._tag: str | None = self._take(wait)
        self._check_store()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="ledger-lock", daemon=True)
        self._thread.start()

    def _body(self) -> bytes:
        return json.dumps({**self._names, "renewals": self._renewals}).encode()

    def _take(self, wait: float) -> str:
        began = since = time.monotonic()
        watched: str | None = None
        alive = False
        while True:
            asked = time.monotonic()
            found = self._bucket.get_tagged(self._key)
            holder, tag = (None, None) if found is None else (_read(found[0]), found[1])
            if holder is not None and holder.get("token") == self._token:
                assert tag is not None
                return tag  # the answer to an earlier try was lost
            now = time.monotonic()
            if now - asked > RENEW:  # the store was away, so the holder could not renew either
                since = now
            if tag != watched:
                alive = alive or (watched is not None and tag is not None)
                watched, since = tag, now
            lives = None if holder is None else _lives(holder)
            if holder is None or lives is False or now - since >= LEASE:
                with contextlib.suppress(Taken):
                    return self._bucket.claim(self._key, self._body(), tag)
                continue
            if (alive or lives) and now - began >= wait:
                raise LedgerError(f"{self._book}: is in use by {_words(holder)}; wait until that run ends, or stop it.")
            time.sleep(_LOOK)

    def _check_store(self) -> None:
        """Refuse a store that ignores conditions on writes, for blocks are not safe from a second writer there."""
        for tag in (None, '"00000000000000000000000000000000"'):
            with contextlib.suppress(Taken):
                self._bucket.claim(self._key, self._body(), tag)
                raise LedgerError(
                    f"{self._book}: the store ignores conditions on writes (If-None-Match, If-Match), so two writers could both charge; "
                    "use a store that honours them."
                )

    def _renew(self) -> None:
        while not self._over.wait(RENEW) and not self.lost:
            self._renewals += 1
            with contextlib.suppress(StoreError):  # a store that is away is asked again; only the blocks must reach it
                try:
                    self._tag = self._bucket.claim(self._key, self._body(), self._tag, patience=0.0)
                except Taken:
                    self._look_who()

    def _look_who(self) -> None:
        found = self._bucket.get_tagged(self._key, patience=0.0)
        holder, self._tag = ({}, None) if found is None else (_read(found[0]), found[1])
        if found is not None and holder.get("token") != self._token:
            self.lost = _words(holder)

    def release(self) -> None:
        """Give the lock back if the store can be reached; otherwise it expires. Safe to call twice."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join(sum(TIMEOUTS))
        if not self.lost and self._tag is not None:
            with contextlib.suppress(StoreError):
                self._bucket.delete(self._key, self._tag, patience=0.0)


def _read(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _process(pid: int) -> str | None:
    """An identity of a process that no other process has, on any machine at any time; None if there is none or it cannot be read."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if started[0] == "Z" else f"{boot} {space} {started[19]}"


def _lives(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process runs; None if that cannot be seen from this machine."""
    ours, theirs, pid = _process(os.getpid()), holder.get("process"), holder.get("pid")
    if ours is None or not isinstance(theirs, str) or not isinstance(pid, int) or ours.split()[:2] != theirs.split()[:2]:
        return None
    return _process(pid) == theirs


def _words(holder: dict[str, Any]) -> str:
    return (
        f"job '{holder['job']}' (process {holder['pid']} on {holder['host']})"
        if {"job", "pid", "host"} <= set(holder)
        else "another process"
    )
