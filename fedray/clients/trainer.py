"""Clients' turns: each trains from the global weights, and its update is added to the actor's part of the round."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedray.aggregation.exact import ExactSum
from fedray.algorithms.algorithm import Algorithm, Update, only_trains, turned
from fedray.algorithms.turn import ClientView, Hooks, TrainedTurn, Turn
from fedray.attacks.attackers import Attackers
from fedray.clients.adding import Adding, whole_or_dead
from fedray.clients.devices import end_if_lost, on_device
from fedray.clients.members import Members, enrolled
from fedray.clients.memory import fitting, turn_noise
from fedray.clients.messages import ClientReport, ClientTask, Collected, RoundTask
from fedray.clients.needs import needs_at
from fedray.clients.states import StateAddress, StatePlace
from fedray.clients.surroundings import Kept, ended, unchanged
from fedray.clients.terms import Terms
from fedray.clients.views import Views, with_personal
from fedray.data.records import ClientData, Federation, Records
from fedray.errors import ClaimVoid, Stopped
from fedray.parameters import Vector, set_vector
from fedray.privacy.receipt import Receipt, record_receipt
from fedray.privacy.recordplan import check_history, clips_persons
from fedray.rng import Keyed, torch_seed
from fedray.secure.protocol import make_protocol
from fedray.spans import span
from fedray.training.augment import augmented
from fedray.training.charge import TurnCharge
from fedray.training.choose import choose_engine, untouched_by
from fedray.training.engine import SECRET, DpStep, LocalJob, LocalResult, NoiseSource, secretly_seed_torch, seed_torch
from fedray.training.lockstep import Crowd, group_size, train_crowd
from fedray.training.losses import Loss
from fedray.training.schedules import learning_rate
from fedray.training.unfreezing import unfrozen
from fedray.updates.pipeline import of_algorithm

#: Gives a client its turn, with what was charged for it, or says why it has none.
Reserve = Callable[[int, ClientTask], ClientTask | str]


class Trainer:
    """Trains clients of one group.

    Args:
        terms: the run's, for these clients.
        states: where clients' states are, or None.
        model: on the device that it trains on.
        loss: that is minimised.
        algorithm: what a client does.
        data: the federation, or the one client's own records.
        reserve: asked before a client's data is used, where the silo keeps its own book.
        withdrawn: says before and after a turn that the client has withdrawn; empty if it has not. None where nobody can.
        fresh: makes the model for a turn; None where all turns may share one.
        kept: what training runs within, so that nothing of it is left in the process.
    """

    def __init__(
        self,
        terms: Terms,
        states: StatePlace | None,
        model: nn.Module,
        loss: Loss,
        algorithm: Algorithm,
        data: Federation | ClientData,
        reserve: Reserve | None = None,
        fresh: Callable[[], nn.Module] | None = None,
        kept: Kept = unchanged,
        withdrawn: Callable[[], str] | None = None,
    ) -> None:
        self._fresh, self._withdrawn = fresh, withdrawn or str
        self._plan, self._config, self._loss, self.algorithm, self._reserve = terms.plan, terms.config, loss, algorithm, reserve
        self._views = Views(terms, states, model, loss, algorithm)
        self.model, self.layout, self.device = model, self._views.layout, next(model.parameters()).device
        self._kept = kept
        self._federation = data if isinstance(data, Federation) else None
        self._own = data if isinstance(data, ClientData) else None
        training = terms.config.training
        self.exchange, self._traits, self._only_trains = algorithm.exchange(self.layout), algorithm.traits, only_trains(algorithm)
        self.needs, alone = needs_at(terms, model, loss, data), untouched_by(terms.config, self._traits)
        self.engine_name, self.engine = choose_engine(
            training.engine, terms.plan is not None, model, training, alone, self.needs, clips_persons(terms.plan), self._traits.composes
        )
        self._together = self.engine_name == "lockstep" and self._federation is not None
        self._shared: tuple[Tensor, Tensor] | None = None
        self._resident: tuple[Tensor, Tensor] | None = None
        self._fits: int | None = None  # the physical batch that memory sufficed for, once it did not
        self._stop_round = -1
        self.at_work: Sequence[int] = ()  # whose turn it is; read from another thread
        self._lr = -1, 0.0  # a round and its learning rate
        self._host = socket.gethostname()
        attackers = Attackers() if self._federation is None else Attackers.of(terms.config, self._federation.names)
        self._adding = Adding(algorithm, self.exchange, self.device, terms.config, attackers)
        protocol = make_protocol(terms.config.secure)
        least = terms.config.cohort.min_clients
        self.members = None if protocol is None else Members(enrolled(protocol, data), terms.job, least, self.exchange)
        privacy = terms.config.privacy
        self._secret = bool(privacy.regimes) and privacy.insecure_seed is None  # nothing random in a turn may follow from the config

    def stop_round(self, round_: int) -> None:
        """End the training of ``round_`` (and earlier ones) at the next step; called from another thread."""
        self._stop_round = max(self._stop_round, round_)

    def train(self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask], total: Collected) -> list[ClientReport]:
        """Train clients and add their updates to ``total``; who was added has the status ``done``."""
        if task.round != self._lr[0]:
            self._lr = task.round, learning_rate(self._config.training, task.round, self._config.rounds)
        lr, refused = self._lr[1], dict[int, str]()
        if self.members is not None:
            refused = self.members.ready(task, [client.index for client in clients], weights)
        reports = [self._report(c, "lost", 0, 0.0, error=refused[c.index]) for c in clients if c.index in refused]
        clients = [c for c in clients if c.index not in refused] if refused else clients
        if self._together:
            return reports + [report for crowd in self._crowds(clients) for report in self._turn_together(task, weights, crowd, lr, total)]
        return reports + [self._turn(task, weights, client, lr, total) for client in clients]

    def data(self, client: ClientTask) -> ClientData:
        """What a client holds."""
        if self._own is not None:
            return self._own
        assert self._federation is not None
        return self._federation.client(client.index)

    def tensors(self, records: Records) -> tuple[Tensor, Tensor]:
        """Records on the device; a silo's own stay there."""
        if self.device.type != "cpu" and self._own is not None and records is self._own.train:
            if self._resident is None:
                self._resident = on_device(records, self.device)
            return self._resident
        return on_device(records, self.device)

    # -- one client ------------------------------------------------------------------------------

    def _turn(self, task: RoundTask, weights: Vector, client: ClientTask, lr: float, total: Collected) -> ClientReport:
        began, records, self.at_work = time.perf_counter(), 0, (client.index,)

        def report(status: Any, **more: Any) -> ClientReport:
            return self._report(client, status, records, time.perf_counter() - began, **more)

        try:
            data = self.data(client)
            records = len(data.train)
            self._check_stop(task)
            if why := self._withdrawn():
                return report("withdrawn", error=why)
            if self._reserve is not None:
                reserved = self._reserve(task.round, client)
                if isinstance(reserved, str):
                    return report("refused", error=reserved)
                client = reserved
            kept = self._views.state_of(client)
            with self._kept(partial(self._own_seed, task, client)), span("compute", "local training"):
                update, result, fitted = self._run(task, weights, client, data, lr, kept and of_algorithm(kept))
                update = self._adding.forged(task, client, update)
                sent, new = self._adding.staged(task, client, records, update, kept) if task.stages else (update, update.state)
            receipts, state = self._receipts(task, client, result), self._views.keep(task, new)
            if why := self._withdrawn():  # while it trained
                return report("withdrawn", error=why)
            with span("aggregation", "add an update"):
                self._adding.one(task, records, sent, total, client.factor)
                self._mask([client], total)
        except ClaimVoid:
            raise  # what ran is not what was charged: the whole run must end
        except BaseException as error:  # a client's fault is reported, not fatal; also where its code asks to end the process
            return report(**ended(error))
        return report("done", loss=self._shown(result), receipts=receipts, physical_batch=fitted, state=state)

    def _run(
        self, task: RoundTask, weights: Vector, client: ClientTask, data: ClientData, lr: float, state: dict[str, Vector] | None
    ) -> tuple[Update, LocalResult, int | None]:
        """A client's turn: what leaves, what was done, and the physical batch that fitted into memory where that was less than the config's."""
        training = client.section(self._config.training)
        private = self._plan is not None
        noise = turn_noise(self._config.privacy.insecure_seed, task.round, client.index) if private else None
        x, y = self.tensors(data.train)
        seed = self._seed()
        secret = secrets.token_bytes(SECRET) if self._secret else None

        def streams(name: str) -> np.random.Generator:
            return self._draws(task, seed, name)(client.index)

        def local(physical_batch: int) -> tuple[Update, LocalResult]:
            self._renew()
            if secret is None:
                seed_torch(torch_seed(seed, "torch", task.round, client.index), self.device)
            else:  # the same each time: a smaller batch after a lack of memory draws what the larger one would have
                secretly_seed_torch(secret, self.device)
            fitted = training if physical_batch == whole else training.model_copy(update={"physical_batch": physical_batch})
            job = self._job(task, fitted, lr, streams("batches"), None if noise is None else noise())
            augment = augmented(training, seed, task.round, client.index)
            job = replace(job, loss=self._loss.of_client(y), persons=data.train.persons, augment=augment)
            charge = TurnCharge(job, self.model) if private else None
            records = (x, y) if charge is None else charge.seal(x, y)

            def train(stream: str, hooks: Hooks) -> LocalResult:
                usual = hooks == Hooks() and stream == "batches"
                own = job if usual else replace(job, draws=streams(stream), streams=streams, **hooks._asdict())
                with unfrozen(self.model, training, task.round):
                    return self.engine(self.model, *records, own)

            turn = Turn(task.round, lr, fitted, train, *self._views.of(client, state, weights, len(y), self.model, lambda: (x, y)))
            update = with_personal(turned(self.algorithm, turn), turn.personal)
            return update, turn.in_all(None if charge is None else charge.history())

        whole = min(training.physical_batch, max(1, len(data.train)))
        first = whole if self.needs.whole else max(1, min(whole >> client.halvings, self._fits or whole))
        (update, result), fits = fitting(local, first, self.needs.whole)
        if fits < whole:
            self._fits = fits
        return update, result, (fits if fits < whole else None)

    def measured(self, weights: Vector, client: ClientTask) -> nn.Module:
        """The model that is evaluated on a client's own records."""
        train, state = self.data(client).train, of_algorithm(self._views.state_of(client))
        self._renew()
        view = ClientView(*self._views.of(client, state, weights, len(train), self.model, lambda: self.tensors(train)))
        view.put(self.algorithm.measured(view))
        return self.model

    def global_model(self, weights: Vector) -> nn.Module:
        """The one model that was broadcast."""
        self._renew()
        set_vector(self.model, self.layout, weights[: self.layout.size])
        return self.model

    def _renew(self) -> None:
        if self._fresh is not None:
            self.model = self._fresh()

    # -- many clients ----------------------------------------------------------------------------

    def _crowds(self, clients: Sequence[ClientTask]) -> Iterator[Sequence[ClientTask]]:
        size = group_size(self.layout.size, self.device)
        return (clients[start : start + size] for start in range(0, len(clients), size))

    def _turn_together(
        self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask], lr: float, total: Collected
    ) -> list[ClientReport]:
        """The turns of clients that are trained at once. Where that fails, each has its own turn, and fails by itself."""
        began = time.perf_counter()
        assert self._federation is not None
        self.at_work, failed = [client.index for client in clients], False
        starts, stops = (self._federation.offsets[[c.index + k for c in clients]].tolist() for k in (0, 1))
        sizes = [b - a for a, b in zip(starts, stops, strict=True)]
        try:
            self._check_stop(task)
            draws = self._draws(task, self._seed())
            job = self._job(task, self._config.training, lr, draws())
            crowd = Crowd(*self._everyone(), starts, stops, lambda k: draws(clients[k].index))
            with self._kept(partial(self._own_seed, task)), span("compute", "local training, many clients at once"):
                with unfrozen(self.model, job.training, task.round):
                    trained, results = train_crowd(self.model, self.layout, weights[: self.layout.size], crowd, job)
                updates = np.subtract(trained, weights[: self.layout.size], out=trained)
                if not self._only_trains:
                    updates = self._after_training(task, weights, clients, sizes, updates, results, lr)
        except Stopped as error:
            return [self._report(c, "late", n, 0.0, error=str(error)) for c, n in zip(clients, sizes, strict=True)]
        except BaseException as error:
            end_if_lost(error)
            failed = True
        if failed:  # only here, where the error and with it the failed step's tensors are gone
            return [self._turn(task, weights, client, lr, total) for client in clients]
        around = self._kept if task.stages else unchanged
        with around(partial(self._own_seed, task)), span("aggregation", "add updates"):
            left_out = self._adding.many(task, clients, sizes, updates, total)
            self._mask([client for client, error in zip(clients, left_out, strict=True) if error is None], total)
        seconds = (time.perf_counter() - began) / len(clients)
        return [
            self._report(client, "done", records, seconds, loss=self._shown(result), receipts=self._receipts(task, client, result))
            if error is None
            else self._report(client, records=records, seconds=seconds, **ended(error))
            for client, records, result, error in zip(clients, sizes, results, left_out, strict=True)
        ]

    def _after_training(
        self,
        task: RoundTask,
        weights: Vector,
        clients: Sequence[ClientTask],
        sizes: Sequence[int],
        updates: npt.NDArray[np.float32],
        results: Sequence[LocalResult],
        lr: float,
    ) -> npt.NDArray[np.float32]:
        """What leaves, float32 ``[clients, up_size]``, after each client's own turn around the training that was done together."""
        globals_, training = self.exchange.views(weights, "down"), self._config.training
        leaves = np.empty((len(clients), self.exchange.up_size), dtype=np.float32)
        for n, client in enumerate(clients):
            view = client.index, sizes[n], globals_, self.model, self.layout
            turn = TrainedTurn(updates[n], task.round, lr, training, lambda *_, n=n: results[n], *view)
            update = turned(self.algorithm, turn)
            self._views.keep(task, update.state)  # refuses a state that the traits do not declare
            leaves[n] = self._adding.leaving(update)
        return leaves

    def _everyone(self) -> tuple[Tensor, Tensor]:
        """All clients' records, on the CPU, where the actors of a node share them."""
        if self._shared is None:
            assert self._federation is not None
            self._shared = on_device(self._federation.train, torch.device("cpu"))
        return self._shared

    # -- both ------------------------------------------------------------------------------------

    def _mask(self, clients: Sequence[ClientTask], total: Collected) -> None:
        """Mask the part of a secure sum to which these clients' updates have just been added."""
        if self.members is None:
            return
        assert isinstance(total, ExactSum)
        with whole_or_dead():
            for client in clients:
                self.members.mask(client.index, total.values)

    def _check_stop(self, task: RoundTask) -> None:
        if self._stop_round >= task.round + task.behind:
            raise Stopped("the round ended before this client's turn.")

    def _seed(self) -> int:
        """What a turn's draws follow from besides its noise: the config's seed, or nothing that anybody knows where privacy is claimed."""
        return secrets.randbits(128) if self._secret else self._config.seed

    def _own_seed(self, task: RoundTask, client: ClientTask | None = None) -> int:
        """For the generators of numpy and Python, which client code may use."""
        return torch_seed(self._seed(), "own", task.round, -1 if client is None else client.index)

    def _draws(self, task: RoundTask, seed: int, stream: str = "batches") -> Keyed:
        """What gives the generator for a client's batches, by its index."""
        return Keyed(seed, stream, task.round)

    def _job(self, task: RoundTask, training: Any, lr: float, draws: np.random.Generator, noise: NoiseSource | None = None) -> LocalJob:
        plan = self._plan
        return LocalJob(
            training=training,
            lr=lr,
            loss=self._loss,
            draws=draws,
            noise=noise,
            dp=None if plan is None else DpStep(plan.noise_multiplier, plan.clip, plan.clipping, plan.person),
            should_stop=lambda: self._stop_round >= task.round + task.behind,
            whole=self.needs.whole,
            fewest=self.needs.fewest,
            couples=self.needs.couples,
        )

    def _receipts(self, task: RoundTask, client: ClientTask, result: LocalResult) -> dict[str, Receipt]:
        """What was run for each protected unit.

        Raises:
            ClaimVoid: it is not what was charged.
        """
        receipts: dict[str, Receipt] = {}
        plan, reservations = self._plan, dict(client.reservations)
        if plan is not None:
            check_history(result.history, plan, client.steps)
            ran = record_receipt(plan, result.history or [], self.engine_name, reservations.get(plan.unit))
            receipts[plan.unit] = ran | task.receipt(plan.unit)
        if task.plan is not None:
            receipts["client"] = {"reservation": reservations.get("client"), **task.receipt("client")}
        for receipt in receipts.values():
            receipt["exchange"] = self.exchange.sha256
        return receipts

    def _shown(self, result: LocalResult) -> float | None:
        """The training loss, where it may be seen: it is computed from private records, and under a secure sum from one client's."""
        privacy = self._config.privacy
        if self.members is not None:
            return None
        return result.loss if not privacy.regimes or "train_metrics" in privacy.unprotected else None

    def _report(
        self,
        client: ClientTask,
        status: Any,
        records: int,
        seconds: float,
        *,
        loss: float | None = None,
        error: str = "",
        traceback: str = "",
        receipts: Mapping[str, Receipt] | None = None,
        physical_batch: int | None = None,
        state: StateAddress | None = None,
    ) -> ClientReport:
        if self._config.privacy.whole_clients is not None:  # the number of records is the client's own
            records = 0
        about = client.index, client.name, status, client.attempt, records, seconds, loss, error, traceback, self._host
        return ClientReport(*about, receipts or {}, physical_batch, state)
