"""A run's files in an object store: written to a working directory on the driver's node, copied to the store beside the run.

What is in the store can be resumed at any moment: rows are sent before the checkpoints that they lead to, checkpoints
before the summary, and old checkpoints are deleted last. Each object is whole or absent. A store that is away holds
nothing up: whatever changed is sent when it is back.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from fedray.errors import ConfigError, FedrayError
from fedray.storage import write_atomic
from fedray.stores.remote import Remote, StoreAway, canonical, is_remote

#: The newest driver of an output, by which one that was cut off knows that another took over.
OWNER = "owner.json"
CHECKPOINTS = "checkpoints/"
SUMMARY = "summary.json"

_LOOK = 0.5  # seconds between two looks for what changed
_PAUSES = (0.5, 30.0)  # seconds between two tries while the store is away
_CLOSING_PAUSE = 2.0
_NEVER = (-1, -1, -1)

T = TypeVar("T")
Stamp = tuple[int, int, int]


class Mirror:
    """Keeps a prefix in a store like a working directory. In order: :meth:`pull`, :meth:`start`, :meth:`close`."""

    def __init__(self, root: Path, remote: Remote, note: Callable[[str], None]) -> None:
        """Nothing is done yet.

        Args:
            root: the working directory.
            remote: what it is copied to.
            note: told, from another thread, when the store goes away and when it is back.
        """
        self._root, self._remote, self._note = root, remote, note
        self._sent: dict[str, Stamp] = {}
        self._owner = b""
        self._closing, self._over = threading.Event(), threading.Event()
        self._abandoned = self._replaced = self._away = False
        self._heard = 0.0
        self._thread = threading.Thread(target=self._run, name="fedray-mirror", daemon=True)

    def pull(self, resume: bool, wait: float = 0.0) -> None:
        """Make the working directory what a run starts from: empty, or with ``resume`` what the store has.

        A working directory of an earlier start on this node stands where it is ahead of the store: its driver
        ended before it could send everything.

        Args:
            resume: go on with the run that is in the store.
            wait: seconds to wait for a store that is away.

        Raises:
            FedrayError: the store is away, or the disk is full.
        """
        limit = time.monotonic() + wait
        names = self._patiently(self._remote.names, limit) if resume else []
        theirs, ours = _newest(names), _newest(_files(self._root))
        own = _read(self._root / OWNER)
        same = own is not None and resume and own == self._patiently(partial(self._remote.get, OWNER), limit)
        if resume and (ours, same) > (theirs, False):
            self._sent = {name: _NEVER for name in names if name.startswith(CHECKPOINTS)}
            return
        _empty(self._root)
        for name in filter(_mirrored, names):
            self._patiently(partial(self.fetch, name), limit)

    def fetch(self, name: str) -> None:
        """Copy one object into the working directory.

        Raises:
            FedrayError: the store is away, or the disk is full.
        """
        data = self._remote.get(name)
        if data is not None:
            write_atomic(self._root / name, data)
            self._sent[name] = _stamp(self._root / name)

    def start(self) -> None:
        """Write to the store whose the output is now, as the working directory says, and begin to send what changes.

        Raises:
            StoreAway: the store cannot be written.
        """
        self._owner = (self._root / OWNER).read_bytes()
        self._remote.put(OWNER, self._owner)
        self._thread.start()

    def send(self) -> None:
        """Send what changed since the last time, in order.

        Raises:
            StoreAway: the store went away; the next call sends the rest.
        """
        with ExitStack() as held:
            # Checkpoints are opened before the rows are read: so the rows reach at least as far, and one that the driver deletes
            # in the meantime can be sent all the same.
            changed = self.unsent()
            checkpoints = {n: _open(self._root / n, held) for n in changed if n.startswith(CHECKPOINTS)}
            for name in sorted(changed, key=_rank):
                stamp = _stamp(self._root / name)
                file = checkpoints.get(name) or _open(self._root / name, held)
                if file is not None:
                    self._remote.put(name, file.read())
                    self._sent[name] = stamp
        for name in self._stale():
            self._remote.delete(name)
            del self._sent[name]

    def unsent(self) -> list[str]:
        """Names of the files that the store lacks, or has in an older state."""
        return [name for name in _files(self._root) if self._sent.get(name) != _stamp(self._root / name)]

    def _stale(self) -> list[str]:
        """Checkpoints in the store that the driver has deleted, but for the newest there."""
        there = sorted(name for name in self._sent if name.startswith(CHECKPOINTS))
        return [name for name in there[:-1] if not (self._root / name).exists()]

    def close(self, timeout: float) -> list[str]:
        """Send the rest; returns the names of what could not be sent, which stays in the working directory.

        A driver that was replaced has nothing to send any more.

        Args:
            timeout: seconds to wait for a store that is away. While it answers, the rest is sent, in at most ten times as long.
        """
        self._closing.set()
        began = time.monotonic()
        while self._thread.is_alive() and not self._over.wait(0.05):
            now = time.monotonic()
            if now - began > 10 * timeout or (self._away and now - max(began, self._heard) > timeout):
                break
        self._abandoned = True
        return [] if self._replaced else self.unsent()

    def _run(self) -> None:
        pause, longest = _PAUSES
        while not self._abandoned:
            last = self._closing.is_set()  # what was written before close() is part of this turn
            try:
                if self.unsent() or self._stale():
                    if self._taken_over():
                        self._replaced = True
                        break
                    self.send()
            except (FedrayError, OSError) as error:
                if not self._away:
                    self._tell(f"{str(error).rstrip('.')}; training goes on, and what is missing there is sent when the store is back.")
                self._away = True
                self._closing.wait(pause) if not last else time.sleep(min(pause, _CLOSING_PAUSE))
                pause = min(2 * pause, longest)
                continue
            self._heard, pause = time.monotonic(), _PAUSES[0]
            if self._away:
                self._away = False
                self._tell(f"{self._remote.address}: the store is back and has everything.")
            if last:
                break
            self._closing.wait(_LOOK)
        self._over.set()

    def _tell(self, text: str) -> None:
        with suppress(FedrayError):  # whoever is told may not be able to write it down
            self._note(text)

    def _taken_over(self) -> bool:
        """Whether another driver owns the output by now; its name is then put where this one will find it."""
        found = self._remote.get(OWNER)
        if found in (None, self._owner):
            return False
        assert found is not None
        if _read(self._root / OWNER) == self._owner:  # not where the other works in this very directory
            write_atomic(self._root / OWNER, found)
        return True

    def _patiently(self, call: Callable[[], T], limit: float) -> T:
        pause, longest = _PAUSES
        while True:
            try:
                return call()
            except StoreAway as error:
                if time.monotonic() + pause > limit:
                    raise StoreAway(f"{error}; check the address, the credentials and the network.") from error
            time.sleep(pause)
            pause = min(2 * pause, longest)


def working_directory(address: str) -> Path:
    """Where on this node the files of a run in a store are kept: the same for the same address, this user's alone.

    It is below ``$FEDRAY_WORK``, or the directory for temporary files.

    Raises:
        ConfigError: it cannot be made, or is another user's.
    """
    given = os.environ.get("FEDRAY_WORK")
    base = Path(given) if given else Path(tempfile.gettempdir()) / f"fedray-{os.getuid()}"
    home = base / sha256(address.encode()).hexdigest()[:16]
    try:
        if given:
            base.mkdir(parents=True, exist_ok=True)
        for folder in [home] if given else [base, home]:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise ConfigError(f"{folder}: is not this user's directory; set FEDRAY_WORK to a directory for the files of runs.")
            folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{home}: cannot be made ({error.strerror}); set FEDRAY_WORK to a directory for the files of runs.") from None
    return home / PurePosixPath(address.partition("?")[0]).name


@contextmanager
def local_copy(output: str | Path) -> Iterator[Path]:
    """A run's directory to read: itself, or a copy of what a store has. What is changed or added in the copy is sent back.

    The copy is without checkpoints; books that lie in the store are put together as files, and never sent back.

    Raises:
        ConfigError: no such address.
        StoreAway: the store cannot be read, or written at the end.
    """
    if not is_remote(output):
        yield Path(str(output).removeprefix("file://"))
        return
    address = canonical(str(output))
    remote = Remote(address)
    with tempfile.TemporaryDirectory(prefix="fedray-") as folder:
        root = Path(folder) / PurePosixPath(address.partition("?")[0]).name
        root.mkdir()
        mirror, books = Mirror(root, remote, lambda text: None), dict[str, bytes]()
        for name in remote.names():
            path = PurePosixPath(name)
            if path.parent.suffix == ".jsonl" and path.name.isdigit():  # an object of a book
                books[str(path.parent)] = books.get(str(path.parent), b"") + (remote.get(name) or b"")
            elif _mirrored(name) and not name.startswith(CHECKPOINTS):
                mirror.fetch(name)
        for name, content in books.items():
            write_atomic(root / name, content)
        yield root
        mirror.send()


def _rank(name: str) -> tuple[int, str]:
    """Order of sending: rows, checkpoints (which imply all earlier rows), summary (which names the model)."""
    return (2 if name == SUMMARY else 1 if name.startswith(CHECKPOINTS) else 0, name)


def _mirrored(name: str) -> bool:
    """Whether a file is copied: temporary files, salts, the owner and the books are not."""
    path = PurePosixPath(name)
    book = path.parts[0] == "ledger" and any(part.endswith(".jsonl") for part in path.parts)
    return not (book or name == OWNER or path.suffix == ".salt" or any(part.startswith(".") for part in path.parts))


def _files(root: Path) -> list[str]:
    """What is to be copied, in order."""
    found = (Path(folder, name).relative_to(root).as_posix() for folder, _, names in os.walk(root) for name in names)
    return sorted(filter(_mirrored, found))


def _newest(names: list[str]) -> int:
    """The round of the newest checkpoint; -1 where there is none."""
    rounds = [PurePosixPath(n).stem.rpartition("-")[2] for n in names if n.startswith(CHECKPOINTS)]
    return max((int(r) for r in rounds if r.isdigit()), default=-1)


def _stamp(path: Path) -> Stamp:
    """Changes with every change of a file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return _NEVER
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _open(path: Path, held: ExitStack) -> BinaryIO | None:
    try:
        return held.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None


def _empty(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
