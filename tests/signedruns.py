"""Signed runs for tests: two silos in files with keys of their own, what is done to copies of their files, and who verifies them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import verify_receipts
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from silofiles import silo_config

import fedray
from fedray.reporting.verifiedrun import verify_run
from fedray.rounds.manifest import file_digests
from fedray.secure.identities import make_key, read_key
from fedray.secure.merkle import leaf_hash, root_of
from fedray.secure.signedlines import FIRST, read_signed, sign_line

SILOS = ("north", "south")


def make_keys(folder: Path, names: Sequence[str] = SILOS) -> dict[str, str]:
    """Keys of clients and driver; returns the section ``clients.signing``."""
    for part in ("private", "public"):
        (folder / part).mkdir(exist_ok=True)
    for name in (*names, "driver"):
        if not (folder / "private" / f"{name}.pem").exists():
            (folder / "public" / f"{name}.pub").write_text(make_key(folder / "private" / f"{name}.pem") + "\n")
    return {"key": str(folder / "private" / "{client}.pem"), "driver": str(folder / "private" / "driver.pem")}


def signed_run(
    folder: Path,
    name: str = "run",
    *,
    output: str | None = None,
    resume: bool = False,
    listen: Callable[[str, Any], None] = lambda kind, value: None,
    **sections: Any,
) -> fedray.Result:
    """Train two silos that sign, with their keys and books in ``folder``."""
    clients = {"placement": "dedicated", "signing": make_keys(folder), "resources": {"cpu": 0.5}}
    config = silo_config(folder, **{"agreed": None, "clients": clients, "evaluation": {"metrics": []}} | sections)
    return fedray.run(config, output=output or str(folder / name), resume=resume, callbacks=[listen])


def both(run: Path, keys: Path, remade: bool = False) -> tuple[list[str], list[str]]:
    """The faults that the command finds, and those that the script without fedray finds."""
    other = verify_receipts.Verification(run, {path.stem: bytes.fromhex(path.read_text()) for path in keys.glob("*.pub")}, remade)
    other.all()
    return verify_run(run, keys, remade).faults, other.faults


@dataclass(frozen=True)
class Mutation:
    """What was done to a copy of a run.

    Attributes:
        what: for the reader of a failure.
        file: that both must name, relative to the run.
    """

    what: str
    file: str


def flip(run: Path, draw: random.Random, others: Path) -> Mutation:
    """One bit of one file, each file with the same chance."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    path = draw.choice(files)
    data = bytearray(path.read_bytes())
    at, bit = draw.randrange(len(data)), draw.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))
    return Mutation(f"bit {bit} of byte {at}", path.relative_to(run).as_posix())


def whole_file(run: Path, draw: random.Random, others: Path) -> Mutation:
    """A file is taken away, cut, lengthened, added, or another run's."""
    path = draw.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    name = path.relative_to(run).as_posix()
    what = draw.choice(["taken away", "cut", "lengthened", "added", "another run's"])
    if what == "taken away":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "lengthened":
        path.write_bytes(path.read_bytes() + b"\n")
    elif what == "added":
        name += ".more"
        (run / name).write_bytes(b"")
    else:
        there = others / name
        if not there.exists() or there.read_bytes() == path.read_bytes():
            return flip(run, draw, others)
        shutil.copyfile(there, path)
    return Mutation(what, name)


def lines(run: Path, draw: random.Random, others: Path) -> Mutation:
    """A line of the receipts is dropped, swapped with another, there twice, or another run's."""
    path = run / "receipts.jsonl"
    return Mutation(_edited(path, draw, others), path.name)


def signed_again(run: Path, draw: random.Random, others: Path) -> Mutation:
    """As :func:`lines`, of clients' receipts alone, by a driver that signs what has come of it: only the clients' signatures stand against it."""
    path = run / "receipts.jsonl"
    what = _edited(path, draw, others, "receipt")
    own, kept, pending, previous = read_key(run.parent / "private" / "driver.pem"), list[bytes](), list[bytes](), FIRST
    for text in path.read_bytes().splitlines():
        body = read_signed(text).body
        if body["kind"] == "receipt":
            pending.append(text)
        else:
            counted = list(range(len(pending))) if body["kind"] == "round" else []
            about = {
                "previous": previous,
                "receipts": len(pending),
                "root": root_of([leaf_hash(one) for one in pending]),
                "counted": counted,
            }
            line = sign_line(body | about, own)
            kept, pending, previous = [*kept, *pending, line.line], [], line.sha256
    path.write_bytes(b"".join(one + b"\n" for one in [*kept, *pending]))
    resign_manifest(run, own, end=previous)
    return Mutation(f"{what}, signed again by the driver", path.name)


def resign_manifest(run: Path, own: Ed25519PrivateKey, **more: Any) -> None:
    """Sign all files as they are now."""
    path = run / "manifest.json"
    body = dict(json.loads(path.read_bytes())) | more | {"files": file_digests(run)}
    del body["signature"]
    path.write_bytes(sign_line(body, own).line + b"\n")


def _edited(path: Path, draw: random.Random, others: Path, kind: str = "") -> str:
    found = path.read_bytes().splitlines(keepends=True)
    places = [k for k, text in enumerate(found) if not kind or read_signed(text.rstrip(b"\n")).body["kind"] == kind]
    one, other = draw.sample(places, 2)
    what = draw.choice(["dropped", "swapped", "twice", "of another run"])
    if what == "dropped":
        del found[one]
    elif what == "swapped":
        found[one], found[other] = found[other], found[one]
    elif what == "twice":
        found.insert(other, found[one])
    else:
        theirs = (others / path.name).read_bytes().splitlines(keepends=True)
        found[one] = theirs[one % len(theirs)]
    path.write_bytes(b"".join(found))
    return f"line {one + 1} {what}"


MUTATIONS: list[Callable[[Path, random.Random, Path], Mutation]] = [flip, whole_file, lines, signed_again]
