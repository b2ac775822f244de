"""What a client's process needs to start: the run's terms, which are data, and its site, which is the place's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_jsonable_python

from fedray.clients.agreement import Agreement
from fedray.clients.groups import ClientGroup
from fedray.clients.messages import ClientTask
from fedray.clients.receiptsigner import SigningPlace
from fedray.clients.states import StatePlace
from fedray.config import Checkpoint, Clients, Config, Data, RayCluster, Tracking
from fedray.configfile import build_config
from fedray.errors import FedrayError
from fedray.models.facts import ModelFacts
from fedray.privacy.clientplan import Plan
from fedray.privacy.recordplan import RecordPlan, terms_sha256


@dataclass(frozen=True)
class Terms:
    """What the run decides of a client's work, for one group of clients. It is data, so every process can compute its hash.

    Attributes:
        config: the run's, with the group's ``training`` section. A client works by ``seed``, ``rounds``, ``training``, ``algorithm``,
            ``compression``, ``bound``, ``privacy`` and ``evaluation``. The sections ``clients``, ``tracking``, ``checkpoint`` and ``ray``
            have their defaults, since no client reads them and they may name servers. ``data`` is read from the site.
        group: name of the group.
        plan: constants of record-level DP, or None.
        model: the run's, without weights; None as long as only the silos know what it looks like.
        exchange: hash of the exchanged fields (:attr:`fedray.exchange.Exchange.sha256`), which a client compares with its own; empty
            while there is no model, and where nobody exchanges, as in an audit.
        job: names the run in the ledger.
    """

    config: Config
    group: str
    plan: RecordPlan | None
    model: ModelFacts | None
    exchange: str = ""
    job: str = ""

    @property
    def first_start(self) -> bool:
        """Whether the run has not been started before, by the number of the start in ``job``."""
        return self.job.rpartition("/")[2] in ("", "1")

    def document(self) -> dict[str, Any]:
        """The terms as JSON data."""
        return {
            "config": to_jsonable_python(self.config.model_dump(), inf_nan_mode="constants"),
            "group": self.group,
            "plan": None if self.plan is None else self.plan.terms(),
            "model": None if self.model is None else self.model.document(),
            "exchange": self.exchange,
            "job": self.job,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Terms:
        """The terms of :meth:`document`.

        Raises:
            ConfigError: the config is not valid.
        """
        plan, model = document["plan"], document["model"]
        return cls(
            build_config(document["config"]),
            document["group"],
            None if plan is None else RecordPlan.of(plan),
            None if model is None else ModelFacts.of(model),
            document["exchange"],
            document["job"],
        )

    @property
    def sha256(self) -> str:
        """SHA-256 of :meth:`document`, in hex. It is not kept, so that an actor computes it from what has arrived."""
        return terms_sha256(self.document())


def make_terms(
    config: Config, group: ClientGroup, plan: RecordPlan | None, model: ModelFacts | None, exchange: str = "", job: str = ""
) -> Terms:
    """The terms of a group's clients; see :class:`Terms`."""
    others = {"clients": Clients(), "tracking": Tracking(), "checkpoint": Checkpoint(), "ray": RayCluster()}
    return Terms(config.model_copy(update={"training": group.training, **others}), group.name, plan, model, exchange, job)


def check_terms(actor: str, theirs: str, ours: str) -> None:
    """Compare the hash of the terms by which an actor works with that of the driver's.

    Raises:
        FedrayError: they differ.
    """
    if theirs != ours:
        raise FedrayError(
            f"client actor {actor} works by other terms ({theirs[:12] or 'none'}) than this run's ({ours[:12]}), as with another version of "
            "fedray; install the same version on every node and start again."
        )


@dataclass(frozen=True)
class Site:
    """What a place decides, or has of its own.

    Attributes:
        data: where its client's records are (dedicated); None where the records of all clients are in shared memory (hosted).
        agreed: what these records must be (dedicated); None: nothing was agreed on.
        client: the one client of a dedicated actor.
        book: plan of the silo's own ledger (dedicated, DP); its unit is a record, or the client under local DP.
        ledger: directory of the silo's own ledger (dedicated), which says if the client has withdrawn, and is charged where there is a ``book``;
            None where it does not outlive the run.
        pinned: hash of an entry that this ledger must hold (a checkpoint knows it).
        signing: where the client's key and its receipts are, for clients that sign (dedicated).
        states: where clients' states are, for algorithms whose clients keep any.
        device: for torch; None: what Ray grants.
        threads: torch threads.
        profile: keep spans.
        provided: objects given to ``fedray.run`` by the caller.
    """

    data: Data | None = None
    agreed: Agreement | None = None
    client: ClientTask | None = None
    book: Plan | None = None
    ledger: str | None = None
    pinned: str | None = None
    signing: SigningPlace | None = None
    states: StatePlace | None = None
    device: str | None = None
    threads: int = 1
    profile: bool = False
    provided: Mapping[str, Any] = field(default_factory=dict)
