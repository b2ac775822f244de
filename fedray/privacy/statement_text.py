"""The sentences of a privacy statement: the guarantee, the adversary, the assumptions, and what stays unprotected.

Sources: Ponomareva et al. 2023, How to DP-fy ML, section 5.3 (what to report); NIST SP 800-226 (2025), Guidelines for Evaluating
Differential Privacy Guarantees (unit, trust model, exposure of collected data, side channels, validity of the implementation)
"""

from __future__ import annotations

import math
from typing import Any

from fedray.config import Config
from fedray.privacy.clientplan import ClientPlan, Plan
from fedray.privacy.recordplan import INSECURE_RNG, RecordPlan
from fedray.privacy.rules import Claim
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
    return (
        f"{what}the model after every round, the final model, and everything computed from them and from public data "
        "(metrics on the driver's test records, plots, the registered model)"
    )


def accesses(plan: Plan) -> str:
    """The uses of private records that the guarantee covers."""
    return (
        "local training in all charged rounds, including retries and failed rounds. Besides, private records are only read to load them and "
        "to normalise each record by public constants or by itself"
        + (", and to compute the salted hash that commits the ledger to them." if isinstance(plan, RecordPlan) else ".")
    )


def sampling(plan: Plan) -> str:
    """How records or clients are sampled."""
    if isinstance(plan, RecordPlan):
        return (
            "each record joins each step independently with the public sampling rate; the coins are float64 draws of the training loop; "
            "a step with an empty batch adds noise alone and is charged; shuffled batches are not offered"
        )
    kind = plan.facts.sampling
    return _UNAMPLIFIED[kind] if plan.charging.whom == "participants" and kind in _UNAMPLIFIED else _SAMPLING[kind]


def not_covered(plan: Plan, claim: Claim) -> list[str]:
    """What the guarantee does not protect."""
    rounding = ["information in the rounding of float32 arithmetic, because the analysis assumes real numbers"] if _floats(plan) else []
    unprotected = [reason for reason in claim.reasons if reason.startswith("privacy.unprotected")]
    return [*_NOT_COVERED[plan.unit], *_NEVER_COVERED, *rounding, *unprotected]


def meaning(unit: str, adjacency: str, epsilon: float, delta: float, shown: str) -> str:
    """The largest success probability of an adversary that the guarantee allows, as a sentence.

    Args:
        unit: ``record`` or ``client``.
        adjacency: neighbouring relation of the guarantee.
        epsilon: headline epsilon.
        delta: its delta.
        shown: epsilon as it is printed.

    Source: Kairouz, Oh & Viswanath 2015, The Composition Theorem for Differential Privacy, theorem 2.1 (both kinds of error of a test)
    """
    ratio = math.exp(-epsilon)
    most = min(1.0, (1.0 + delta * ratio) / (1.0 + ratio))
    percent = min(100.0, math.ceil(most * 1e4) / 100)
    whose, used = ("a given record", "was used") if unit == "record" else ("a given client's records", "were used")
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


def assumptions(plan: Plan) -> list[dict[str, Any]]:
    """The assumptions of the accounting: ``assumption``, whether it ``holds`` in this run, and ``because`` of what."""
    secure = plan.rng != INSECURE_RNG
    generator = (
        f"drawn from {plan.rng}, with a new key for every round and attempt"
        if secure
        else "noise and coins came from a seed and can be replayed"
    )
    return _record_assumptions(secure, generator) if isinstance(plan, RecordPlan) else _client_assumptions(plan, secure, generator)


def _holds(assumption: str, holds: bool, because: str) -> dict[str, Any]:
    return {"assumption": assumption, "holds": holds, "because": because}


_CHARGED = "every update carries a receipt of what was run, and the receipt is compared with the ledger's entry before the update is added"
_CONSTANTS = "they are constants of the config; the operator is trusted not to have chosen them by looking at these records"


def _record_assumptions(secure: bool, generator: str) -> list[dict[str, Any]]:
    return [
        _holds(
            "batches are Poisson samples: each record joins each step independently with the stated probability",
            secure,
            f"the training loop tosses one coin per record and step, {generator}; shuffled and fixed batches are refused",
        ),
        _holds(
            "one record changes a step's sum by at most the clip norm",
            True,
            "the gradient of each record is clipped, with norms in float64, and a non-finite gradient counts as zero; before training, the "
            "run's own model, loss and engine are tested on synthetic records, of which each is left out in turn",
        ),
        _holds("the noise is Gaussian with the stated standard deviation, and independent across steps and clients", secure, generator),
        _holds("the steps that ran had the number, sampling rate and noise multiplier that were charged", True, _CHARGED),
        _holds("sampling rate, steps, expected batch, clip norm and noise do not depend on the records", True, _CONSTANTS),
        _holds("arithmetic is exact", False, "float32 and float64 are used, so attacks on the rounding of noise are not excluded"),
    ]


def _client_assumptions(plan: ClientPlan, secure: bool, generator: str) -> list[dict[str, Any]]:
    facts, found = plan.facts, []
    if plan.amplified or plan.observers_rate is not None:
        kind = "Poisson samples" if facts.sampling == "poisson" else "uniform samples of fixed size"
        found.append(
            _holds(
                f"cohorts are {kind} of the population, and secret",
                secure,
                f"coins are {generator}; cohorts are neither logged nor shown, but the driver and the actors know them"
                if secure
                else generator,
            )
        )
    if plan.observers_rate is not None:
        found.append(
            _holds(
                "whether a round has too few updates depends on its coins and on chance, but clients do not fail because of another client's coin",
                True,
                "the figure for observers includes the probability that one client's coin decides; it cannot know why clients fail",
            )
        )
    if plan.charging.span > 1:
        found.append(
            _holds(
                f"a client takes part at most {plan.charging.most} time(s) in {plan.charging.span} rounds, {plan.charging.separation} or more rounds apart",
                True,
                "the driver draws only from the clients that may take part, and stops the run if another client did",
            )
        )
    found += [
        _holds(
            "one client changes the sum by at most the clip norm"
            + (" with each of its two contributions (replace-one)" if plan.adjacency == "replace_one" else ""),
            True,
            "each update is clipped as a whole in float64, with a margin for the grid's rounding; a non-finite update counts as zero",
        ),
        _holds("the noise has the stated distribution and standard deviation, and is independent across rounds", secure, generator),
    ]
    if plan.regime == "distributed":
        found.append(
            _holds(
                "nobody sees a single client's update, only sums of at least cohort.min_clients updates",
                False,
                "no secure sum was made: a single update carries only a share of the noise, and the driver and the actors could read it",
            )
        )
    if plan.regime != "local":
        found.append(_holds("the sum is divided by a constant, not by the number of clients that answered", True, _CONSTANTS))
    found.append(_holds("every release was charged beforehand", True, _CHARGED))
    exact = not _floats(plan)
    because = (
        "sums are integers, and the noise is rounded to their grid"
        if exact
        else "float64 noise is added at the client, so attacks on its rounding are not excluded"
    )
    found.append(_holds("arithmetic is exact", exact, because))
    return found


def _floats(plan: Plan) -> bool:
    return isinstance(plan, RecordPlan) or plan.regime == "local"


def exposure(config: Config) -> dict[str, Any]:
    """Who can read private data regardless of the guarantee: where the ``data`` is, who has ``access``, and the ``side_channels``."""
    dedicated = config.clients.placement == "dedicated"
    return {
        "data": (
            "each client's records are loaded by that client's own actor and do not leave it; if each silo has its own file, no other process "
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


def sentence(unit: str, shown: str, delta: float, claim: Claim) -> str:
    """The formal statement."""
    if not claim.valid:
        return f"No guarantee is claimed: the charges amount to epsilon {shown} at delta {delta!r}, but the claim is void."
    if unit == "client":
        return (
            f"Training was ({shown}, {delta!r})-differentially private for every client with all its records: "
            "the models and figures that were released would have been almost as likely without that client's contribution."
        )
    return (
        f"Training was ({shown}, {delta!r})-differentially private for every single record of every client: "
        "the updates that clients sent would have been almost as likely without that record's contribution."
    )


def persons(unit: str, silos: int) -> str:
    """The assumption of the figure for a person."""
    if unit == "client":
        return "for a person whose records lie in one client"
    if silos == 1:
        return "for a person with one record in one client"
    return f"for a person with one record in each of up to {silos} clients; Renyi divergences are added order by order"
