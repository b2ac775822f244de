"""The sentences of a privacy statement: what holds, against whom, under which assumptions, and what is not protected.

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

TRUST = (
    "One Ray cluster is one trust domain: records are protected from everyone who sees models and metrics, "
    "not from code that runs in the cluster or from its operators."
)
ADJACENCY = {
    "zero_out": "zero-out: one {unit}'s contribution is replaced by nothing; the numbers of {unit}s are public",
    "replace_one": "replace-one: one {unit}'s contribution is replaced by any other; the numbers of {unit}s are public",
}
#: Beside every figure in words.
ROUNDING = "figures in words are rounded up, never down"

_NOT_COVERED = {
    "record": (
        "whole clients, and persons with several records in one client: the unit is one record",
        "that a client takes part, when, for how long, and how many records it holds (taken as public)",
    ),
    "client": (
        "groups of clients that act for one person: the unit is one client, taken to be one person's or one institution's",
        "that a client is in the population, and how many clients there are (taken as public)",
        "how long rounds take, how often actors die, and that a run stops because every client of several rounds in a row failed",
    ),
}
_NEVER_COVERED = (
    "error messages and tracebacks of clients, which stay inside the cluster's trust domain",
    "the driver's test records, which are taken as public",
    "choosing among several runs by their results on private records, unless all runs share one lasting ledger",
)
_SAMPLING = {
    "poisson": "each client joins each round by an independent secret coin of the public sampling rate, tossed by the program with a "
    "cryptographic generator; a round without clients is a round of noise and is charged",
    "fixed": "a cohort of fixed size, drawn without replacement by secret coins of a cryptographic generator",
    "all": "all clients take part in every round; nothing is amplified",
    "cyclic": "each client takes part once a pass, in an order that is known; nothing is amplified",
}
_UNAMPLIFIED = {
    "poisson": "each client joins each round by an independent coin of the public sampling rate; the headline charges each participation in full",
    "fixed": "a cohort of fixed size, drawn without replacement; the headline charges each participation in full",
}


def setting(plan: Plan) -> str:
    """Where noise is added: the model of differential privacy."""
    if isinstance(plan, RecordPlan):
        return "noise at each client, inside its local training (federated DP-SGD); the server need not be trusted with records"
    return {
        "client": "central: a trusted driver adds the noise to the sum of the clients' clipped updates",
        "local": "local: each client noises its own update before it leaves",
        "distributed": "distributed: each client adds a share of the noise to its own update; the shares add up in the sum",
    }[plan.regime]


def trust(plan: Plan) -> str:
    """Who is trusted."""
    return TRUST if isinstance(plan, RecordPlan) else f"{plan.mechanism.trust}. {TRUST}"


def against(plan: Plan) -> str:
    """Whom the guarantee holds against."""
    if isinstance(plan, RecordPlan):
        return "the server, the other clients, whoever sees the model, the metrics or the tracking store"
    if plan.regime == "client":
        return "the other clients, whoever sees the models or the metrics; not the driver"
    if plan.regime == "local":
        return "the driver, the other clients, whoever sees the models or the metrics"
    return (
        "the other clients, whoever sees the models or the metrics; not the driver and the actors, which add single updates up in the clear"
    )


def released(plan: Plan) -> str:
    """Which outputs the figure covers."""
    what = "every update that a client sends, " if isinstance(plan, RecordPlan) or plan.regime == "local" else ""
    return (
        f"{what}the model of every round and of the end, and whatever is computed from them and from public data "
        "(metrics on the driver's test records, plots, the registered model)"
    )


def accesses(plan: Plan) -> str:
    """Which uses of private records the figure covers."""
    return (
        "all local training of all rounds that were charged, retries and failed rounds included; nothing else reads private records but "
        "loading them, a normalisation by public constants or of each record by itself"
        + (", and the commitment that the ledger keeps of them (a salted hash)." if isinstance(plan, RecordPlan) else ".")
    )


def sampling(plan: Plan) -> str:
    """How records or clients come to take part."""
    if isinstance(plan, RecordPlan):
        return (
            "each record joins each step by an independent float64 coin of the public sampling rate, tossed by the program; "
            "empty batches are noise-only steps and are charged; there is no path with shuffled batches"
        )
    kind = plan.facts.sampling
    return _UNAMPLIFIED[kind] if plan.charging.whom == "participants" and kind in _UNAMPLIFIED else _SAMPLING[kind]


def not_covered(plan: Plan, claim: Claim) -> list[str]:
    """What the figure does not protect."""
    rounding = ["rounding of float32 arithmetic: the analysis is one of real numbers"] if _floats(plan) else []
    unprotected = [reason for reason in claim.reasons if reason.startswith("privacy.unprotected")]
    return [*_NOT_COVERED[plan.unit], *_NEVER_COVERED, *rounding, *unprotected]


def meaning(unit: str, adjacency: str, epsilon: float, delta: float, shown: str) -> str:
    """What the figure bounds, in words.

    Args:
        unit: record or client.
        adjacency: what the unit is compared with.
        epsilon: the headline.
        delta: its delta.
        shown: epsilon as it is printed.

    Source: Kairouz, Oh & Viswanath 2015, The Composition Theorem for Differential Privacy, theorem 2.1 (both kinds of error of a test)
    """
    ratio = math.exp(-epsilon)
    most = min(1.0, (1.0 + delta * ratio) / (1.0 + ratio))
    percent = min(100.0, math.ceil(most * 1e4) / 100)
    whose = "a given record" if unit == "record" else "a given client's records"
    whether = f"which of two versions of {whose}" if adjacency == "replace_one" else f"whether {whose}"
    rest = " That is next to no protection by the figure alone." if epsilon > 10 else ""
    return (
        f"whoever sees all that was released, and knows everything else, and should tell with even odds {whether} "
        f"contributed, is right in at most {percent:g} % of cases (epsilon {shown}, delta {delta!r}).{rest}"
    )


def _own_books(config: Config) -> set[bool]:
    """Whether books end with the run, over the protected units."""
    return {p.ledger == "run" for p in (config.privacy, config.privacy.joint) if p is not None}


def scope(config: Config) -> str:
    """Which runs' charges the figures add up."""
    alone = _own_books(config)
    if len(alone) > 1:
        own, other = ("records", "clients") if config.privacy.ledger == "run" else ("clients", "records")
        return f"for {own} this run alone; for {other} all runs that were charged to the same ledger"
    return "this run alone" if alone == {True} else "all runs that were charged to the same ledger"


def tuning(config: Config) -> str:
    """Whether the choice of settings is accounted for."""
    if True in _own_books(config):
        return (
            "Not accounted for: if settings were chosen by the results of other runs on the same private records, that choice cost privacy "
            "that is not in this figure; a lasting ledger would have counted those runs."
        )
    return (
        "Runs that were charged to the same ledger are composed in this figure, so settings that were tried in them are paid for; "
        "settings that were chosen by results on these records in any other way are not accounted for."
    )


def assumptions(plan: Plan) -> list[dict[str, Any]]:
    """What the accounting takes for granted, whether it holds in this run, and why: ``assumption``, ``holds``, ``because``."""
    secure = plan.rng != INSECURE_RNG
    generator = (
        f"drawn from {plan.rng}, fresh for every round and attempt" if secure else "noise and coins came from a seed and can be replayed"
    )
    return _record_assumptions(secure, generator) if isinstance(plan, RecordPlan) else _client_assumptions(plan, secure, generator)


def _holds(assumption: str, holds: bool, because: str) -> dict[str, Any]:
    return {"assumption": assumption, "holds": holds, "because": because}


_CHARGED = "every update carries a receipt of what was run, which is compared with the ledger's entry before the update is added"
_CONSTANTS = "they are constants of the config; that they were not chosen by looking at these records is the operator's word"


def _record_assumptions(secure: bool, generator: str) -> list[dict[str, Any]]:
    return [
        _holds(
            "batches are Poisson samples: each record joins each step independently with the stated probability",
            secure,
            f"the training loop tosses a coin for each record and step, {generator}; shuffled or fixed batches are refused",
        ),
        _holds(
            "one record moves a step's sum by at most the clip norm",
            True,
            "gradients are clipped record by record, norms added up in float64, a record with a non-finite gradient counts as zero; before "
            "training, the run's own model, loss and engine are tested by leaving out one synthetic record after the other",
        ),
        _holds("the noise is Gaussian of the stated deviation, and independent from step to step and client to client", secure, generator),
        _holds("as many steps were taken, at the rate and the noise that were charged", True, _CHARGED),
        _holds("sampling rate, steps, expected batch, clip norm and noise do not depend on the records", True, _CONSTANTS),
        _holds("arithmetic is exact", False, "float32 and float64 are used; attacks on the rounding of noise are not ruled out"),
    ]


def _client_assumptions(plan: ClientPlan, secure: bool, generator: str) -> list[dict[str, Any]]:
    facts, found = plan.facts, []
    if plan.amplified or plan.observers_rate is not None:
        kind = "Poisson samples" if facts.sampling == "poisson" else "uniform samples of fixed size"
        found.append(
            _holds(
                f"cohorts are {kind} of the population, and secret",
                secure,
                f"coins are {generator}; no cohort is logged or shown, but the driver and the actors know it" if secure else generator,
            )
        )
    if plan.observers_rate is not None:
        found.append(
            _holds(
                "a round fails for want of updates by its coins, or by chance, never by what one client's coin is",
                True,
                "the chance that one client's coin decides it is counted in the figure for observers; why clients fail is not known to it",
            )
        )
    if plan.charging.span > 1:
        found.append(
            _holds(
                f"a client takes part at most {plan.charging.most} time(s) in {plan.charging.span} rounds, {plan.charging.separation} rounds apart",
                True,
                "the driver lets nobody take part who may not, and stops the run if somebody did",
            )
        )
    found += [
        _holds(
            "one client moves the sum by at most the clip norm"
            + (" in each of two ways (replace-one)" if plan.adjacency == "replace_one" else ""),
            True,
            "each update is clipped as a whole in float64, with room for the grid's rounding; a non-finite update counts as zero",
        ),
        _holds("the noise has the stated law and deviation, and is independent from round to round", secure, generator),
    ]
    if plan.regime == "distributed":
        found.append(
            _holds(
                "nobody sees a single client's update, only sums of at least cohort.min_clients of them",
                False,
                "no secure sum was made: single updates carry only a share of the noise, and the driver and the actors could read them",
            )
        )
    if plan.regime != "local":
        found.append(_holds("the sum is divided by a constant, never by the number of clients that answered", True, _CONSTANTS))
    found.append(_holds("every release was charged before it was made", True, _CHARGED))
    exact = not _floats(plan)
    because = "sums are integers, and the noise is rounded to their grid" if exact else "float64 noise is added at the client"
    found.append(_holds("arithmetic is exact", exact, because + ("" if exact else "; attacks on its rounding are not ruled out")))
    return found


def _floats(plan: Plan) -> bool:
    return isinstance(plan, RecordPlan) or plan.regime == "local"


def exposure(config: Config) -> dict[str, Any]:
    """What of the private data is where, besides the guarantee: ``data``, ``access``, ``side_channels``."""
    dedicated = config.clients.placement == "dedicated"
    return {
        "data": (
            "each client's records are loaded by that client's own actor and do not leave it; with a file a silo nobody else opens it, "
            "with one source for all clients the driver reads that, too"
            if dedicated
            else "the driver's process reads all records and puts them into the cluster's shared memory: right for simulation, not for silos"
        ),
        "access": "whoever can run code in the cluster, or read its nodes' memory and disks, can read records; access control is the operator's",
        "side_channels": [
            "durations of rounds, and the load and traffic of nodes, depend on the data and are not protected"
            + ("; rows and MLflow are not told them where cohorts are secret" if config.privacy.whole_clients else ""),
            "which actors die, and that a client fails (named in the log), may depend on its data",
            "the ledger says who was charged in which round; it is kept by whoever runs the training"
            + ("" if not config.privacy.whole_clients else ", who must keep it to himself where cohorts are secret"),
        ],
    }


def implementation(records: bool) -> dict[str, str]:
    """On what the statement's truth rests besides mathematics; ``records``: whether local steps are protected, which are tested first."""
    return {
        "code": "clipping, sampling, noise and ledger are fedray's own, open source (Apache-2.0); accounting builds on dp-accounting",
        "checked": f"in this run: {'sensitivity before training, ' if records else ''}receipts against charges, the ledger's hash chain. `fedray ledger verify` "
        "recomputes every figure from the ledger's entries; `fedray audit` attacks the run and gives lower bounds",
        "not_checked": "nobody outside the project has certified the implementation, the hardware or the operating system",
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
        "what left any client would have been almost as likely without that record's contribution."
    )


def persons(unit: str, silos: int) -> str:
    """What the figure for a person takes for granted."""
    if unit == "client":
        return "for a person whose records lie in one client"
    if silos == 1:
        return "for a person with one record in one client"
    return f"for a person with one record in each of up to {silos} clients, by RDP added up order by order"
