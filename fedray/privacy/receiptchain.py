"""A client's chain of receipts: what it has signed for its updates, one line each, in a file on its own machine.

A receipt is durable before its update leaves. The file outlives runs and processes, and one process at a time holds it: whoever starts again
goes on where the last one ended. So no two receipts of a chain have the same number, unless the file was brought back from an older copy; a
driver that knows a later receipt is then refused, and two such receipts that meet show it to everybody.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedray.errors import LedgerError
from fedray.privacy.ledger.book_file import FileBook
from fedray.privacy.ledger.chain import run_of
from fedray.secure.signedlines import FIRST, SignedLine, public_hex, read_signed, sign_line

#: Version of receipts; see docs/receipts.md.
VERSION = 1
#: Seconds that a new process waits until the one that it replaces has let go of the chain.
TAKEOVER = 30.0


class ReceiptChain:
    """A client's receipts, open for writing.

    Args:
        path: of the file; it is made if it is missing, and its directory must be there.
        own: the client's key.
        client: its name.
        job: name of the run, followed by ``/n`` for its n-th start.
        pinned: hash of a receipt of this run that the chain must hold, because others know it.
        wait: seconds to wait until an earlier process has let go of the file.

    Raises:
        LedgerError: the file is in use, damaged, of another client or key, or lacks ``pinned``.
    """

    def __init__(
        self, path: Path, own: Ed25519PrivateKey, client: str, job: str, pinned: str | None = None, wait: float = TAKEOVER
    ) -> None:
        self._path, self._own, self._client, self._job = path, own, client, job
        self._book, self._size = FileBook(path, job, must_exist=pinned is not None, make_directory=False, wait=wait), 0
        self._last: SignedLine | None = None
        self._of_run: list[SignedLine] = []
        try:
            self._load()
            if pinned is not None and pinned not in {line.sha256 for line in self._of_run}:
                raise LedgerError(
                    f"{path}: lacks the receipt {pinned[:12]}..., which the driver has; the file was brought back from an older copy or replaced, "
                    "so restore the right one."
                )
        except BaseException:
            self._book.close()
            raise

    def sign(self, said: Mapping[str, Any]) -> SignedLine:
        """Sign the next receipt, which is on disk when this returns.

        Args:
            said: what it says beside what makes it part of this chain; JSON data.

        Raises:
            LedgerError: it cannot be made durable, so its update may not leave.
        """
        last, here = self._last, self._of_run[-1] if self._of_run else None
        run, _, start = self._job.rpartition("/")
        body = {
            "kind": "receipt",
            "v": VERSION,
            "client": self._client,
            "run": run,
            "start": int(start),
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "chain": secrets.token_hex(16) if last is None else last.body["chain"],
            "number": 1 if last is None else last.body["number"] + 1,
            "previous": FIRST if last is None else last.sha256,
            "run_number": 1 if here is None else here.body["run_number"] + 1,
            "run_previous": FIRST if here is None else here.sha256,
            **said,
        }
        line = sign_line(body, self._own)
        self._book.append(line.line + b"\n", self._size)
        self._take(line)
        return line

    def after(self, number: int) -> Sequence[bytes]:
        """This run's receipts after its ``number``-th."""
        return [line.line for line in self._of_run[number:]]

    def close(self) -> None:
        """Let go of the file."""
        self._book.close()

    def _load(self) -> None:
        for n, line in enumerate(self._book.lines(), start=1):
            if not line.endswith(b"\n"):  # its update has not left, for that happens after the whole line is on disk
                self._book.cut(line, self._size)
                return
            try:
                found = read_signed(line[:-1])
            except ValueError as error:
                raise LedgerError(f"{self._path}: line {n} is no receipt ({error}); bring the file back from a copy.") from None
            self._check(n, found)
            self._take(found)

    def _check(self, n: int, line: SignedLine) -> None:
        body, last = line.body, self._last
        if not line.signed_by(self._own.public_key().public_bytes_raw()) or body.get("client") != self._client:
            raise LedgerError(
                f"{self._path}: line {n} is not signed by client '{self._client}' with the key {public_hex(self._own)[:16]}...; a key has its own "
                "chain, so give the file of this one."
            )
        expected = (n, FIRST if last is None else last.sha256, body["chain"] if last is None else last.body["chain"])
        if (body["number"], body["previous"], body["chain"]) != expected:
            raise LedgerError(f"{self._path}: line {n} does not follow the line before it; bring the file back from a copy.")

    def _take(self, line: SignedLine) -> None:
        self._last = line
        self._size += len(line.line) + 1
        if line.body["run"] == run_of(self._job):
            self._of_run.append(line)
