"""The actor that answers a query for one dedicated client, or for some hosted ones. Noise is added before anything leaves it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fedray import components, credentials
from fedray.clients.devices import in_actor
from fedray.clients.offspring import contain
from fedray.clients.recognition import commit_silo
from fedray.clients.surroundings import speaking
from fedray.data.dataset import load_client
from fedray.data.records import ClientData, Federation, positions
from fedray.data.silos import Silo
from fedray.errors import FedrayError
from fedray.privacy.account import Account
from fedray.privacy.csprng import noise_source
from fedray.privacy.figures import Figures
from fedray.privacy.integersums import noised
from fedray.privacy.ledger.location import ledger_directory
from fedray.privacy.ledger.withdrawal import own_watch
from fedray.privacy.queryplan import QueryPlan
from fedray.privacy.rules import claim
from fedray.queries.asked import Asked, asked_of, facts_of, judged_facts_of, records_of, summed
from fedray.queries.statistic import PublicFacts, RecordBatch
from fedray.queryconfig import QueryConfig
from fedray.rng import generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuerySite:
    """What an actor needs to start.

    Attributes:
        config: the query's.
        labels: the source's own label of each class.
        client: the dedicated client's name; None for an actor of hosted clients.
        ledger: directory of the dedicated client's own ledger, which is charged if there is a plan; None if it does not outlive the query.
        job: of the query, as the ledger names it.
        pinned: hash of an entry that the ledger must contain.
        threads: of torch.
        provided: objects of the caller, see :func:`fedray.components.provide`.
    """

    config: QueryConfig
    labels: Sequence[Any] = ()
    client: str | None = None
    ledger: str | None = None
    job: str = ""
    pinned: str | None = None
    threads: int = 1
    provided: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientAnswer:
    """What leaves a client.

    Attributes:
        client: its name.
        sums: the noised sum of each statistic, in grid units, by its name.
        records: public number of its records of each part.
        columns: names of a record's features.
        receipt: what was run, for the ledger; None if nothing is charged.
    """

    client: str
    sums: dict[str, list[int]]
    records: dict[str, int]
    columns: tuple[str, ...]
    receipt: dict[str, Any] | None


class QueryHost:
    """See the module's text.

    Args:
        site: what to answer.
        data: the federation of hosted clients; else None.
        model: the judged model, on the CPU, or None.
    """

    def __init__(self, site: QuerySite, data: Federation | None = None, model: nn.Module | None = None) -> None:
        self._site, self._federation, self._model = site, data, model
        self._own: ClientData | None = None
        self._account: Account | None = None
        self._plan: QueryPlan | None = None
        self._spent = set[str | None]()  # charges under which something may have left

    @speaking()
    def ready(self) -> Silo | None:
        """Load the dedicated client's records; returns their public form."""
        site = self._site
        credentials.load()
        if in_actor():
            contain()
        components.provide(site.provided)
        torch.set_num_threads(site.threads)
        self._asked = asked_of(site.config)
        if self._model is not None:
            self._model = self._model.eval()
        if site.client is None:
            return None
        self._own = load_client(site.config.data, site.config.seed, site.client)
        return Silo.of(self._own)

    @speaking()
    def open(self, plan: QueryPlan | None, asked: bool) -> str:
        """Take the plan, and open the dedicated client's ledger; returns why it cannot be asked, or an empty text. Charges nothing.

        Args:
            plan: None if nothing is protected.
            asked: whether the client is to be charged, and has not answered to an earlier start.
        """
        self._plan, site, own = plan, self._site, self._own
        if own is not None:
            public_facts(self._asked, own, site.labels)
        if plan is None or site.ledger is None or own is None or site.client is None:
            return self._withdrawn()
        directory = ledger_directory(site.ledger, ".")
        committed = commit_silo(directory, site.client, own.train)
        self._account = Account.open_silo(
            directory, site.client, plan, job=site.job, pinned=site.pinned, data=committed, void=claim(site.config).reasons
        )
        return "; ".join(str(refusal) for refusal in self._account.check([site.client] if asked else []).refused.values())

    @speaking()
    def answer(self, client: str, reservation: str | None) -> ClientAnswer:
        """One client's noised sums. A dedicated client is charged first; a hosted one was charged under ``reservation``.

        Raises:
            FedrayError: the budget does not allow it, or nothing was charged.
        """
        plan = self._plan
        if why := self._withdrawn():
            raise FedrayError(why)
        if self._account is not None:
            decision = self._account.authorize(0, 0, [client])
            for refusal in decision.refused.values():
                raise FedrayError(str(refusal))
            reservation = decision.reservations[client].id
        if plan is not None and (reservation is None or reservation in self._spent):
            raise FedrayError(
                f"{client}: {'was not charged' if reservation is None else 'has answered under this charge'}, so it does not answer."
            )
        self._spent.add(reservation)
        try:
            return self._answered(client, reservation)
        except FedrayError:
            raise
        except Exception as error:  # its text may quote records
            if plan is None:
                raise
            log.warning("the sums of client %s failed", client, exc_info=error)
            raise FedrayError(f"{client}: its sums could not be made ({type(error).__name__}); the log of its actor says where.") from None

    def _answered(self, client: str, reservation: str | None) -> ClientAnswer:
        plan, site, data = self._plan, self._site, self._data(client)
        facts = public_facts(self._asked, data, site.labels)
        bounds = {} if plan is None else {one.name: one for one in plan.sums}
        source = None if plan is None else noise_source(site.config.privacy.insecure_seed, 0, client)
        sums: dict[str, list[int]] = {}
        for one in self._asked:
            bound = bounds.get(one.name)
            total = summed(one, facts, records_of(data, one.part), bound, self._model)
            if bound is not None and source is not None:
                total = noised(total, bound.variance, source)
            sums[one.name] = total.tolist()
        receipt = None if plan is None else receipt_of(plan, reservation)
        records = {part: len(records_of(data, part)) for part in ("train", "held_out")}
        if self._account is not None:
            self._account.commit(0, 0, {client: receipt})
        return ClientAnswer(client, sums, records, facts.columns, receipt)

    def spent(self) -> tuple[Figures, str, dict[str, Any]]:
        """The dedicated client's figures, the hash of its ledger's last entry, and this query's entries."""
        assert self._account is not None
        return self._account.figures()[0], self._account.head, self._account.part()

    def close(self) -> None:
        """Give the ledger back."""
        if self._account is not None:
            self._account.close()

    def _withdrawn(self) -> str:
        """That the dedicated client has withdrawn its data, as a sentence, where no account says it; else an empty text."""
        site = self._site
        if self._account is not None or site.ledger is None or site.client is None:
            return ""
        found = own_watch(ledger_directory(site.ledger, "."), site.client).now()
        return str(found[site.client]) if site.client in found else ""

    def _data(self, client: str) -> ClientData:
        if self._own is not None:
            return self._own
        assert self._federation is not None
        return self._federation.client(positions(self._federation.names)(client))


def public_facts(asked: Sequence[Asked], data: ClientData, labels: Sequence[object]) -> PublicFacts:
    """What the statistics may know of a client's records; raises as :func:`fedray.queries.asked.facts_of`, or if a column is missing.

    Every statistic is tried on one record of random numbers, so that its errors are seen before anything is charged.
    """
    facts = judged_facts_of(data, labels) if all(one.statistic.judges for one in asked) else facts_of(data, labels)
    x = generator(0, "query").random((1, max(1, len(facts.columns))))
    batch = RecordBatch(x, x[:, 0] * 0, x[:, :1].repeat(facts.classes or 2, axis=1))
    for one in asked:
        one.statistic.contributions(facts, batch, one.where)
    return facts


def receipt_of(plan: QueryPlan, reservation: str | None) -> dict[str, Any]:
    """The receipt of an answer under a plan."""
    return {"reservation": reservation, "plan": plan.sha256, "noise_multiplier": plan.noise_multiplier, "clip": plan.clip}
