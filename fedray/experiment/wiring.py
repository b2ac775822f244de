"""Makes the parts of one run and takes them down. The only place that knows all parts."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
import ray

from fedray import __version__
from fedray.aggregation.rule import make_aggregator
from fedray.algorithms.algorithm import make_server
from fedray.checkpoint import Saved
from fedray.clients.callers import with_room
from fedray.clients.groups import group_of, rates
from fedray.clients.host import HostSpec
from fedray.clients.messages import ClientTask, HostInfo
from fedray.clients.nodes import free_resources
from fedray.clients.placement import Place, more_places, plan_places, start_actor
from fedray.clients.pool import Pool
from fedray.clients.recognition import commit_federation
from fedray.config import Config
from fedray.configfile import dump_config
from fedray.driver import Loop
from fedray.experiment.background import Background
from fedray.experiment.finished import frozen_of
from fedray.experiment.identity import identity
from fedray.experiment.listener import Events
from fedray.experiment.request import Request
from fedray.experiment.resume import begin, check_model
from fedray.experiment.served import served_model
from fedray.experiment.silo_facts import complete, without_cuda
from fedray.planning.preparation import Prepared, capacity
from fedray.privacy.account import Account
from fedray.privacy.accounting.budgets import Plan
from fedray.privacy.clientplan import ClientPlan, level
from fedray.privacy.ledger.ledger import ledger_directory
from fedray.privacy.recordplan import RecordPlan
from fedray.privacy.release import Release
from fedray.privacy.rules import claim
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown
from fedray.rounds.books import Books, JointBooks, NoBooks, PopulationBook, RunBook, SiloBooks
from fedray.rounds.cohort import largest_cohort
from fedray.rounds.evaluator import Evaluators
from fedray.rounds.round_metrics import GuaranteePlan, Guarantees
from fedray.runfiles import RunFiles
from fedray.storage import write_atomic, write_json
from fedray.tracking.gauges import Gauges
from fedray.tracking.mlflow_store import masked, resolve_uri, sqlite_path
from fedray.tracking.mlflow_tracker import Tracker, flat_params
from fedray.tracking.modelfolder import Built


class Wiring:
    """Makes the parts of one run and takes them down."""

    def __init__(
        self, prepared: Prepared, data: Sequence[Any], request: Request, files: RunFiles, events: Events, stop: threading.Event
    ) -> None:
        self._p, self._data, self._request, self._files = prepared, list(data), request, files
        self._events, self._stop = events, stop
        self.config: Config = prepared.config
        self.tick = stop.is_set
        self.tracker: Tracker | None = None
        self.pool: Pool | None = None
        self._accounts: dict[str, Account] = {}
        self._release: Release | None = None
        self._books: Books = NoBooks()
        self.problems: list[str] = []
        self._summary: dict[str, Any] = {}
        self.parts: Loop

    def build(self) -> Loop:
        """Everything the loop uses. Tracking opens and actors start at the same time."""
        config, p = self.config, self._p
        places = self._plan_places()  # before the evaluator takes its share
        beginning = begin(self._files, self._request, identity(config, p.digest), p.model, self._events.on_note, config)
        checkpoint, meta, self._job = beginning.checkpoint, beginning.meta, beginning.job
        self._pinned: dict[str, str] = dict(meta.get("ledger_heads", {}))
        failed = threading.Event()
        tracking = Background(
            lambda: self._open_tracking(checkpoint, lambda: "KILLED" if self._stop.is_set() else "FAILED" if failed.is_set() else "")
        )
        try:
            self._open_record_book()
            evaluator = self._start_evaluator()
            self.pool = pool = self._start_pool(places)
            everyone = config.clients.placement == "dedicated"
            infos = pool.wait_ready(config.clients.start_timeout, everyone)
            blind = without_cuda(infos, [s.place.key for s in pool.slots if s.place.resources.gpu])
            self._events.on_note(blind) if blind else None
            if p.model is None:
                self._learn_from_silos(infos)
                evaluator = self._start_evaluator()
            model = p.model
            assert model is not None and p.sizes is not None
            self._preflight(pool)
            if evaluator is not None:
                evaluator.wait_ready()
        except BaseException:
            failed.set()  # a server that is waited for is of no use any more
            with suppress(Exception):
                self.tracker = tracking.result()
            raise
        self.tracker = tracking.result()
        write_atomic(self._files.config, masked(dump_config(config)).encode())
        write_json(self._files.partition, {**p.partition, "model": model.document(), "class_labels": list(p.class_labels)})
        check_model(checkpoint, model, self._files.checkpoints)
        server = make_server(config.server)
        aggregate = make_aggregator(config.aggregation)
        if p.client_plan is not None:
            self._release = Release(p.client_plan, config.privacy.insecure_seed)
            self._release.load(meta.get("release") or {})
            self._open_client_book(p.client_plan)
        self._books = self._make_books(pool)
        self._files.rewind(beginning.round)
        callbacks: list[Any] = [self._events]
        if self.tracker is not None:
            callbacks.append(self.tracker)
        callbacks.append(Gauges(config.experiment, config.name, config.rounds))
        meta |= {"frozen_sha256": model.facts.frozen, "mlflow": None if self.tracker is None else self.tracker.run_id}
        self.parts = Loop(
            config=config,
            files=self._files,
            names=p.names,
            sizes=p.sizes,
            rates=rates(p.groups, len(p.names)),
            capacity=capacity(config, p.sizes),
            layout=model.facts.layout,
            frozen=frozen_of(model.facts),
            sampler=p.sampler,
            pool=pool,
            books=self._books,
            server=server,
            aggregate=aggregate,
            release=self._release,
            evaluator=evaluator,
            weights=checkpoint.weights if checkpoint else model.weights,
            server_state=checkpoint.server if checkpoint else server.init(model.facts.layout.size),
            first_round=beginning.round,
            meta=meta,
            resumed=checkpoint is not None,
            callbacks=callbacks,
            privacy=Guarantees(self._lines()),
        )
        model.weights = np.empty(0, dtype=np.float32)  # the driver's loop has them
        return self.parts

    @property
    def node(self) -> str:
        """Where the driver stands."""
        return socket.gethostname()

    # -- pieces ----------------------------------------------------------------------------------

    def _open_tracking(self, checkpoint: Saved | None, cancelled: Callable[[], str]) -> Tracker | None:
        config = self.config
        if not config.tracking.enabled:
            return None
        uri = resolve_uri(config.tracking, self._files.root.parent)
        if self._files.remote is not None and sqlite_path(uri) is not None:
            self._events.on_note(f"MLflow's rows stay in a file on the driver's node {self.node} ({uri}); set tracking.uri to a server.")
        raw = json.loads(config.model_dump_json())
        tags = {
            "fedray.version": __version__,
            "fedray.algorithm": config.algorithm.kind,
            "fedray.privacy": "+".join(config.privacy.regimes) or "none",
            "fedray.dataset": config.data.source.rpartition("/")[2],
            "fedray.seed": str(config.seed),
            **self.claim_tags(final=False),
        }
        params = flat_params({k: v for k, v in raw.items() if k not in ("ray", "tracking", "experiment")})
        for name, plan in (("privacy", self._first_plan), ("privacy.joint", self._p.client_plan)):
            if plan is not None and (name == "privacy" or self.config.privacy.joint is not None):
                params[f"{name}.noise_multiplier"] = f"{plan.noise_multiplier:.6g}"
        params.pop("privacy.insecure_seed", None)
        return Tracker.open(
            self._files.root,
            params,
            tags,
            uri=uri,
            experiment=config.experiment,
            run_name=config.name,
            register_as=config.tracking.register_as or config.name,
            headline=config.evaluation.headline,
            resume=self._request.resume,
            resumed_from_round=checkpoint.round if checkpoint else None,
            run_id=checkpoint.meta.get("mlflow") if checkpoint else None,
            wait=config.tracking.open_timeout,
            cancelled=cancelled,
        )

    def _open_record_book(self) -> None:
        """The driver's book of records; silos keep their own."""
        p, config = self._p, self.config
        if not config.privacy.record or config.clients.placement == "dedicated":
            return
        plans: dict[str, Plan] = {
            p.names[i]: plan for g, plan in zip(p.groups, p.plans, strict=True) if plan is not None for i in g.members
        }
        self._open_book("records", plans, p.groups[0].ledger, self._commitments(p.groups[0].ledger))

    def _open_client_book(self, plan: ClientPlan) -> None:
        """The driver's book of whole clients; under local privacy alone, silos keep their own."""
        config = self.config
        if self._silos_charge_clients:
            return
        own = level(config.privacy)
        ledger = own.ledger if own is not config.privacy else self._p.groups[0].ledger
        self._open_book("clients", dict.fromkeys(plan.subjects(self._p.names), plan), ledger, None)

    def _open_book(self, name: str, plans: Mapping[str, Plan], ledger: str, data: Mapping[str, str] | None) -> None:
        self._accounts[name] = Account.open_run(
            self._files.books if ledger == "run" else ledger_directory(ledger, self._files.root),
            plans,
            job=self._job,
            lasting=ledger != "run",
            pinned=self._pinned.get(name),
            fewer_steps=self.config.privacy.fewer_steps and name == "records",
            data=data,
            void=claim(self.config).reasons,
            path="privacy.joint" if name == "clients" and self.config.privacy.joint is not None else "privacy",
        )

    def _commitments(self, ledger: str) -> dict[str, str]:
        """Each hosted client's commitment to its records, for its entries in the book."""
        federation = ray.get(self._data[0]) if self._data else None
        if federation is None:
            return {}
        directory = self._files.books if ledger == "run" else ledger_directory(ledger, self._files.root)
        return commit_federation(directory, federation, ledger != "run")

    @property
    def _silos_charge_clients(self) -> bool:
        """Whether each silo enters its own updates: nobody else need be trusted with that."""
        return self.config.privacy.regimes == ("local",) and self.config.clients.placement == "dedicated"

    def _plan_places(self) -> Sequence[Place]:
        p, config = self._p, self.config
        free = free_resources(less=None if p.test is None else config.evaluation.resources)
        return with_room(plan_places(config, p.groups, p.names, free, self._most, self._request.elastic))

    @property
    def _most(self) -> int:
        return largest_cohort(self.config.cohort, len(self._p.names))

    def _start_evaluator(self) -> Evaluators | None:
        """Beside the clients' actors. Where only the silos know the data, there is no central test set."""
        p = self._p
        if p.test is None or p.model is None or not self.config.evaluation.metrics:
            return None
        return Evaluators(self.config, p.test, p.model.facts, self._request.provided)

    def _start_pool(self, places: Sequence[Place]) -> Pool:
        p, config, request = self._p, self.config, self._request
        data = self._data[0] if self._data else None

        def start(place: Place) -> Any:
            group = p.groups[place.group]
            dedicated = place.client is not None
            book: Plan | None = p.client_plan if self._silos_charge_clients else p.plans[place.group]
            spec = HostSpec(
                config=config,
                group=group,
                plan=p.plans[place.group],
                model=None if p.model is None else p.model.facts,
                threads=max(1, int(place.resources.cpu)),
                client=place.client,
                book=book if dedicated else None,
                ledger=group.ledger if dedicated and book is not None else None,
                pinned=self._pinned.get(place.key) if dedicated else None,
                job=self._job,
                provided=request.provided,
                profile=request.profile,
            )
            return start_actor(place, spec, None if dedicated else data)

        sizes = p.sizes if p.sizes is not None else np.ones(len(p.names), dtype=np.int64)
        hosted = config.clients.placement == "hosted"
        return Pool(
            places,
            start,
            sizes,
            members={g.name: g.members for g in p.groups} if hosted else None,
            restarts=config.clients.restarts,
            retries=config.cohort.retries,
            grace=config.cohort.grace,
            unreachable_after=config.clients.unreachable_after,
            start_timeout=config.clients.start_timeout,
            node_sums=config.clients.node_sums,
            grow=partial(more_places, config, p.groups, self._most) if hosted and request.elastic else None,
            should_stop=lambda: self.tick(),
            note=self._events.on_note,
        )

    def _learn_from_silos(self, infos: Mapping[str, HostInfo]) -> None:
        """Sizes and shapes that only the silos know, and the model that follows from them."""
        p, ordered = self._p, [infos[name] for name in self._p.names]
        complete(p, ordered)
        assert self.pool is not None and p.model is not None and p.sizes is not None
        self.pool.learn_sizes(p.sizes)
        self.pool.broadcast("configure", p.model.facts, timeout=self.config.clients.start_timeout)

    def _preflight(self, pool: Pool) -> None:
        found = pool.broadcast("preflight", timeout=self.config.clients.start_timeout) if self.config.privacy.regimes else {}
        if self.config.privacy.record:
            self._events.put("preflight", max(found.values()))

    def _make_books(self, pool: Pool) -> Books:
        config, lasting = self.config, {"records": self.config.privacy.ledger != "run"}
        lasting["clients"] = level(config.privacy).ledger != "run"
        books: list[Books] = []
        if config.privacy.record:
            if "records" in self._accounts:
                books.append(RunBook("records", "record", self._accounts["records"], lasting["records"]))
            else:
                books.append(self._silo_books(pool, "record"))
        if self._release is not None:
            account = self._accounts.get("clients")
            if account is None:
                books.append(self._silo_books(pool, "client"))
            elif self._release.plan.charging.whom == "everyone":
                books.append(PopulationBook("clients", account, lasting["clients"], self._release.due))
            else:
                books.append(RunBook("clients", "client", account, lasting["clients"]))
        if not books:
            return NoBooks()
        return books[0] if len(books) == 1 else JointBooks(*books)

    def _silo_books(self, pool: Pool, unit: str) -> SiloBooks:
        everyone = [ClientTask(i, n) for i, n in enumerate(self._p.names)]
        return SiloBooks(pool, everyone, unit, self.config.clients.start_timeout)

    def _lines(self) -> list[GuaranteePlan]:
        p = self._p
        lines: list[GuaranteePlan] = []
        if self.config.privacy.record:
            lines.append(GuaranteePlan("record", [plan for plan in p.plans if plan is not None], group_of(p.groups, len(p.names))))
        return lines + ([] if p.client_plan is None else [GuaranteePlan("client", [p.client_plan])])

    # -- what is told ----------------------------------------------------------------------------

    @property
    def _first_plan(self) -> RecordPlan | ClientPlan | None:
        """Of the first line: records where they are protected, else whole clients."""
        return next((plan for plan in self._p.plans if plan is not None), self._p.client_plan)

    def info(self) -> dict[str, Any]:
        """Facts for the head of the progress display."""
        p, model = self._p, self._p.model
        assert self.pool is not None and model is not None and p.sizes is not None
        plan = self._first_plan
        return {
            "name": self.config.name,
            "run": self._job.rpartition("/")[0],
            "output": str(self._request.output),
            "rounds": self.config.rounds,
            "first_round": self.parts.first_round,
            "clients": len(p.names),
            "records": int(p.sizes.sum()) if self.config.privacy.whole_clients is None else None,
            "actors": len(self.pool.slots),
            "placement": self.config.clients.placement,
            "model": self.config.model.kind,
            "parameters": model.facts.layout.size,
            "engine": model.engine,
            "metric": self.config.evaluation.headline,
            "regime": "+".join(self.config.privacy.regimes) or "none",
            "unit": None if plan is None else plan.unit,
            "budget": None if plan is None else plan.budget,
            "delta": None if plan is None else plan.delta,
            "noise_multiplier": None if plan is None else plan.noise_multiplier,
            "data": self.config.data.source,
            "warnings": list(p.warnings),
        }

    @property
    def engine(self) -> str | None:
        """The local engine (of the first group, where groups have their own)."""
        return None if self._p.model is None else self._p.model.engine

    def claim_tags(self, final: bool) -> dict[str, str]:
        """MLflow tags of the privacy claim."""
        if not self.config.privacy.regimes:
            return {"privacy/claim": "none"}
        valid = claim(self.config, self.problems)
        tags = {"privacy/claim": "valid" if valid.valid else "void: " + "; ".join(valid.reasons)}
        tags["privacy/unit"] = " and ".join(line.unit for line in self._lines()) or "client"
        if final:
            tags |= {
                f"privacy/{k}": str(self._summary[k]) for k in ("epsilon", "delta", "accountant", "ledger_sha256") if k in self._summary
            }
        return tags

    def privacy_summary(self, rounds: int, left_out: int) -> dict[str, Any]:
        """The ``privacy`` part of the summary after ``rounds`` rounds, where the budget left some clients out; writes the statement beside it."""
        config = self.config
        if not config.privacy.regimes:
            return {"unit": None, "regime": "none", "epsilon": None}
        figures, groups = self._books.figures(), self._books.lines()
        published = self._books.lines(rounds) if self.parts.privacy.secret else groups
        lines = [
            Guarantee(unit, line.distinct_plans(), groups.get(unit, []), figures.get(unit, []), published.get(unit, []))
            for line in self.parts.privacy.lines
            for unit in (line.unit,)
        ]
        frozen = self._p.model.facts.frozen if self._p.model else ""
        statement = privacy_statement(config, lines, self._ledger_head(), rounds, self.problems, frozen, left_out)
        write_json(self._files.statement, statement)
        for name, part in self._books.parts().items():
            write_json(self._files.ledger / f"{quote(name, safe='')}.part.json", part)
        write_atomic(self._files.root / "privacy_statement.md", statement_markdown(statement).encode())
        self._summary = dict(statement["summary"])
        return self._summary

    def _ledger_head(self) -> str | dict[str, str] | None:
        heads = self._books.heads()
        return next(iter(heads.values())) if len(heads) == 1 and self._accounts else heads or None

    def tracking_summary(self) -> dict[str, Any]:
        """Where the MLflow run is."""
        if self.tracker is None:
            return {"tracking_uri": None, "run_id": None}
        return {"tracking_uri": self.tracker.uri, "run_id": self.tracker.run_id}

    def model_for_tracking(self) -> Built:
        """The trained model, an input example of zeros (never a record), and what it takes and gives."""
        return served_model(self._files, self.config)

    def close(self) -> None:
        """Take everything down; the books stay."""
        if self.pool is not None:
            self.pool.shutdown()
        for account in self._accounts.values():
            account.close()
        if self.tracker is None or self.tracker.closed or not self._files.owned():  # another driver goes on with the MLflow run
            return
        if not self.tracker.close("KILLED" if self._stop.is_set() else "FAILED", 10.0):
            self._events.on_note(f"MLflow still shows the run as running; fedray sync {self._request.output} ends it there.")
