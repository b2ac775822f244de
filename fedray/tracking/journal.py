"""The journal of a run and how far MLflow has it.

``metrics.jsonl`` is the journal: the driver appends one row a round, and whatever MLflow does not
have can always be sent again from there. ``tracking.json`` beside it names the MLflow run and says,
for every metric, up to which round the server has it.

That position is kept by metric and round, not by byte: a run that is resumed from a checkpoint may
repeat rounds that were already sent, and a point of MLflow cannot be taken back. What the server
has for a round stands; only what it lacks is sent.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError, FedrayError
from fedray.storage import JsonLines, read_json, read_lines, write_json

METRICS = "metrics.jsonl"
STATE = "tracking.json"

Row = Mapping[str, Any]

_LISTED = 5  # numbers of lines and rounds; more are counted

_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)


@dataclass(frozen=True)
class Point:
    """One value of one metric: ``time`` in Unix milliseconds as recorded, so that sending it twice leaves one point."""

    key: str
    value: float
    time: int
    round: int


@dataclass
class State:
    """What ``tracking.json`` holds.

    Attributes:
        tracking_uri: where the run is logged, without a password.
        experiment: name of the MLflow experiment; ``experiment_id`` its id.
        run_id: the MLflow run.
        run_name: its name.
        register_as: name for the registered model; null = not registered.
        params: as logged, so that the run can be made again in another store.
        tags: as logged.
        shipped: metric to the last round that the server has.
        model: ``sha256`` of the weights with the logged model's ``id`` and its registered ``version``.
        ended: the status that the MLflow run was ended with.
    """

    tracking_uri: str
    experiment: str
    experiment_id: str
    run_id: str
    run_name: str
    register_as: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    shipped: dict[str, int] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)
    ended: str | None = None

    @classmethod
    def load(cls, run_dir: Path) -> State | None:
        """The state of a run; None where it was never tracked.

        Raises:
            ConfigError: the file is there and cannot be read.
        """
        path = run_dir / STATE
        try:
            raw = read_json(path)
            return None if raw is None else _state(raw)
        except (FedrayError, TypeError) as error:
            why = str(error).removeprefix(f"{path}: ").partition(";")[0]
            raise ConfigError(f"{path}: cannot be read ({why}); restore the file, or remove it to start a new MLflow run.") from None

    def save(self, run_dir: Path) -> None:
        """Replace the file in one step: a crash leaves the old one or the new one."""
        write_json(run_dir / STATE, asdict(self))

    def missing(self, points: Iterable[Point]) -> list[Point]:
        """Those of ``points`` that the server lacks."""
        return [p for p in points if p.round > self.shipped.get(p.key, -1)]

    def advance(self, points: Iterable[Point]) -> None:
        """Note that the server has ``points``."""
        for p in points:
            self.shipped[p.key] = max(p.round, self.shipped.get(p.key, -1))


def _state(raw: Mapping[str, Any]) -> State:
    state = State(**{f.name: raw[f.name] for f in fields(State) if f.name in raw})
    texts = (state.tracking_uri, state.experiment, state.experiment_id, state.run_id, state.run_name)
    tables = (state.params, state.tags, state.shipped, state.model)
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(t, dict) for t in tables):
        raise TypeError("a value is of another type than was written")
    return state


def journal(run_dir: Path) -> JsonLines:
    """``metrics.jsonl`` as it is."""
    return read_lines(run_dir / METRICS, _is_row)


def _is_row(found: Mapping[str, Any]) -> bool:
    metrics = found.get("metrics")
    return (
        isinstance(found.get("round"), int)
        and 0 < found["round"] < 2**31
        and isinstance(metrics, dict)
        and all(value is None or isinstance(value, int | float) for value in metrics.values())
    )


def read_rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``metrics.jsonl``, oldest first; what is no whole row is left out (:func:`journal` tells)."""
    yield from journal(run_dir).whole


def shortcomings(lines: JsonLines, rounds: int) -> list[str]:
    """What a journal lacks of the rows of rounds 1 to ``rounds``, or of those that it reaches: a sentence for each kind."""
    name, times = lines.path, Counter(row["round"] for row in lines.whole)
    there = sorted(times)
    ends = [0, *there, max([rounds, *there]) + 1]
    gaps = [range(before + 1, after) for before, after in pairwise(ends) if after - before > 1]
    twice = [range(number, number + 1) for number in there if times[number] > 1]
    found = []
    if lines.broken:
        found.append(f"{name}: {_numbered('line', [range(n, n + 1) for n in lines.broken])} cannot be read.")
    if lines.torn:
        found.append(f"{name}: the last line is cut short, as after a crash.")
    if gaps:
        found.append(
            f"{name}: lacks what was written of {_numbered('round', gaps)}; figures over all rounds, such as the best, leave it out."
        )
    if twice:
        found.append(f"{name}: holds {_numbered('round', twice)} more than once; the last row counts.")
    return found


def _numbered(what: str, numbers: Sequence[range]) -> str:
    """``line 3``, ``lines 3, 4 and 9``, ``rounds 2 to 900 (17 in all)``."""
    count = sum(map(len, numbers))
    if count == 1:
        return f"{what} {numbers[0][0]}"
    if count > _LISTED:
        return f"{what}s {numbers[0][0]} to {numbers[-1][-1]} ({count} in all)"
    *first, last = (str(number) for part in numbers for number in part)
    return f"{what}s {', '.join(first)} and {last}"


def latest_rows(run_dir: Path) -> list[dict[str, Any]]:
    """:func:`latest` of ``metrics.jsonl``; see :func:`read_rows`."""
    return latest(read_rows(run_dir))


def latest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a round, in order: of a round that was run again after a resume, the last that was written."""
    rounds: dict[int, dict[str, Any]] = {}
    for row in rows:
        known = rounds.get(row["round"])
        rounds[row["round"]] = row if known is None else {**row, "metrics": {**known["metrics"], **row["metrics"]}}
    return [rounds[r] for r in sorted(rounds)]


def number(value: Any) -> float | None:
    """A finite float, or None: a point at infinity would flatten every chart it is in."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def metric_name(key: str) -> str:
    """``key`` with what MLflow does not take in a name replaced by underscores, at most 250 characters."""
    return _FORBIDDEN.sub("_", key)[:250]


def points(row: Row) -> list[Point]:
    """The finite values of a row."""
    time = number(row.get("time")) or 0.0
    found = []
    for key, value in row["metrics"].items():
        finite = number(value)
        if finite is not None:
            found.append(Point(metric_name(str(key)), finite, int(time * 1000), int(row["round"])))
    return found


def not_finite(rows: Iterable[Row]) -> dict[str, int]:
    """Metric to the first round in which it was NaN or infinite."""
    found: dict[str, int] = {}
    for row in rows:
        odd = [k for k, v in row["metrics"].items() if v is not None and number(v) is None]
        for key in (*odd, *(row.get("not_finite") or ())):
            found.setdefault(str(key), int(row["round"]))
    return found
