"""Builds the parts of one run and shuts them down. No other module knows all parts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import ray

from fedray.aggregation.rule import Rule, make_rule
from fedray.algorithms.algorithm import Server, begun, make_algorithm, make_server
from fedray.checkpoint import Saved
from fedray.clients.callers import with_room
from fedray.clients.groups import rates
from fedray.clients.messages import ClientTask
from fedray.clients.nodes import free_resources
from fedray.clients.placement import Place, more_places, plan_places, start_actor
from fedray.clients.pool import Pool
from fedray.clients.recognition import commit_federation
from fedray.clients.states import keep_states
from fedray.clients.terms import Site, check_terms, make_terms
from fedray.config import Config
from fedray.configfile import dump_config
from fedray.driver import Loop, ModelState
from fedray.experiment.agreeing import agreed_data_of
from fedray.experiment.background import Background
from fedray.experiment.besides import noised_evaluations, start_evaluator, start_roots
from fedray.experiment.description import guarantee_plans
from fedray.experiment.finished import frozen_of
from fedray.experiment.listener import Events
from fedray.experiment.outside import Outside
from fedray.experiment.request import Request
from fedray.experiment.resume import begin, check_model
from fedray.experiment.silo_facts import complete, without_cuda
from fedray.experiment.standing import Standing
from fedray.experiment.starting import note_start, open_tracker, reach_store
from fedray.faults import Listener
from fedray.frozen import model_digest
from fedray.holder import Holder
from fedray.planning.global_model import Model
from fedray.planning.preparation import Prepared, capacity
from fedray.privacy.account import Account
from fedray.privacy.clientplan import ClientPlan, Plan, level
from fedray.privacy.ledger.location import ledger_directory
from fedray.privacy.regime import Regime
from fedray.privacy.release import Release
from fedray.privacy.rules import claim
from fedray.rounds.arrival import make_steps
from fedray.rounds.books import Books, PopulationBook, RunBook, SiloBooks
from fedray.rounds.clientstates import ClientStates
from fedray.rounds.dispatch import Secure
from fedray.rounds.drawing import CohortDraw
from fedray.rounds.record import Record
from fedray.rounds.remembered import begun_with
from fedray.rounds.round_metrics import Guarantees
from fedray.rounds.roundreceipts import receipts_of
from fedray.rounds.withdrawals import Withdrawals
from fedray.runfiles import RunFiles
from fedray.secure.protocol import make_protocol
from fedray.storage import write_atomic, write_json
from fedray.stores.object_path import Location
from fedray.tracking.gauges import Gauges
from fedray.tracking.mlflow_store import experiment_name, masked
from fedray.tracking.mlflow_tracker import Tracker
from fedray.updates.pipeline import keep_state, make_stages


class Wiring:
    """Builds the parts of one run (:meth:`build`) and shuts them down (:meth:`close`).

    Args:
        prepared: the run; where only the silos know their records, :meth:`build` completes it.
        data: the records' reference in Ray's object store; empty where the silos read their own.
        weights: the reference of the model's weights in the object store; None where only the silos know what the model looks like.
        request: what the command asked for.
        files: the run's files.
        events: receives notes, and the result of the actors' checks before the first round.
        stop: set when the run shall end early.
    """

    def __init__(
        self,
        prepared: Prepared,
        data: Sequence[Any],
        weights: Holder[Any] | None,
        request: Request,
        files: RunFiles,
        events: Events,
        stop: threading.Event,
    ) -> None:
        self.prepared = prepared
        self._data, self._weights, self._request, self._files, self._events, self._stop = data, weights, request, files, events, stop
        self._note = partial(events.put, "note")
        self.config: Config = prepared.config
        self._algorithm, self._stages = make_algorithm(self.config.algorithm), make_stages(self.config)
        self._keep_state = self._algorithm.traits.state or keep_state(self._stages)
        self.tick = stop.is_set
        self.tracker: Tracker | None = None
        self.pool: Pool | None = None
        self._accounts: dict[str, Account] = {}
        self._outside: Outside | None = None

    def build(self) -> Loop:
        """Build everything that the driver's loop uses. MLflow is reached while the actors start, and its run made last: no start that is refused has one.

        Raises:
            FedrayError: a part cannot be built, or the actors do not start in time.
        """
        config, p = self.config, self.prepared
        places = self._plan_places()  # before the evaluator takes its share
        beginning = begin(self._files, self._request, config, p.digest + p.away_digest, p.model, self._note)
        checkpoint, meta, self._job = beginning.checkpoint, beginning.meta, beginning.job
        self._standing = Standing(config, self._files.root, p.names, fresh=checkpoint is None)
        self._pinned: dict[str, str] = dict(meta.get("ledger_heads", {}))
        self._receipts = receipts_of(config.clients.signing, self._files, p.names, checkpoint is not None)
        failed = threading.Event()
        store = Background(partial(reach_store, config, self._files, self._note, lambda: self._stop.is_set() or failed.is_set()))
        try:
            self._open_record_book()
            provided = self._request.provided
            evaluator, roots = start_evaluator(p, provided), start_roots(p, provided)
            self._agree()
            self.pool = pool = self._start_pool(places)
            everyone = config.clients.apart
            infos = pool.wait_ready(config.clients.start_timeout, everyone)
            blind = without_cuda(infos, [s.place.key for s in pool.slots if s.place.resources.gpu])
            if blind:
                self._note(blind)
            self._standing.refuse(self._standing.now(pool))
            agreed = agreed_data_of(p, pool, self._data, self._files)
            silos_alone = p.model is None
            if silos_alone:
                p = self.prepared = complete(p, [infos[name] for name in p.names])
            model, sizes = p.model, p.sizes
            assert model is not None and sizes is not None
            if silos_alone:
                pool.learn_sizes(sizes)
                self._agree()
                told = pool.broadcast("configure", model.facts, model.exchange.sha256, timeout=config.clients.start_timeout)
                for place in places:
                    if place.key in told:
                        check_terms(place.key, told[place.key], self._hashes[place.group])
                evaluator, roots = start_evaluator(p, provided), start_roots(p, provided)
            self._preflight(pool)
            for beside in (evaluator, roots):
                if beside is not None:
                    beside.wait_ready()
        except BaseException:
            failed.set()  # stop waiting for MLflow's server
            with suppress(Exception):
                store.result()
            raise
        store.result()
        check_model(checkpoint, model, self._files.checkpoints)
        server, rule = make_server(config.server), make_rule(config.aggregation)
        if p.client_plan is not None:
            self._open_client_book(p.client_plan)
        regime = self._regime(meta.get("release") or {})
        books = self._make_books(pool, regime)
        self.tracker = open_tracker(p, self._files, self._request, checkpoint, lambda: "KILLED" if self._stop.is_set() else "")
        write_atomic(self._files.config, masked(dump_config(config)).encode())
        write_json(self._files.partition, {**p.partition, "model": model.document(), "class_labels": list(p.class_labels)})
        self._files.rewind(beginning.round)
        note_start(self._files, self._request, self._job, beginning.round, books)
        listeners: list[Listener] = [self._events.put]
        if self.tracker is not None:
            listeners.append(self.tracker.listen)
        listeners += [] if self._request.quiet else [Gauges(experiment_name(config), config.name, config.rounds).listen]
        meta |= {"initial_sha256": model.initial_sha256} if model.initial is not None else {}
        meta |= {"frozen_sha256": model.facts.frozen, "mlflow": None if self.tracker is None else self.tracker.run_id}
        privacy, names, resumed = Guarantees(guarantee_plans(p)), p.names, checkpoint is not None
        record = Record(config, self._files, books, regime, privacy, listeners, meta, beginning.round, resumed)
        started_from, frozen = Holder(self._begin(checkpoint, model, server, rule)), frozen_of(model.facts)
        if self._receipts is not None:
            begun_from = started_from.value.globals[: model.exchange.model_size]
            self._receipts.begin(pool, self._job, beginning.round, model_digest(begun_from, frozen))
        withdrawals = Withdrawals(names, partial(self._standing.now, pool), record.fault)
        about = config, names, rates(p.groups, len(names)), sizes, p.sampler, books, regime, privacy, record, withdrawals
        cohorts = CohortDraw(*about, p.availability)
        return Loop(
            config=config,
            names=names,
            capacity=capacity(config, sizes),
            layout=model.facts.layout,
            algorithm=self._algorithm,
            exchange=model.exchange,
            frozen=frozen,
            pool=pool,
            books=books,
            steps=make_steps(config, p.schedule, cohorts, names, p.groups, sizes, {} if checkpoint is None else checkpoint.pacing),
            record=record,
            server=server,
            rule=rule,
            regime=regime,
            evaluator=evaluator,
            roots=roots,
            states=self._client_states(checkpoint),
            begin=started_from,
            privacy=privacy,
            withdrawals=withdrawals,
            secure=self._secure(),
            agreed=agreed,
            noised=noised_evaluations(p, pool, books, record, agreed),
            receipts=self._receipts,
            first_round=beginning.round,
            resumed=resumed,
        )

    @property
    def run_id(self) -> str:
        """The run's id, the same for all starts of the run."""
        return self._job.rpartition("/")[0]

    @property
    def own_book(self) -> bool:
        """Whether the driver keeps a privacy book itself, and not only the silos."""
        return bool(self._accounts)

    def _begin(self, checkpoint: Saved | None, model: Model, server: Server, rule: Rule[Any]) -> ModelState:
        """What the first round starts from. Only the driver keeps it in memory: the model as it was prepared is given up here."""
        in_store = None if self._weights is None else self._weights.take()
        weights = model.weights.take() if in_store is None else ray.get(in_store)
        if checkpoint is not None:
            return ModelState(checkpoint.globals, checkpoint.server, checkpoint.rule, earlier=checkpoint.versions)
        globals_ = begun(self._algorithm, model.exchange, model.facts.layout, weights, model.facts.another)
        memory = begun_with(self.config, rule, self.prepared.names, model.exchange.up_size)
        return ModelState(globals_, server.init(model.exchange.model_size), memory, in_store if globals_ is weights else None)

    def _client_states(self, checkpoint: Saved | None) -> ClientStates | None:
        """The table of clients' states, as the checkpoint has it; None where clients keep none."""
        if not self._keep_state:
            return None
        return ClientStates(self._files.states, self.config.checkpoint.keep, None if checkpoint is None else checkpoint.states)

    def _open_record_book(self) -> None:
        """Open the driver's book for records, unless each silo keeps one."""
        p, config = self.prepared, self.config
        if not config.privacy.record or config.clients.apart:
            return
        plans: dict[str, Plan] = {
            p.names[i]: plan for g, plan in zip(p.groups, p.plans, strict=True) if plan is not None for i in g.members
        }
        self._open_book("records", plans, p.groups[0].ledger, self._commitments(p.groups[0].ledger))

    def _open_client_book(self, plan: ClientPlan) -> None:
        """Open the driver's book for whole clients, unless each silo charges its own updates."""
        p = self.prepared
        if not p.silos_charge_clients:
            self._open_book("clients", dict.fromkeys(plan.subjects(p.names), plan), p.client_ledger, None)

    def _open_book(self, name: str, plans: Mapping[str, Plan], ledger: str, data: Mapping[str, str] | None) -> None:
        self._accounts[name] = Account.open_run(
            self._book_directory(ledger),
            plans,
            job=self._job,
            lasting=ledger != "run",
            pinned=self._pinned.get(name),
            fewer_steps=self.config.privacy.fewer_steps and name == "records",
            data=data,
            void=claim(self.config).reasons,
            path="privacy.joint" if name == "clients" and self.config.privacy.joint is not None else "privacy",
        )
        self._standing.refuse(self._accounts[name].withdrawn())

    def _commitments(self, ledger: str) -> dict[str, str]:
        """Return each hosted client's commitment to its records, which the book's entries name."""
        if not self._data:
            return {}
        return commit_federation(self._book_directory(ledger), ray.get(self._data[0]), ledger != "run")

    def _book_directory(self, ledger: str) -> Location:
        return self._files.books if ledger == "run" else ledger_directory(ledger, self._files.root)

    def _plan_places(self) -> Sequence[Place]:
        p, config = self.prepared, self.config
        free = free_resources(*(config.evaluation.resources for records in (p.test, p.root) if records is not None))
        return with_room(plan_places(config, p.groups, p.names, free, self._most, self._request.elastic))

    @property
    def _most(self) -> int:
        return self.prepared.most_at_once

    def _agree(self) -> None:
        """Write down the terms of each group's clients, by what is known of the model."""
        p, model = self.prepared, self.prepared.model
        facts, exchange = None if model is None else model.facts, "" if model is None else model.exchange.sha256
        self._terms = [
            make_terms(self.config, group, plan, facts, exchange, self._job) for group, plan in zip(p.groups, p.plans, strict=True)
        ]
        self._hashes = [terms.sha256 for terms in self._terms]

    def _start_pool(self, places: Sequence[Place]) -> Pool:
        p, config, request = self.prepared, self.config, self._request
        data = self._data[0] if self._data else None
        states = keep_states(str(self._files.states)) if self._keep_state else None

        self._outside = outside = Outside(p, request.profile) if config.clients.gateway is not None else None

        def start(place: Place) -> Any:
            group = p.groups[place.group]
            if outside is not None:
                return outside.start(place, self._terms[place.group], self._pinned.get(place.key), self._receipts)
            dedicated = place.client is not None
            book: Plan | None = p.client_plan if p.silos_charge_clients else p.plans[place.group]
            site = Site(
                data=config.data if dedicated else None,
                agreed=p.agreed[group.name].of(place.client.name) if place.client is not None and p.agreed else None,
                client=place.client,
                book=book if dedicated else None,
                ledger=group.ledger if dedicated and group.ledger != "run" else None,
                pinned=self._pinned.get(place.key) if dedicated else None,
                signing=self._receipts.place(place.client.name) if place.client is not None and self._receipts is not None else None,
                states=states,
                threads=max(1, int(place.resources.cpu)),
                profile=request.profile,
                provided=request.provided,
            )
            return start_actor(place, self._terms[place.group], site, None if dedicated else data)

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
            node_sums=config.clients.node_sums and self._receipts is None and outside is None,
            grow=partial(more_places, config, p.groups, self._most) if hosted and request.elastic else None,
            should_stop=lambda: self.tick(),
            note=self._note,
            terms=lambda place: self._hashes[place.group],
        )

    def _preflight(self, pool: Pool) -> None:
        found = pool.broadcast("preflight", timeout=self.config.clients.start_timeout) if self.config.privacy.regimes else {}
        if self.config.privacy.record:
            self._events.put("preflight", max(found.values()))

    def _regime(self, saved: Mapping[str, Any]) -> Regime:
        """The regime, with its state in the checkpoint."""
        p, config = self.prepared, self.config
        whole = None if p.client_plan is None else Release(p.client_plan, config.privacy.insecure_seed, self._stages)
        regime = whole or Regime(config.seed, len(p.names), self._stages)
        regime.load(saved)
        return regime

    def _secure(self) -> Secure | None:
        """The protocol of secure sums, and what binds it to this run."""
        config, protocol = self.config, make_protocol(self.config.secure)
        return None if protocol is None else Secure(protocol, self._job, config.cohort.min_clients, config.cohort.retries)

    def _make_books(self, pool: Pool, regime: Regime) -> Books:
        config, lasting = self.config, {"records": self.config.privacy.ledger != "run"}
        lasting["clients"] = level(config.privacy).ledger != "run"
        books: list[RunBook | SiloBooks] = []
        if config.privacy.record:
            unit = "record" if config.privacy.person is None else "person"
            if "records" in self._accounts:
                books.append(RunBook("records", unit, self._accounts["records"], lasting["records"]))
            else:
                books.append(self._silo_books(pool, unit))
        plan = self.prepared.client_plan
        if plan is not None:
            account = self._accounts.get("clients")
            if account is None:
                books.append(self._silo_books(pool, "client"))
            elif plan.charging.whom == "everyone":
                books.append(PopulationBook("clients", account, lasting["clients"], regime.due))
            else:
                books.append(RunBook("clients", "client", account, lasting["clients"]))
        return Books(*books)

    def _silo_books(self, pool: Pool, unit: str) -> SiloBooks:
        everyone = [ClientTask(i, n) for i, n in enumerate(self.prepared.names)]
        return SiloBooks(pool, everyone, unit, self.config.clients.start_timeout)

    def close(self, why: str = "") -> None:
        """Shut down the actors, close the books, and end the MLflow run where it is still open, saying ``why``. May be called at any time."""
        if self.pool is not None and self._outside is not None:
            self._outside.close(self.pool.slots)
        if self.pool is not None:
            self.pool.shutdown()
        for account in self._accounts.values():
            account.close()
        if self.tracker is None or self.tracker.closed or not self._files.owned():  # another driver continues the MLflow run
            return
        status = "KILLED" if self._stop.is_set() else "FAILED"
        stopped = "interrupted" if self._stop.is_set() else "failed"
        tags = {"fedray.stop_reason": stopped, "fedray.ending": f"{stopped} before its rounds: {why.rstrip('.')}"} if why else {}
        if not self.tracker.close(status, 10.0, tags=tags):
            self._note(f"MLflow still shows the run as running; fedray sync {self._request.output} ends it there.")
