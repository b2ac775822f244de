"""The journal of a run, and the state of its MLflow run.

``metrics.jsonl`` is the journal: the driver appends one row per round, and any value that MLflow lacks can be sent again from there.
``tracking.json`` beside it names the MLflow run and, for each metric, the last round that the server has.

This position is kept by metric and round, not in bytes: a run that is resumed from a checkpoint may repeat rounds that were already sent,
and a value in MLflow cannot be deleted. The server keeps the values that it has for a round; only missing ones are sent.
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
from fedray.tracking.shown import rank, rounded

METRICS = "metrics.jsonl"
STATE = "tracking.json"

Row = Mapping[str, Any]

_LISTED = 5  # largest number of lines or rounds that a sentence lists; more are counted

_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)


@dataclass(frozen=True)
class Point:
    """One value of one metric. ``time`` is the recorded time in Unix milliseconds, so that a value that is sent twice is stored once."""

    key: str
    value: float
    time: int
    round: int


@dataclass
class State:
    """What ``tracking.json`` holds.

    Attributes:
        tracking_uri: the store's address, without a password.
        experiment: name of the MLflow experiment.
        experiment_id: id of the MLflow experiment.
        run_id: id of the MLflow run.
        run_name: name of the MLflow run.
        register_as: name for the registered model; None: the model is not registered.
        params: the logged params, with which the run can be made again in another store.
        tags: the logged tags.
        shipped: the last round that the server has, by metric.
        model: ``sha256`` of the weights, ``id`` of the logged model and ``version`` of the registered model.
        ended: the status with which the MLflow run was ended; None while it is open.
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
        """Read the state of a run; None if the run was never tracked.

        Raises:
            ConfigError: the file exists but cannot be read.
        """
        path = run_dir / STATE
        try:
            raw = read_json(path)
            return None if raw is None else _state(raw)
        except (FedrayError, TypeError) as error:
            why = str(error).removeprefix(f"{path}: ").partition(";")[0]
            raise ConfigError(f"{path}: cannot be read ({why}); restore the file, or remove it to start a new MLflow run.") from None

    def save(self, run_dir: Path) -> None:
        """Replace the file atomically: a crash leaves the old or the new file."""
        write_json(run_dir / STATE, asdict(self))

    def missing(self, points: Iterable[Point]) -> list[Point]:
        """Return those of ``points`` that the server lacks."""
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
    """Read ``metrics.jsonl`` with its broken lines."""
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
    """Yield the rows of ``metrics.jsonl``, oldest first, without broken lines (:func:`journal` reports those)."""
    yield from journal(run_dir).whole


def shortcomings(lines: JsonLines, rounds: int) -> list[str]:
    """Return one sentence for each kind of defect of a journal that should have one row for each of the first ``rounds`` rounds at least."""
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
    """Return :func:`latest` of the rows in ``metrics.jsonl``."""
    return latest(read_rows(run_dir))


def latest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per round, in order; of a round that was repeated after a resume, the metrics that were written last."""
    rounds: dict[int, dict[str, Any]] = {}
    for row in rows:
        known = rounds.get(row["round"])
        rounds[row["round"]] = row if known is None else {**row, "metrics": {**known["metrics"], **row["metrics"]}}
    return [rounds[r] for r in sorted(rounds)]


def number(value: Any) -> float | None:
    """Return a finite float, or None for any other value: an infinite value would make a chart unreadable."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def metric_name(key: str) -> str:
    """Return ``key`` as a metric's name in MLflow: forbidden characters become underscores, at most 250 characters stay."""
    return _FORBIDDEN.sub("_", key)[:250]


def points(row: Row) -> list[Point]:
    """Return the finite values of a row, rounded to what they mean, the most important first."""
    time = number(row.get("time")) or 0.0
    finite = {str(key): found for key, value in row["metrics"].items() if (found := number(value)) is not None}
    return [Point(metric_name(key), rounded(key, finite[key]), int(time * 1000), int(row["round"])) for key in sorted(finite, key=rank)]


def not_finite(rows: Iterable[Row]) -> dict[str, int]:
    """Return the first round in which each metric was NaN or infinite, by metric."""
    found: dict[str, int] = {}
    for row in rows:
        odd = [k for k, v in row["metrics"].items() if v is not None and number(v) is None]
        for key in (*odd, *(row.get("not_finite") or ())):
            found.setdefault(str(key), int(row["round"]))
    return found
