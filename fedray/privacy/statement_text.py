"""The sentences of a privacy statement: the guarantee, the adversary, and what stays unprotected.

Sources: Ponomareva et al. 2023, How to DP-fy ML, section 5.3 (what to report); NIST SP 800-226 (2025), Guidelines for Evaluating
Differential Privacy Guarantees (unit, trust model, exposure of collected data, side channels, validity of the implementation)
"""

from __future__ import annotations

import math
from typing import Any

from fedray.config import Config
from fedray.privacy.clientplan import Plan
from fedray.privacy.evaluationtext import evaluations_in
from fedray.privacy.recordplan import RecordPlan, clips_persons
from fedray.privacy.rules import Claim
from fedray.privacy.statement_assumptions import floats
from fedray.secure.protocol import Protocol

TRUST = (
    "One Ray cluster is one trust domain: records are protected from everyone who sees models and metrics, "
    "but not from code that runs in the cluster or from the cluster's operators."
)
_REHEARSED = "; with clients.placement=hosted the driver itself lays out all records, so that such a run only rehearses the protocol"
ADJACENCY = {
    "zero_out": "zero-out: neighbouring data sets differ in one {unit}, whose contribution is removed; the number of {unit}s is public",
    "replace_one": "replace-one: neighbouring data sets differ in one {unit}, whose contribution is replaced by any other; "
    "the number of {unit}s is public",
}
#: Printed beside every figure.
ROUNDING = "printed figures are rounded up"

_NOT_COVERED = {
    "record": (
        "whole clients, and persons with several records in one client, because the unit is one record",
        "whether, when and for how long a client takes part, and how many records it holds; these facts are assumed to be public",
    ),
    "person": (
        "whole clients, and persons with records in more clients than privacy.max_silos_per_person, because the unit is one person in one client",
        "records of a person that data.person gives to another one: fedray takes the column as the data's owner wrote it",
        "whether, when and for how long a client takes part, and how many records and persons it holds; these facts are assumed to be public",
    ),
    "client": (
        "persons or institutions with several clients, because the unit is one client",
        "membership in the population and the number of clients; these facts are assumed to be public",
        "durations of rounds, failures of actors, and the end of a run in which all clients of several consecutive rounds failed",
    ),
}
_NEVER_COVERED = (
    "error messages and tracebacks of clients, which stay inside the cluster's trust domain",
    "the driver's test records, which are assumed to be public",
    "the choice among several runs by their results on private records, unless all runs are charged to the same lasting ledger",
)
_SAMPLED = {
    False: (),
    True: (
        "load, memory and traffic of the driver's node depend on the data, and are in MLflow as system metrics (tracking.system_metrics)",
    ),
}
_SAMPLING = {
    "poisson": "each client joins each round independently with the public sampling rate; a cryptographic generator tosses the coins, which "
    "are secret; a round without clients releases noise alone and is charged",
    "fixed": "each cohort has a fixed size and is drawn without replacement; a cryptographic generator draws it, and it is secret",
    "all": "all clients take part in every round; no amplification is claimed",
    "cyclic": "each client takes part once per pass over the population, in a known order; no amplification is claimed",
}
_UNAMPLIFIED = {
    "poisson": "each client joins each round independently with the public sampling rate; the headline charges each participation in full",
    "fixed": "each cohort has a fixed size and is drawn without replacement; the headline charges each participation in full",
}


def setting(plan: Plan) -> str:
    """The model of differential privacy: who adds the noise."""
    if isinstance(plan, RecordPlan):
        return (
            "local training with DP-SGD: each client adds noise in its own training steps, so the server need not be trusted with records"
        )
    return {
        "client": "central model: a trusted driver adds noise to the sum of the clients' clipped updates",
        "local": "local model: each client adds noise to its own update before sending it",
        "distributed": "distributed model: each client adds a share of the noise to its own update, and the shares add up in the sum",
    }[plan.regime]


def trust(plan: Plan, protocol: Protocol | None, hosted: bool) -> str:
    """The trusted parties.

    Args:
        plan: of the guarantee.
        protocol: of secure sums, or None.
        hosted: one driver lays out all clients' records.
    """
    clauses = [] if isinstance(plan, RecordPlan) or (protocol is not None and plan.regime == "distributed") else [plan.mechanism.trust]
    if protocol is not None:
        clauses.append(protocol.trust + (_REHEARSED if hosted else ""))
    return ". ".join([*clauses, TRUST])


def against(plan: Plan, protocol: Protocol | None) -> str:
    """The adversaries against whom the guarantee holds; ``protocol`` is that of secure sums, or None."""
    if not isinstance(plan, RecordPlan) and plan.regime == "distributed" and protocol is not None:
        return "the driver, which reads nothing but sums, the other clients, and everyone who sees the models or the metrics"
    if isinstance(plan, RecordPlan):
        return "the server, the other clients, and everyone who sees the model, the metrics or the tracking store"
    if plan.regime == "client":
        return "the other clients, and everyone who sees the models or the metrics, but not the driver"
    if plan.regime == "local":
        return "the driver, the other clients, and everyone who sees the models or the metrics"
    return "the other clients, and everyone who sees the models or the metrics, but not the driver and the actors, which see single updates in the clear"


def released(plan: Plan) -> str:
    """The outputs that the guarantee covers."""
    what = "every update that a client sends, " if isinstance(plan, RecordPlan) or plan.regime == "local" else ""
    what += "" if evaluations_in(plan) is None else "every noised sum over held-out records that a client sends, "
    return (
        f"{what}the model after every round, the final model, and everything computed from them and from public data "
        "(metrics on the driver's test records, plots, the registered model)"
    )


def accesses(plan: Plan) -> str:
    """The uses of private records that the guarantee covers."""
    evaluated = "" if evaluations_in(plan) is None else ", and evaluation with noise in the rounds that are charged for it"
    return (
        f"local training in all charged rounds, including retries and failed rounds{evaluated}. Besides, private records are only read to load them and "
        "to normalise each record by public constants or by itself"
        + (", and to compute the salted hash that commits the ledger to them." if isinstance(plan, RecordPlan) else ".")
    )


def sampling(plan: Plan) -> str:
    """How records or clients are sampled."""
    if clips_persons(plan):
        return (
            "each person joins each step with all its records, independently with the public sampling rate; the coins are float64 draws of the "
            "training loop; a step with an empty batch adds noise alone and is charged; shuffled batches are not offered"
        )
    if isinstance(plan, RecordPlan):
        return _bounded(plan) + (
            "each record joins each step independently with the public sampling rate; the coins are float64 draws of the training loop; "
            "a step with an empty batch adds noise alone and is charged; shuffled batches are not offered"
        )
    kind = plan.facts.sampling
    return _UNAMPLIFIED[kind] if plan.charging.whom == "participants" and kind in _UNAMPLIFIED else _SAMPLING[kind]


def _bounded(plan: RecordPlan) -> str:
    if plan.person is None:
        return ""
    return f"in each turn at most {plan.person.records} records of a person take part, drawn anew and secretly; of these "


def clipped(plan: Plan) -> str:
    """What is clipped as one."""
    return "person's mean gradient" if clips_persons(plan) else "record's gradient"


def protects(plan: Plan) -> str:
    """The protected unit in few words, with the number of records that it assumes of a person."""
    if not isinstance(plan, RecordPlan):
        return "a whole client"
    return "one record" if plan.person is None else f"one {plan.person:short}"


def not_covered(plan: Plan, claim: Claim) -> list[str]:
    """What the guarantee does not protect."""
    rounding = ["information in the rounding of float32 arithmetic, because the analysis assumes real numbers"] if floats(plan) else []
    unprotected = [reason for reason in claim.reasons if reason.startswith("privacy.unprotected")]
    return [*_NOT_COVERED[plan.unit], *_NEVER_COVERED, *rounding, *unprotected]


def meaning(unit: str, adjacency: str, epsilon: float, delta: float, shown: str) -> str:
    """The largest success probability of an adversary that the guarantee allows, as a sentence.

    Args:
        unit: ``record``, ``person`` or ``client``.
        adjacency: neighbouring relation of the guarantee.
        epsilon: headline epsilon.
        delta: its delta.
        shown: epsilon as it is printed.

    Source: Kairouz, Oh & Viswanath 2015, The Composition Theorem for Differential Privacy, theorem 2.1 (both kinds of error of a test)
    """
    ratio = math.exp(-epsilon)
    most = min(1.0, (1.0 + delta * ratio) / (1.0 + ratio))
    percent = min(100.0, math.ceil(most * 1e4) / 100)
    whose, used = ("a given record", "was used") if unit == "record" else (f"a given {unit}'s records", "were used")
    whether = f"which of two versions of {whose} was used" if adjacency == "replace_one" else f"whether {whose} {used}"
    rest = " This figure alone gives almost no protection." if epsilon > 10 else ""
    return (
        f"An adversary who sees every release, knows all other records and starts at 50:50 guesses correctly {whether} "
        f"with probability at most {percent:g} % (epsilon {shown}, delta {delta!r}).{rest}"
    )


def _own_books(config: Config) -> set[bool]:
    """For each protected unit, whether its ledger ends with the run."""
    return {p.ledger == "run" for p in (config.privacy, config.privacy.joint) if p is not None}


def scope(config: Config) -> str:
    """The runs whose charges are composed in the figures."""
    alone = _own_books(config)
    if len(alone) > 1:
        own, other = ("records", "clients") if config.privacy.ledger == "run" else ("clients", "records")
        return f"for {own} this run alone; for {other} all runs that were charged to the same ledger"
    return "this run alone" if alone == {True} else "all runs that were charged to the same ledger"


def tuning(config: Config) -> str:
    """Whether the choice of settings is accounted for."""
    if True in _own_books(config):
        return (
            "Not accounted for: if settings were chosen by the results of other runs on the same private records, the privacy cost of that "
            "choice is missing in this figure. A lasting ledger would have counted those runs."
        )
    return (
        "Runs that were charged to the same ledger are composed in this figure, so the settings that they tried are paid for. "
        "A choice of settings by other results on these records is not accounted for."
    )


def exposure(config: Config) -> dict[str, Any]:
    """Who can read private data regardless of the guarantee: where the ``data`` is, who has ``access``, and the ``side_channels``."""
    dedicated = config.clients.placement == "dedicated"
    return {
        "data": (
            "each client's records are read by that client's own silo, on its own machine outside the cluster, and do not leave it"
            if config.clients.placement == "remote"
            else "each client's records are loaded by that client's own actor and do not leave it; if each silo has its own file, no other process "
            "opens it; if all clients share one source, the driver reads that source as well"
            if dedicated
            else "the driver's process reads all records and puts them into the cluster's shared memory, which suits simulation but not silos"
        )
        + (
            ""
            if config.root.share is None
            else f"; the root set, {config.root.share:g} of the driver's held-out records, which the config declares public, is trained on at the "
            "driver without protection, and no guarantee covers it"
        ),
        "access": "everyone who can run code in the cluster, or read the memory or disks of its nodes, can read records; the operator controls access",
        "side_channels": [
            "the durations of rounds and the load and traffic of nodes depend on the data and are not protected"
            + ("; if cohorts are secret, durations are not written to metrics rows or MLflow" if config.privacy.whole_clients else ""),
            *_SAMPLED[config.tracking.system_metrics and config.tracking.enabled],
            "the failures of actors and of clients, which the log names, may depend on the data",
            "the ledger names who was charged in which round; the operator keeps it"
            + ("" if not config.privacy.whole_clients else " and must not publish it if cohorts are secret"),
        ],
    }


def implementation(records: bool) -> dict[str, str]:
    """What the guarantee relies on besides mathematics; ``records``: whether local steps are protected and so were tested before training."""
    return {
        "code": "clipping, sampling, noise and ledger are part of fedray, which is open source (Apache-2.0); accounting uses dp-accounting",
        "checked": f"this run checked {'the sensitivity before training, ' if records else ''}receipts against charges, and the ledger's hash chain. `fedray ledger verify` "
        "recomputes every figure from the ledger's entries, and `fedray audit` attacks the run to find lower bounds",
        "not_checked": "no independent party has certified the implementation, the hardware or the operating system",
    }


def sentence(plan: Plan, shown: str, delta: float, claim: Claim, for_person: str) -> str:
    """The formal statement.

    Args:
        plan: of the guarantee.
        shown: epsilon of the largest client, as it is printed.
        delta: its delta.
        claim: whether it may be claimed.
        for_person: epsilon for a person with records in several clients, as it is printed.
    """
    if not claim.valid:
        return f"No guarantee is claimed: the charges amount to epsilon {shown} at delta {delta!r}, but the claim is void."
    if not isinstance(plan, RecordPlan):
        return (
            f"Training was ({shown}, {delta!r})-differentially private for every client with all its records: "
            "the models and figures that were released would have been almost as likely without that client's contribution."
        )
    whom = (
        "every single record of every client" if plan.person is None else f"every person with all its records in one client, {plan.person}"
    )
    what = "record" if plan.person is None else "person"
    evaluated = "" if plan.evaluations is None else "and noised evaluations "
    several = ""
    if plan.person is not None and plan.max_silos_per_person > 1:
        several = f" For a person with records in up to {plan.max_silos_per_person} clients it was ({for_person}, {delta!r})-differentially private."
    return (
        f"Training was ({shown}, {delta!r})-differentially private for {whom}: "
        f"the updates {evaluated}that clients sent would have been almost as likely without that {what}'s contribution.{several}"
    )


def persons(plan: Plan, silos: int | None = None) -> str:
    """The assumption of the figure for a person; ``silos``: in how many clients a person has records, default the plan's."""
    silos = plan.max_silos_per_person if silos is None else silos
    if not isinstance(plan, RecordPlan):
        return "for a person whose records lie in one client"
    if plan.person is not None:
        if silos == 1:
            return f"for a person with all its records in one client, {plan.person}"
        return f"for a person with records in up to {silos} clients, in each of them one {plan.person:short}; the clients' charges are composed"
    if silos == 1:
        return "for a person with one record in one client"
    return f"for a person with one record in each of up to {silos} clients; Renyi divergences are added order by order"
