"""The client actor: trains clients, adds their updates up, hands over one part a round.

A plain class, so that it can be used and tested without Ray; :mod:`fedray.clients.placement` makes
actors of it. With hosted placement one host trains any client of its group from data in shared
memory; with dedicated placement it is one client and loads that client's data itself.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedray import components, credentials
from fedray.aggregation.exact import ExactSum
from fedray.algorithms.build import make_algorithm
from fedray.clients.devices import device_of_actor, node_of_actor, on_device
from fedray.clients.memory import fitting, turn_noise
from fedray.clients.messages import ClientReport, ClientTask, HostInfo, HostSpec, LocalEvaluation, Part, RoundTask
from fedray.clients.salts import load_salt
from fedray.data.commitment import commit_records
from fedray.data.dataset import load_client
from fedray.data.records import ClientData, Federation, Records
from fedray.errors import ClaimVoid, FedrayError, Stopped, UpdateRejected
from fedray.models.build import build_model
from fedray.parameters import Layout, Vector, get_vector, set_vector
from fedray.privacy.account import Account, Decision, Figures, Reservation
from fedray.privacy.afford import Plan
from fedray.privacy.csprng import noise_source
from fedray.privacy.ledger import ledger_directory
from fedray.privacy.plan import check_history
from fedray.privacy.receipt import Receipt, record_receipt
from fedray.rng import generator, torch_seed
from fedray.training.choose import choose_engine
from fedray.training.engine import DpStep, LocalJob, LocalResult, seed_torch
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.losses import find_loss
from fedray.training.preflight import sensitivity_check
from fedray.training.schedules import learning_rate

__all__ = ["ClientHost", "HostSpec", "device_of_actor"]


class ClientHost:
    """See the module's text. ``data`` is the federation in shared memory (hosted), else None."""

    def __init__(self, spec: HostSpec, data: Federation | None = None, device: str | None = None) -> None:
        # Nothing that can fail: an exception here would reach the driver as a dead actor, without its type.
        self._spec, self._config, self._federation, self._device_name = spec, spec.config, data, device
        self._stop_round = self._round = -1
        self._own: ClientData | None = None
        self._account: Account | None = None
        self._sum: ExactSum | None = None
        self._included: list[int] = []
        self._reserved: dict[tuple[int, int], Reservation] = {}
        self._resident: tuple[Tensor, Tensor] | None = None
        self._fits: int | None = None  # the physical batch that memory sufficed for, once it did not

    def __repr__(self) -> str:
        return f"client-{self._spec.client.name}" if self._spec.client else f"clients-{self._spec.group.name}"

    # -- control ---------------------------------------------------------------------------------

    def ready(self) -> HostInfo:
        """Load what the actor needs and say where it runs and what it loaded; called once, first.

        Raises:
            FedrayError: the data, the ledger or the model cannot be used.
        """
        spec, config = self._spec, self._config
        credentials.load()
        components.provide(spec.provided)
        torch.set_num_threads(spec.threads)
        self._device = torch.device(self._device_name or device_of_actor())
        if spec.client is not None:
            self._own = load_client(config.data, config.seed, spec.client.name)
        if spec.ledger is not None and spec.book is not None:
            self._account = self._open_book(spec.ledger, spec.book)
        self._shape = tuple(int(n) for n in spec.shape or self._some_records().x.shape[1:])
        self._dtype = torch.int64 if self._some_records().x.dtype.kind == "i" else torch.float32
        self._loss = find_loss(spec.group.training.loss)
        self._algorithm = make_algorithm(config.algorithm)
        if spec.outputs is not None:
            self.configure(spec.outputs)
        own = self._own
        classes = counts = None
        if own is not None and own.classes is not None:
            classes = own.classes
            if not self._config.privacy.regimes or "class_counts" in self._config.privacy.unprotected:
                counts = np.bincount(own.train.y, minlength=classes).tolist()
        return HostInfo(
            node=socket.gethostname(),
            pid=os.getpid(),
            device=str(self._device),
            threads=torch.get_num_threads(),
            records=None if own is None else len(own.train),
            shape=None if own is None else self._shape,
            classes=classes,
            columns=() if own is None else own.columns,
            tokens=self._dtype == torch.int64,
            class_counts=counts,
            node_id=node_of_actor(),
        )

    def configure(self, outputs: int) -> None:
        """Build the model, once it is known how many outputs the federation's model has."""
        config, spec = self._config, self._spec
        self._outputs = outputs
        self._model = build_model(config.model, self._shape, outputs, config.seed, self._dtype).to(self._device)
        self._layout = Layout.of(self._model)
        self._engine_name, self._engine = choose_engine(spec.group.training.engine, spec.plan is not None, self._model)
        self._update = np.empty(self._layout.size, dtype=np.float32)

    def preflight(self) -> float:
        """The measured sensitivity of one step over the clip norm, before any private record is touched.

        Raises:
            PrivacyRefusal: it is above one: model, loss and engine couple records.
        """
        config, plan = self._config, self._spec.plan
        assert plan is not None
        return sensitivity_check(
            self._engine,
            lambda: build_model(config.model, self._shape, self._outputs, config.seed, self._dtype),
            self._loss,
            self._shape,
            self._outputs,
            self._spec.group.training,
            plan.clip,
            clipping=plan.clipping,
            vocabulary=self._vocabulary(),
            device=self._device,
        )

    def ping(self) -> None:
        """Answer; called while other methods work."""

    def stop_round(self, round_: int) -> None:
        """End the training of ``round_`` (and earlier ones) at the next step; called from another thread."""
        self._stop_round = max(self._stop_round, round_)

    # -- training --------------------------------------------------------------------------------

    def train(self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask]) -> list[ClientReport]:
        """Train some clients and add their updates to this actor's part of the round."""
        if task.round != self._round or self._sum is None:
            self._round = task.round
            self._reset(task)
        self._lr = learning_rate(self._spec.group.training, task.round, self._config.rounds)
        return [self._turn(task, weights, client) for client in clients]

    def collect(self, task: RoundTask) -> Part:
        """Hand over the part and start an empty one."""
        if task.round != self._round or self._sum is None:
            self._round = task.round
            self._reset(task)
        assert self._sum is not None
        part = Part(task.round, self._sum, self._included)
        self._reset(task)
        return part

    def hand_over(self, task: RoundTask) -> tuple[list[int], Part]:
        """:meth:`collect`, with the clients in front: two objects in Ray, of which the small one travels at once."""
        part = self.collect(task)
        return part.clients, part

    def merge(self, task: RoundTask, *parts: Part) -> Part:
        """Add up the parts of actors on the same node, so that one leaves it."""
        total = task.empty_sum(self._layout.size)
        for part in parts:
            total.merge(part.total)
        return Part(task.round, total, [index for part in parts for index in part.clients])

    def evaluate(self, weights: Vector, clients: Sequence[ClientTask]) -> list[LocalEvaluation]:
        """Evaluate on the clients' own held-out records."""
        set_vector(self._model, self._layout, weights)
        metrics = find_metrics(self._config.evaluation.metrics)
        rows = []
        for client in clients:
            test = self._data(client).test
            if test is None or not len(test):
                continue
            x, y = self._tensors(test)
            values = evaluate(self._model, x, y, metrics, self._loss, self._config.evaluation.batch_size, self._device)
            rows.append(LocalEvaluation(client.name, len(test), values))
        return rows

    # -- the silo's own book (dedicated) ---------------------------------------------------------

    def authorize(self, round_: int, attempt: int) -> Decision:
        """Reserve one round in the silo's ledger, before its data is touched."""
        assert self._account is not None
        decision = self._account.authorize(round_, attempt, [self._name])
        for reservation in decision.reservations.values():
            self._reserved[round_, attempt] = reservation
        return decision

    def commit(self, round_: int, attempt: int, receipt: Mapping[str, Any] | None) -> None:
        """Note that this round's update has left, and what was run for it."""
        assert self._account is not None
        self._account.commit(round_, attempt, {self._name: receipt})

    def spent(self, rounds: int | None = None) -> tuple[Figures, str]:
        """The silo's figures (``rounds``: see ``Account.groups``), and the hash of its ledger's last entry."""
        assert self._account is not None
        return self._account.figures(rounds)[0], self._account.head

    def ledger_part(self) -> dict[str, Any]:
        """This run's entries in the silo's ledger."""
        assert self._account is not None
        return self._account.part()

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        assert self._spec.client is not None
        return self._spec.client.name

    def _vocabulary(self) -> int | None:
        """Number of tokens that the model knows, for records of tokens."""
        if self._dtype != torch.int64:
            return None
        sizes = [m.num_embeddings for m in self._model.modules() if isinstance(m, nn.Embedding)]
        return min(sizes) if sizes else None

    def _some_records(self) -> Records:
        if self._own is not None:
            return self._own.train
        assert self._federation is not None
        return self._federation.train

    def _open_book(self, ledger: str, plan: Plan) -> Account:
        config, data = self._config, None
        assert self._own is not None
        if config.privacy.record:
            data = commit_records(self._own.train.x, self._own.train.y, load_salt(ledger_directory(ledger, "."), self._name))
        return Account.open_silo(
            ledger_directory(ledger, "."),
            self._name,
            plan,
            job=self._spec.job,
            pinned=self._spec.pinned,
            fewer_steps=config.privacy.fewer_steps,
            data=data,
        )

    def _reset(self, task: RoundTask) -> None:
        self._sum = task.empty_sum(self._layout.size)
        self._included = []

    def _data(self, client: ClientTask) -> ClientData:
        if self._own is not None:
            return self._own
        assert self._federation is not None
        return self._federation.client(client.index)

    def _tensors(self, records: Records) -> tuple[Tensor, Tensor]:
        if self._device.type != "cpu" and self._own is not None and records is self._own.train:
            if self._resident is None:
                self._resident = on_device(records, self._device)
            return self._resident
        return on_device(records, self._device)

    def _turn(self, task: RoundTask, weights: Vector, client: ClientTask) -> ClientReport:
        started = time.perf_counter()
        records = 0
        try:
            data = self._data(client)
            records = len(data.train)
            if self._stop_round >= task.round:
                raise Stopped("the round ended before this client's turn.")
            if self._account is not None:
                reserved = self._reserve(task.round, client)
                if isinstance(reserved, str):
                    return self._report(client, "refused", records, started, error=reserved)
                client = reserved
            loss, receipts, fitted = self._train_client(task, weights, client, data)
        except Stopped as error:
            return self._report(client, "late", records, started, error=str(error))
        except ClaimVoid:
            raise  # what ran is not what was charged: the whole run must end
        except UpdateRejected as error:
            return self._report(client, "rejected", records, started, error=str(error))
        except FedrayError as error:
            return self._report(client, "failed", records, started, error=str(error), trace=traceback.format_exc())
        except Exception as error:  # a client's fault is reported, not fatal
            if isinstance(error, getattr(torch, "AcceleratorError", ())):
                # The device context is unusable from here on: end, so that the pool starts a fresh actor.
                traceback.print_exc()
                os._exit(1)
            text = f"{type(error).__name__}: {error}"
            return self._report(client, "failed", records, started, error=text, trace=traceback.format_exc())
        self._included.append(client.index)
        return self._report(client, "done", records, started, loss=loss, receipts=receipts, fitted=fitted)

    def _reserve(self, round_: int, client: ClientTask) -> ClientTask | str:
        """Spend this attempt's reservation, making it first where there is none; the reason if that is refused."""
        assert self._account is not None and self._spec.book is not None
        if (round_, client.attempt) not in self._reserved:
            for refusal in self.authorize(round_, client.attempt).refused.values():
                return str(refusal)
        reservation = self._reserved.pop((round_, client.attempt))
        others = {unit: entry for unit, entry in client.reservations if unit != self._spec.book.unit}
        return replace(client, reservations=(*others.items(), (self._spec.book.unit, reservation.id)), steps=reservation.steps)

    def _train_client(
        self, task: RoundTask, weights: Vector, client: ClientTask, data: ClientData
    ) -> tuple[float | None, dict[str, Receipt], int | None]:
        config, plan, training = self._config, self._spec.plan, self._spec.group.training
        if client.steps is not None:
            training = training.model_copy(update={"steps": client.steps})
        noise = None if plan is None else turn_noise(config.privacy.insecure_seed, task.round, client.index)
        x, y = self._tensors(data.train)

        def local(physical_batch: int) -> LocalResult:
            set_vector(self._model, self._layout, weights)
            seed_torch(torch_seed(config.seed, "torch", task.round, client.index), self._device)
            job = LocalJob(
                training=training.model_copy(update={"physical_batch": physical_batch}),
                lr=self._lr,
                loss=self._loss,
                draws=generator(config.seed, "batches", task.round, client.index),
                noise=None if noise is None else noise(),
                dp=None if plan is None else DpStep(plan.noise_multiplier, plan.clip, plan.clipping),
                should_stop=lambda: self._stop_round >= task.round,
            )
            return self._algorithm.local(self._engine, self._model, x, y, job)

        whole = min(training.physical_batch, max(1, len(data.train)))
        first = max(1, min(whole >> client.halvings, self._fits or whole))
        result, fitted = fitting(local, first)
        if fitted < whole:
            self._fits = fitted
        receipts: dict[str, Receipt] = {}
        reservations = dict(client.reservations)
        if plan is not None:
            check_history(result.history, plan, client.steps)
            receipts["record"] = record_receipt(plan, result.history or [], self._engine_name, reservations.get("record"))
        get_vector(self._model, self._layout, out=self._update)
        np.subtract(self._update, weights, out=self._update)
        if task.step is not None:
            receipts["client"] = {"reservation": reservations.get("client"), "plan": task.plan, **task.step.terms()}
        try:
            self._add(task, client, len(data.train))
        except MemoryError:  # half of the update may be in the part: end, so that none of it counts
            traceback.print_exc()
            os._exit(1)
        shown = not config.privacy.regimes or "train_metrics" in config.privacy.unprotected
        return (result.loss if shown else None), receipts, (fitted if fitted < whole else None)

    def _add(self, task: RoundTask, client: ClientTask, records: int) -> None:
        """Add the update to this actor's part; where whole clients are protected, clipped, noised and encoded, with weight 1."""
        step = task.step
        assert self._sum is not None
        if step is None:
            self._sum.add(self._update, self._algorithm.weight(records))
            return
        source = noise_source(self._config.privacy.insecure_seed, task.round, f"update-{client.index}")
        encoded = step.encode(self._update, 1.0 if step.weight_cap is None else min(records / step.weight_cap, 1.0), source)
        if step.integer:
            self._sum.add_integers(encoded)
        else:
            self._sum.add(encoded)

    def _report(
        self,
        client: ClientTask,
        status: Any,
        records: int,
        started: float,
        loss: float | None = None,
        error: str = "",
        trace: str = "",
        receipts: Mapping[str, Receipt] | None = None,
        fitted: int | None = None,
    ) -> ClientReport:
        seconds = time.perf_counter() - started
        if self._config.privacy.whole_clients is not None:  # the number of records is the client's own
            records = 0
        node = socket.gethostname()
        return ClientReport(
            client.index, client.name, status, client.attempt, records, seconds, loss, error, trace, node, receipts or {}, fitted
        )
