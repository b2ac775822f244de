"""What a client's data went into, and whose data went into a model: over runs, what began with their models, and the tracking store.

A model that training began with is in every model that came of it, so both directions are followed through ``model.weights``: by the hash of
the initial model, which each run writes down, and by the run's directory where the config names one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError, FedrayError
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.ledger.inspect import find
from fedray.privacy.ledger.location import subject_path
from fedray.privacy.ledger.verification import verify
from fedray.privacy.ledger.withdrawal import withdrawn_of
from fedray.reporting.registered_models import ModelVersion, registered_models
from fedray.rounding import json_figure
from fedray.traces import Trace, read_traces
from fedray.tracking.mlflow_store import masked, unmasked
from fedray.tracking.versions import is_reference

_DIGITS = 8  # of a hash, at least, that names a model


@dataclass(frozen=True)
class Lineage:
    """Runs and queries, the versions of models that stores have of them, and sentences on what could not be read."""

    traces: Sequence[Trace]
    versions: Sequence[ModelVersion]
    unread: Sequence[str]

    def parents(self, trace: Trace) -> list[Trace]:
        """The runs with whose model a run began, as far as they were read; several where they made the same model."""
        began = trace.began
        if began is None:
            return []
        here = [t for t in self.traces if t is not trace and t.kind == "run"]
        return [t for t in here if t.model and t.model == began["sha256"]] or [t for t in here if _is_at(t.where, began["where"])]

    def origins(self, trace: Trace) -> list[Trace]:
        """All runs that a run's model came through, the nearest first, without itself."""
        found: list[Trace] = []
        for parent in self.parents(trace):
            for each in (parent, *self.origins(parent)):
                if each is not trace and each not in found:
                    found.append(each)
        return found

    def strangers(self, trace: Trace) -> list[str]:
        """A sentence for each initial model, of a run or of one that it came through, whose training is in no run that was read."""
        return [
            f"{t.where}: began with {t.began['where']} (sha256 {t.began['sha256'][:12] or 'not written'}), whose training was not found here: whose "
            "data are in that model is not known."
            for t in (trace, *self.origins(trace))
            if t.began is not None and not self.parents(t)
        ]

    def versions_of(self, trace: Trace) -> list[dict[str, Any]]:
        """The registered versions of a run's model, with their aliases."""
        mine = [
            v
            for v in self.versions
            if (trace.model and v.sha256 == trace.model) or (trace.tracked is not None and v.run_id and v.run_id == trace.tracked.run_id)
        ]
        return [{"store": masked(v.store), "name": v.name, "version": v.number, "aliases": list(v.aliases)} for v in mine]


def read_lineage(places: Sequence[Path], stores: Sequence[str] = ()) -> Lineage:
    """Read runs, and the MLflow stores that they, or ``stores``, name.

    Args:
        places: directories, in and below which runs, queries and sweeps lie.
        stores: tracking URIs.
    """
    traces, unread = read_traces(places)
    named = list(stores)
    for trace in traces:
        if trace.tracked is not None:
            try:
                named.append(unmasked(trace.tracked.tracking_uri))
            except FedrayError as error:
                unread.append(str(error))
    versions: list[ModelVersion] = []
    for store in dict.fromkeys(named):
        try:
            versions += registered_models(store)
        except FedrayError as error:
            unread.append(f"{masked(store)}: its registered models cannot be read: {error}")
    known = {t.model for t in traces if t.model} | {t.tracked.run_id for t in traces if t.tracked is not None}
    unread += [
        f"models:/{v.name}/{v.number} in {masked(v.store)}: the directory of its run was not found here, so whose data are in it is not known."
        for v in versions
        if v.sha256 not in known and v.run_id not in known
    ]
    return Lineage(traces, versions, list(dict.fromkeys(unread)))


def of_client(client: str, lineage: Lineage) -> dict[str, Any]:
    """What a client's data went into.

    Returns:
        JSON data. ``runs``: for each run whose model they are in, ``where``, ``name``, ``status``, ``part`` (``yes``, ``secret``, ``unknown``, or
        ``through`` if only by the model that it began with), ``rounds`` (from 1; None where that is not told), ``through`` (directories of the runs
        that its model came through and that the client took part in), ``model_sha256``, ``checkpoints``, ``versions``, ``sweep``, ``bound`` (of what
        its own training tells) and ``bounded`` (whether that and what came through the other runs is limited at all);
        ``queries``: the same of queries; ``ledgers``: what the client's ledgers hold of it; ``unread``: sentences.
    """
    parts = {id(t): t.took(client) for t in lineage.traces}
    runs, queries, touched = list[dict[str, Any]](), list[dict[str, Any]](), list[Trace]()
    for trace in lineage.traces:
        part, rounds = parts[id(trace)]
        through = [t for t in lineage.origins(trace) if parts[id(t)][0] != "no"]
        if part == "no" and not through:
            continue
        touched.append(trace)
        row: dict[str, Any] = {"where": str(trace.where), "name": trace.name, "status": trace.status or "not ended"}
        bounds = {id(t): _bound_of(t, client) for t in (*through, *([] if part == "no" else [trace]))}
        row |= {"part": part if part != "no" else "through", "bound": bounds.get(id(trace)), "bounded": None not in bounds.values()}
        if trace.kind == "query":
            queries.append(row)
            continue
        since = min(rounds, default=0) if part == "yes" else 0
        runs.append(
            row
            | {
                "rounds": rounds if part in ("yes", "no") else None,
                "clients": trace.clients,
                "through": [str(t.where) for t in through],
                "model_sha256": trace.model,
                "checkpoints": [str(trace.where / "checkpoints" / name) for n, name in sorted(trace.checkpoints.items()) if n >= since],
                "versions": lineage.versions_of(trace),
                "sweep": None if trace.sweep is None else str(trace.sweep),
            }
        )
    ledgers, unread = _ledgers(touched, client)
    strangers = [said for t in lineage.traces if parts[id(t)][0] == "no" for said in lineage.strangers(t)]
    return {"client": client, "runs": runs, "queries": queries, "ledgers": ledgers, "unread": [*lineage.unread, *strangers, *unread]}


def of_model(what: str, lineage: Lineage) -> dict[str, Any]:
    """Whose data went into a model, or into the models of a run.

    Args:
        what: a run's directory, the model's SHA-256 or its beginning, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        lineage: that it is looked for in.

    Returns:
        JSON data: ``model`` (as asked), ``runs``: the run that made it and those that its model came through, each with ``where``, ``name``,
        ``model_sha256``, ``number`` of clients, ``secret`` (who took part is not told) and ``clients``: the rounds of each by name, None
        where that is not told or not written; ``unread``: sentences.

    Raises:
        ConfigError: no run that was read made it.
    """
    made = _made(what, lineage)
    if not made:
        raise ConfigError(
            f"--model: none of the {len(lineage.traces)} runs that were read made '{what}'; name directories that hold its run."
        )
    chain = list({id(t): t for m in made for t in (m, *lineage.origins(m))}.values())
    runs = [
        {
            "where": str(t.where),
            "name": t.name,
            "model_sha256": t.model,
            "number": t.clients,
            "secret": t.secret,
            "clients": None if t.secret or t.participants is None else t.rounds_of(),
            "versions": lineage.versions_of(t),
        }
        for t in chain
    ]
    strangers = [said for m in made for said in lineage.strangers(m)]
    return {"model": what, "runs": runs, "unread": list(dict.fromkeys([*lineage.unread, *strangers]))}


def _made(what: str, lineage: Lineage) -> list[Trace]:
    runs = [t for t in lineage.traces if t.kind == "run"]
    if is_reference(what):
        name, _, last = what.removeprefix("models:/").replace("@", "/@").rpartition("/")
        mine = [v for v in lineage.versions if v.name == name.rstrip("/") and (v.number == last or last.removeprefix("@") in v.aliases)]
        return [t for t in runs for v in mine if (t.model and t.model == v.sha256) or (t.tracked and v.run_id == t.tracked.run_id)]
    at = [t for t in runs if _is_at(t.where, what)]
    by_hash = [t for t in runs if len(what) >= _DIGITS and t.model and t.model.startswith(what.lower())]
    return at or by_hash


def _is_at(where: Path, place: str) -> bool:
    path = Path(place)
    path = path.parent if path.name == "model.safetensors" else path
    return bool(place) and "://" not in place and path.absolute().resolve() == where.resolve()


def _bound_of(trace: Trace, client: str) -> dict[str, Any] | None:
    """The epsilon by which a run's, or a query's, statement limits what it tells of one unit of a client; None where nothing limits it."""
    private = trace.private
    if private.get("epsilon") is None or private.get("claim") != "valid":
        return None
    epsilon, delta = trace.bounds.get(client, (private["epsilon"], private.get("delta")))
    return {"unit": private.get("unit"), "epsilon": epsilon, "delta": delta if delta is not None else private.get("delta")}


def _ledgers(traces: Sequence[Trace], client: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What the ledgers of some runs hold of a client, all their charges added up, and sentences on ledgers that cannot be read."""
    found, unread = dict[str, dict[str, Any]](), list[str]()
    names = {subject_path(".", client).name, "records.jsonl", "clients.jsonl"}
    for trace in traces:
        try:
            for book in find(trace.where).books if trace.private or (trace.where / "ledger").is_dir() else ():
                if book.name in names and str(book) not in found:
                    found |= {str(book): row for row in _ledger(book, client)}
        except FedrayError as error:
            unread.append(str(error))
    return list(found.values()), unread


def _ledger(book: Any, client: str) -> Iterator[dict[str, Any]]:
    summary = verify(book)
    whole = any(unit == "client" for unit, _ in summary.units)
    if client not in summary.spent and not (whole and EVERYONE in summary.spent):
        return
    delta = min(summary.deltas, default=None)
    epsilon = math.inf if delta is None else bound(summary.charged(client), delta, adjacency=summary.adjacency)
    withdrawn = withdrawn_of(book).get(client)
    yield {
        "ledger": str(book),
        "unit": sorted({unit for unit, _ in summary.units})[0],
        "delta": delta,
        "epsilon": json_figure(epsilon),
        "charges": summary.charges[client] or summary.charges[EVERYONE],
        "withdrawn": None if withdrawn is None else str(withdrawn),
    }


def rounds_text(rounds: Sequence[int]) -> str:
    """Rounds as ``1-3, 7``."""
    parts: list[list[int]] = []
    for n in rounds:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
