"""The plan of a guarantee for whole clients: the run's public constants, and the noise multiplier that they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from fedray import components
from fedray.choices import Choice, Joint
from fedray.config import Config, Privacy
from fedray.errors import ConfigError, PrivacyRefusal, blaming
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Adjacency, Event, Poisson, rate
from fedray.privacy.cohortrules import check_cohort
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.mechanisms.base import Charging, Facts, Mechanism, Sampling
from fedray.privacy.mechanisms.clipping import split_noise
from fedray.privacy.recordplan import Purpose, RecordPlan, check_target, rng_of, terms_sha256
from fedray.rounding import three_digits

#: Shares of delta that the figure for observers may reserve for rounds that one client's coin decides; the first sufficient one is used.
_SHARES = (1e-6, 1e-4, 1e-2, 0.1, 0.5)
_DEFAULTS = {"client": "gaussian", "local": "local_gaussian", "distributed": "ddg"}


@dataclass(frozen=True)
class Adaptive:
    """Constants of an adaptive clip norm; see ``privacy.adaptive_clip``.

    ``noise_multiplier`` is the updates' own, after a part of the budget went to the bits that adapt the clip norm.
    """

    quantile: float
    rate: float
    bit_noise: float
    noise_multiplier: float


@dataclass(frozen=True)
class ClientPlan:
    """Public constants of a guarantee for whole clients. None of them depends on a client's data.

    Attributes:
        regime: ``client``, ``local`` or ``distributed``.
        kind: name of the mechanism.
        mechanism: the mechanism with its arguments.
        facts: population, cohorts and rounds.
        noise_multiplier: standard deviation of the noise on a round's sum, divided by the clip norm.
        adaptive: constants of the adaptive clip norm; None if the clip norm is fixed.
        weight_cap: number of records at which a client has full weight; None if every client has weight 1.
        denominator: constant by which the noised sum is divided.
        delta, target_epsilon: as in the config.
        budget: epsilon above which no subject may be charged; None if there is no limit.
        participations: planned charges of one subject.
        max_participations: number of charges after which a subject takes no further part; None if there is no such limit.
        accountant_version, interval, rng: see :class:`fedray.privacy.recordplan.RecordPlan`.
        observers_rate: sampling rate of the secret Poisson cohorts if each participation is charged as if its cohort were known; else None.
    """

    regime: str
    kind: str
    mechanism: Mechanism
    facts: Facts
    noise_multiplier: float
    adaptive: Adaptive | None
    weight_cap: int | None
    denominator: float
    delta: float
    budget: float | None
    target_epsilon: float | None
    participations: int
    max_participations: int | None
    accountant_version: str
    interval: float
    rng: str
    observers_rate: Fraction | None = None

    purpose: ClassVar[Purpose] = "training"
    unit: ClassVar[str] = "client"
    max_silos_per_person: ClassVar[int] = 1
    steps: ClassVar[int] = 1

    @cached_property
    def charging(self) -> Charging:
        """Who is charged, and how often."""
        return self.mechanism.charging(self.facts)

    @property
    def adjacency(self) -> Adjacency:
        """Neighbouring relation of the charged event."""
        return self.charging.adjacency

    @property
    def clip(self) -> float:
        """Clip norm of an update; the first one if the clip norm adapts."""
        return self.facts.clip

    def event(self, noise_multiplier: float | None = None, steps: int | None = None) -> Event:
        """The event of one charge, or what it would be with another noise multiplier. ``steps`` changes nothing: local steps are not charged here."""
        return self.mechanism.event(noise_multiplier or self.noise_multiplier, self.facts)

    def observers_epsilon(self, rounds: int) -> float | None:
        """Upper bound on epsilon after ``rounds`` rounds against observers who see the models and which rounds failed, but not the cohorts.

        None if the charges already count on secret cohorts. The bound assumes that lost updates do not depend on a client's coin.
        """
        if self.observers_rate is None:
            return None
        if not rounds:
            return 0.0
        event = Poisson(self.observers_rate, self.event())
        decisive = self._decisive(rounds, float(self.observers_rate))
        for share in _SHARES:
            found = accountant.bound({event: rounds}, self.delta * (1 - share), self.interval, self.adjacency)
            if found < math.log(1e300) and (1 + math.exp(found)) * decisive <= share * self.delta:
                return found
        return accountant.bound({self.event(): rounds}, self.delta, self.interval, self.adjacency)

    def _decisive(self, rounds: int, rate: float) -> float:
        """Probability p that in some round one client's coin alone decides whether the round has enough clients to count.

        Everyone sees whether a round counts. If the other clients suffice without this client, or do not suffice with it, this observation
        reveals nothing about the client, who is in the sum with probability ``rate``. If exactly one client is missing, the round counts if
        and only if this client takes part, and its participation is not amplified. Without such rounds the figure would be that of Poisson
        samples at delta (1 - share). Such rounds change both neighbours' probabilities by at most p, which adds (1 + e^epsilon) p to delta.
        """
        from scipy.stats import binom

        return float(min(1.0, rounds * rate * binom.pmf(self.facts.min_clients - 1, self.facts.clients - 1, rate)))

    @property
    def planned_epsilon(self) -> float:
        """Epsilon after all planned charges of a subject without earlier charges."""
        return accountant.bound({self.event(): self.participations}, self.delta, self.interval, self.adjacency)

    @property
    def amplified(self) -> bool:
        """Whether the charges rely on secret cohorts."""
        return self.charging.whom == "everyone" and self.facts.sampling in ("poisson", "fixed")

    @property
    def secret(self) -> bool:
        """Whether any figure relies on secret cohorts."""
        return self.amplified or self.observers_rate is not None

    def subjects(self, names: Sequence[str]) -> Sequence[str]:
        """The subjects that are charged in the book: everyone at once, or each client."""
        return [EVERYONE] if self.charging.whom == "everyone" else names

    def noise_std(self, clip: float) -> float | npt.NDArray[np.float64]:
        """Standard deviation of the driver's noise on each value of the sum at this clip norm, in units of the update; float64 ``[dimension + 1]`` if the clip norm adapts."""
        if self.adaptive is None:
            return self.noise_multiplier * clip
        std = np.full(self.facts.dimension + 1, self.adaptive.noise_multiplier * clip)
        std[-1] = self.adaptive.bit_noise
        return std

    def terms(self) -> dict[str, Any]:
        """The plan as JSON data, for ledgers and statements."""
        facts = {k: v for k, v in vars(self.facts).items() if k != "rate"}
        q = self.facts.rate
        return {
            "unit": self.unit,
            "adjacency": self.adjacency,
            "regime": self.regime,
            "mechanism": self.kind,
            "arguments": dict(vars(self.mechanism)),
            **facts,
            "client_sampling_rate": None if q is None else [q.numerator, q.denominator],
            "charged": self.charging.whom,
            "rounds_of_a_charge": self.charging.span,
            "separation": self.charging.separation,
            "noise_multiplier": self.noise_multiplier,
            "adaptive_clip": None if self.adaptive is None else dict(vars(self.adaptive)),
            "weight_cap": self.weight_cap,
            "denominator": self.denominator,
            "delta": self.delta,
            "budget": self.budget,
            "target_epsilon": self.target_epsilon,
            "participations": self.participations,
            "accountant": "pld",
            "accountant_version": self.accountant_version,
            "interval": self.interval,
            "rng": self.rng,
        }

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of :meth:`terms`."""
        return terms_sha256(self.terms())


Plan = RecordPlan | ClientPlan


def secret_cohorts(plans: Sequence[Plan]) -> bool:
    """Whether one plan needs secret cohorts while another, or the same one, charges each participant.

    If so, figures computed from the participants' charges reveal the cohorts and must not be published.
    """
    secret = any(p.secret for p in plans if isinstance(p, ClientPlan))
    return secret and any(isinstance(p, RecordPlan) or p.charging.whom == "participants" for p in plans)


def level(privacy: Privacy) -> Privacy | Joint:
    """The section with the constants of the guarantee for whole clients: ``privacy``, or ``privacy.joint`` if records are protected as well."""
    return privacy if privacy.joint is None else privacy.joint


def make_mechanism(privacy: Privacy) -> tuple[str, Mechanism]:
    """The configured mechanism with its arguments.

    Raises:
        ConfigError: the mechanism is unknown, belongs to another regime, or has wrong arguments.
        PrivacyRefusal: it needs one clip norm for all rounds, and the section lets it adapt.
    """
    regime = privacy.whole_clients
    assert regime is not None
    part = privacy.mechanism or Choice(kind=_DEFAULTS[regime])
    factory = components.configured(components.MECHANISMS, part.kind, part.arguments)
    with blaming(f"privacy.mechanism.kind: '{part.kind}'"):
        made = factory()
    if not isinstance(made, Mechanism):
        raise ConfigError(f"privacy.mechanism.kind: '{part.kind}' is no subclass of fedray.privacy.mechanisms.base.Mechanism; name one.")
    if made.regime != regime:
        others = [n for n, m in components.MECHANISMS.parts().items() if m.regime == regime]
        raise ConfigError(
            f"privacy.mechanism.kind: '{part.kind}' is for privacy.regime {made.regime}, not {regime}; use {' or '.join(sorted(others))}."
        )
    if privacy.adaptive_clip is not None and part.kind != "gaussian":
        raise PrivacyRefusal(
            f"privacy.adaptive_clip: the mechanism '{part.kind}' needs one clip norm for all rounds; use privacy.regime=client with gaussian, or "
            "privacy.adaptive_clip=null.",
            f"privacy.incompatible.{part.kind}.adaptive_clip",
        )
    return part.kind, made


def plan_clients(config: Config, clients: int, dimension: int, grid: int, largest_rate: float = 1.0, one_rate: bool = True) -> ClientPlan:
    """The plan of a run in which whole clients are protected.

    Args:
        config: the run, with a regime that protects whole clients.
        clients: public size of the population.
        dimension: number of values of an update; local guarantees do not depend on it.
        grid: number of fraction bits of the exact sum.
        largest_rate: the largest rate factor of any group of clients, at which everyone is charged.
        one_rate: whether all groups have this rate factor; if not, no figure is given for observers who do not know the cohorts.

    Raises:
        ConfigError: a key is missing or contradicts another key.
        PrivacyRefusal: delta is too large for the population.
    """
    privacy = config.privacy
    regime, (kind, mechanism), own = privacy.whole_clients, make_mechanism(privacy), level(privacy)
    assert regime is not None
    path = "privacy" if own is privacy else "privacy.joint"
    if own.delta is None:
        raise ConfigError(f"{path}.delta: is needed with privacy.regime {regime}; 1 / (10 x {clients} clients) or less.")
    if own.delta * 10 * clients > 1 + 1e-9:
        raise PrivacyRefusal(
            f"{path}.delta: {own.delta:g} is more than 1 / (10 x {clients} clients), so whole clients might be given away within delta; "
            f"set {path}.delta={three_digits(1 / (10 * clients)):g} or less.",
            "privacy.delta.too_large",
        )
    check_target(own, path)
    facts = _facts(config, clients, dimension, grid, largest_rate, own)
    mechanism.check(facts)
    charging = mechanism.charging(facts)
    _check_limits(own, charging, path)
    _check_enough_clients(facts, charging)
    participations = _participations(facts, charging)
    noise = own.noise_multiplier
    if noise is None:
        noise = _calibrate(lambda z: mechanism.event(z, facts), participations, own.delta, own.target_epsilon or 0.0, charging, clients)
    denominator = privacy.denominator or facts.cohort
    secret = charging.whom == "participants" and regime == "distributed" and facts.cap is None and one_rate
    return ClientPlan(
        regime=regime,
        kind=kind,
        mechanism=mechanism,
        facts=facts,
        noise_multiplier=float(noise),
        adaptive=_adaptive(privacy, float(noise), facts),
        weight_cap=privacy.weight_cap,
        denominator=float(denominator),
        delta=own.delta,
        budget=own.budget if own.budget is not None else own.target_epsilon,
        target_epsilon=own.target_epsilon,
        participations=participations,
        max_participations=own.max_participations if charging.whom == "participants" else None,
        accountant_version=accountant.accountant_version(),
        interval=accountant.INTERVAL,
        rng=rng_of(config),
        observers_rate=facts.rate if secret else None,
    )


def _calibrate(event: Any, count: int, delta: float, target: float, charging: Charging, clients: int) -> float:
    try:
        return accountant.calibrate(event, count, delta, target, adjacency=charging.adjacency)
    except ConfigError as error:
        raise ConfigError(f"{error} Whole clients need many of them: there are {clients}.") from None


def _facts(config: Config, clients: int, dimension: int, grid: int, largest_rate: float, own: Privacy | Joint) -> Facts:
    cohort, arguments = config.cohort, config.cohort.arguments
    check_cohort(config, weighs=False, reads=False)
    q, expected = None, float(clients)
    if cohort.kind == "poisson":
        q = min(Fraction(1), rate(float(arguments["fraction"])) * rate(float(largest_rate)))
        expected = float(q) * clients
    elif cohort.kind in ("fixed", "cyclic"):
        expected = float(arguments.get("size") or max(round(float(arguments.get("fraction", 1.0)) * clients), 1))
    return Facts(
        clients=clients,
        sampling=cast(Sampling, cohort.kind),
        rate=q,
        cohort=expected,
        cap=arguments.get("cap"),
        rounds=config.rounds,
        max_participations=own.max_participations,
        min_clients=cohort.min_clients,
        dimension=0 if config.privacy.whole_clients == "local" else dimension,
        clip=float(own.clip),
        grid=grid,
    )


def _check_limits(own: Privacy | Joint, charging: Charging, path: str) -> None:
    if own.max_participations is not None and charging.whom == "everyone" and charging.span == 1:
        raise ConfigError(
            f"{path}.max_participations: every round is charged to every client here, whether its secret coin fell or not, so there are no "
            "participations to limit; plan fewer rounds, or set a budget."
        )


def _check_enough_clients(facts: Facts, charging: Charging) -> None:
    """Refuse bounds on participation that leave later rounds of a charge without clients."""
    longest = min(charging.separation, charging.span)
    if charging.span == 1 or (facts.cohort * longest <= facts.clients and facts.cohort * charging.span <= facts.clients * charging.most):
        return
    most = min(facts.clients / longest, facts.clients * charging.most / charging.span)
    raise ConfigError(
        f"privacy.mechanism: in {charging.span} rounds each of {facts.clients} clients may take part {charging.most} time(s), {charging.separation} "
        f"rounds apart, so cohorts of {facts.cohort:g} would run out of clients; take cohorts of at most {math.floor(most)} (cohort.kind=cyclic), "
        "a smaller restart_every, or a smaller band."
    )


def _participations(facts: Facts, charging: Charging) -> int:
    if charging.whom == "everyone":
        return math.ceil(facts.rounds / charging.span)
    possible = facts.rounds if facts.sampling != "cyclic" else math.ceil(facts.rounds / math.ceil(facts.clients / facts.cohort))
    return min(possible, facts.max_participations or possible)


def _adaptive(privacy: Privacy, noise_multiplier: float, facts: Facts) -> Adaptive | None:
    section = privacy.adaptive_clip
    if section is None:
        return None
    bit_noise = section.bit_noise if section.bit_noise is not None else facts.cohort / 20
    return Adaptive(section.quantile, section.rate, bit_noise, split_noise(noise_multiplier, bit_noise))
