"""The mirror of a run's files: the driver writes to a working directory on its node, and a thread copies the files to an object store.

The run can be resumed from the store at any moment: the rows are sent before the checkpoints that follow them, the
checkpoints before the summary, and old checkpoints are deleted last. Each object is whole or absent. Training does not
wait for a store that is away: the files that changed are sent when it is back.
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
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fedray.errors import ConfigError, FedrayError
from fedray.storage import write_atomic
from fedray.stores.object_path import Location, ObjectPath, location
from fedray.stores.s3 import Absent, Bucket

#: Names the newest driver of an output. A driver that was cut off finds another name there and stops.
OWNER = "owner.json"
CHECKPOINTS = "checkpoints/"
SUMMARY = "summary.json"

_LOOK = 0.5  # seconds between two looks for changed files
_PAUSES = (0.5, 30.0)  # seconds between two tries while the store is away: the first pause, and the longest
_CLOSING_PAUSE = 2.0
_NEVER = (-1, -1, -1)

#: Inode, modification time in nanoseconds and size of a file; changes with every change of the file.
Stamp = tuple[int, int, int]


class Mirror:
    """Keeps the objects below a prefix equal to a working directory. Call :meth:`pull`, :meth:`start` and :meth:`close`, in this order."""

    def __init__(self, root: Path, bucket: Bucket, note: Callable[[str], None]) -> None:
        """Send no request yet.

        Args:
            root: the working directory.
            bucket: the prefix; its patience is that of one call, for the thread itself tries again.
            note: called from the mirror's thread with a sentence when the store goes away and when it is back.
        """
        self._root, self._bucket, self._note = root, bucket, note
        self._sent: dict[str, Stamp] = {}
        self._owner = b""
        self._closing, self._over = threading.Event(), threading.Event()
        self._abandoned = self._replaced = self._away = False
        self._heard = 0.0
        self._thread = threading.Thread(target=self._run, name="fedray-mirror", daemon=True)

    def pull(self, resume: bool, wait: float = 0.0) -> None:
        """Prepare the working directory for a run: empty it, or with ``resume`` fill it from the store.

        The working directory of an earlier start on this node is kept if it is ahead of the store, because its
        driver ended before it could send everything.

        Args:
            resume: continue the run that is in the store.
            wait: seconds for which each call is tried again while the store is away.

        Raises:
            FedrayError: the store is away or refuses, or the disk is full.
        """
        names = self._bucket.names(patience=wait) if resume else []
        theirs, ours = _newest(names), _newest(_files(self._root))
        own = _read(self._root / OWNER)
        same = own is not None and resume and own == self._bucket.get(OWNER, patience=wait)
        if resume and (ours, same) > (theirs, False):
            self._sent = {name: _NEVER for name in names if name.startswith(CHECKPOINTS)}
            return
        _empty(self._root)
        for name in filter(mirrored, names):
            self.fetch(name, wait)

    def fetch(self, name: str, wait: float = 0.0) -> None:
        """Copy one object, if it is still there, into the working directory.

        Raises:
            FedrayError: the store is away or refuses, or the disk is full.
        """
        with suppress(Absent):
            write_atomic(self._root / name, lambda path: self._bucket.download(name, path, patience=wait))
            self._sent[name] = _stamp(self._root / name)

    def start(self) -> None:
        """Write the new owner of the output, which the working directory names, to the store, and start the thread that sends changes.

        Raises:
            StoreError: the store cannot be written.
        """
        self._owner = (self._root / OWNER).read_bytes()
        self._bucket.put(OWNER, self._owner)
        self._thread.start()

    def send(self) -> None:
        """Send the files that changed since the last call, in order.

        Raises:
            StoreError: the store went away; the next call sends the rest.
        """
        with ExitStack() as held:
            # Checkpoints are opened before the rows are read, so the rows reach at least as far, and a checkpoint that the driver
            # deletes in the meantime can still be sent.
            changed = self.unsent()
            checkpoints = {n: _open(self._root / n, held) for n in changed if n.startswith(CHECKPOINTS)}
            for name in sorted(changed, key=_rank):
                stamp = _stamp(self._root / name)
                file = checkpoints.get(name) or _open(self._root / name, held)
                if file is not None:
                    self._bucket.put(name, file)
                    self._sent[name] = stamp
        for name in self._stale():
            self._bucket.delete(name)
            del self._sent[name]

    def unsent(self) -> list[str]:
        """Names of the files that the store lacks or has in an older version."""
        return [name for name in _files(self._root) if self._sent.get(name) != _stamp(self._root / name)]

    def _stale(self) -> list[str]:
        """Checkpoints in the store that the driver has deleted, except the newest in the store."""
        there = sorted(name for name in self._sent if name.startswith(CHECKPOINTS))
        return [name for name in there[:-1] if not (self._root / name).exists()]

    def close(self, timeout: float) -> list[str]:
        """Send the rest and stop the thread.

        Args:
            timeout: seconds to wait for a store that is away. As long as the store answers, sending may take ten times as long.

        Returns:
            Names of the files that could not be sent and stay in the working directory; none if another driver took over.
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
            last = self._closing.is_set()  # this turn sends all that was written before close()
            try:
                if self.unsent() or self._stale():
                    if self._taken_over():
                        self._replaced = True
                        break
                    self.send()
            except (FedrayError, OSError) as error:
                if not self._away:
                    self._tell(f"training goes on, and the files are sent when the store is back: {error}")
                self._away = True
                self._closing.wait(pause) if not last else time.sleep(min(pause, _CLOSING_PAUSE))
                pause = min(2 * pause, longest)
                continue
            self._heard, pause = time.monotonic(), _PAUSES[0]
            if self._away:
                self._away = False
                self._tell(f"{self._bucket.path}: the store is back and has everything.")
            if last:
                break
            self._closing.wait(_LOOK)
        self._over.set()

    def _tell(self, text: str) -> None:
        with suppress(FedrayError):  # the receiver may fail to write the note to its own files
            self._note(text)

    def _taken_over(self) -> bool:
        """Whether another driver owns the output now; its name is then written to the working directory, where this driver finds it."""
        found = self._bucket.get(OWNER)
        if found in (None, self._owner):
            return False
        assert found is not None
        if _read(self._root / OWNER) == self._owner:  # the other driver may work in this directory itself
            write_atomic(self._root / OWNER, found)
        return True


def working_directory(address: ObjectPath) -> Path:
    """The directory on this node of a run whose files are in a store. It depends on the address alone, and only this user may read it.

    It is below ``$FEDRAY_WORK``, or below the directory for temporary files.

    Raises:
        ConfigError: it cannot be made, or belongs to another user.
    """
    given = os.environ.get("FEDRAY_WORK")
    base = Path(given) if given else Path(tempfile.gettempdir()) / f"fedray-{os.getuid()}"
    home = base / sha256(str(address).encode()).hexdigest()[:16]
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
    return home / address.name


@contextmanager
def local_copy(output: str | Location, whole: bool = False) -> Iterator[Path]:
    """The directory of a run: the directory itself, or a copy of the files in a store. Files changed or added in the copy are sent back.

    The copy has no checkpoints, unless it is to be ``whole``. Privacy books in the store become files of the copy and are never sent back.

    Raises:
        ConfigError: not an address that fedray reads.
        StoreError: the store cannot be read, or written at the end.
    """
    where = location(output, "--output")
    if isinstance(where, Path):
        yield where
        return
    bucket = Bucket(where, patience=0.0)
    with tempfile.TemporaryDirectory(prefix="fedray-") as folder:
        root = Path(folder) / where.name
        root.mkdir()
        mirror, books = Mirror(root, bucket, lambda text: None), dict[str, bytes]()
        for name in bucket.names():
            path = PurePosixPath(name)
            if path.parent.suffix == ".jsonl" and path.name.isdigit():  # an object of a book
                books[str(path.parent)] = books.get(str(path.parent), b"") + (bucket.get(name) or b"")
            elif mirrored(name) and (whole or not name.startswith(CHECKPOINTS)):
                mirror.fetch(name)
        for name, content in books.items():
            write_atomic(root / name, content)
        yield root
        mirror.send()


def _rank(name: str) -> tuple[int, str]:
    """Order of sending: rows, then checkpoints (which imply all earlier rows), then the summary (which names the model)."""
    return (2 if name == SUMMARY else 1 if name.startswith(CHECKPOINTS) else 0, name)


def mirrored(name: str) -> bool:
    """Whether a file is copied: temporary files, salts, the owner and privacy books are not."""
    path = PurePosixPath(name)
    book = path.parts[0] == "ledger" and any(part.endswith(".jsonl") for part in path.parts)
    return not (book or name == OWNER or path.suffix == ".salt" or any(part.startswith(".") for part in path.parts))


def _files(root: Path) -> list[str]:
    """Names of the files that are copied, in order."""
    found = (Path(folder, name).relative_to(root).as_posix() for folder, _, names in os.walk(root) for name in names)
    return sorted(filter(mirrored, found))


def _newest(names: list[str]) -> int:
    """The round of the newest checkpoint; -1 if there is none."""
    rounds = [PurePosixPath(n).stem.rpartition("-")[2] for n in names if n.startswith(CHECKPOINTS)]
    return max((int(r) for r in rounds if r.isdigit()), default=-1)


def _stamp(path: Path) -> Stamp:
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
