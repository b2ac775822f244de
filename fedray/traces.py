"""What the files of a run or a query say of whose data went into it, and of what it began with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedray.configfile import parse_yaml
from fedray.credentials import cleaned
from fedray.errors import FedrayError
from fedray.participation import read_participants
from fedray.runfiles import RunFiles
from fedray.storage import read_json, reading
from fedray.tracking.journal import State
from fedray.tracking.mlflow_store import masked
from fedray.tracking.rundata import client_rows

#: ``yes``: in these rounds. ``secret``: every client counts, and who took part is not told. ``unknown``: the files do not say.
Took = Literal["yes", "no", "secret", "unknown"]


@dataclass(frozen=True)
class Trace:
    """One run or query, as its files tell.

    Attributes:
        where: its directory.
        kind: ``run`` or ``query``.
        name: of its config.
        status: how it ended; empty if it has not.
        model: SHA-256 of the final model; None if there is none.
        clients: number of all clients; None if that is not written.
        names: of the clients, as far as they are written.
        secret: whether who took part is kept secret.
        participants: see :func:`fedray.participation.read_participants`.
        began: of the model that training began with, where another run or a file gave it: ``where`` and ``sha256``, each perhaps empty.
        bounds: each client's epsilon and delta at the end, as far as the statement names clients.
        private: the summary's figures of privacy; empty without privacy.
        tracked: the MLflow run; None without.
        checkpoints: names of the files by the number of rounds.
        sweep: the sweep's directory of which this is a trial; None if it is none.
    """

    where: Path
    kind: Literal["run", "query"]
    name: str
    status: str
    model: str | None
    clients: int | None
    names: frozenset[str]
    secret: bool
    participants: Sequence[Mapping[str, Any]] | None
    began: Mapping[str, str] | None
    bounds: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    private: Mapping[str, Any] = field(default_factory=dict)
    tracked: State | None = None
    checkpoints: Mapping[int, str] = field(default_factory=dict)
    sweep: Path | None = None

    def took(self, client: str) -> tuple[Took, list[int]]:
        """Whether a client's data went into it, and in which rounds (from 1), where that may be told."""
        if client not in self.names and self.clients is not None and len(self.names) >= self.clients:
            return "no", []
        if self.secret:
            return "secret", []
        if self.participants is None:
            return "unknown", []
        rounds = [int(line["round"]) for line in self.participants if line.get("everyone") or client in line["clients"]]
        return ("yes" if rounds else "no"), sorted(set(rounds))

    def rounds_of(self) -> dict[str, list[int]]:
        """The rounds in which each client took part; of all clients whose names are written where a round had everyone."""
        found: dict[str, set[int]] = {}
        for line in self.participants or ():
            for name in sorted(self.names) if line.get("everyone") else line["clients"]:
                found.setdefault(str(name), set()).add(int(line["round"]))
        return {name: sorted(rounds) for name, rounds in sorted(found.items())}

    @property
    def reached(self) -> int:
        """Number of rounds that a client took part in at most."""
        return max([0, *self.checkpoints])


def read_traces(places: Sequence[Path]) -> tuple[list[Trace], list[str]]:
    """All runs and queries in directories and below, in order of their paths, and a sentence for each that cannot be read."""
    found, unread = dict[Path, Trace](), list[str]()
    for place in places:
        if not place.is_dir():
            unread.append(f"{place}: is no directory.")
        for folder, below, names in os.walk(place):
            here = Path(folder).absolute()
            below.sort()
            if "config.yaml" not in names or here in found:
                continue
            if "run.json" not in names and "summary.json" not in names:  # a sweep, whose trials lie below
                continue
            below[:] = [name for name in below if name == "trials"]
            try:
                found[here] = _trace(here)
            except FedrayError as error:
                unread.append(str(error))
    return list(found.values()), unread


def _trace(where: Path) -> Trace:
    files = RunFiles(where)
    with reading(files.config, files.summary, files.partition, files.statement, where / "run.json"):
        config = parse_yaml(files.config.read_text(encoding="utf-8"), str(files.config)) or {}
        summary, partition, statement = files.read_summary() or {}, read_json(files.partition) or {}, read_json(files.statement) or {}
        query = "queries" in config
        rows = [dict(row) for row in client_rows(statement)]
        regimes = (config.get("privacy") or {}).get("regime", "none")
        named = {str(row["client"]) for row in client_rows(partition) if "client" in row}
        if query:
            named |= {str(row["name"]) for row in rows}
        whole = not query and any(regime not in ("none", "record") for regime in ([regimes] if isinstance(regimes, str) else regimes))
        answers = read_json(where / "answers.json") or {}
        clients = answers.get("clients") if query else partition.get("clients")
        return Trace(
            where=where,
            kind="query" if query else "run",
            name=str(config.get("name", where.name)),
            status=str(summary.get("status") or ("answered" if answers else "")),
            model=summary.get("model_sha256"),
            clients=None if clients is None else int(clients),
            names=frozenset(named),
            secret=whole,
            participants=None if query else read_participants(where),
            began=_began(config, partition),
            bounds={str(row["name"]): (row.get("epsilon"), row.get("delta", statement["summary"].get("delta"))) for row in rows},
            private=summary.get("privacy") or {},
            tracked=State.load(where),
            checkpoints={
                int(path.stem.removeprefix("round-")): path.name for path in sorted(files.checkpoints.glob("round-*.safetensors"))
            },
            sweep=where.parent.parent if where.parent.name == "trials" else None,
        )


def _began(config: Mapping[str, Any], partition: Mapping[str, Any]) -> dict[str, str] | None:
    """Of the initial model: where the config says that it is, and its hash."""
    weights, model = (config.get("model") or {}).get("weights"), partition.get("model") or {}
    digest = str(model.get("initial_sha256") or "")
    if weights is None and not digest:
        return None
    return {"where": cleaned(masked(str(weights or model.get("initial") or ""))), "sha256": digest}
