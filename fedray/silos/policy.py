"""What a silo objects to in a run's terms: pure checks by its policy, its own ledger and the clock, before anything of the run is done.

The silo believes nothing that it can compute: the plan of privacy must follow from the config, and its figures are computed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from fedray.algorithms.algorithm import make_algorithm, own_models
from fedray.choices import Choice
from fedray.clients.terms import Terms
from fedray.config import Clients, Config, Data
from fedray.data.dataset import private_statistics
from fedray.errors import ConfigError, FedrayError
from fedray.privacy import rules
from fedray.privacy.accounting import accountant
from fedray.privacy.clientplan import ClientPlan, Plan, level
from fedray.privacy.evaluationplan import check_judged
from fedray.privacy.rules import claim
from fedray.privacy.securerules import check_secure
from fedray.privacy.stagerules import check_stages
from fedray.rounding import as_given, rounded_up
from fedray.secure.protocol import make_protocol
from fedray.silos.claimedplan import untrue
from fedray.silos.installedcode import code_digest
from fedray.silos.objection import Objection, contradiction, object_to
from fedray.silos.policyconfig import Policy
from fedray.silos.spending import Spending, epsilon_of, joined, planned_charges
from fedray.updates.pipeline import make_stages

#: Sections of a config by which a client works, and in which a name of own code would be run at the silo.
WORKED_BY = ("model", "training", "algorithm", "compression", "bound", "secure", "privacy", "evaluation", "attack")
_ASK = "or ask this silo's operator to allow it"


def objections(
    policy: Policy,
    terms: Terms,
    now: datetime,
    *,
    spent: Spending | None = None,
    rounds_today: int | None = 0,
    whole: ClientPlan | None = None,
    data: Data | None = None,
    digest: Callable[[str], str] = code_digest,
) -> list[Objection]:
    """All that a silo objects to in a run's terms; empty where it takes part. Own code is not imported while there is an objection to it.

    Args:
        policy: the silo's.
        terms: as they arrived.
        now: the time, with a time zone.
        spent: charges of the silo's own ledger.
        rounds_today: trainings that were begun today; None: the hours and trainings of the day do not matter yet.
        whole: the plan for whole clients, where their number is known; else the config's own figures for it count.
        data: the silo's own section on its records.
        digest: of the installed file of own code.
    """
    found, code = list(_parts(policy, terms.config)), list(_code(policy, terms.config, digest))
    if code:  # what is made of the config below would run it
        return [*found, *code, *_when(policy, terms.config, now, rounds_today)]
    try:
        check_combined(terms.config, data)
        found += [*_secure(policy, terms.config), *_facts(policy, terms.config), *_regime(policy, terms.config)]
        found += _figures(policy, terms, spent or Spending(), whole)
    except FedrayError as error:  # the driver of fedray would have refused it
        found.append(contradiction("config", terms.config.name, f"no run may have this config ({str(error).rstrip('.')})"))
    return [*found, *_when(policy, terms.config, now, rounds_today)]


def check_combined(config: Config, data: Data | None) -> None:
    """Refuse what a driver refuses because the guarantee would not hold with it: a driver that lies does not.

    Raises:
        ConfigError: the settings do not go together.
    """
    here: dict[str, Any] = {"clients": Clients(placement="dedicated")} | ({} if data is None else {"data": data})
    if config.privacy.regimes:  # the silo's own ledger outlives the run, whatever the config says of it
        here["privacy"] = config.privacy.model_copy(update={"ledger": "/own"})
    config = config.model_copy(update=here)
    algorithm, stages = make_algorithm(config.algorithm), make_stages(config)
    rules.check(config, private_statistics(config.data))
    rules.check_algorithm(config, algorithm.traits, algorithm.weight(2) != algorithm.weight(1))
    check_stages(config, stages, algorithm.traits)
    check_judged(config, not own_models(algorithm))
    check_secure(config, "sum", stages, False, False, algorithm.traits)


def _parts(policy: Policy, config: Config) -> Iterator[Objection]:
    """Parts that are named by the config and not by the policy."""
    training, evaluation, privacy = config.training, config.evaluation, config.privacy
    named: list[tuple[str, str, Choice | None]] = [
        ("models", "model.kind", config.model),
        ("adapters", "model.adapters.kind", config.model.adapters),
        ("algorithms", "algorithm.kind", config.algorithm),
        ("losses", "training.loss", training.loss),
        ("compressions", "compression.kind", config.compression),
        ("bounds", "bound.kind", config.bound),
        ("mechanisms", "privacy.mechanism.kind", _mechanism(config)),
    ]
    for rule, setting, choice in named:
        if choice is None or (choice.kind == "none" and rule in ("compressions", "bounds")):
            continue
        allowed = policy.parts(rule)
        if not any(part.allows(choice) for part in allowed):
            with_arguments = any(part.kind == choice.kind for part in allowed)
            value = {"kind": choice.kind, **choice.arguments} if with_arguments else choice.kind
            listed = ", ".join(map(str, allowed)) or "none"
            yield object_to(policy, rule, setting, value, listed, f"use one that is listed, {_ASK}")
    if config.model.weights is not None and config.model.weights not in policy.weights:
        listed = ", ".join(policy.weights) or "none"
        yield object_to(policy, "weights", "model.weights", config.model.weights, listed, f"leave it out, {_ASK}")
    for metric in evaluation.metrics if evaluation.federated else ():
        if metric not in policy.metrics:
            listed = ", ".join(policy.metrics) or "none"
            yield object_to(policy, "metrics", "evaluation.metrics", metric, listed, f"take it out, set evaluation.federated=false, {_ASK}")
    for regime in privacy.regimes or ("none",):  # of two regimes both
        if regime not in policy.regimes:
            listed = ", ".join(policy.regimes) or "none of them"
            yield object_to(policy, "regimes", "privacy.regime", regime, listed, f"set one that is listed, {_ASK}")
    if config.attack.kind != "none":
        yield contradiction(
            "attack.kind", config.attack.kind, "a silo sends what its records give and attacks no run; take the section out"
        )


def _mechanism(config: Config) -> Choice | None:
    """What noises whole clients; the usual one of the regime where the config names none."""
    if config.privacy.whole_clients is None:
        return None
    usual = {"client": "gaussian", "local": "local_gaussian", "distributed": "ddg"}
    return config.privacy.mechanism or Choice(kind=usual[config.privacy.whole_clients])


def own_code(config: Config) -> list[str]:
    """The names of own code in the sections by which a client works, wherever they stand."""
    found: dict[str, None] = {}

    def look(value: Any) -> None:
        if isinstance(value, str) and value.startswith("python:"):
            found[value] = None
        for each in (*value.keys(), *value.values()) if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
            look(each)

    sections = config.model_dump(include=set(WORKED_BY)) | {"normalize": config.data.normalize.model_dump()}
    if not config.evaluation.federated:  # the driver's own metrics are not run here
        sections["evaluation"]["metrics"] = []
    look(sections)
    return list(found)


def _code(policy: Policy, config: Config, digest: Callable[[str], str]) -> Iterator[Objection]:
    for name in own_code(config):
        listed = policy.code.get(name)
        if listed is None:
            change = f"use what fedray brings along, or have it installed at the silo and its digest listed ({_ASK.removeprefix('or ')})"
            yield object_to(policy, "code", "own code", name, ", ".join(policy.code) or "none", change)
            continue
        try:
            found = digest(name)
        except ConfigError as error:
            yield object_to(policy, "code", "own code", name, f"sha256 {listed[:12]}...", str(error).rstrip("."))
            continue
        if found != listed:
            change = "its file has changed since its digest was listed, so the silo's operator has to look at it again"
            yield object_to(policy, "code", "own code", name, f"sha256 {listed[:12]}..., and installed is {found[:12]}...", change)


def _secure(policy: Policy, config: Config) -> Iterator[Objection]:
    protocol, regimes = make_protocol(config.secure), config.privacy.regimes
    if protocol is None:
        noised = "record" in regimes or "local" in regimes
        if policy.unmasked == "never" or (policy.unmasked == "noised" and not noised):
            private = " or privacy.regime=record" if policy.unmasked == "noised" else ""
            yield object_to(policy, "unmasked", "secure.kind", "none", policy.unmasked, f"set secure.kind=secagg{private}, {_ASK}")
        return
    allowed = policy.parts("secure")
    if not any(part.allows(config.secure) for part in allowed):
        value = {"kind": config.secure.kind, **config.secure.arguments}
        listed = ", ".join(map(str, allowed)) or "none"
        yield object_to(policy, "secure", "secure", value, listed, f"set these keys as listed, {_ASK}")
    if not (protocol.identified or protocol.encrypts or policy.unsigned_keys):
        change = f"set secure.identities and secure.key, {_ASK}"
        yield object_to(policy, "unsigned_keys", "secure.identities", None, "false", change)
    least = max(int(getattr(protocol, "fewest", 0)), config.cohort.min_clients)
    if policy.cohort is None or least < policy.cohort:
        most, want = policy.cohort or "none", policy.cohort or "N"
        yield object_to(policy, "cohort", "cohort.min_clients", least, f"at least {most}", f"set cohort.min_clients={want}, {_ASK}")


def _facts(policy: Policy, config: Config) -> Iterator[Objection]:
    """What must leave for the run to go on, and may not. Whatever a run can do without is withheld instead."""
    evaluation, algorithm = config.evaluation, make_algorithm(config.algorithm)
    listed, counts = ", ".join(policy.facts) or "none", "records" in policy.facts
    if not counts and algorithm.weight(1) != algorithm.weight(2):
        change = f"set algorithm.weights=uniform, so that no weight tells the number of records, {_ASK}"
        yield object_to(policy, "facts", "algorithm.weights", "by records", listed, change)
    if not counts and "count" in algorithm.traits.reads:
        change = f"use an algorithm that does not send the number of local steps, such as fedavg, {_ASK}"
        yield object_to(policy, "facts", "algorithm.kind", config.algorithm.kind, listed, change)
    if not evaluation.federated:
        return
    fact = "evaluation" if evaluation.charged is None else "charged_evaluation"
    if fact not in policy.facts:
        other = "" if fact == "charged_evaluation" else ", or with charged noise if charged_evaluation is listed"
        yield object_to(policy, "facts", "evaluation.federated", fact, listed, f"set evaluation.federated=false{other}, {_ASK}")
    if fact == "charged_evaluation" and not counts:
        change = f"set evaluation.federated=false, for sums with noise mean nothing without the number of held-out records, {_ASK}"
        yield object_to(policy, "facts", "evaluation.charged", "records", listed, change)
    if evaluation.fine_tune is not None and not policy.fine_tune:
        yield object_to(policy, "fine_tune", "evaluation.fine_tune", "given", "false", f"set evaluation.fine_tune=null, {_ASK}")
    if evaluation.charged is None and policy.held_out is None:
        yield object_to(policy, "held_out", "evaluation.federated", True, "none", f"set evaluation.federated=false, {_ASK}")
    if not policy.evaluations_a_day:
        yield object_to(policy, "evaluations_a_day", "evaluation.federated", True, "0", f"set evaluation.federated=false, {_ASK}")


def _regime(policy: Policy, config: Config) -> Iterator[Objection]:
    """Privacy settings that need no figures."""
    void = claim(config).reasons if config.privacy.regimes else []
    if void and not policy.void_claims:
        yield object_to(policy, "void_claims", "privacy", void[0], "false", f"take that setting out, {_ASK}")


def _figures(policy: Policy, terms: Terms, spent: Spending, whole: ClientPlan | None) -> Iterator[Objection]:
    """The run's guarantees, as they follow from the config, and what they cost."""
    config = terms.config
    if config.privacy.record != (terms.plan is not None):
        yield contradiction("plan", "none" if terms.plan is None else "given", "the plan for records does not go with privacy.regime")
        return
    if terms.plan is not None:
        false = untrue(terms.plan, config)
        if false is not None:
            yield false
            return
        yield from _priced(policy, terms.plan, "privacy", spent)
    if config.privacy.whole_clients is None:
        return
    if whole is not None:
        own = config.privacy.regimes == ("local",)  # the silo's own ledger is charged, and else the driver's
        yield from _priced(policy, whole, _path(config), spent if own else Spending(), in_all=own)
        return
    section = level(config.privacy)  # until the number of clients is known, by what the config says
    for rule, key, value, over in (
        ("epsilon_run", "target_epsilon", section.target_epsilon, float.__gt__),
        ("delta", "delta", section.delta, float.__gt__),
        ("noise_multiplier", "noise_multiplier", section.noise_multiplier, float.__lt__),
    ):
        limit = getattr(policy, rule)
        if value is not None and (limit is None or over(float(value), float(limit))):
            yield _beyond(policy, rule, f"{_path(config)}.{key}", value)


def _path(config: Config) -> str:
    return "privacy" if config.privacy.joint is None else "privacy.joint"


def _beyond(policy: Policy, rule: str, setting: str, value: Any) -> Objection:
    limit, bound = getattr(policy, rule), "at least" if rule == "noise_multiplier" else "at most"
    allowed = "none" if limit is None else f"{bound} {as_given(limit)}"
    change = (
        _ASK.removeprefix("or ")
        if limit is None
        else f"set {setting}={as_given(limit)} or {'more' if bound == 'at least' else 'less'}, {_ASK}"
    )
    return object_to(policy, rule, setting, value, allowed, change)


def _priced(policy: Policy, plan: Plan, path: str, spent: Spending, in_all: bool = True) -> Iterator[Objection]:
    if policy.delta is None or plan.delta > policy.delta:
        yield _beyond(policy, "delta", f"{path}.delta", plan.delta)
    if policy.noise_multiplier is None or plan.noise_multiplier < policy.noise_multiplier:
        yield _beyond(policy, "noise_multiplier", f"{path}.noise_multiplier", plan.noise_multiplier)
    planned = planned_charges(plan)
    run = epsilon_of(planned, plan)
    if policy.epsilon_run is None or run > policy.epsilon_run:
        yield _costly(policy, "epsilon_run", path, run, "this run would come to it")
    if not in_all:
        return
    mine = accountant.flatten(Counter(dict(spent.run)) | Counter(dict(planned)))  # of a run that goes on, the larger counts
    total = epsilon_of(joined(spent.others, mine), plan)
    if policy.epsilon_total is None or total > policy.epsilon_total:
        before = epsilon_of(spent.others, plan) if spent.others else 0.0
        yield _costly(
            policy, "epsilon_total", path, total, f"other runs have spent {rounded_up(before)}, and with this one it would come to that"
        )


def _costly(policy: Policy, rule: str, path: str, epsilon: float, why: str) -> Objection:
    limit = getattr(policy, rule)
    allowed = "none" if limit is None else f"at most {as_given(limit)}"
    change = f"{why}; raise {path}.noise_multiplier, plan fewer rounds or steps, {_ASK}"
    return object_to(policy, rule, "epsilon", rounded_up(epsilon), allowed, change)


def _when(policy: Policy, config: Config, now: datetime, rounds_today: int | None) -> Iterator[Objection]:
    if policy.rounds is None or config.rounds > policy.rounds:
        limit = "none" if policy.rounds is None else f"at most {policy.rounds}"
        yield object_to(policy, "rounds", "rounds", config.rounds, limit, f"plan fewer rounds, {_ASK}")
    if rounds_today is not None:
        yield from when(policy, now, rounds_today)


def when(policy: Policy, now: datetime, rounds_today: int) -> Iterator[Objection]:
    """Objections to a training at this time."""
    local = policy.local(now)
    if not policy.open_at(now):
        hours = policy.hours if isinstance(policy.hours, str) else ", ".join(policy.hours or ()) or "none"
        yield object_to(policy, "hours", "the time", f"{local:%H:%M} ({policy.time_zone})", hours, "come back within these hours")
    if rounds_today >= policy.rounds_a_day:
        allowed, change = f"{policy.rounds_a_day} trainings", f"{rounds_today} were begun on {local:%Y-%m-%d}, so come back another day"
        yield object_to(policy, "rounds_a_day", "the training", f"number {rounds_today + 1} of the day", allowed, change)
