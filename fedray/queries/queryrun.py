"""Asks a query: charges every client, collects their noised sums, and writes the answers.

The process that calls :func:`query` is the driver. A client's charge is durable before its records are added up, and what it sent is written
down as it arrives: a query that was cut off and is resumed asks, and charges, only the clients whose sums are missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ray

from fedray import components
from fedray.clients.nodes import free_resources
from fedray.clients.placement import Place, plan_places
from fedray.clients.recognition import commit_federation
from fedray.data.silos import check_silos
from fedray.errors import BudgetReached, ConfigError, FedrayError, cause_of
from fedray.experiment.cluster import find_place, joined
from fedray.privacy.account import Account
from fedray.privacy.figures import Figures, Spent, listed
from fedray.privacy.ledger.location import ledger_directory
from fedray.privacy.ledger.withdrawal import LedgerWatch, books_in
from fedray.privacy.queryplan import QueryPlan
from fedray.privacy.receipt import check_receipt
from fedray.privacy.rules import claim
from fedray.queries.preparedquery import PreparedQuery, judged_model, prepare_query
from fedray.queries.queryactors import start_query_actor
from fedray.queries.queryanswers import answers_of
from fedray.queries.queryhost import ClientAnswer, QuerySite, public_facts, receipt_of
from fedray.queries.querystatement import query_markdown, query_statement
from fedray.queryconfig import QueryConfig, dump_query
from fedray.runfiles import RunFiles, choose_output
from fedray.storage import append_line, read_lines, write_atomic, write_json

Note = Callable[[str], None]
_PARTS = "parts.jsonl"


@dataclass(frozen=True)
class QueryResult:
    """How a query ended.

    Attributes:
        output: its directory.
        answers: the content of ``answers.json``.
        summary: the content of ``summary.json``.
    """

    output: Path
    answers: dict[str, Any]
    summary: dict[str, Any]


def query(
    config: QueryConfig,
    *,
    output: str | None = None,
    resume: bool = False,
    note: Note = lambda text: None,
    provided: Mapping[str, Any] | None = None,
) -> QueryResult:
    """Ask the clients and write the answers.

    Args:
        config: the query's.
        output: directory; default ``runs/NAME``.
        resume: ask the clients whose sums are missing in ``output``.
        note: is given sentences for the user.
        provided: objects of the caller, by the name under which the config means them.

    Raises:
        ConfigError: the config, the data or the cluster is not usable; nothing was charged.
        BudgetReached: the query would exceed a client's budget; nobody was charged.
        FedrayError: a client failed; ``resume`` goes on.
    """
    components.provide(provided or {})
    began = time.time()
    where = choose_output(config.name, output, resume)
    if not isinstance(where, Path):
        raise ConfigError("--output: a query writes its files to a directory; name one, and copy it to the object store.")
    prepared, model = prepare_query(config), judged_model(config)
    for warning in prepared.warnings:
        note(warning)
    files = RunFiles(where)
    files.create()
    given = _earlier(files, prepared, resume)
    started = files.begin()
    write_atomic(files.config, dump_query(config).encode())
    job = f"{started.id}/{started.starts}"
    with ExitStack() as held:
        held.enter_context(joined(find_place(config.ray), config.ray, lambda what: note(f"{what} and starting client actors ...")))
        asking = held.enter_context(closing(_Asking(prepared, job, provided or {}, model, files, given)))
        asking.ask()
        groups, heads, parts = asking.spent()
    for name, part in parts.items():
        write_json(files.ledger / f"{quote(name, safe='')}.part.json", part)
    return _finish(prepared, files, list(given.values()), groups, heads, began)


def _finish(
    prepared: PreparedQuery,
    files: RunFiles,
    given: Sequence[ClientAnswer],
    groups: Sequence[Spent],
    heads: str | Mapping[str, str] | None,
    began: float,
) -> QueryResult:
    config, plan = prepared.config, prepared.plan
    privacy: dict[str, Any] = {"unit": None, "regime": "none", "epsilon": None}
    if plan is not None:
        statement = query_statement(prepared, plan, groups, listed(groups, prepared.names), heads)
        write_json(files.statement, statement)
        write_atomic(files.root / "privacy_statement.md", query_markdown(statement).encode())
        privacy = statement["summary"]
    standing = claim(config)
    about = {
        "query": files.root.name,
        "run": (json.loads((files.root / "run.json").read_text()))["id"],
        "private": plan is not None and standing.valid,
        "claim": "valid" if standing.valid else "void: " + "; ".join(standing.reasons),
        "epsilon": None if plan is None else plan.planned_epsilon,
        "delta": None if plan is None else plan.delta,
        "noise_multiplier": None if plan is None else plan.noise_multiplier,
        "ledger": None if plan is None else _ledger_of(prepared),
        "charges": {one.client: one.receipt["reservation"] for one in given if one.receipt is not None},
        "source": config.data.source,
        "normalize": config.data.normalize.kind,
        "clients": len(given),
    }
    order = {name: k for k, name in enumerate(prepared.names)}
    answers = about | answers_of(prepared, sorted(given, key=lambda one: order[one.client]))
    write_json(files.root / "answers.json", answers)
    summary = {
        "status": "completed",
        "kind": "query",
        "name": config.name,
        "clients": len(given),
        "statistics": len(prepared.asked),
        "duration_s": round(time.time() - began, 3),
        "privacy": privacy,
    }
    files.write_summary(summary)
    return QueryResult(files.root, answers, summary)


def _ledger_of(prepared: PreparedQuery) -> str | dict[str, str]:
    """The ledger's address; of groups with ledgers of their own each address."""
    ledgers = {group.name: group.ledger for group in prepared.groups}
    return next(iter(ledgers.values())) if len(set(ledgers.values())) == 1 else ledgers


def _earlier(files: RunFiles, prepared: PreparedQuery, resume: bool) -> dict[str, ClientAnswer]:
    """What clients sent to an earlier start of the query in this directory."""
    if not resume:
        return {}
    if files.config.exists() and files.config.read_text(encoding="utf-8") != dump_query(prepared.config):
        raise ConfigError(f"--resume: the query in {files.root} has another config; bring it back, or choose another directory.")
    plan = prepared.plan
    found = [ClientAnswer(**{**line, "columns": tuple(line["columns"])}) for line in read_lines(files.root / _PARTS).whole]
    return {
        one.client: one
        for one in found
        if (None if one.receipt is None else one.receipt["plan"]) == (None if plan is None else plan.sha256)
    }


class _Asking:
    """The actors and the ledger of a query.

    Args:
        prepared: the query.
        job: its name in the ledgers.
        provided: see :func:`query`.
        model: the judged one, or None.
        files: of the query.
        given: what clients have sent before; filled with what they send.
    """

    def __init__(
        self, prepared: PreparedQuery, job: str, provided: Mapping[str, Any], model: Any, files: RunFiles, given: dict[str, ClientAnswer]
    ) -> None:
        self._prepared, self._job, self._provided, self._model = prepared, job, provided, model
        self._files, self._given = files, given
        self._missing = [name for name in prepared.names if name not in given]
        self._actors: dict[str, Any] = {}  # by the client, or by the place of hosted ones
        self._account: Account | None = None

    def ask(self) -> None:
        """Charge and ask all clients that have not answered yet."""
        if self._prepared.dedicated:
            self._start_silos()
            self._each("answer", {name: (name, None) for name in self._missing}, self._take)
        else:
            self._ask_hosted()

    def spent(self) -> tuple[list[Spent], str | dict[str, str] | None, dict[str, Any]]:
        """All clients' figures, the heads of their ledgers, and the query's part of each ledger that outlives it."""
        if self._prepared.plan is None:
            return [], None, {}
        if self._account is not None:
            lasting = self._prepared.config.privacy.ledger != "run"
            return self._account.groups(), self._account.head, {"records": self._account.part()} if lasting else {}
        found: dict[str, tuple[Figures, str, dict[str, Any]]] = {}
        self._each("spent", dict.fromkeys(self._prepared.names, ()), found.__setitem__)
        groups = [Spent(found[name][0], [name]) for name in self._prepared.names]
        return groups, {name: head for name, (_, head, _) in found.items()}, {name: part for name, (*_, part) in found.items()}

    def close(self) -> None:
        """Give the ledgers back and end the actors."""
        if self._account is not None:
            self._account.close()
        for actor in self._actors.values():
            with suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                ray.get(actor.close.remote(), timeout=10.0)
            ray.kill(actor)

    # -- dedicated clients: an actor, a file and a ledger each -----------------------------------

    def _start_silos(self) -> None:
        prepared, plan = self._prepared, self._prepared.plan
        groups = {prepared.names[i]: group for group in prepared.groups for i in group.members}
        for place in self._places():
            name = place.key
            ledger = (
                None if groups[name].ledger == "run" else groups[name].ledger
            )  # without privacy it says whether the client has withdrawn
            site = self._site(place, client=name, ledger=ledger, pinned=None if plan is None else self._pinned(name))
            self._actors[name] = start_query_actor(place, site, None, self._model)
        silos: dict[str, Any] = {}
        self._each("ready", dict.fromkeys(prepared.names, ()), silos.__setitem__, prepared.config.clients.start_timeout)
        ordered = [silos[name] for name in prepared.names]
        check_silos(ordered, prepared.config.data.holdout.fraction)
        prepared.check_sizes({name: silos[name].records + silos[name].held_out for name in prepared.names})
        refused: dict[str, str] = {}
        self._each("open", {name: (plan, name in self._missing) for name in prepared.names}, refused.__setitem__)
        _refuse({name: why for name, why in refused.items() if why})

    # -- hosted clients: the driver's ledger -----------------------------------------------------

    def _ask_hosted(self) -> None:
        prepared, plan, federation = self._prepared, self._prepared.plan, self._prepared.federation
        assert federation is not None
        public_facts(prepared.asked, federation.client(0), prepared.labels)  # hosted clients' records have one form
        if plan is not None:
            self._account = self._open_account(plan)
            _refuse({name: str(why) for name, why in self._account.check(self._missing).refused.items()})
        elif prepared.config.privacy.ledger != "run":
            withdrawn = LedgerWatch(partial(books_in, ledger_directory(prepared.config.privacy.ledger, self._files.root))).now()
            _refuse({name: str(withdrawn[name]) for name in self._missing if name in withdrawn})
        places = self._places()
        shared = ray.put(federation)
        for place in places:
            self._actors[place.key] = start_query_actor(place, self._site(place), shared, self._model)
        self._each("ready", {place.key: () for place in places}, lambda key, form: None, prepared.config.clients.start_timeout)
        self._each("open", {place.key: (plan, False) for place in places}, lambda key, why: None)
        reservations: dict[str, str | None] = dict.fromkeys(self._missing)
        if self._account is not None:
            decision = self._account.authorize(0, 0, self._missing)
            _refuse({name: str(why) for name, why in decision.refused.items()})
            reservations.update({name: made.id for name, made in decision.reservations.items()})
        for turn in _turns(self._missing, [place.key for place in places]):
            self._each("answer", {key: (name, reservations[name]) for key, name in turn.items()}, self._take)

    def _open_account(self, plan: QueryPlan) -> Account:
        prepared, config = self._prepared, self._prepared.config
        ledger, federation = prepared.groups[0].ledger, prepared.federation
        assert federation is not None
        directory = self._files.books if ledger == "run" else ledger_directory(ledger, self._files.root)
        return Account.open_run(
            directory,
            dict.fromkeys(prepared.names, plan),
            job=self._job,
            lasting=ledger != "run",
            pinned=next((pin for name in self._given if (pin := self._pinned(name)) is not None), None),
            data=commit_federation(directory, federation, ledger != "run"),
            void=claim(config).reasons,
        )

    # -- both ------------------------------------------------------------------------------------

    def _site(self, place: Place, **more: Any) -> QuerySite:
        prepared = self._prepared
        threads = max(1, int(place.resources.cpu))
        return QuerySite(prepared.config, tuple(prepared.labels), job=self._job, threads=threads, provided=self._provided, **more)

    def _places(self) -> list[Place]:
        p = self._prepared
        return plan_places(p.config, p.groups, p.names, free_resources(), max(1, min(len(p.names), 8)), False)

    def _pinned(self, name: str) -> str | None:
        """The charge of what a client has sent before, which its ledger must hold."""
        one = self._given.get(name)
        return None if one is None or one.receipt is None else one.receipt["reservation"]

    def _take(self, key: str, one: ClientAnswer) -> None:
        """Check an answer's receipt and write the answer down."""
        plan = self._prepared.plan
        if plan is not None:
            reservation = None if one.receipt is None else one.receipt.get("reservation")
            check_receipt(one.client, one.receipt, receipt_of(plan, reservation))
            if self._account is not None:
                self._account.commit(0, 0, {one.client: one.receipt})
        append_line(self._files.root / _PARTS, json.dumps(asdict(one)))
        self._given[one.client] = one

    def _each(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], take: Callable[[str, Any], None], timeout: float | None = None
    ) -> None:
        """Call a method on actors and take their answers as they come; raises the first error after all have answered."""
        waiting = {getattr(self._actors[key], method).remote(*given): key for key, given in arguments.items()}
        limit, failed = None if timeout is None else time.monotonic() + timeout, list[BaseException]()
        while waiting:
            left = None if limit is None else max(0.0, limit - time.monotonic())
            done, _ = ray.wait(list(waiting), timeout=left)
            if not done:
                raise FedrayError(
                    f"{', '.join(sorted(waiting.values())[:5])}: not up after {timeout:g} s (clients.start_timeout); lower clients.resources or "
                    "clients.actors, or join a larger cluster (ray.address)."
                )
            key = waiting.pop(done[0])
            try:
                take(key, ray.get(done[0]))
            except ray.exceptions.RayError as error:
                failed.append(cause_of(error, f"{key}: failed"))
        if failed and method == "answer":
            more = f"--resume --output {self._files.root} asks the clients that are missing"
            raise FedrayError(f"{failed[0]} What was charged stays charged; {more}.") from None
        if failed:
            raise failed[0]


def _refuse(refused: Mapping[str, str]) -> None:
    """Raise BudgetReached if a client's budget does not allow the query, or a client has withdrawn."""
    if refused:
        first = refused[min(refused)]
        more = f" So it is for {len(refused)} clients." if len(refused) > 1 else ""
        raise BudgetReached(f"nobody was asked or charged: {first}{more}")


def _turns(names: Sequence[str], keys: Sequence[str]) -> Iterator[dict[str, str]]:
    """The clients of each turn, in which every actor answers for one."""
    for start in range(0, len(names), len(keys)):
        yield dict(zip(keys, names[start : start + len(keys)], strict=False))
