"""The starts of a run: the last one in ``run.json``, a line for each in ``starts.jsonl``; and how the run ended in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedray.rounding import as_given, rounded_up
from fedray.storage import damaged, read_json, read_lines, reading

STARTS = "starts.jsonl"


@dataclass(frozen=True)
class StartNote:
    """What is noted of one start of a run.

    Attributes:
        number: of the start, from 1.
        time: when, in seconds since 1970.
        after: rounds that were done before; 0 at the first start.
        given_up: rounds beyond those that an earlier start had charged and not finished; they are done again.
        spent_before: the largest client's epsilon before this start, by protected unit; empty without differential privacy.
        origin: by whom and how the run was started: command, overrides, host, operator, commit, clean.
        output: where the run's files are.
        fedray: version.
        versions: of Python and of the packages that compute.
    """

    number: int = 1
    time: float = 0.0
    after: int = 0
    given_up: int = 0
    spent_before: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    fedray: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A start of a run.

    Attributes:
        id: the run's id, the same for all its starts.
        starts: number of this start, from 1.
    """

    id: str
    starts: int

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, by which a damaged ``run.json`` is noticed."""
        return sha256(f"{self.id}/{self.starts}".encode()).hexdigest()


def last_start(path: Path) -> Started | None:
    """Read the last start from ``run.json``; None if the file does not exist.

    Raises:
        FedrayError: the file is damaged.
    """
    found = read_json(path)
    if found is None:
        return None
    with reading(path):
        last = Started(str(found["id"]), int(found["starts"]))
    if found.get("sha256", last.digest) != last.digest:
        raise damaged(path, "it is not what was written")
    return last


def read_starts(run_dir: Path) -> list[StartNote]:
    """The starts of a run, oldest first; a line that cannot be read is left out."""
    names = {f.name for f in fields(StartNote)}
    return [StartNote(**{k: v for k, v in line.items() if k in names}) for line in read_lines(run_dir / STARTS).whole]


def ending(summary: Mapping[str, Any], starts: Sequence[StartNote] = ()) -> str:
    """How a run ended, as a clause: why it has fewer rounds than planned, what earlier runs spent, where it was resumed.

    Args:
        summary: ``status``, ``rounds``, ``planned_rounds``, ``error`` and ``privacy`` of the run.
        starts: of the run.
    """
    status, rounds, planned = str(summary.get("status")), int(summary.get("rounds", 0)), int(summary.get("planned_rounds", 0))
    done, private = f"{rounds} of {planned} rounds", summary.get("privacy") or {}
    if status == "completed":
        parts = [f"completed all {planned} rounds"]
    elif status == "budget_reached":
        budget = private.get("budget")
        parts = [f"stopped by its budget{'' if budget is None else f' of {as_given(budget)}'} after {done}"]
        parts += earlier(private, starts)
    elif status == "failed":
        parts = [f"failed after {done}: {str(summary.get('error') or 'no reason is known').rstrip('.')}"]
    else:
        parts = [f"{status} after {done}, --resume continues it"]
    return "; ".join([*parts, *_resumed(starts, planned - rounds if status == "budget_reached" else 0)])


def earlier(private: Mapping[str, Any], starts: Sequence[StartNote]) -> list[str]:
    """What earlier runs on the same books spent of a guarantee's epsilon, as a clause; empty if they spent nothing."""
    spent = starts[0].spent_before.get(str(private.get("unit")), 0.0) if starts else 0.0
    total = private.get("epsilon")
    if not spent or total is None:
        return []
    return [f"{rounded_up(spent, 2, fixed=True)} of {rounded_up(total, 2, fixed=True)} was spent by earlier runs"]


def _resumed(starts: Sequence[StartNote], short: int) -> list[str]:
    again = [start for start in starts if start.number > 1 and (start.after or start.given_up)]  # not after one that was refused
    if not again:
        return []
    first = again[0]
    more = "" if len(again) == 1 else f" and {len(again) - 1} more time{'s' if len(again) > 2 else ''}"
    said = [f"resumed at round {first.after + 1}{more}"]
    lost = sum(start.given_up for start in again)
    if lost:
        charged = "the round given up is charged" if lost == 1 else f"the {lost} rounds given up are charged"
        ends = f", so it ends {'one round' if short == 1 else f'{short} rounds'} short" if 0 < short <= lost else ""
        said.append(charged + ends)
    return said
