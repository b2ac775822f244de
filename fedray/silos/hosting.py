"""The silo's own process: it makes a client's host for a run that asks, and answers what the run may ask of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedray.aggregation.exact import grid_bits
from fedray.clients.host import ClientHost
from fedray.clients.terms import Site, Terms
from fedray.config import Config, Data
from fedray.errors import ConfigError, FedrayError
from fedray.privacy.clientplan import Plan, plan_clients
from fedray.privacy.recordplan import plan_record
from fedray.silos.calls import SiloOpening, pack_answer, pack_words, read_call, unpack_arguments
from fedray.silos.codec import Buffer, Codec, Malformed
from fedray.silos.forms import codec
from fedray.silos.guard import Guard
from fedray.silos.parcels import Parcel
from fedray.silos.siteconfig import SiteConfig
from fedray.silos.withheld import PolicyRefused

log = logging.getLogger(__name__)


class Hosting:
    """What a silo's link has worked on. It has one host at a time, that of the run that opened it last.

    Args:
        site: the silo's own settings.
    """

    def __init__(self, site: SiteConfig) -> None:
        self._site = site
        self._lock = threading.Lock()  # of what follows, which control calls read
        self._host: ClientHost | None = None
        self._session, self._codec = "", codec()
        self._guard: Guard | None = None  # before that host

    def handle(self, order: str, parcel: Parcel) -> Parcel:
        """Work on an order; one at a time."""
        name, session, body, buffers = read_call(parcel.head, parcel.buffers)
        if name == "open":
            guard = Guard(self._site.policy, self._site.client, Path(self._site.state))
            return self._said(name, codec(), lambda: self._open(guard, session, body, buffers), guard)
        return self._for_session(name, session, body, buffers)

    def control(self, order: str, parcel: Parcel) -> Parcel:
        """Answer a control order, while another may be worked on."""
        name, session, body, buffers = read_call(parcel.head, parcel.buffers)
        if name == "close":
            return self._said(name, self._codec, lambda: self._close(session))
        return self._for_session(name, session, body, buffers)

    def end(self) -> None:
        """Give up the host, and with it the ledger's lock."""
        with self._lock:
            host, self._host, self._session, self._guard = self._host, None, "", None
        if host is not None:
            host.close()

    def _for_session(self, name: str, session: str, body: Any, buffers: Sequence[Buffer]) -> Parcel:
        with self._lock:
            host, wire, guard = self._host if session == self._session else None, self._codec, self._guard
        if host is None or guard is None:
            why = (
                f"silo '{self._site.client}' has no part in this start of the run any more: it was restarted, or another start took it over"
            )
            return _parcel(*pack_words("gone", "", why))
        if name == "ping":
            return _parcel(*pack_answer(wire, name, None))

        def work() -> Any:
            arguments = unpack_arguments(wire, name, body, buffers)
            found = self._allowed(guard, host, name, arguments)
            return (found[0], found[1:]) if name == "train_each" else found

        return self._said(name, wire, work, guard)

    def _allowed(self, guard: Guard, host: ClientHost, name: str, arguments: Sequence[Any]) -> Any:
        """The host's answer, as far as the silo's policy lets it be asked and answered."""
        try:
            guard.admit(name, arguments)
        except PolicyRefused as error:
            found = guard.refused_answer(name, arguments, error)
            if found is None:
                raise
            return found
        if guard.to_try(name):
            guard.leaving("preflight", host.preflight())
        return guard.leaving(name, getattr(host, name)(*arguments))

    def _said(self, name: str, wire: Codec, work: Any, guard: Guard | None = None) -> Parcel:
        """What comes of some work, or its error, of which no more is told than may leave."""
        try:
            return _parcel(*pack_answer(wire, name, work()))
        except Exception as error:
            if isinstance(error, FedrayError):
                log.warning("'%s' is refused: %s", name, error)
            else:
                log.exception("'%s' failed", name)
            told = error if isinstance(error, Malformed) or guard is None else guard.told(error)
            if not isinstance(told, FedrayError):
                told = FedrayError(f"it failed in '{name}' with {type(error).__name__}; its own log says more.")
            return _parcel(*pack_words("error", type(told).__name__, str(told)))

    def _open(self, guard: Guard, session: str, body: Any, buffers: Sequence[Buffer]) -> Any:
        """Make the host of a run; that of an earlier one, or of an earlier start, goes first. Nothing is made of its terms before the policy
        has allowed them: they may name code.
        """
        terms, opening = unpack_arguments(codec(), "open", body, buffers)
        self.end()
        site = self._site
        if opening.client.name != site.client:
            raise Malformed(f"a run calls this silo '{opening.client.name}', and it is '{site.client}'.")
        data = own_data(site, terms.config.data)
        guard.open(terms, opening.clients, opening.client.index, opening.rate, opening.alike, data)
        book = own_plan(terms, opening)
        log.info("run '%s' (%s) opens with terms %s", terms.config.name, terms.job, terms.sha256)
        host = ClientHost(
            terms,
            Site(
                data=data,
                client=opening.client,
                book=book,
                ledger=str(site.ledger),
                pinned=opening.pinned,
                signing=site.signing(opening.signed) if opening.signs else None,
                device=site.device,
                threads=site.threads,
                profile=opening.profile,
            ),
        )
        try:
            info = guard.leaving("open", replace(host.ready(), node=site.client, node_id=""))
        except BaseException:
            host.close()
            raise
        with self._lock:
            self._host, self._session, self._codec, self._guard = host, session, codec(terms.config), guard
        return info

    def _close(self, session: str) -> None:
        if session == self._session:
            self.end()


def own_data(site: SiteConfig, agreed: Data) -> Data:
    """The silo's records as the run has it read them: what all must agree on is the run's, all else the site's.

    Raises:
        ConfigError: the site sets something else.
    """
    for name in ("holdout", "normalize"):
        if name in site.data.model_fields_set and getattr(site.data, name) != getattr(agreed, name):
            raise ConfigError(
                f"data.{name}: silo '{site.client}' says {getattr(site.data, name)!r} and the run {getattr(agreed, name)!r}; all silos must agree, "
                "so take it out of the site's file, or change the run."
            )
    return site.data.model_copy(update={"holdout": agreed.holdout, "normalize": agreed.normalize})


def own_plan(terms: Terms, opening: SiloOpening) -> Plan | None:
    """The plan by which the silo charges its own ledger, which must follow from the config that it was shown.

    Raises:
        ConfigError: it does not.
    """
    config: Config = terms.config
    if config.privacy.record:
        plan = plan_record(config, config.training, opening.every)
        if terms.plan != plan:
            raise ConfigError(f"privacy: the plan that the run of '{config.name}' sends does not follow from its own settings.")
        return plan
    if terms.plan is not None:
        raise ConfigError(f"privacy: the run of '{config.name}' sends a plan for records, which its settings do not protect.")
    if config.privacy.regimes == ("local",):
        return plan_clients(config, opening.clients, 0, grid_bits(float(opening.clients)), opening.rate, opening.alike)
    return None


def _parcel(head: bytes, buffers: Sequence[Buffer]) -> Parcel:
    return Parcel(head, tuple(buffers))
