"""The assumptions of a privacy statement's accounting, whether each holds in the run, and because of what."""

from __future__ import annotations

from typing import Any

from fedray.privacy import evaluationtext
from fedray.privacy.clientplan import ClientPlan, Plan
from fedray.privacy.recordplan import INSECURE_RNG, RecordPlan, clips_persons


def assumptions(plan: Plan) -> list[dict[str, Any]]:
    """The assumptions of the accounting: ``assumption``, whether it ``holds`` in this run, and ``because`` of what."""
    secure = plan.rng != INSECURE_RNG
    generator = (
        f"drawn from {plan.rng}, with a new key for every round and attempt"
        if secure
        else "noise and coins came from a seed and can be replayed"
    )
    return _record_assumptions(plan, secure, generator) if isinstance(plan, RecordPlan) else _client_assumptions(plan, secure, generator)


def _holds(assumption: str, holds: bool, because: str) -> dict[str, Any]:
    return {"assumption": assumption, "holds": holds, "because": because}


_CHARGED = "every update carries a receipt of what was run, and the receipt is compared with the ledger's entry before the update is added"
_CONSTANTS = "they are constants of the config; the operator is trusted not to have chosen them by looking at these records"


def _record_assumptions(plan: RecordPlan, secure: bool, generator: str) -> list[dict[str, Any]]:
    one = "person" if clips_persons(plan) else "record"
    return [
        _holds(
            f"batches are Poisson samples: each {one} joins each step independently with the stated probability",
            secure,
            f"the training loop tosses one coin per {one} and step, {generator}; shuffled and fixed batches are refused",
        ),
        _holds(
            f"one {one} changes a step's sum by at most the clip norm",
            True,
            f"the {'mean gradient of each person' if one == 'person' else 'gradient of each record'} is clipped, with norms in float64, and a "
            "non-finite gradient counts as zero; before training, the run's own model, loss and engine are tested on synthetic records, of which "
            f"{'the records of each person are' if one == 'person' else 'each is'} left out in turn",
        ),
        *_person_assumptions(plan),
        _holds("the noise is Gaussian with the stated standard deviation, and independent across steps and clients", secure, generator),
        _holds("the steps that ran had the number, sampling rate and noise multiplier that were charged", True, _CHARGED),
        _holds("sampling rate, steps, expected batch, clip norm and noise do not depend on the records", True, _CONSTANTS),
        *([] if plan.evaluations is None else evaluationtext.assumptions()),
        _holds("arithmetic is exact", False, "float32 and float64 are used, so attacks on the rounding of noise are not excluded"),
    ]


def _person_assumptions(plan: RecordPlan) -> list[dict[str, Any]]:
    if plan.person is None:
        return []
    found = [
        _holds(
            "records of one person are known to be so",
            True,
            "the data's owner names the column (data.person), and a record without a person is refused",
        )
    ]
    if plan.person.records is not None:
        found.append(
            _holds(
                f"at most {plan.person.records} records of a person take part in a turn, and each joins a step by a coin of its own",
                True,
                "the training loop draws them anew for each turn; that other turns draw others changes no figure, because each turn is charged "
                "for as many records as it uses",
            )
        )
    return found


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
    exact = not floats(plan)
    because = (
        "sums are integers, and the noise is rounded to their grid"
        if exact
        else "float64 noise is added at the client, so attacks on its rounding are not excluded"
    )
    found.append(_holds("arithmetic is exact", exact, because))
    return found


def floats(plan: Plan) -> bool:
    """Whether noise is added in floating point."""
    return isinstance(plan, RecordPlan) or plan.regime == "local"
