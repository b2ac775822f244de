"""Verify a signed run without fedray: python verify_receipts.py RUN_DIR --keys DIR [--remade]. The format is in docs/receipts.md.

It needs Python 3.11 and the package cryptography, and nothing else. Exit code 0: everything was verified; 1: each fault is a line; 2: it could
not be tried.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DOMAIN, FIRST, DRIVER = b"fedray signed line 1\n", "0" * 64, "driver"
BEFORE, TAIL = b',"signature":"', 14 + 128 + 2
BROKEN = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError)


def sha(data):
    return hashlib.sha256(data).hexdigest()


def canonical(data):
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def merkle(leaves):
    """The root of RFC 6962, section 2.1, by its own recursion."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + merkle(leaves[:split]) + merkle(leaves[split:])).digest()


class Verification:
    def __init__(self, run, keys, remade=False):
        self.run, self.keys, self.remade, self.faults, self.notes, self.end = run, keys, remade, [], [], None

    def fault(self, where, what):
        self.faults.append(f"{where}: {what}")

    def signed(self, where, line):
        """A line's object, where its signer's key is known and the signature is right."""
        try:
            message, signature = line[:-TAIL] + b"}", line[-TAIL:][len(BEFORE) : -2].decode()
            body = json.loads(message)
            signer = body["client"] if body["kind"] == "receipt" else DRIVER
            Ed25519PublicKey.from_public_bytes(self.keys[signer]).verify(bytes.fromhex(signature), DOMAIN + message)
            if (
                line != message[:-1] + BEFORE + signature.lower().encode() + b'"}'
                or body["key"] != self.keys[signer].hex()
                or body["v"] != 1
            ):
                raise ValueError("another key, or another form")
        except (*BROKEN, InvalidSignature) as error:
            self.fault(where, f"is not signed by a known key ({type(error).__name__} {error})")
            body = None
        return body

    def receipts(self):
        """All lines of receipts.jsonl in order: each signed, and each of the driver's covers the receipts before it and goes on from the last."""
        data = (self.run / "receipts.jsonl").read_bytes()
        *lines, rest = data.split(b"\n")
        if rest:
            self.fault("receipts.jsonl", "its last line has no end")
        self.chains, self.rows, self.heads, seen = {}, {}, [], set()
        previous, start, due, model, ended, pending = FIRST, 0, None, None, False, []
        models = {}
        for n, line in enumerate(lines, start=1):
            where = f"receipts.jsonl: line {n}"
            body = self.signed(where, line)
            if body is None:
                return
            if body["run"] != self.id:
                self.fault(where, "is of another run")
            if body["kind"] == "receipt":
                if sha(line) in seen:
                    self.fault(where, "is there twice")
                seen.add(sha(line))
                pending.append((body, line))
                self.chains.setdefault(body["client"], []).append((body, sha(line), where))
                continue
            if body["previous"] != previous:
                self.fault(where, "does not follow the driver's line before it")
            if body["receipts"] != len(pending) or body["root"] != merkle([one for _, one in pending]).hex():
                self.fault(where, "its root is not that of the receipts before it")
            if (order := [(one["client"], one["run_number"]) for one, _ in pending]) != sorted(order):
                self.fault(where, "its receipts are in disorder")
            counted = body["counted"]
            if counted != sorted(set(counted)) or any(not 0 <= k < len(pending) for k in counted):
                self.fault(where, "counts receipts that are not there")
            elif any(pending[k][0]["round"] > body["round"] for k in counted):
                self.fault(where, "counts an update of a later round")
            if len({pending[k][0]["client"] for k in counted if 0 <= k < len(pending)}) < len(counted):
                self.fault(where, "counts two updates of one client")
            if body["kind"] == "start":
                if body["start"] <= start or (body["round"] and models.get(body["round"]) != body["model_before"]):
                    self.fault(where, "does not go on from the rounds before it")
                start, due, ended = body["start"], body["round"], False
                self.rows = {at: one for at, one in self.rows.items() if at < due}
                models = {at: one for at, one in models.items() if at <= due}
            elif body["start"] != start or body["round"] != due or body["model_before"] != model or ended:
                self.fault(where, "does not go on from the line before it")
            if body["kind"] == "round":
                due += 1
                models[due] = body["model_after"]
            elif body["model_after"] != body["model_before"] or counted:
                self.fault(where, "changes the model outside a round")
            ended = body["kind"] == "end"
            self.rows[body["round"] - (body["kind"] == "start") / 2] = (where, body["rows"])
            self.heads.append((where, body.get("ledger", {})))
            previous, model, pending = sha(line), body["model_after"], []
            self.end = ("manifest", self.id, start, previous, model)
        if pending:
            self.fault("receipts.jsonl", "ends with receipts that no root covers")
        if not ended:
            self.fault("receipts.jsonl", "has no signed end: the run was killed, or its end was removed")

    def chain(self):
        """Each client's receipts of this run are one chain, none is missing between them, and none is there for the same charge."""
        for client, found in self.chains.items():
            found = sorted(found, key=lambda one: one[0]["run_number"])
            before, charges = None, set()
            for k, (body, digest, where) in enumerate(found, start=1):
                if body["run_number"] != k or body["run_previous"] != (before[1] if before else FIRST):
                    self.fault(where, f"does not follow the receipt of client '{client}' before it: one is missing, or there are two")
                    break
                if before and (body["chain"] != before[0]["chain"] or body["number"] <= before[0]["number"]):
                    self.fault(where, f"client '{client}' has two chains")
                if before and body["number"] == before[0]["number"] + 1 and body["previous"] != before[1]:
                    self.fault(where, f"client '{client}' has two chains")
                mine = {(unit, ran["reservation"]) for unit, ran in body["ran"].items()}
                if charges & mine:
                    self.fault(where, "names a charge that an earlier receipt names")
                charges |= mine
                before = body, digest
            self.notes.append(f"client '{client}': {len(found)} receipts, from number {found[0][0]['number']} of its chain on")

    def ledgers(self):
        """The charges that receipts name are in the ledgers, and each result that a ledger says has left has a receipt."""
        books = {}
        for path in sorted((self.run / "ledger").glob("*")):
            where = path.relative_to(self.run).as_posix()
            try:
                if path.name.endswith(".part.json"):
                    entries = json.loads(path.read_bytes())["entries"]
                    books[unquote(path.name.removesuffix(".part.json"))] = {sha(canonical(entry)): entry for entry in entries}
                elif path.suffix == ".jsonl":
                    entries = [json.loads(line) for line in path.read_bytes().splitlines()]
                    books[unquote(path.stem)] = {entry.pop("hash"): entry for entry in entries}
            except BROKEN as error:
                self.fault(where, f"cannot be read ({error})")
        everything = {digest: entry for book in books.values() for digest, entry in book.items()}
        signed = set()
        for client, found in self.chains.items():
            for body, _, where in found:
                signed.add((client, body["round"], body["attempt"]))
                for unit, ran in body["ran"].items():
                    entry = everything.get(ran["reservation"], {})
                    said = (client, body["round"], body["attempt"], ran["plan"])
                    charged = tuple(entry.get(key) for key in ("subject", "round", "attempt", "plan"))
                    if client in books and (entry.get("kind") != "reserve" or charged != said):
                        self.fault(where, f"the charge of a {unit} that it names is not in ledger/{client}")
            if any(body["ran"] for body, *_ in found) and client not in books:
                self.notes.append(f"not covered: the ledger of client '{client}' is not in the run's directory")
        for name, book in books.items():
            for entry in book.values():
                left = entry.get("kind") == "commit" and not entry.get("purpose")
                if left and (entry["subject"], entry["round"], entry["attempt"]) not in signed:
                    self.fault("receipts.jsonl", f"lacks the receipt of '{name}' for round {entry['round']}, attempt {entry['attempt']}")
        for where, heads in self.heads:
            for name, head in heads.items():
                if name in books and head not in books[name]:
                    self.fault(where, f"names a head of the ledger of '{name}' that it does not have")

    def metrics(self):
        rows = (self.run / "metrics.jsonl").read_bytes() if (self.run / "metrics.jsonl").exists() else b""
        lines = rows.splitlines(keepends=True)
        for where, signed in self.rows.values():
            if len(lines) < signed["lines"] or sha(b"".join(lines[: signed["lines"]])) != signed["sha256"]:
                self.fault("metrics.jsonl", f"its first {signed['lines']} lines are not those of {where}")
                return

    def manifest(self):
        """All files are as when the run ended."""
        data = (self.run / "manifest.json").read_bytes()
        body = self.signed("manifest.json", data.removesuffix(b"\n"))
        if body is None or not data.endswith(b"\n"):
            self.fault("manifest.json", "is not what was signed")
            return
        if tuple(body[key] for key in ("kind", "run", "start", "end", "model")) != self.end:
            self.fault("manifest.json", "is not of the end that receipts.jsonl has")
        names = [Path(folder, name).relative_to(self.run).as_posix() for folder, _, files in os.walk(self.run) for name in files]
        there = {name: sha((self.run / name).read_bytes()) for name in names if name != "manifest.json"}
        for name in sorted(there.keys() | body["files"].keys()):
            if there.get(name) == body["files"].get(name):
                continue
            what = "is missing" if name not in there else "was added" if name not in body["files"] else "is not what was signed"
            if self.remade and any(name == one or (one.endswith("/") and name.startswith(one)) for one in body["remade"]):
                self.notes.append(f"not covered: {name} {what}; it may be written anew after the run")
            else:
                self.fault(name, what)
        summary = json.loads((self.run / "summary.json").read_bytes())
        tensors = (self.run / "model.safetensors").read_bytes()
        if not summary["model_sha256"] == sha(tensors[8 + int.from_bytes(tensors[:8], "little") :]) == body["model"]:
            self.fault("model.safetensors", "is not the model of the last round")

    def all(self):
        try:
            self.id = json.loads((self.run / "run.json").read_bytes())["id"]
        except BROKEN as error:
            self.id = None
            self.fault("run.json", f"cannot be read ({error})")
        checks = {self.receipts: "receipts.jsonl", self.chain: "receipts.jsonl", self.ledgers: "ledger", self.metrics: "metrics.jsonl"}
        for check, name in {**checks, self.manifest: "manifest.json"}.items():
            try:
                check()
            except BROKEN as error:
                self.fault(name, f"is not as it should be ({type(error).__name__} {error})")


def main():
    parser = argparse.ArgumentParser(description="Verify a signed run without fedray.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--keys", type=Path, required=True, help="NAME.pub: 64 hexadecimal digits, for each client and for the driver")
    parser.add_argument("--remade", action="store_true", help="accept reports and the like that were written after the run")
    given = parser.parse_args()
    keys = {path.stem: bytes.fromhex(path.read_text().strip()) for path in given.keys.glob("*.pub")}
    if DRIVER not in keys or not any((given.run / name).exists() for name in ("receipts.jsonl", "manifest.json")):
        print("there is no key of the driver, or the run is not signed", file=sys.stderr)
        return 2
    verification = Verification(given.run, keys, given.remade)
    verification.all()
    print("\n".join([*(f"FAULT {fault}" for fault in verification.faults), *verification.notes]))
    return 1 if verification.faults else 0


if __name__ == "__main__":
    sys.exit(main())
