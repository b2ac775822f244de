"""Evaluation at the clients under privacy: each client is charged, adds noise to its own sums, and figures are made of all sums together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fedray.clients.messages import ClientTask, NoisedEvaluation
from fedray.clients.pool import Pool
from fedray.faults import Fault
from fedray.privacy.evaluationplan import EvaluationPlan
from fedray.privacy.receipt import check_receipt
from fedray.rounds.agreed import AgreedData
from fedray.rounds.books import Books
from fedray.rounds.notes import grouped, likeness
from fedray.training.noisedmetrics import Counted, figures_of, spreads_of

#: Charges of a client without an answer after which it is asked no more, so that its budget is not spent on nothing.
_TRIES = 2


class NoisedEvaluations:
    """The charged evaluations of a run.

    Args:
        plan: of one evaluation.
        counted: the statistics.
        metrics: names, as the config has them.
        clients: all that hold out records, as far as that is known.
        pool: asks them.
        books: charge them.
        tell: is given what goes wrong.
        timeout: seconds to wait for answers.
        agreed: keeps out who does not hold what it registered; None where nothing was agreed on.
    """

    def __init__(
        self,
        plan: EvaluationPlan,
        counted: Sequence[Counted],
        metrics: Sequence[str],
        clients: Sequence[ClientTask],
        pool: Pool,
        books: Books,
        tell: Callable[[Fault], None],
        timeout: float,
        agreed: AgreedData | None = None,
    ) -> None:
        self._plan, self._counted, self._metrics, self._clients = plan, counted, metrics, clients
        self._pool, self._books, self._tell, self._timeout, self._agreed = pool, books, tell, timeout, agreed
        self._said, self._silent = set[tuple[str, str]](), Counter[str]()

    def after(self, rounds: int, weights: Any) -> dict[str, float]:
        """``eval/`` metrics of the model after ``rounds`` rounds; none where no client's budget allows it, or none has answered. Beside one that is
        linear in the sums, ``noise/`` has the standard deviation of its noise.

        The charges are durable before a record is read, and each client answers once under a charge, or not at all. A client that fails stays
        charged, and after two failures it is asked no more. All figures follow from the noised sums and public numbers of records.

        Args:
            rounds: that are done, at least 1.
            weights: the globals, or an object reference of them.

        Raises:
            ClaimVoid: an answer does not say that what was charged was run.
        """
        number, clients = rounds - 1, self._clients
        if self._agreed is not None:
            clients, _ = self._agreed.admitted(number, clients, self._tell)
        clients = [c for c in clients if self._silent[c.name] < _TRIES]
        permit = self._books.charge_evaluation(number, self._pool.within_reach(clients), self._plan)
        answers = self._pool.evaluate_once(permit.cohort, weights, number, self._timeout) if permit.cohort else []
        refused = {**permit.refused, **{one.name: one.problem for one in answers if one.problem}}
        told = [one for one in answers if not one.problem]
        free = {one.name for one in answers if one.problem and not one.charged}
        self._silent.update({c.name for c in permit.cohort} - {one.name for one in told} - free)
        spared = {n: f"{n}: has been charged for {_TRIES} evaluations without an answer, and is asked no more." for n in self._given_up()}
        self._say(rounds, {**refused, **spared})
        reserved = {c.name: dict(c.reservations).get(self._plan.unit) for c in permit.cohort}
        expected = {"plan": self._plan.sha256, "noise_multiplier": self._plan.noise_multiplier, "clip": self._plan.clip}
        for one in told:
            check_receipt(one.name, one.receipt, {"reservation": reserved[one.name], **expected})
        self._books.commit_evaluation(number, {one.name: one.receipt for one in told if one.receipt is not None})
        records = sum(one.records for one in told)
        if not records:
            return {}
        found = figures_of(self._counted, _totals(told), records, self._metrics)
        variances = {one.name: float(one.variance) * len(told) for one in self._plan.sums}
        spreads = spreads_of(self._counted, variances, records, self._metrics)
        return {f"eval/{name}": value for name, value in found.items()} | {f"noise/{name}": value for name, value in spreads.items()}

    def _given_up(self) -> list[str]:
        return [name for name, times in self._silent.items() if times >= _TRIES]

    def _say(self, rounds: int, problems: dict[str, str]) -> None:
        """Tell each problem once."""
        new = {name: text for name, text in problems.items() if (name, likeness(name, text)) not in self._said}
        self._said |= {(name, likeness(name, text)) for name, text in new.items()}
        for fault in grouped(Fault("client", text, rounds, name) for name, text in new.items()):
            self._tell(fault)


def _totals(told: Sequence[NoisedEvaluation]) -> dict[str, list[int]]:
    return {name: [sum(values) for values in zip(*(one.sums[name] for one in told), strict=True)] for name in told[0].sums}
