"""What clients and driver have signed of a run, read back and checked line by line; see docs/receipts.md for the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError
from fedray.rounds.roundreceipts import DRIVER, DRIVERS
from fedray.runfiles import RECEIPTS
from fedray.secure.merkle import leaf_hash, root_of
from fedray.secure.signedlines import FIRST, SignedLine, read_signed
from fedray.secure.signing import PUBLIC

Keys = Mapping[str, bytes]


@dataclass
class SignedRun:
    """The signed lines of a run.

    Attributes:
        run: id of the run.
        faults: one sentence each, with the file first.
        receipts: of each client, in the order of the file, with their places in words.
        rounds: the driver's lines that stand, by the rounds that were done, with their places; those of rounds that were done anew are gone.
        signs: all of the driver's lines, with their places.
        used: number of updates that are in a model.
        last: the driver's last line.
    """

    run: str
    faults: list[str] = field(default_factory=list)
    receipts: dict[str, list[tuple[SignedLine, str]]] = field(default_factory=dict)
    rounds: dict[int, list[tuple[SignedLine, str]]] = field(default_factory=dict)
    signs: list[tuple[SignedLine, str]] = field(default_factory=list)
    used: int = 0
    last: SignedLine | None = None

    @classmethod
    def read(cls, path: Path, run: str, keys: Keys) -> SignedRun:
        """Read and check the receipts of a run."""
        found = cls(run)
        try:
            found._take_all(path.read_bytes(), keys)
            for client, receipts in found.receipts.items():
                found._check_chain(client, receipts)
        except OSError as error:
            found.faults.append(f"{RECEIPTS}: cannot be read ({error.strerror})")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            found.faults.append(f"{RECEIPTS}: is not as it should be ({type(error).__name__}: {error})")
        return found

    @property
    def model(self) -> str:
        """Digest of the model as it stands."""
        return "" if self.last is None else str(self.last.body["model_after"])

    def _take_all(self, data: bytes, keys: Keys) -> None:
        *lines, rest = data.split(b"\n")
        if rest:
            self.faults.append(f"{RECEIPTS}: its last line has no end")
        seen, pending = set[str](), list[tuple[SignedLine, str]]()
        for n, text in enumerate(lines, start=1):
            where = f"{RECEIPTS}: line {n}"
            line = checked(text, keys)
            if isinstance(line, str):
                self.faults.append(f"{where}: {line}")
                return
            self._expect(line.body["run"] == self.run, where, "is of another run")
            self._expect(line.sha256 not in seen, where, "is there twice")
            seen.add(line.sha256)
            if line.body["kind"] in DRIVERS:
                self._take(line, where, [one for one, _ in pending])
                pending = []
            else:
                self.receipts.setdefault(line.body["client"], []).append((line, where))
                pending.append((line, where))
        self._expect(not pending, RECEIPTS, "ends with receipts that no root covers")
        ended = self.last is not None and self.last.body["kind"] == "end"
        self._expect(ended, RECEIPTS, "has no signed end: the run is still going on or was killed, or its end was removed")

    def _take(self, line: SignedLine, where: str, receipts: Sequence[SignedLine]) -> None:
        """One of the driver's lines, with the receipts since the one before."""
        body, last = line.body, self.last
        kind, number, counted = body["kind"], body["round"], body["counted"]
        self._expect(body["previous"] == (FIRST if last is None else last.sha256), where, "does not follow the driver's line before it")
        root = root_of([leaf_hash(one.line) for one in receipts])
        self._expect((body["receipts"], body["root"]) == (len(receipts), root), where, "its root is not that of the receipts before it")
        right = counted == sorted(set(counted)) and all(0 <= k < len(receipts) for k in counted)
        order = [(one.body["client"], one.body["run_number"]) for one in receipts]
        self._expect(order == sorted(order), where, "its receipts are not in the order of clients and numbers")
        used = [receipts[k].body for k in counted] if right else []
        right = right and all(one["round"] <= number for one in used) and len({one["client"] for one in used}) == len(used)
        self._expect(right and (kind == "round" or not used), where, "counts updates that no receipt before it stands for")
        if kind == "start":
            done = self.rounds.get(number, [])
            before = done[-1][0].body["model_after"] if done else None
            goes_on = number == 0 or before == body["model_before"]
            later = last is None or body["start"] > last.body["start"]
            self._expect(goes_on and later, where, "does not go on from the rounds before it")
            self.rounds = {at: lines for at, lines in self.rounds.items() if at <= number}
        elif last is None:
            self._expect(False, where, "comes before the first start")
        else:
            due = last.body["round"] + (last.body["kind"] == "round")
            said = (body["start"], number, body["model_before"])
            goes_on = said == (last.body["start"], due, last.body["model_after"]) and last.body["kind"] != "end"
            self._expect(goes_on, where, "does not go on from the line before it")
        self._expect(kind == "round" or body["model_before"] == body["model_after"], where, "changes the model outside a round")
        self.rounds.setdefault(number + (kind == "round"), []).append((line, where))
        self.signs.append((line, where))
        self.used += len(used)
        self.last = line

    def _check_chain(self, client: str, receipts: Sequence[tuple[SignedLine, str]]) -> None:
        before: SignedLine | None = None
        charges: set[tuple[str, str]] = set()
        for k, (line, where) in enumerate(sorted(receipts, key=lambda one: one[0].body["run_number"]), start=1):
            body = line.body
            if (body["run_number"], body["run_previous"]) != (k, FIRST if before is None else before.sha256):
                self.faults.append(f"{where}: does not follow the receipt of client '{client}' before it; one is missing, or there are two")
                return
            if before is not None:
                step = body["number"] - before.body["number"]
                one = body["chain"] == before.body["chain"] and step > 0 and (step > 1 or body["previous"] == before.sha256)
                self._expect(one, where, f"client '{client}' has two chains of receipts, as after its file was replaced by an older copy")
            mine = {(unit, ran["reservation"]) for unit, ran in body["ran"].items()}
            self._expect(not charges & mine, where, "names a charge that an earlier receipt of the client names")
            charges |= mine
            before = line

    def _expect(self, right: bool, where: str, otherwise: str) -> None:
        if not right:
            self.faults.append(f"{where}: {otherwise}")


def checked(text: bytes, keys: Keys) -> SignedLine | str:
    """A line that the driver, or the client that it names, has signed; else what is wrong with it, as a clause."""
    try:
        line = read_signed(text)
        signer = str(line.body["client"]) if line.body["kind"] == "receipt" else DRIVER
        right = signer in keys and line.signed_by(keys[signer])
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        return f"is no signed line ({error})"
    if signer not in keys:
        return f"is signed for '{signer}', whose key is not among those given (as {signer}.pub)"
    if not right:
        return f"is not signed by the key of '{signer}', so it was changed, or another key has signed it"
    if line.body.get("v") != 1:
        return f"is of version {line.body.get('v')!r} of the format, and this program reads version 1"
    return line


def read_keys(folder: Path) -> dict[str, bytes]:
    """The public keys in a directory: ``NAME.pub`` for each client and for the driver, with 64 hexadecimal digits.

    Raises:
        ConfigError: one is malformed, the driver's is missing, or there is no such directory.
    """
    keys: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            keys[path.stem] = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            keys[path.stem] = b""
        if len(keys[path.stem]) != PUBLIC:
            raise ConfigError(f"--keys: {path} does not hold a public key of {2 * PUBLIC} hexadecimal digits; fedray identity prints it.")
    if DRIVER not in keys:
        raise ConfigError(f"--keys {folder}: holds no {DRIVER}.pub, without which nothing that the driver has signed can be verified.")
    return keys


def surviving(run: SignedRun) -> list[tuple[Mapping[str, Any], str]]:
    """The driver's lines that no later start has done anew, with their places."""
    return [(line.body, where) for lines in run.rounds.values() for line, where in lines]
