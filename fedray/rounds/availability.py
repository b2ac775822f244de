"""In which rounds clients can take part: groups that come every so many rounds, and traces of single clients from a file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedray import components
from fedray.clients.groups import ClientGroup
from fedray.components import nearest
from fedray.config import Config
from fedray.errors import ConfigError, DataError, shortened

_FORMS = "a .csv has the columns client and round, or client, first and last; a .json maps each client to a list of rounds and [first, last] intervals"


class Traces(NamedTuple):
    """Intervals of rounds in which clients are there, one a row; rounds count from 0, and ``last`` is in it.

    Attributes:
        clients, first, last: int64 ``[intervals]``.
        digest: SHA-256 of the file, in hex.
    """

    clients: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    digest: str


@dataclass(frozen=True, eq=False)
class Availability:
    """Who can take part in a round. It is public, and follows from no record.

    Attributes:
        every: of each client's group, int64 ``[clients]``.
        traces: of single clients; None where all are always there.
    """

    every: npt.NDArray[np.int64]
    traces: Traces | None = None

    def at(self, round_: int) -> npt.NDArray[np.bool_]:
        """Who can take part in a round, counted from 0; bool ``[clients]``."""
        there: npt.NDArray[np.bool_] = round_ % self.every == 0
        if self.traces is None:
            return there
        listed = np.zeros_like(there)
        listed[self.traces.clients[(self.traces.first <= round_) & (round_ <= self.traces.last)]] = True
        return there & listed

    @property
    def digest(self) -> str:
        """By which a resumed run notices other traces; empty without."""
        return "" if self.traces is None else self.traces.digest


def make_availability(config: Config, groups: Sequence[ClientGroup], names: Sequence[str], carries: bool) -> Availability | None:
    """Who can take part when; None where everybody always can.

    Args:
        config: the run.
        groups: of its clients.
        names: of all clients, in index order.
        carries: clients start one by one, so there are no rounds in which they could take part.

    Raises:
        ConfigError: a group has a rate that nothing reads, or there are no rounds.
        DataError: the traces cannot be read, or do not go with the clients.
    """
    _check_rates(config)
    file = config.cohort.availability
    if file is None and all(group.every == 1 for group in groups):
        return None
    if carries:
        raise ConfigError(
            f"cohort.availability, clients.groups.every: with pacing.kind '{config.pacing.kind}' clients start one by one, so there are no rounds "
            "in which some are away; take them out, or use pacing.kind=synchronous."
        )
    every = np.ones(len(names), dtype=np.int64)
    for group in groups:
        every[np.asarray(group.members)] = group.every
    return Availability(every, None if file is None else read_traces(file, names, config.data.without))


def _check_rates(config: Config) -> None:
    """Refuse rates of groups where no coins are thrown.

    Raises:
        ConfigError: with what to use instead.
    """
    kind = config.cohort.kind
    if kind == "poisson" or components.is_own(kind):
        return
    for position, group in enumerate(config.clients.groups):
        if 0 < group.rate < 1:
            raise ConfigError(
                f"clients.groups.{position}.rate: a rate of {group.rate:g} is for coins, which cohort.kind '{kind}' does not throw; use "
                f"cohort.kind=poisson, or clients.groups.{position}.every for a fixed number of rounds from one turn to the next."
            )


def read_traces(file: str, names: Sequence[str], without: Sequence[str] = ()) -> Traces:
    """Read the rounds in which each client is there.

    Args:
        file: a .csv or .json file; rounds count from 1 in it.
        names: of all clients, in index order.
        without: clients that are left out of the run, of which the file may speak.

    Raises:
        DataError: the file cannot be read, an interval is none, it names a client that there is not, or lacks one.
    """
    path = Path(file).expanduser()
    where = f"cohort.availability: {path}"
    try:
        content = path.read_bytes()
        text = content.decode()
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror}; looked from {Path.cwd()}).") from None
    except UnicodeDecodeError:
        raise DataError(f"{where} is no text in UTF-8; {_FORMS}.") from None
    rows = _of_json(text, where) if path.suffix == ".json" else _of_csv(text, where)
    index = {name: k for k, name in enumerate(names)}
    found: list[tuple[int, int, int]] = []
    for name, first, last, place in rows:
        if name in without:
            continue
        if name not in index:
            raise DataError(f"{where}, {place}: there is no client '{name}'.{nearest(name, names)}")
        if first < 1 or last < first:
            raise DataError(
                f"{where}, {place}: rounds {first} to {last} of client '{name}' are no interval; rounds count from 1, first <= last."
            )
        found.append((index[name], first - 1, last - 1))
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    lacking = np.setdiff1d(np.arange(len(names)), table[:, 0])
    if len(lacking):
        more = f" (and of {len(lacking) - 1} others)" if len(lacking) > 1 else ""
        raise DataError(
            f"{where} says nothing of client '{names[int(lacking[0])]}'{more}; give each client the rounds in which it is there, from 1 to a "
            "large number if it always is."
        )
    return Traces(table[:, 0], table[:, 1], table[:, 2], hashlib.sha256(content).hexdigest())


def _of_csv(text: str, where: str) -> Iterator[tuple[str, int, int, str]]:
    """Client, first and last round of each line, and the place in the file."""
    reader = csv.DictReader(io.StringIO(text))
    columns = set(reader.fieldnames or ())
    if columns not in ({"client", "round"}, {"client", "first", "last"}):
        raise DataError(f"{where} has the columns {', '.join(sorted(columns)) or '(none)'}; {_FORMS}.")
    for row in reader:
        place = f"line {reader.line_num}"
        first = _round(row.get("round", row.get("first")), where, place)
        yield str(row["client"]), first, _round(row["last"], where, place) if "last" in columns else first, place


def _of_json(text: str, where: str) -> Iterator[tuple[str, int, int, str]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is no JSON ({error}).") from None
    if not isinstance(content, Mapping) or not all(isinstance(rounds, list) for rounds in content.values()):
        raise DataError(f"{where} is not as expected; {_FORMS}.")
    for name, rounds in content.items():
        for given in rounds:
            pair = given if isinstance(given, list) else [given, given]
            if len(pair) != 2:
                raise DataError(f"{where}, client '{name}': {shortened(repr(given), 60)} is neither a round nor [first, last].")
            first, last = (_round(value, where, f"client '{name}'") for value in pair)
            yield name, first, last, f"client '{name}'"


def _round(value: Any, where: str, place: str) -> int:
    try:
        if isinstance(value, int | str) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise DataError(f"{where}, {place}: {shortened(repr(value), 60)} is no round, which is a whole number from 1; {_FORMS}.")
