"""The plan of record-level DP-SGD at each client: the run's public constants, and the noise multiplier that they need.

The unit is one record, or one person, of one client under zero-out adjacency. A round of participation is ``steps`` Poisson-sampled steps, each with
clipped gradients and Gaussian noise. Clients send functions of noised gradients only, so the guarantee holds against the server, the
other clients and everyone who sees the model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from fedray.choices import Joint
from fedray.config import Config, Privacy, Training
from fedray.errors import ClaimVoid, ConfigError, PrivacyRefusal
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Adjacency, Event, Gaussian, Poisson, PoissonGroup, SelfComposed, rate
from fedray.privacy.evaluations import Evaluations
from fedray.privacy.persons import Person
from fedray.rounding import as_given, rounded_up, three_digits

SECURE_RNG = "aes-256-ctr keyed by the operating system"
INSECURE_RNG = "insecure seed (tests only)"

History = list[tuple[float, float, int]]

#: What a charge is for. Only those for training count as participations.
Purpose = Literal["training", "query", "evaluation"]


class Charged(Protocol):
    """What is charged to records or persons: a run's plan, or a query's."""

    @property
    def delta(self) -> float:
        """Delta of the guarantee."""

    @property
    def unit(self) -> str:
        """Protected unit."""


@dataclass(frozen=True)
class RecordPlan:
    """Public constants of record-level DP-SGD. None of them depends on a client's records.

    Attributes:
        sampling_rate: exact probability with which a record (a person, if its gradients are clipped as one) joins a step.
        steps: noised steps in one round of participation.
        expected_batch: constant by which a step's noised sum is divided, in records (or persons).
        noise_multiplier: standard deviation of the noise on a step's sum, divided by ``clip``.
        clip: L2 bound of one record's (or person's) gradient over all trained parameters.
        delta: delta of the (epsilon, delta) guarantee.
        budget: epsilon above which no client may be charged; None if there is no limit.
        target_epsilon: epsilon that the noise multiplier was calibrated to; None if the config gave the noise multiplier.
        participations: planned rounds of participation of one client.
        max_participations: number of rounds after which a client takes no further part; None if it may take part in all rounds.
        max_silos_per_person: largest number of clients in which one person has a record.
        accountant: accountant that computes refusals and the headline epsilon.
        accountant_version: name and version of the accounting library.
        interval: grid spacing of the privacy-loss distribution.
        rng: source of noise and sampling coins, in words.
        clipping: ``flat`` clips all trained parameters jointly; ``per_layer`` clips each of n parameter tensors to clip / sqrt(n).
        person: how much of a person takes part, if the unit is a person; None if it is a record.
        evaluations: what is charged for evaluations beside the training; None if nothing is.
    """

    sampling_rate: Fraction
    steps: int
    expected_batch: float
    noise_multiplier: float
    clip: float
    delta: float
    budget: float | None
    target_epsilon: float | None
    participations: int
    max_participations: int | None
    max_silos_per_person: int
    accountant: str
    accountant_version: str
    interval: float
    rng: str
    clipping: Literal["flat", "per_layer"] = "flat"
    person: Person | None = None
    evaluations: Evaluations | None = None

    purpose: ClassVar[Purpose] = "training"
    adjacency: ClassVar[Adjacency] = "zero_out"

    @property
    def unit(self) -> str:
        """Protected unit, ``record`` or ``person``."""
        return "record" if self.person is None else "person"

    def event(self, noise_multiplier: float | None = None, steps: int | None = None) -> Event:
        """The event that one round of participation is charged, or would be with another noise multiplier or fewer steps."""
        return _event(self.sampling_rate, steps or self.steps, noise_multiplier or self.noise_multiplier, self.person)

    def history(self, steps: int | None = None) -> History:
        """The steps that the engine must have counted in one round, by the charged event: [(noise multiplier, sampling rate, steps)]."""
        charged = dpsgd_terms(self.event(steps=steps))
        return [] if charged is None else [(charged.noise_multiplier, float(charged.sampling_rate), charged.steps)]

    @property
    def planned_epsilon(self) -> float:
        """Epsilon after all planned participations, and evaluations, of a client without earlier charges."""
        return accountant.bound(self.planned(), self.delta, self.interval)

    def planned(self) -> dict[Event, int]:
        """All planned charges of a client."""
        return {self.event(): self.participations, **dict(self.evaluations.composition() if self.evaluations else ())}

    def terms(self) -> dict[str, Any]:
        """The plan as JSON data, for ledgers and statements."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["sampling_rate"] = [self.sampling_rate.numerator, self.sampling_rate.denominator]
        person = values.pop("person")
        values |= {} if person is None else {"person": person.terms()}
        evaluations = values.pop("evaluations")
        values |= {} if evaluations is None else {"evaluations": evaluations.terms()}
        return {"unit": self.unit, "adjacency": self.adjacency, "regime": "record", **values}

    @classmethod
    def of(cls, terms: Mapping[str, Any]) -> RecordPlan:
        """The plan of :meth:`terms`."""
        values = {field.name: terms[field.name] for field in fields(cls) if field.name not in ("person", "evaluations")}
        parts = {"person": Person.of(terms.get("person")), "evaluations": Evaluations.from_terms(terms.get("evaluations"))}
        return cls(**values | parts | {"sampling_rate": Fraction(*terms["sampling_rate"])})

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of :meth:`terms`."""
        return terms_sha256(self.terms())


def clips_persons(plan: object) -> bool:
    """Whether the plan is one by which a person's gradients are clipped as one."""
    return isinstance(plan, RecordPlan) and plan.person is not None and plan.person.clipped


def terms_sha256(terms: Mapping[str, Any]) -> str:
    """SHA-256 of a plan's terms as canonical JSON (sorted keys, no blanks), in hex."""
    return hashlib.sha256(json.dumps(terms, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class DpSgdTerms(NamedTuple):
    """The parameters of DP-SGD's event; ``person_records``: of one person in a turn, None if the event does not count them."""

    steps: int
    sampling_rate: Fraction
    noise_multiplier: float
    person_records: int | None = None


def dpsgd_terms(event: Event | None) -> DpSgdTerms | None:
    """The number of steps that an event charges, with their rate and noise multiplier; None if it is no event of DP-SGD."""
    steps, of = (event.count, event.of) if isinstance(event, SelfComposed) else (1, event)
    if isinstance(of, Poisson) and isinstance(of.of, Gaussian):
        return DpSgdTerms(steps, of.q, of.of.noise_multiplier)
    if isinstance(of, PoissonGroup):
        return DpSgdTerms(steps, of.q, of.noise_multiplier, of.size)
    return None


def _event(q: Fraction, steps: int, noise_multiplier: float, person: Person | None) -> Event:
    step = Poisson(q, Gaussian(noise_multiplier)) if person is None else person.event(q, noise_multiplier)
    return SelfComposed(steps, step)


def plan_record(config: Config, training: Training | None = None, every: int = 1) -> RecordPlan:
    """The plan of a run, or of a group of clients with its own training settings.

    Args:
        config: the run, with ``privacy.regime: record``.
        training: the group's training section; default the run's section.
        every: rounds from one in which its clients can take part to the next.

    Raises:
        ConfigError: a key is missing or contradicts another key.
        PrivacyRefusal: the config asks for shuffled batches, which no accountant bounds.
    """
    training, privacy = training or config.training, config.privacy
    if training.sampling_rate is None and training.batch_size is not None:
        size, epochs = training.batch_size, "" if training.epochs is None else " and epochs"
        raise PrivacyRefusal(
            "training.batch_size: shuffled batches are not the independent sampling that epsilon is computed for; "
            f"replace batch_size={size}{epochs} by training.sampling_rate (about {size} over a client's records), "
            f"training.expected_batch={size} and training.steps.",
            "privacy.incompatible.record.shuffled_batches",
        )
    needed = {
        "training.sampling_rate": training.sampling_rate,
        "training.steps": training.steps,
        "training.expected_batch": training.expected_batch,
        "privacy.delta": privacy.delta,
    }
    missing = [key for key, value in needed.items() if value is None]
    if missing:
        raise ConfigError(f"privacy.regime: record needs {', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}.")
    check_target(privacy, "privacy")
    q, steps, delta = rate(training.sampling_rate or 0.0), training.steps or 0, privacy.delta or 0.0
    possible = math.ceil(config.rounds / every)
    participations = min(possible, privacy.max_participations or possible)
    noise, person = privacy.noise_multiplier, Person.of(None if privacy.person is None else privacy.person.model_dump())
    evaluations = Evaluations.of(config)
    if noise is None:
        beside = {} if evaluations is None else _beside(evaluations, delta, privacy.target_epsilon or 0.0)
        event = partial(_event, q, steps, person=person)
        noise = accountant.calibrate(event, participations, delta, privacy.target_epsilon or 0.0, spent=beside)
    return RecordPlan(
        sampling_rate=q,
        steps=steps,
        expected_batch=float(training.expected_batch or 0.0),
        noise_multiplier=float(noise),
        clip=float(privacy.clip),
        delta=delta,
        budget=privacy.budget if privacy.budget is not None else privacy.target_epsilon,
        target_epsilon=privacy.target_epsilon,
        participations=participations,
        max_participations=privacy.max_participations,
        max_silos_per_person=privacy.max_silos_per_person,
        accountant="pld",
        accountant_version=accountant.accountant_version(),
        interval=accountant.INTERVAL,
        rng=rng_of(config),
        clipping=privacy.clipping,
        person=person,
        evaluations=evaluations,
    )


def _beside(evaluations: Evaluations, delta: float, target: float) -> dict[Event, int]:
    """What evaluations are charged, for which the training's noise leaves room.

    Raises:
        ConfigError: they leave nothing of the target.
    """
    charges = dict(evaluations.composition())
    alone = accountant.bound(charges, delta)
    if alone >= target:
        raise ConfigError(
            f"evaluation.charged.noise_multiplier: {evaluations.count()} evaluations alone cost epsilon {rounded_up(alone)}, and "
            f"privacy.target_epsilon={as_given(target)} is to cover the training too; raise the noise multiplier, evaluate in fewer rounds "
            "(evaluation.every, 0 = once), or raise the target."
        )
    return charges


def check_target(section: Privacy | Joint, path: str) -> None:
    """Refuse a section, at ``path`` in the config, that gives both or neither of target epsilon and noise multiplier.

    Raises:
        ConfigError: the section does so.
    """
    if (section.target_epsilon is None) == (section.noise_multiplier is None):
        given = "neither of them is" if section.target_epsilon is None else "both of them are"
        raise ConfigError(
            f"{path}.target_epsilon, {path}.noise_multiplier: {given} given; "
            "give exactly one (the target finds the noise, the noise gives the epsilon)."
        )


def rng_of(config: Config) -> str:
    """The source of noise and sampling coins, in words."""
    return SECURE_RNG if config.privacy.insecure_seed is None else INSECURE_RNG


def check_delta(plan: Charged, sizes: Mapping[str, int]) -> None:
    """Refuse a delta above 1 / (10 x records) of the largest client, or 1 / (10 x persons) if the unit is a person.

    Args:
        plan: the plan of these clients.
        sizes: each client's number of training records (or of persons who have some), which zero-out adjacency takes as public.

    Raises:
        PrivacyRefusal: delta is too large; the sentence names the largest client and the largest legal delta.
    """
    if not sizes:
        return
    client, units = max(sizes.items(), key=lambda item: item[1])
    if units and plan.delta * 10 * units > 1 + 1e-9:
        legal = 1 / (10 * units)
        raise PrivacyRefusal(
            f"privacy.delta: {plan.delta:g} is more than 1 / (10 x {units} {plan.unit}s) of client '{client}', so whole {plan.unit}s might be "
            f"given away within delta; set privacy.delta={three_digits(legal):g} or less.",
            "privacy.delta.too_large",
        )


def check_history(history: Sequence[Sequence[float]] | None, plan: RecordPlan, steps: int | None = None) -> None:
    """Compare the steps that the engine counted in one local round with the charged ones.

    Args:
        history: the engine's count: [(noise multiplier, sampling rate, steps)].
        plan: the client's plan.
        steps: number of charged steps; None if it is the plan's.

    Raises:
        ClaimVoid: the two differ.
    """
    seen = [tuple(row) for row in history or []]
    if seen != plan.history(steps):
        raise ClaimVoid(
            f"a local round ran {seen or 'no noised step'} as (noise multiplier, sampling rate, steps), but {plan.history(steps)} was charged; "
            "its update must not be used."
        )
