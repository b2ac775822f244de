"""Stands before the client of a run at its silo: nothing is done that the silo's policy, the run's terms and what was done before do not allow.

Whatever arrives is taken for the message of a driver that asks for more than was agreed on. The policy's file is read again before each
training, so that its operator's changes, and a no after a yes, hold from then on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from fedray.aggregation.exact import grid_bits
from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.messages import ClientReport, ClientTask, HostInfo, RoundTask
from fedray.clients.terms import Terms
from fedray.config import Data
from fedray.data.silos import Silo
from fedray.errors import FedrayError, PrivacyRefusal
from fedray.exchange import Exchange
from fedray.models.facts import ModelFacts
from fedray.privacy.accounting import accountant
from fedray.privacy.clientplan import ClientPlan, Plan, plan_clients
from fedray.privacy.evaluations import Evaluations
from fedray.privacy.ledger.chain import run_of
from fedray.privacy.recordplan import check_delta
from fedray.privacy.rules import check_buffers
from fedray.silos.approvals import Approvals, asked_sha256
from fedray.silos.objection import Objection, contradiction, object_to
from fedray.silos.ownreceipts import OwnReceipts, reports_in
from fedray.silos.policy import objections, when
from fedray.silos.policyconfig import Policy, PolicyFile
from fedray.silos.policytasks import (
    Key,
    Remembered,
    affordable,
    check_charge,
    check_cohort,
    check_globals,
    check_opening,
    check_task,
    check_terms_of,
    key_of,
)
from fedray.silos.refusedanswers import refused_answer
from fedray.silos.silolog import EVALUATION, TRAINED, TRAINING, SiloLog, utc_now
from fedray.silos.spending import Spending, joined, own_spending
from fedray.silos.withheld import PolicyRefused, leaving, told

_TRAINS = ("train", "train_and_hand_over", "train_each")
#: Orders that ask for nothing of the records.
_FREE = ("ready", "preflight", "ping", "at_work", "spans", "stop_round", "signed_after", "close")
_SAME_REFUSAL = 60.0  # seconds for which one and the same refusal is logged once


class Guard:
    """Guards one run at a silo; see the module's text.

    Args:
        policy: path of the silo's policy file.
        client: the silo's name.
        state: the silo's directory of what must outlive its process, with its ledger in ``ledger``.
        now: tells the time.
    """

    def __init__(self, policy: str | Path, client: str, state: Path, now: Callable[[], datetime] = utc_now) -> None:
        self._file, self._client, self._state, self._now = PolicyFile(Path(policy)), client, state, now
        self._log, self._approvals = SiloLog(state, now), Approvals(state)
        self._terms: Terms | None = None
        self._policy: Policy | None = None
        self._cleared: Policy | None = None  # by which there was no objection to the run
        self._population = 0, 1.0, True
        self._data: Data | None = None
        self._asked = ""  # hash of what an approval is for
        self._tried = False  # model and loss, by the client's pre-flight test
        self._course, self._spent = Remembered(), Spending()
        self._silo: Silo | None = None
        self._exchange: Exchange | None = None
        self._whole: ClientPlan | None = None
        self._receipts = OwnReceipts()
        self._refused: tuple[str, datetime] | None = None

    # -- called by the silo's process ------------------------------------------------------------

    def open(self, terms: Terms, clients: int, index: int, rate: float = 1.0, alike: bool = True, data: Data | None = None) -> None:
        """A run asks this silo to take part by these terms. Before it nothing may be made of them: it could be code.

        Args:
            terms: as they arrived.
            clients, rate, alike: of all clients: their number, the largest rate, and whether they take part alike.
            index: of this silo among them.
            data: how the silo reads its records for this run.

        Raises:
            PolicyRefused: it does not, or not yet.
        """
        self._terms, job = terms, terms.job
        self._population, self._data = (clients, rate, alike), data
        self._object(check_opening(job, clients, index))
        self._spent = own_spending(self._state / "ledger", self._client, run_of(job))
        begun, trained = (max(self._log.keys_of(job, event), default=(-1, 0)) for event in (TRAINING, TRAINED))
        self._course = Remembered(begun, trained, clients=clients, index=index)
        self._asked = asked_sha256(terms)
        self._check_run()
        if terms.model is not None:
            self._configure(terms.model, terms.exchange)
        self._log.write("opened", f"run {run_of(job)} takes part by terms {terms.sha256[:12]}", job=job, terms=terms.sha256)

    def admit(self, method: str, arguments: Sequence[Any]) -> None:
        """An order for a method of the run's client, before it is given to it.

        Raises:
            PolicyRefused: it is not done.
        """
        if self._terms is None:
            raise PolicyRefused(f"{self._client}: no run was opened here that this order could belong to.")
        check = getattr(self, f"_admit_{method}", None)
        if method in _FREE:
            return
        if check is None:
            self._refuse(contradiction("order", method, f"'{method}' is nothing that a silo does for a run"))
            return
        try:
            inspect.signature(check).bind(*arguments)
        except TypeError as error:
            self._refuse(contradiction("order", method, f"its arguments are not those of '{method}' ({error})"))
        check(*arguments)

    def to_try(self, method: str) -> bool:
        """Whether the client's ``preflight`` has to pass before this order, as before every training where anything is protected: model and
        loss could couple records, or keep something of them. A driver that lies does not ask for it.
        """
        return method in _TRAINS and bool(self._run.config.privacy.regimes) and not self._tried

    def leaving(self, method: str, answer: Any) -> Any:
        """What may leave of the client's answer to an order."""
        facts = self._current().facts
        if method == "preflight":
            self._tried = True
        if isinstance(answer, HostInfo):
            self._silo = answer.silo
            self._object(self._delta())
        for report in reports_in(answer):
            self._keep(report)
        return leaving(answer, facts)

    def refused_answer(self, method: str, arguments: Sequence[Any], error: PolicyRefused) -> Any:
        """What the silo answers in place of what it refuses, so that the run goes on without it; None: the order fails."""
        return refused_answer(self._client, method, arguments, str(error), self._exchange)

    def told(self, error: BaseException) -> FedrayError:
        """What may leave of an error of the client; the log has all of it."""
        if not isinstance(error, PolicyRefused):
            self._log.write("error", f"{type(error).__name__}: {error}", "ERROR", job=self._terms.job if self._terms else None)
        try:
            facts = self._current().facts
        except FedrayError:
            facts = []
        return told(error, facts)

    # -- orders ----------------------------------------------------------------------------------

    def _admit_configure(self, facts: ModelFacts, exchange: str) -> None:
        self._configure(facts, exchange)

    def _admit_authorize(self, round_: int, attempt: int) -> None:
        policy = self._check_run()
        self._object(check_charge(policy, self._run, round_, attempt, self._course, self._today(TRAINING), self._now()))
        self._charge(policy)
        self._begin((round_, attempt), trained=False)

    def _admit_train(self, task: RoundTask, weights: Any, clients: Sequence[ClientTask], shared: Any = None, *more: Any) -> None:
        if shared is not None:
            self._object(contradiction("shared", "given", "a silo shares no memory with the cluster"))
        policy = self._check_run()
        self._object(check_cohort(clients, self._client))
        client = clients[0]
        about = policy, self._run, task, client, self._course, self._today(TRAINING), self._now(), self._whole
        self._object(check_task(*about))
        self._object(check_globals((weights, *more), self._size))
        key = key_of(task, client)
        if self._course.starts(key):
            self._charge(policy)
            self._begin(key, trained=True)
        else:  # its charge was made and counted before
            self._note(TRAINED, key)
        self._course = replace(self._course, trained=key, capacity=task.capacity, clients=task.clients, index=client.index)

    def _admit_train_and_hand_over(self, task: RoundTask, weights: Any, clients: Sequence[ClientTask], *more: Any) -> None:
        self._admit_train(task, weights, clients, None, *more)

    def _admit_train_each(self, task: RoundTask, weights: Any, clients: Sequence[ClientTask]) -> None:
        self._admit_train(task, weights, clients)

    def _admit_collect(self, task: RoundTask) -> None:
        self._object(check_terms_of(self._run, task, self._course, self._whole))

    _admit_hand_over = _admit_collect

    def _admit_consult(self, task: RoundTask, phase: str, messages: Mapping[int, tuple[int, bytes]]) -> None:
        self._check_run()
        self._object(check_terms_of(self._run, task, self._course, self._whole))
        index = self._course.index if self._course.index is not None else next(iter(messages), None)
        if list(messages) != [index]:
            self._object(contradiction("messages", list(messages), "a secure sum asks this silo for other members than itself"))
        if self._run.config.secure.kind == "none":
            self._object(contradiction("secure", phase, "the run's terms have no secure sum"))
        self._course = replace(self._course, index=index, capacity=task.capacity, clients=task.clients)

    def _admit_evaluate(self, weights: Any, clients: Sequence[ClientTask]) -> None:
        evaluation = self._run.config.evaluation
        if not evaluation.federated or evaluation.charged is not None:
            self._object(contradiction("evaluate", "plain", "the run's terms have no evaluation on held-out records without noise"))
        policy = self._check_run()
        held_out = 0 if self._silo is None else self._silo.held_out
        if held_out and (policy.held_out is None or held_out < policy.held_out):
            why = f"at least {policy.held_out}"
            self._object(object_to(policy, "held_out", "held-out records", "too few", why, "evaluate without this silo"))
        self._evaluates(policy, weights, clients)

    def _admit_evaluate_noised(self, weights: Any, clients: Sequence[ClientTask], round_: int) -> None:
        config = self._run.config
        if config.evaluation.charged is None or self._run.plan is None:
            self._object(contradiction("evaluate", "charged", "the run's terms charge for no evaluation"))
        if not 0 <= round_ < config.rounds or round_ <= self._course.evaluated:
            self._object(contradiction("round", round_, f"an evaluation after round {round_ + 1} is none of the run's, or was done"))
        policy, evaluations = self._check_run(), Evaluations.of(config)
        assert evaluations is not None and self._run.plan is not None
        self._object(affordable(policy, self._run.plan, self._spent, event := accountant.flatten({evaluations.event: 1})))
        self._evaluates(policy, weights, clients)
        self._spent = replace(self._spent, run=joined(self._spent.run, event))
        self._course = replace(self._course, evaluated=round_)

    def _admit_commit(self, round_: int, attempt: int, receipt: Mapping[str, Any] | None) -> None:
        self._object(self._receipts.objection((round_, attempt), receipt))

    def _admit_spent(self, rounds: int | None = None) -> None:
        if rounds is not None and not 0 <= rounds <= self._run.config.rounds:
            self._object(contradiction("rounds", rounds, "figures are asked for more rounds than the run has"))

    def _admit_signed_after(self, number: int) -> None:
        """The silo's own receipts of this run, which left with its updates or were to leave."""

    def _admit_of_ledger(self, what: str, *arguments: str) -> None:
        if (what, len(arguments)) not in (("part", 0), ("lacking", 1)) or not all(isinstance(a, str) for a in arguments):
            self._object(contradiction("of_ledger", what, "a silo's ledger tells its entries of a run, and whether a run has any"))

    # -- checks ----------------------------------------------------------------------------------

    @property
    def _run(self) -> Terms:
        assert self._terms is not None
        return self._terms

    def _current(self) -> Policy:
        """The policy as its file is now.

        Raises:
            PolicyRefused: it cannot be read.
        """
        try:
            self._policy = self._file.read()
        except FedrayError as error:
            self._log.write("error", str(error), "ERROR")
            raise PolicyRefused(f"{self._client}: its policy cannot be read, so nothing is allowed; its log says why.") from None
        return self._policy

    def _check_run(self) -> Policy:
        """Whether the run may go on, by the policy and the operator's answer as they are now."""
        policy = self._current()
        if policy != self._cleared:
            found = objections(policy, self._run, self._now(), spent=self._spent, whole=self._whole, rounds_today=None, data=self._data)
            if found:
                self._refuse(*found)
            self._cleared = policy
        if policy.approval:
            self._check_approval(policy)
        return policy

    def _check_approval(self, policy: Policy) -> None:
        asked = self._approvals.known(self._asked) or self._approvals.answer(self._run)
        if asked.answer == "yes":
            return
        short = asked.sha256[:12]
        if asked.answer == "no":
            value, change = f"no to terms {short}", "the silo's operator does not want this run"
        else:
            change = f"once its operator has said yes (fedray silo approve SITE.yaml {short}), start the run again"
            value = f"terms {short} wait"
        self._refuse(object_to(policy, "approval", "the run", value, "true", change))

    def _configure(self, facts: ModelFacts, exchange: str) -> None:
        """The model must be the one of the terms, for records of this silo's form."""
        config = self._run.config
        if facts.choice != config.model or facts.seed != config.seed or facts.dtype not in (torch.float32, torch.int64):
            self._object(contradiction("model", facts.choice.kind, "the model or its seed is another than the run's terms have"))
        if self._silo is not None and tuple(facts.shape) != self._silo.shape:
            self._object(contradiction("model.shape", facts.shape, f"this silo's records have the shape {self._silo.shape}"))
        own = make_algorithm(config.algorithm).exchange(facts.layout)
        if exchange and exchange != own.sha256:
            self._object(contradiction("exchange", exchange[:12], "other fields are to be exchanged than follow from algorithm and model"))
        if config.privacy.regimes:
            try:
                check_buffers(facts.untried())
            except FedrayError as error:
                self._object(contradiction("model", facts.choice.kind, str(error).rstrip(".")))
        self._exchange, self._tried = own, False
        self._plan_whole()
        self._check_run()

    def _plan_whole(self) -> None:
        """The plan for whole clients, as it follows from the terms, the number of clients and the model."""
        config = self._run.config
        if config.privacy.whole_clients is None:
            return
        assert self._exchange is not None
        clients, rate, alike = self._population
        try:
            self._whole = plan_clients(config, clients, self._exchange.up_size, grid_bits(float(clients)), rate, alike)
        except FedrayError as error:
            self._object(contradiction("privacy", config.privacy.whole_clients, str(error).rstrip(".")))
        self._cleared = None  # its figures are looked at now

    @property
    def _size(self) -> int | None:
        """Values that the globals have, once that is known."""
        return None if self._exchange is None else self._exchange.down_size

    def _own_plan(self) -> Plan | None:
        """What is charged to the silo's own ledger for a round."""
        return self._whole if self._run.config.privacy.regimes == ("local",) else self._run.plan

    def _charge(self, policy: Policy) -> None:
        """One more round must fit the policy's limits."""
        plan = self._own_plan()
        if plan is None:
            return
        event = accountant.flatten({plan.event(): 1})
        self._object(affordable(policy, plan, self._spent, event))
        self._spent = replace(self._spent, run=joined(self._spent.run, event))

    def _delta(self) -> Objection | None:
        """The objection to a delta that is too large for this silo's number of records, which the text does not tell."""
        plan, silo = self._run.plan, self._silo
        if plan is None or silo is None:
            return None
        try:
            check_delta(plan, {self._client: silo.records if plan.person is None else silo.persons or silo.records})
        except PrivacyRefusal:
            why = f"it is more than 1 / (10 x the number of this silo's {plan.unit}s); set a smaller privacy.delta"
            return contradiction("privacy.delta", plan.delta, why)
        return None

    def _begin(self, key: Key, trained: bool) -> None:
        """A training is charged, and with ``trained`` given to the client at once."""
        self._note(TRAINING, key, trained=trained)
        self._course = replace(self._course, begun=key)

    def _note(self, event: str, key: Key, **more: bool) -> None:
        text = f"run {run_of(self._run.job)}, round {key[0] + 1}, attempt {key[1] + 1}: {event}"
        self._log.write(event, text, "INFO", job=self._run.job, round=key[0], attempt=key[1], **more)

    def _evaluates(self, policy: Policy, weights: Any, clients: Sequence[ClientTask]) -> None:
        self._object(check_cohort(clients, self._client))
        self._object(check_globals((weights,), self._size))
        self._object(next(when(policy, self._now(), -1), None))
        today = self._today(EVALUATION)
        if today >= policy.evaluations_a_day:
            change = f"{today} were made today, so evaluate in fewer rounds (evaluation.every)"
            self._object(object_to(policy, "evaluations_a_day", "evaluation", f"number {today + 1}", str(policy.evaluations_a_day), change))
        self._log.write(EVALUATION, f"run {run_of(self._run.job)} evaluates on held-out records", job=self._run.job)

    def _today(self, event: str) -> int:
        policy = self._policy or self._current()
        return self._log.on(policy.local(self._now()).date(), event, policy.local)

    def _keep(self, report: ClientReport) -> None:
        """Keep a turn's receipts, which its commit must repeat, and log how it ended."""
        round_, attempt = self._course.trained
        self._receipts.keep((round_, attempt), report)
        if report.status != "done":
            about = {"job": self._run.job, "round": round_, "attempt": attempt, "traceback": report.traceback or None}
            self._log.write("turn", f"the turn ended as {report.status}: {report.error}", "WARNING", **about)

    def _object(self, found: Objection | None) -> None:
        if found is not None:
            self._refuse(found)

    def _refuse(self, *found: Objection) -> None:
        text, now, last = "\n".join(map(str, found)), self._now(), self._refused
        if last is None or last[0] != text or (now - last[1]).total_seconds() >= _SAME_REFUSAL:
            self._refused = text, now
            rules = sorted({each.rule for each in found if each.rule})
            self._log.write("refused", text, "WARNING", job=self._terms.job if self._terms else None, rules=rules or None)
        raise PolicyRefused(f"{self._client}: {text}")
