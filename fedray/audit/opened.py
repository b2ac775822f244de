"""Opens registered records of a run, and compares the registration with the roots that its ledger names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedray.configfile import load_config
from fedray.data.openings import Challenge, Opened, answer, check_answers
from fedray.data.registration import Registration, read_registration, salt_of
from fedray.errors import ConfigError, DataError, FedrayError
from fedray.planning.registered import held
from fedray.privacy.ledger.chain import read
from fedray.runfiles import RunFiles
from fedray.storage import read_json, write_json
from fedray.stores.object_path import location


def registration_of(run: Path) -> Registration:
    """The registration of a run.

    Raises:
        ConfigError: the run has none.
    """
    files = RunFiles(run)
    if not files.registration.exists():
        raise ConfigError(f"{run}: is no run with registered data (agreed.registration), so there is nothing to open.")
    return read_registration(files.registration)


def answers_of(config: Any, challenge: Challenge, registration: Registration, only: Sequence[str], hashes: bool) -> dict[str, Any]:
    """The answers of the clients whose data are read here, as one answer.

    Args:
        config: names the data and the directories of the salts.
        challenge: that was sent.
        registration: what was agreed on.
        only: who answers; all that are asked if there are none.
        hashes: show hashes of records only.

    Raises:
        DataError: a client's data are not as registered, or its salt is missing.
    """
    whole: dict[str, Any] = {}
    for data, directory in held(config, only or challenge.clients):
        salt = salt_of(registration.clients[data.name], data.name, location(directory, "agreed.salts"))
        if salt is None:
            raise DataError(f"client {data.name}: the salt with which it registered is not in {directory}; bring it back from a copy.")
        one = answer(challenge, registration, data, salt, hashes)
        whole = {**one, "clients": {**whole.get("clients", {}), **one["clients"]}}
    return whole


def open_run(run: Path, records: int | None) -> list[Opened]:
    """Challenge all clients of a run, answer for them from the run's config, and check; the result is in ``audit/opening.json``.

    Args:
        run: the run's directory; the clients' data and salts can be read from here.
        records: how many each client opens; None for all.

    Raises:
        FedrayError: the run has no registration, or a client's data or salt cannot be read or are others now.
    """
    registration = registration_of(run)
    challenge = Challenge.draw(registration, records)
    answers = answers_of(load_config(RunFiles(run).config), challenge, registration, (), hashes=False)
    found = with_ledger(check_answers(challenge, registration, [answers]), registration, run)
    write_json(run / "audit" / "opening.json", result(challenge, found))
    return found


def with_ledger(found: Iterable[Opened], registration: Registration, run: Path) -> list[Opened]:
    """Add as a fault where a run's ledger names another root than the client registered."""
    roots = ledger_roots(run)
    checked = []
    for one in found:
        others = roots.get(one.name, set()) - {registration.clients[one.name].root}
        text = f"the ledger of {run.name} charges records with another root, {min(others, default='')[:12]}..."
        checked.append(Opened(one.name, one.records, one.opened, one.distinct, (*one.faults, text)) if others else one)
    return checked


def ledger_roots(run: Path) -> dict[str, set[str]]:
    """For each client the roots of the records that a run's ledger, or its part of ledgers that outlive it, was charged for."""
    folder, roots = RunFiles(run).ledger, dict[str, set[str]]()
    kept = (entry.data for path in sorted(folder.glob("*.jsonl")) for entry in read(path))
    parts = (entry for path in sorted(folder.glob("*.part.json")) for entry in (read_json(path) or {}).get("entries", []))
    for data in (*kept, *parts):
        if "data" in data and "subject" in data:
            roots.setdefault(data["subject"], set()).add(data["data"])
    return roots


def result(challenge: Challenge, found: Sequence[Opened]) -> dict[str, Any]:
    """What an opening found, as JSON data."""
    clients = [{**vars(one), "faults": list(one.faults), "unseen": one.unseen, "said": str(one)} for one in found]
    return {"challenge": challenge.document(), "challenge_sha256": challenge.sha256, "clients": clients}


def conclude(found: Sequence[Opened]) -> None:
    """Raise FedrayError if something is not as it was registered."""
    bad = [one.name for one in found if one.faults]
    if bad:
        raise FedrayError(f"the opening failed for {', '.join(bad)}: not all records that were asked for are under the registered roots.")
