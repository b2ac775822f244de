"""The driver's side of signed receipts: it checks each as its update comes in, and signs what it made of a round's receipts.

``receipts.jsonl`` is only ever added to. The driver's own lines (``start``, ``round``, ``end``) follow the receipts that they cover: each has the
Merkle root over the receipts since the driver's line before, the model before and after, the heads of the privacy ledgers, the rows of metrics that
are written by then, and the hash of the line before. The format is in docs/receipts.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from hashlib import sha256
from typing import Any

import numpy as np

from fedray.aggregation.each import Rows, RowsAt
from fedray.choices import Signing
from fedray.clients.messages import ClientReport, PartialSum
from fedray.clients.pool import Pool
from fedray.clients.receiptsigner import SigningPlace, what_left
from fedray.errors import ClaimVoid, ConfigError, FedrayError
from fedray.privacy.receiptchain import VERSION
from fedray.rounds.manifest import manifest_files
from fedray.runfiles import RunFiles
from fedray.secure.identities import path_for, read_key
from fedray.secure.merkle import leaf_hash, root_of
from fedray.secure.signedlines import FIRST, SignedLine, canonical, read_signed, sign_line
from fedray.storage import damaged

#: Kinds of the driver's own lines.
DRIVERS = ("start", "round", "end")
#: Name under which the driver's public key is known.
DRIVER = "driver"
#: Seconds that clients have to hand over receipts of updates that did not arrive.
_PATIENCE = 10.0


class RoundReceipts:
    """The receipts of one run.

    Args:
        signing: of the config.
        files: of the run.
        names: of all clients.
        resumed: whether there is a checkpoint, so that the receipts of its rounds must be there.

    Raises:
        ConfigError: the driver's key cannot be used, or a client has the driver's name.
        FedrayError: the receipts of the rounds before are missing or damaged.
    """

    def __init__(self, signing: Signing, files: RunFiles, names: Sequence[str], resumed: bool) -> None:
        if DRIVER in names:
            raise ConfigError(f"clients.signing: a client is called '{DRIVER}', as the driver is among the keys; give it another name.")
        self._signing, self._files, self._names = signing, files, list(names)
        self._own = read_key(path_for(DRIVER, signing.driver, "clients.signing.driver"), "clients.signing.driver")
        self._known: dict[str, SignedLine] = {}  # of each client the last receipt of this run that is in the file
        self._new: dict[tuple[str, int], SignedLine] = {}  # those that came since the driver's last line
        self._last = FIRST
        self._rows, self._rows_read, self._rows_sha = 0, 0, sha256()
        self._run = ""
        if files.receipts.exists():
            self._continue()
        elif resumed:
            raise FedrayError(
                f"--resume: {files.receipts} is missing, so the rounds before would have no receipts; bring it back, or take clients.signing out if "
                "the run began without it."
            )

    def place(self, client: str) -> SigningPlace:
        """Where a dedicated client's key and its receipts are."""
        key, chain = (str(path_for(client, path, "clients.signing")) for path in self._signing.files)
        return SigningPlace(key, chain, self.last_of(client))

    def last_of(self, client: str) -> str | None:
        """Hash of a client's last receipt of this run that the driver has; None where it has none."""
        known = self._known.get(client)
        return None if known is None else known.sha256

    def begin(self, pool: Pool, job: str, number: int, model: str) -> None:
        """Write that a start of the run goes on from the model with this digest, before round ``number``.

        Raises:
            FedrayError: the receipts are of another run.
        """
        run, _, start = job.rpartition("/")
        if self._run not in ("", run):
            raise damaged(self._files.receipts, f"it is of the run {self._run}, and this one is {run}")
        self._pool, self._run, self._start, self._model = pool, run, int(start), model
        old = self._files.manifest
        self._write("start", number, {}, model, {"manifest": sha256(old.read_bytes()).hexdigest() if old.exists() else None})
        self._files.replace_manifest(None)

    def arrived(self, part: PartialSum | RowsAt, report: ClientReport, segments: int) -> None:
        """Check the receipt of an update that has come.

        Args:
            part: the client's update, and nothing else.
            report: of the client's turn.
            segments: into how many a single update is cut.

        Raises:
            ClaimVoid: it is missing, not the client's, or not of this update.
        """
        who = f"client {report.name}"
        came, line = (part.total, part.signed) if isinstance(part, PartialSum) else (_whole(part, segments), report.signed)
        if not line:
            raise ClaimVoid(f"{who}: its update came without a signed receipt; nothing of it is used.")
        found = self._checked(report.name, line)
        said: dict[str, Any] = {"attempt": report.attempt, "ran": {unit: dict(receipt) for unit, receipt in report.receipts.items()}}
        said |= {} if came is None else {"update": what_left(came)}  # one that is lost meanwhile is not used
        for key, value in said.items():
            if canonical({key: found.body.get(key)}) != canonical({key: value}):
                raise ClaimVoid(
                    f"{who}: its signed receipt says {key} {found.body.get(key)!r}, but what came has {value!r}; nothing of it is used."
                )
        self._new[report.name, found.body["run_number"]] = found

    def round_done(self, number: int, counted: Sequence[int], model: str, heads: Mapping[str, str]) -> None:
        """Write a round's receipts, and sign for them.

        Args:
            number: of the round, from 0.
            counted: indices of the clients whose updates are in the new model.
            model: digest of the model after the round.
            heads: of the privacy ledgers.
        """
        last = {name: max(n for who, n in self._new if who == name) for name in (self._names[index] for index in counted)}
        self._complete({name for name, _ in self._new if not self._whole_up_to_now(name)})
        self._write("round", number, last, model, {"ledger": dict(heads)})

    def end(self, rounds: int, status: str, model: str, heads: Mapping[str, str]) -> None:
        """Write the receipts that are left, sign that the run has ended, and sign all its files."""
        with suppress(FedrayError):  # of clients that do not answer any more, what they have signed last stays unknown
            self._complete(set(self._names))
        self._write("end", rounds, {}, model, {"ledger": dict(heads), "status": status})
        about = {
            "kind": "manifest",
            "v": VERSION,
            "run": self._run,
            "start": self._start,
            "status": status,
            "model": model,
            "end": self._last,
        }
        self._files.replace_manifest(sign_line(about | manifest_files(self._files), self._own).line.decode())

    def _write(self, kind: str, number: int, counted: Mapping[str, int], model: str, more: Mapping[str, Any]) -> None:
        new = dict(sorted(self._new.items()))
        places = {key: n for n, key in enumerate(new)}
        body = {
            "kind": kind,
            "v": VERSION,
            "run": self._run,
            "start": self._start,
            "round": number,
            "receipts": len(new),
            "root": root_of([leaf_hash(line.line) for line in new.values()]),
            "counted": sorted(places[key] for key in counted.items()),
            "model_before": self._model,
            "model_after": model,
            "rows": self._rows_so_far(),
            "previous": self._last,
            **more,
        }
        own = sign_line(body, self._own)
        self._files.append_receipts([line.line.decode() for line in (*new.values(), own)])
        for (name, _), line in new.items():
            self._known[name] = line
        self._new, self._last, self._model = {}, own.sha256, model

    def _rows_so_far(self) -> dict[str, Any]:
        """How many rows the metrics file has, and the SHA-256 of its bytes."""
        path = self._files.metrics
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._rows_read)
                more = file.read()
            self._rows += more.count(b"\n")
            self._rows_read += len(more)
            self._rows_sha.update(more)
        return {"lines": self._rows, "sha256": self._rows_sha.hexdigest()}

    def _whole_up_to_now(self, name: str) -> bool:
        """Whether no receipt is missing between a client's last one in the file and those that came since."""
        came = sorted(n for who, n in self._new if who == name)
        return came == list(range(self._number(name) + 1, self._number(name) + 1 + len(came)))

    def _number(self, name: str) -> int:
        return int(self._known[name].body["run_number"]) if name in self._known else 0

    def _complete(self, clients: Set[str]) -> None:
        """Ask clients for all their receipts after those in the file: some are of updates that left, but did not arrive."""
        asked = {index: (self._number(name),) for index, name in enumerate(self._names) if name in clients}
        answers = self._pool.ask("signed_after", asked, _PATIENCE) if asked else {}
        for index, lines in answers.items():
            for line in lines:
                found = self._checked(self._names[index], line)
                self._new.setdefault((self._names[index], found.body["run_number"]), found)

    def _checked(self, name: str, line: bytes) -> SignedLine:
        """A client's receipt, if it is signed, of this client and run, and by the same key as its others.

        Raises:
            ClaimVoid: it is not.
        """
        try:
            found = read_signed(line)
            body, known = found.body, self._known.get(name)
            right = found.signed_by(bytes.fromhex(found.key)) and (body["kind"], body["client"], body["run"]) == (
                "receipt",
                name,
                self._run,
            )
            right = right and isinstance(body["run_number"], int) and (known is None or known.key == found.key)
        except (ValueError, KeyError):
            right = False
        if not right:
            raise ClaimVoid(
                f"client {name}: what came as its signed receipt is none of this run by its key; nothing of its update is used."
            )
        return found

    def _continue(self) -> None:
        """Take up the receipts of an earlier start. What follows the driver's last whole line is written again: clients have kept it."""
        path = self._files.receipts
        size, at, pending = 0, 0, list[SignedLine]()
        for n, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            at += len(text)
            try:
                line = read_signed(text.removesuffix(b"\n"))
            except ValueError:
                line = None
            if line is None or not text.endswith(b"\n"):
                if at == path.stat().st_size:  # what a crash has cut short
                    break
                raise damaged(path, f"line {n} is no signed line")
            pending.append(line)
            if line.body["kind"] in DRIVERS:
                if not line.signed_by(self._own.public_key().public_bytes_raw()):
                    raise damaged(path, f"line {n} is not signed by the driver's key of this start, clients.signing.driver")
                self._known |= {str(one.body["client"]): one for one in pending[:-1]}
                self._run, self._last, size, pending = str(line.body["run"]), line.sha256, at, []
        with path.open("r+b") as file:
            file.truncate(size)


def _whole(part: RowsAt, segments: int) -> Rows | None:
    """A single update, where it lies in segments; None where one of them is gone."""
    found = [part.fetch(k) for k in range(segments)]
    cut = [rows for rows in found if isinstance(rows, Rows)]
    if len(cut) < segments:
        return None
    whole = np.concatenate([rows.blocks[0] for rows in cut], axis=1)
    return Rows(whole.shape[1], [whole], cut[0].weights)


def receipts_of(signing: Signing | None, files: RunFiles, names: Sequence[str], resumed: bool) -> RoundReceipts | None:
    """The receipts of a run that signs; None for others.

    Raises:
        ConfigError: see :class:`RoundReceipts`; or earlier rounds of the run are signed.
    """
    if signing is not None:
        return RoundReceipts(signing, files, names, resumed)
    if files.receipts.exists():
        raise ConfigError("clients.signing: this run's rounds before are signed; set it as it was, so that the others are, too.")
    return None
