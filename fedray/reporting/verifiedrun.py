"""Verification of a whole signed run from its files and the public keys of who signed, without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fedray.errors import ConfigError, FedrayError
from fedray.privacy.ledger.chain import read as read_ledger
from fedray.reporting.signedrun import Keys, SignedRun, checked, read_keys, surviving
from fedray.rounds.manifest import file_digests, is_remade
from fedray.rounds.roundreceipts import DRIVER
from fedray.runfiles import MANIFEST, RECEIPTS, RunFiles
from fedray.secure.signedlines import canonical

_SHOWN = 16  # hexadecimal digits of a key


@dataclass
class VerifiedRun:
    """What the verification of a run has found.

    Attributes:
        verified: what holds, a sentence each; what it says is true only where there are no faults.
        faults: what does not, a sentence each that begins with the file.
        not_covered: what the signatures say nothing of, a sentence each.
    """

    verified: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)


def is_signed(run: Path) -> bool:
    """Whether a run's directory has signed receipts, or anything of them."""
    files = RunFiles(run)
    return files.receipts.exists() or files.manifest.exists()


def verify_run(run: Path, keys: Path, remade: bool = False, beside: Sequence[Path] = ()) -> VerifiedRun:
    """Verify a run.

    Args:
        run: its directory.
        keys: a directory with the public keys of clients and driver.
        remade: whether reports, audits and the like may have been written since the run has ended.
        beside: directories of other runs of the same clients, whose chains of receipts must go together with this run's.

    Raises:
        ConfigError: there is nothing to verify, or no key to verify it by.
    """
    if not is_signed(run):
        raise ConfigError(
            f"{run}: has no {RECEIPTS}, so nobody has signed this run; set clients.signing for those that should be verified."
        )
    found, known, files = VerifiedRun(), read_keys(keys), RunFiles(run)
    signed = _read(found, run, known)
    found.faults += signed.faults
    for other in beside:
        _guarded(found, str(other), partial(_compare_chains, found, signed, other, known))
    _guarded(found, "ledger", lambda: _compare_ledgers(found, run, signed))
    _guarded(found, files.metrics.name, lambda: _compare_rows(found, files, signed))
    _guarded(found, MANIFEST, lambda: _compare_files(found, files, signed, known, remade))
    _guarded(found, files.model.name, lambda: _compare_model(found, files, signed))
    _guarded(found, RECEIPTS, lambda: _say(found, signed, known))
    return found


def _read(found: VerifiedRun, run: Path, keys: Keys) -> SignedRun:
    name = _guarded(found, "run.json", lambda: str(json.loads((run / "run.json").read_bytes())["id"])) or ""
    return SignedRun.read(RunFiles(run).receipts, name, keys)


def _compare_chains(found: VerifiedRun, signed: SignedRun, other: Path, keys: Keys) -> None:
    """No client may have signed two receipts with one number of one chain, or one after another receipt than that with the number before."""
    theirs = _read(found, other, keys)
    found.faults += [f"{other}: {fault}" for fault in theirs.faults]
    signs = [one for run in (signed, theirs) for receipts in run.receipts.values() for one, _ in receipts]
    by_number = {(one.body["client"], one.body["chain"], one.body["number"]): one.sha256 for one in signs}
    for client, receipts in signed.receipts.items():
        chains = {one.body["chain"] for one, _ in (*receipts, *theirs.receipts.get(client, ()))}
        if len(chains) > 1:
            found.faults.append(f"{RECEIPTS}: client '{client}' has another chain in {other}, as after the loss of its file")
    for one in signs:
        body = one.body
        before = by_number.get((body["client"], body["chain"], body["number"] - 1), body["previous"])
        if by_number[body["client"], body["chain"], body["number"]] != one.sha256 or before != body["previous"]:
            found.faults.append(
                f"{RECEIPTS}: client '{body['client']}' has signed two receipts that cannot both be number {body['number']} of its chain, here and "
                f"in {other}; its file was replaced by an older copy"
            )
    found.verified.append(f"The clients' chains go together with those of run {theirs.run} in {other}.")


def _guarded(found: VerifiedRun, where: str, check: Callable[[], Any]) -> Any:
    """The result of a check; a fault where a file is not there or not what it should be."""
    try:
        return check()
    except FedrayError as error:
        found.faults.append(f"{where}: {error}")
    except OSError as error:
        found.faults.append(f"{Path(error.filename or where).name}: cannot be read ({error.strerror})")
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        found.faults.append(f"{where}: is not as it should be ({type(error).__name__}: {error})")
    return None


def _compare_ledgers(found: VerifiedRun, run: Path, signed: SignedRun) -> None:
    """Each charge that a receipt names must be in the client's ledger, and each result that has left by the ledger must have a receipt."""
    books: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for path in sorted((run / "ledger").iterdir() if (run / "ledger").is_dir() else ()):
        if path.name.endswith((".part.json", ".jsonl")):
            book = _guarded(found, f"ledger/{path.name}", partial(_entries, path))
            books[unquote(path.name.removesuffix(".part.json").removesuffix(".jsonl"))] = book or {}
    lines = [(client, line.body, where) for client, receipts in signed.receipts.items() for line, where in receipts]
    turns = {(client, body["round"], body["attempt"]) for client, body, _ in lines}
    compared = 0
    for client, body, where in lines:
        for unit, ran in body["ran"].items():
            if client not in books:
                continue
            entry = books[client].get(ran["reservation"], {})
            charged = [entry.get(key) for key in ("kind", "subject", "round", "attempt", "plan")]
            if charged != ["reserve", client, body["round"], body["attempt"], ran["plan"]]:
                found.faults.append(f"{where}: the charge of a {unit} that it names is not in the ledger of client '{client}'")
            compared += 1
    for name, book in books.items():
        for entry in book.values():
            left = entry.get("kind") == "commit" and "purpose" not in entry
            if left and name in signed.receipts and (name, entry["round"], entry["attempt"]) not in turns:
                found.faults.append(
                    f"{RECEIPTS}: lacks the receipt of client '{name}' for round {entry['round'] + 1}, attempt {entry['attempt']}, whose update left by its ledger"
                )
    for line, where in signed.signs:
        for name, head in line.body.get("ledger", {}).items():
            if name in books and head not in books[name]:
                found.faults.append(f"{where}: names an entry as the head of the ledger of '{name}' that this ledger does not have")
    if compared:
        found.verified.append(f"The {compared} charges that receipts name are in the clients' ledgers, each for one update alone.")
    for client in sorted(signed.receipts):
        if client not in books and any(line.body["ran"] for line, _ in signed.receipts[client]):
            found.not_covered.append(
                f"The ledger of client '{client}' has no part in this directory, so that its charges were not compared."
            )


def _entries(path: Path) -> dict[str, Mapping[str, Any]]:
    """The entries of a ledger, or of the run's part of one, by their hashes."""
    if path.suffix == ".jsonl":
        return {one.sha256: one.data for one in read_ledger(path)}
    return {sha256(canonical(one)).hexdigest(): one for one in json.loads(path.read_bytes())["entries"]}


def _compare_rows(found: VerifiedRun, files: RunFiles, signed: SignedRun) -> None:
    rows = files.metrics.read_bytes().splitlines(keepends=True) if files.metrics.exists() else []
    for body, where in surviving(signed):
        said = body["rows"]
        if len(rows) < said["lines"] or sha256(b"".join(rows[: said["lines"]])).hexdigest() != said["sha256"]:
            found.faults.append(f"{files.metrics.name}: its first {said['lines']} lines are not those that {where} has signed")
            return
    found.verified.append(f"The {len(rows)} rows of metrics are those that the driver had written when it signed for its rounds.")


def _compare_files(found: VerifiedRun, files: RunFiles, signed: SignedRun, keys: Keys, remade: bool) -> None:
    data, last = files.manifest.read_bytes(), signed.last
    line = checked(data.removesuffix(b"\n"), keys)
    if isinstance(line, str) or not data.endswith(b"\n"):
        found.faults.append(f"{MANIFEST}: {line if isinstance(line, str) else 'its end is missing'}")
        return
    body = line.body
    ends = None if last is None else ("manifest", signed.run, last.body["start"], last.sha256, last.body["model_after"])
    if ends != tuple(body.get(key) for key in ("kind", "run", "start", "end", "model")):
        found.faults.append(f"{MANIFEST}: is not of the end that {RECEIPTS} has")
    then, now = body["files"], file_digests(files.root)
    changed = {name for name in {*then, *now} if then.get(name) != now.get(name)}
    for name in sorted(changed):
        what = "is missing" if name not in now else "was added since the run has ended" if name not in then else "is not what was signed"
        if not is_remade(name):
            found.faults.append(f"{name}: {what}")
        elif remade:
            found.not_covered.append(f"{name} {what}; commands that read a run write it, and nobody has signed it.")
        else:
            found.faults.append(f"{name}: {what}; if fedray report, audit, sync or another start wrote it, accept that with --remade")
    found.verified.append(
        f"The {len(then)} files that the driver's manifest names were compared byte by byte as of the end of start {body['start']}."
    )


def _compare_model(found: VerifiedRun, files: RunFiles, signed: SignedRun) -> None:
    summary = json.loads(files.summary.read_bytes())
    with files.model.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)  # behind the header
        tensors = file_digest(file, "sha256").hexdigest()
    if not tensors == summary["model_sha256"] == signed.model:
        found.faults.append(f"{files.model.name}: its tensors, the summary and the last round do not name one model")
    else:
        found.verified.append(f"The model {tensors[:_SHOWN]}... is the one that the last round has made.")


def _say(found: VerifiedRun, signed: SignedRun, keys: Keys) -> None:
    rounds = sum(line.body["kind"] == "round" for line, _ in signed.signs)
    about = f"{len(signed.signs)} lines signed by the driver ({DRIVER}.pub, {keys[DRIVER].hex()[:_SHOWN]}...), {rounds} of them of rounds"
    found.verified.insert(0, f"Run {signed.run}: {about}, each with the root of its receipts; {signed.used} updates are in models.")
    if signed.last is not None:
        found.verified.append(f"The driver's last line has the hash {signed.last.sha256}; with the same hash, others see the same run.")
    for client, receipts in sorted(signed.receipts.items()):
        ordered = sorted((line.body for line, _ in receipts), key=lambda body: body["run_number"])
        if client in keys:
            found.verified.append(f"Client '{client}' ({keys[client].hex()[:_SHOWN]}...) has signed {len(ordered)} updates, without a gap.")
        first, last = ordered[0]["number"], ordered[-1]["number"]
        before = "" if first == 1 else f"The receipts of client '{client}' before number {first} are of other runs. "
        found.not_covered.append(f"{before}What client '{client}' signed after number {last} is not in this run.")
    found.not_covered += _UNSAID + (_MASKED if any(line.body.get("secure") for r in signed.receipts.values() for line, _ in r) else [])


_UNSAID = [
    "A receipt says which bytes left and under which charge, not that a client's machine did what it says.",
    "Evaluations at the clients are charged in their ledgers, and have no receipts.",
]
_MASKED = [
    "Updates were masked or sealed for a secure sum: a receipt names the bytes that left in this form, and nobody can tell from it what was in them."
]
