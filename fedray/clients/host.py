"""The client actor: trains clients, adds their updates up, hands over one part a round.

A plain class, so that it can be used and tested without Ray; :mod:`fedray.clients.placement` makes
actors of it. With hosted placement one host trains any client of its group from data in shared
memory; with dedicated placement it is one client and loads that client's data itself.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fedray import components, credentials
from fedray.aggregation.each import Rows
from fedray.aggregation.exact import ExactSum
from fedray.aggregation.shared import SharedAt, SharedMemory, SharedSum
from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.agreement import agreed_or_nothing, refusing
from fedray.clients.devices import device_of_actor, in_actor, node_of_actor
from fedray.clients.measuring import Measuring
from fedray.clients.memory import keep_freed_memory
from fedray.clients.messages import (
    ClientReport,
    ClientTask,
    HostInfo,
    Inquiry,
    LocalEvaluation,
    NoisedEvaluation,
    Packed,
    PartialSum,
    RoundTask,
    added_up,
    by_version,
)
from fedray.clients.offspring import contain
from fedray.clients.receiptsigner import ReceiptSigner
from fedray.clients.recognition import open_own_book
from fedray.clients.surroundings import Kept, Surroundings, speaking, unchanged
from fedray.clients.terms import Site, Terms
from fedray.clients.trainer import Trainer
from fedray.data.dataset import declared_labels, load_client
from fedray.data.records import ClientData, Federation
from fedray.data.silos import Silo, check_classes
from fedray.errors import ConfigError
from fedray.models.facts import ModelFacts
from fedray.parameters import Vector
from fedray.privacy.account import Account, Decision, Reservation
from fedray.privacy.figures import Figures
from fedray.privacy.ledger.location import ledger_directory
from fedray.privacy.ledger.withdrawal import LedgerWatch, own_watch
from fedray.spans import Span, keep_spans, taken_spans
from fedray.training.kept import fresh_models
from fedray.training.losses import find_loss
from fedray.training.preflight import check_turns_apart, sensitivity_check
from fedray.training.synthetic import vocabulary_of

log = logging.getLogger(__name__)

__all__ = ["ClientHost", "device_of_actor"]


class ClientHost:
    """See the module's text.

    Args:
        terms: the run's.
        site: the place's own.
        data: the federation in shared memory (hosted), else None.
    """

    def __init__(self, terms: Terms, site: Site, data: Federation | None = None) -> None:
        # Nothing that can fail: an exception here would reach the driver as a dead actor, without its type.
        self._terms, self._config, self._site, self._federation = terms, terms.config, site, data
        self._kept: Kept = unchanged
        self._own: ClientData | None = None
        self._changed = ""  # what of its data is not as registered
        self._account: Account | None = None
        self._watch: LedgerWatch | None = None
        self._part: PartialSum | None = None
        self._asked: SharedAt | None = None  # where the part's values were to lie
        self._shared: SharedMemory | None = None
        self._reserved: dict[tuple[int, int], Reservation] = {}
        self._signer: ReceiptSigner | None = None

    def __repr__(self) -> str:
        return f"client-{self._site.client.name}" if self._site.client else f"clients-{self._terms.group}"

    # -- control ---------------------------------------------------------------------------------

    @speaking()
    def ready(self) -> HostInfo:
        """Load what the actor needs and say where it runs and what it loaded; called once, first. Of a client that had withdrawn before the
        run began, nothing is told but that.

        Raises:
            FedrayError: the data, the ledger or the model cannot be used.
        """
        terms, site, config = self._terms, self._site, self._config
        credentials.load()
        if in_actor():
            contain()
        components.provide(site.provided)
        if site.profile:
            keep_spans()
        torch.set_num_threads(site.threads)
        if "python:" in config.model_dump_json():
            self._kept = Surroundings().kept
        keep_freed_memory()
        self._device = torch.device(site.device or device_of_actor())
        self._watch = None if site.ledger is None else own_watch(ledger_directory(site.ledger, "."), self._name)
        if site.data is not None:
            loaded = load_client(site.data, config.seed, self._name)
            if site.data != config.data:  # a silo's own section
                check_classes(len(declared_labels(config.data)), loaded.classes)
            self._own, self._changed = agreed_or_nothing(loaded, site.agreed)
        if site.ledger is not None and site.book is not None and self._own is not None:
            self._account = open_own_book(terms, site, None if self._changed else self._own.train)
        self._signer = None if site.signing is None else ReceiptSigner(site.signing, self._name, terms.job)
        self._loss = find_loss(config.training.loss)
        if terms.model is not None:
            self.configure(terms.model, terms.exchange)
        held, counts = self._own, None
        told = not self._config.privacy.regimes or "class_counts" in self._config.privacy.unprotected
        if held is not None and held.classes is not None and held.train.y.ndim == 1 and told and not self._changed:
            counts = np.bincount(held.train.y, minlength=held.classes).tolist()
        silo = None if held is None else Silo.of(held, bool(self._config.privacy.regimes))
        if (withdrawn := self._withdrawn()) and terms.first_start:
            return self._info(withdrawn=withdrawn)
        return self._info(silo=silo, class_counts=counts, changed=self._changed, withdrawn=withdrawn)

    @speaking()
    def configure(self, facts: ModelFacts, exchange: str) -> str:
        """Build the run's model, once it is known, which completes the terms; returns their hash.

        Raises:
            ConfigError: the frozen parameters or the exchanged fields are others here.
        """
        config, self._terms = self._config, replace(self._terms, model=facts, exchange=exchange)
        self._facts = facts
        model = self._built()
        data = self._own if self._own is not None else self._federation
        assert data is not None
        algorithm, reserve = make_algorithm(config.algorithm), refusing(self._changed) or (None if self._account is None else self._reserve)
        # Nothing that one client's records leave in a model may meet another's turn, where anything is protected.
        fresh = fresh_models(model, self._built) if config.privacy.regimes else None
        with self._kept(None):  # it tries the loss
            self._trainer = Trainer(
                self._terms, self._site.states, model, self._loss, algorithm, data, reserve, fresh, self._kept, self._withdrawn
            )
        about = self._trainer, self._loss, self._device, self._kept, data.classes, self._account
        self._measuring = Measuring(self._terms, *about)
        ours = self._trainer.exchange.sha256
        if exchange and ours != exchange:
            raise ConfigError(
                f"algorithm.kind: '{config.algorithm.kind}' exchanges other fields in this process ({ours[:12]}) than at the driver "
                f"({exchange[:12]}); what it exchanges must follow from its arguments and the model alone, and its code be the same everywhere."
            )
        return self._terms.sha256

    @speaking()
    def preflight(self) -> float:
        """The measured sensitivity of one step over the clip norm, before any private record is touched; 0 where only whole clients
        are protected, of which one's records must not reach another's turn either.

        Raises:
            PrivacyRefusal: it is above one: model, loss and engine couple records; or something is kept from turn to turn.
        """
        plan, vocabulary, targets = self._terms.plan, self._vocabulary(), self._target_shape
        with self._kept(None):
            if plan is None:
                facts = self._facts
                check_turns_apart(self._untried(), self._loss, facts.shape, facts.outputs, self._classes, vocabulary, targets)
                return 0.0
            return sensitivity_check(
                self._trainer.engine,
                self._built,
                self._loss,
                self._facts.shape,
                self._facts.outputs,
                self._config.training,
                plan.clip,
                self._classes,
                clipping=plan.clipping,
                target_shape=targets,
                vocabulary=vocabulary,
                device=self._device,
                untried=self._untried,
                person=plan.person,
            )

    def consult(self, task: RoundTask, phase: str, messages: Mapping[int, Inquiry]) -> dict[int, bytes | str]:
        """What the members of a secure sum answer that clients of this actor are, or why they refuse, by the client's index."""
        members = self._trainer.members
        assert members is not None
        return members.consult(task, phase, messages)

    def ping(self) -> None:
        """Answer; called while other methods work."""

    def stop_round(self, round_: int) -> None:
        """End the training of ``round_`` (and earlier ones) at the next step; called from another thread."""
        self._trainer.stop_round(round_)

    def at_work(self) -> Sequence[int]:
        """Whose turn it is; called from another thread."""
        return self._trainer.at_work

    def spans(self) -> list[Span]:
        """Where its time went since this was last asked; empty where nobody wanted to know."""
        return taken_spans()

    # -- training --------------------------------------------------------------------------------

    def train(
        self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask], shared: SharedAt | None = None, *more: Vector
    ) -> list[ClientReport]:
        """Train some clients and add their updates to this actor's part of the round.

        Args:
            task: the round.
            weights: the globals of the first version that clients start from.
            clients: who trains.
            shared: where the part's values lie, if not here.
            more: the globals of the other versions, in the order of :func:`fedray.clients.messages.by_version`.
        """
        part, reports = self._part_of(task, shared), list[ClientReport]()
        for (version, those), globals_ in zip(by_version(task.round, clients).items(), (weights, *more), strict=True):
            started = task.started(version)
            reports += (done := self._trainer.train(started, globals_, those, part.total))
            if self._signer is not None:
                self._signer.trained(started, done)
        part.clients.extend(r.index for r in reports if r.status == "done")
        return Packed(reports)

    def train_and_hand_over(
        self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask], *more: Vector
    ) -> tuple[list[ClientReport], PartialSum]:
        """:meth:`train` the last clients of a round, then :meth:`hand_over`: one call less."""
        return self.train(task, weights, clients, None, *more), self.collect(task)

    def train_each(self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask]) -> list[Any]:
        """:meth:`train`, with the reports in front and then the segments of the clients' single updates: each an object in Ray."""
        reports, part = self.train(task, weights, clients), self.collect(task)
        assert isinstance(part.total, Rows)
        if part.signed:
            reports = Packed(r._replace(signed=part.signed) if r.status == "done" else r for r in reports)
        return [reports, *part.total.cut(task.segments)]

    def collect(self, task: RoundTask) -> PartialSum:
        """Hand over the part and start an empty one."""
        part, self._part, self._asked = self._part_of(task, self._asked), None, None
        members = self._trainer.members
        part = (part if members is None else members.leaving(part)).to_send()
        if self._signer is None:
            return part
        return replace(part, signed=self._signer.leaving(part.total, part.clients, self._terms.sha256, self._trainer.exchange))

    def hand_over(self, task: RoundTask) -> tuple[SharedAt | None, PartialSum]:
        """:meth:`collect`, with where its values lie in front: two objects in Ray, of which the small one travels at once."""
        part = self.collect(task)
        return part.shared, part

    def merge(self, *parts: PartialSum) -> PartialSum | None:
        """Add up the parts of actors on the same node, so that one leaves it; None where a sum that they share is gone."""
        try:
            return added_up(parts)
        except OSError:
            return None

    def offer_sum(self, task: RoundTask) -> SharedAt | None:
        """Memory for a sum that all actors of this node share, and which this one keeps for the round; None where there is none to be had."""
        self._shared = None  # what it kept goes first
        try:
            self._shared = SharedMemory(task.size(self._trainer.exchange))
        except OSError:
            return None
        return self._shared.at

    def forget_sum(self, where: SharedAt) -> None:
        """Keep the memory no longer: who reads it has it open."""
        if self._shared is not None and self._shared.at == where:
            self._shared = None

    def evaluate(self, weights: Vector, clients: Sequence[ClientTask]) -> list[LocalEvaluation]:
        """Evaluate on the clients' own held-out records; nothing of a client that has withdrawn."""
        return [] if self._withdrawn() else self._measuring.plainly(weights, clients)

    def evaluate_noised(self, weights: Vector, clients: Sequence[ClientTask], round_: int) -> list[NoisedEvaluation]:
        """Evaluate on the clients' own held-out records, of which nothing is told but sums with noise; see :class:`Measuring`."""
        return [] if self._changed else self._measuring.noised(weights, clients, round_)

    # -- the silo's own book (dedicated) ---------------------------------------------------------

    def authorize(self, round_: int, attempt: int) -> Decision:
        """Reserve one round in the silo's ledger, before its data is touched."""
        assert self._account is not None
        if self._changed:  # nothing will be read, so nothing is charged
            return Decision([], {})
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

    def of_ledger(self, what: Literal["part", "lacking"], *arguments: str) -> Any:
        """What the silo's account says; see :meth:`fedray.privacy.account.Account.part` and ``lacking``."""
        assert self._account is not None
        return getattr(self._account, what)(*arguments)

    def signed_after(self, number: int) -> Sequence[bytes]:
        """The receipts that this client has signed in this run after its ``number``-th."""
        return [] if self._signer is None else self._signer.after(number)

    def close(self) -> None:
        """Release the ledger and the receipts, where the process goes on."""
        if self._account is not None:
            self._account.close()
        if self._signer is not None:
            self._signer.close()

    # -- inside ----------------------------------------------------------------------------------

    def _info(self, **loaded: Any) -> HostInfo:
        where = socket.gethostname(), os.getpid(), str(self._device), torch.get_num_threads()
        return HostInfo(*where, node_id=node_of_actor(), terms=self._terms.sha256, **loaded)

    def _withdrawn(self) -> str:
        """That the silo's client has withdrawn its data, as a sentence; empty if it has not, or this is no silo with a lasting ledger."""
        known = self._account.withdrawn() if self._account is not None else {} if self._watch is None else self._watch.now()
        return str(known[self._name]) if known and self._name in known else ""

    @property
    def _name(self) -> str:
        assert self._site.client is not None
        return self._site.client.name

    def _built(self) -> nn.Module:
        """The run's model, on the device."""
        return self._facts.build().to(self._device)

    def _untried(self) -> nn.Module:
        """The run's model before it has been run for the first time, on the device."""
        return self._facts.untried().to(self._device)

    @property
    def _classes(self) -> int | None:
        """Number of classes of the targets; None where they are real numbers."""
        data = self._own if self._own is not None else self._federation
        return None if data is None else data.classes

    @property
    def _target_shape(self) -> tuple[int, ...]:
        """Of one record's targets."""
        data = self._own.train if self._own is not None else self._federation.train if self._federation is not None else None
        return () if data is None else tuple(data.y.shape[1:])

    def _vocabulary(self) -> int | None:
        """Number of tokens that the model knows, for records of tokens."""
        return vocabulary_of(self._trainer.model) if self._facts.tokens else None

    def _part_of(self, task: RoundTask, shared: SharedAt | None) -> PartialSum:
        """This actor's part of a round, with values in ``shared`` memory or, where that cannot be had, in its own; any other is forgotten."""
        if self._part is None or self._part.round != task.round or self._asked != shared:
            self._part, self._asked = None, shared  # its memory goes first
            total, lies = task.empty_part(self._trainer.exchange), shared
            if shared is not None and isinstance(total, ExactSum):
                try:
                    total = SharedSum.at(shared, total)
                except OSError:  # the actor that keeps the memory has ended, or this process may not open files of another
                    lies = None
            self._part = PartialSum(task.round, total, shared=lies, sparse=task.sparse)
        return self._part

    def _reserve(self, round_: int, client: ClientTask) -> ClientTask | str:
        """Spend this attempt's reservation, making it first where there is none; the reason if that is refused."""
        assert self._account is not None and self._site.book is not None
        if (round_, client.attempt) not in self._reserved:
            for refusal in self.authorize(round_, client.attempt).refused.values():
                return str(refusal)
        reservation = self._reserved.pop((round_, client.attempt))
        others = {unit: entry for unit, entry in client.reservations if unit != self._site.book.unit}
        return client._replace(reservations=(*others.items(), (self._site.book.unit, reservation.id)), steps=reservation.steps)
