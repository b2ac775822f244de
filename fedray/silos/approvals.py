"""Approvals by hand: the terms of a run wait under ``STATE/approvals`` until the silo's operator says yes or no.

What is approved is the hash of all that the run decides of the client's work: config, group, plan and the run's name, as the silo itself has
computed it from what arrived. What only follows from the silos' records (the form of the model) is checked against it later. Each start of
the run goes by the same approval.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedray.clients.terms import Terms
from fedray.errors import ConfigError, FedrayError
from fedray.privacy.ledger.chain import run_of
from fedray.privacy.recordplan import terms_sha256
from fedray.silos.silolog import SiloLog
from fedray.storage import write_atomic

FOLDER = "approvals"
#: Runs that may wait at a time; a driver cannot fill the disk with more.
MOST_WAITING = 100
_LEAST_DIGITS = 8


def asked_sha256(terms: Terms) -> str:
    """SHA-256 of what is approved, in hex."""
    said = terms.document()
    return terms_sha256({"config": said["config"], "group": said["group"], "plan": said["plan"], "run": run_of(terms.job)})


@dataclass(frozen=True)
class AskedRun:
    """A run that was asked for.

    Attributes:
        sha256: of what is approved.
        run: the run's name in ledgers.
        time: when it was asked for the first time.
        terms: what is approved, as JSON data.
        answer: ``yes``, ``no``, or empty while it waits.
        who, when: of the answer.
    """

    sha256: str
    run: str
    time: str
    terms: dict[str, Any]
    answer: str = ""
    who: str = ""
    when: str = ""


class Approvals:
    """The runs that were asked for, and the operator's answers.

    Args:
        state: the silo's directory of what must outlive its process.
    """

    def __init__(self, state: Path) -> None:
        self._folder, self._log = state / FOLDER, SiloLog(state)

    def answer(self, terms: Terms) -> AskedRun:
        """What was asked and answered for these terms; they wait from now on, where they are new.

        Raises:
            FedrayError: too many wait, or it cannot be written down.
        """
        sha256 = asked_sha256(terms)
        found = self.known(sha256)
        if found is not None:
            return found
        waiting = sum(not asked.answer for asked in self.all())
        if waiting >= MOST_WAITING:
            raise FedrayError(f"{waiting} runs wait for an approval at this silo, and no more may; its operator has to answer some.")
        said = terms.document()
        asked = AskedRun(sha256, run_of(terms.job), _now(), {key: said[key] for key in ("config", "group", "plan")})
        self._write(asked)
        self._log.write("asked", f"run {asked.run} waits for an approval of its terms {sha256[:12]}", terms=sha256, run=asked.run)
        return asked

    def known(self, sha256: str) -> AskedRun | None:
        """What was asked and answered for terms with this hash; None where they are new."""
        return self._read(self._folder / f"{sha256}.json")

    def decide(self, terms: str, yes: bool, who: str) -> AskedRun:
        """Answer for the terms whose hash begins like this; a later answer replaces an earlier one, for all that comes after it.

        Raises:
            ConfigError: no run, or more than one, has such terms.
        """
        asked, answer = self.find(terms), "yes" if yes else "no"
        decided = replace(asked, answer=answer, who=who, when=_now())
        self._log.write(
            "approval", f"{who} said {answer} to the terms {decided.sha256[:12]} of run {decided.run}", terms=decided.sha256, who=who
        )
        self._write(decided)
        return decided

    def find(self, terms: str) -> AskedRun:
        """The run whose terms' hash begins like this; raises as :meth:`decide`."""
        if not re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},64}}", terms):
            raise ConfigError(
                f"'{terms}': should be the first {_LEAST_DIGITS} or more hex digits of a hash of terms, as `fedray silo approve SITE` lists."
            )
        found = [asked for asked in self.all() if asked.sha256.startswith(terms)]
        if len(found) != 1:
            raise ConfigError(
                f"'{terms}': {'no run waits with' if not found else f'{len(found)} runs have'} such terms; see `fedray silo approve SITE`."
            )
        return found[0]

    def all(self) -> Iterator[AskedRun]:
        """All that was asked, oldest first."""
        found = (self._read(path) for path in self._folder.glob("*.json"))
        return iter(sorted((asked for asked in found if asked is not None), key=lambda asked: asked.time))

    def _read(self, path: Path) -> AskedRun | None:
        try:
            found = AskedRun(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise FedrayError(f"{path}: cannot be read as an approval ({error}); delete it, and the run is asked for again.") from None
        if terms_sha256({**found.terms, "run": found.run}) != found.sha256 or path.stem != found.sha256:
            raise FedrayError(f"{path}: is not what was asked; delete it, and the run is asked for again.")
        return found

    def _write(self, asked: AskedRun) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(self._folder / f"{asked.sha256}.json", json.dumps(vars(asked), indent=1).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
