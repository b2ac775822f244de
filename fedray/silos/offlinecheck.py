"""Whether a silo would take part in a run, from the run's config alone: the terms that the silo would be sent are made from it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedray.clients.groups import ClientGroup, training_of
from fedray.clients.terms import Terms, make_terms
from fedray.config import Config, Group
from fedray.privacy.recordplan import plan_record
from fedray.silos.policy import objections
from fedray.silos.policyconfig import read_policy
from fedray.silos.silolog import TRAINING, SiloLog, utc_now
from fedray.silos.siteconfig import SiteConfig
from fedray.silos.spending import own_spending


@dataclass(frozen=True)
class Checked:
    """What a silo would say to a run; ``refused``: it would not take part."""

    refused: bool
    lines: list[str]


def check_offline(site: SiteConfig, config: Config, now: Callable[[], datetime] = utc_now) -> Checked:
    """What a silo would say to a run with this config.

    Raises:
        ConfigError: its policy cannot be read.
    """
    policy, state, moment = read_policy(site.policy), Path(site.state), now()
    terms = terms_for(config, site.client)
    spent = own_spending(state / "ledger", site.client, config.name)
    today = SiloLog(state, now).on(policy.local(moment).date(), TRAINING, policy.local)
    said = [str(each) for each in objections(policy, terms, moment, spent=spent, rounds_today=today, data=site.data)]
    if said:
        return Checked(True, said)
    lines = [f"silo '{site.client}' would take part in '{config.name}' by {site.policy}"]
    if policy.approval:
        lines.append(f"{policy.where('approval')} (approval: true): the run waits until `fedray silo approve` says yes")
    return Checked(False, lines)


def terms_for(config: Config, client: str) -> Terms:
    """The terms that a run with this config sends a client, as far as they do not depend on the run's data."""
    section = next((g for g in config.clients.groups if isinstance(g.clients, list) and client in g.clients), None)
    group = _group(config, section)
    plan = plan_record(config, group.training, group.every) if config.privacy.record else None
    return make_terms(config, group, plan, None, "", config.name)


def _group(config: Config, section: Group | None) -> ClientGroup:
    if section is None:
        return ClientGroup("default", (), config.clients.resources, config.training, config.privacy.ledger, 1.0)
    training = training_of(config, section.training, f"clients.groups.{section.name}.training")
    return ClientGroup(section.name, (), config.clients.resources, training, config.privacy.ledger, section.rate, section.every)
