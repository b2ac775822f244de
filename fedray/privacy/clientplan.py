"""Privacy of whole clients: the public constants of a run, and the noise that they need."""

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
from fedray.config import Choice, Config, Joint, Privacy
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.accountant import Adjacency
from fedray.privacy.accounting.events import Event, Poisson, rate
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.mechanisms.base import Charging, Facts, Mechanism, Sampling
from fedray.privacy.mechanisms.clipping import split_noise
from fedray.privacy.recordplan import RecordPlan, rng_of, rounded_down, terms_sha256

#: Of delta, what the figure for observers may leave for rounds that one client's coin decides; the first that suffices is taken.
_SHARES = (1e-6, 1e-4, 1e-2, 0.1, 0.5)
_DEFAULTS = {"client": "gaussian", "local": "local_gaussian", "distributed": "ddg"}


@dataclass(frozen=True)
class Adaptive:
    """Constants of an adaptive clip norm; see ``privacy.adaptive_clip``. ``noise_multiplier`` is that of the updates after the split."""

    quantile: float
    rate: float
    bit_noise: float
    noise_multiplier: float


@dataclass(frozen=True)
class ClientPlan:
    """Public constants of a guarantee for whole clients; nothing in here depends on a client's data.

    Attributes:
        regime: client, local or distributed.
        kind: the mechanism's name.
        mechanism: the mechanism with its arguments.
        facts: population, cohorts, rounds.
        noise_multiplier: of a round's whole event: noise standard deviation on the sum over the clip norm.
        adaptive: where the clip norm follows the norms.
        weight_cap: records at which a client counts fully; None: each client counts 1.
        denominator: what the noised sum is divided by.
        delta, budget, target_epsilon: as in the config, the budget resolved.
        participations: charges that the plan counts on for one subject.
        max_participations: charges after which a subject leaves; None: no such limit.
        accountant_version, interval, rng: see :class:`fedray.privacy.recordplan.RecordPlan`.
        observers_rate: where each participation is charged as if its cohort were known, the rate of the secret Poisson cohorts; else None.
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

    unit: ClassVar[str] = "client"
    max_silos_per_person: ClassVar[int] = 1
    steps: ClassVar[int] = 1

    @cached_property
    def charging(self) -> Charging:
        """Who is charged, how often."""
        return self.mechanism.charging(self.facts)

    @property
    def adjacency(self) -> Adjacency:
        """Of the event."""
        return self.charging.adjacency

    @property
    def clip(self) -> float:
        """Clip norm of an update, the first where it adapts."""
        return self.facts.clip

    def event(self, noise_multiplier: float | None = None, steps: int | None = None) -> Event:
        """What one charge costs; with another noise, what it would cost. ``steps`` changes nothing: they are not what is charged."""
        return self.mechanism.event(noise_multiplier or self.noise_multiplier, self.facts)

    def observers_epsilon(self, rounds: int) -> float | None:
        """Epsilon after ``rounds`` rounds against those who see the models, and which rounds failed, but not the cohorts; an upper bound.

        None where the charges say it already. Updates are taken to be lost by chance, not by what a client's coin is.
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
        """Chance that in any round a client's coin alone decides whether there are enough clients for the round to count.

        Everyone sees whether a round counts. Where the others' coins suffice without the client, or do not with it, that tells nothing of
        the client, and it is in the sum with the chance ``rate``. Where one is missing, the round counts if and only if the client takes
        part, which then is not amplified. Were that never so, the figure would be the one of Poisson samples at delta (1 - share); by the
        chance p that it is, probabilities differ for both of two neighbours, and so (1 + e^epsilon) p is added to delta.
        """
        from scipy.stats import binom

        return float(min(1.0, rounds * rate * binom.pmf(self.facts.min_clients - 1, self.facts.clients - 1, rate)))

    @property
    def planned_epsilon(self) -> float:
        """Epsilon after all planned charges of a subject that has spent nothing before."""
        return accountant.bound({self.event(): self.participations}, self.delta, self.interval, self.adjacency)

    @property
    def amplified(self) -> bool:
        """Whether the charges count on cohorts staying secret."""
        return self.charging.whom == "everyone" and self.facts.sampling in ("poisson", "fixed")

    @property
    def secret(self) -> bool:
        """Whether a figure counts on cohorts staying secret."""
        return self.amplified or self.observers_rate is not None

    def subjects(self, names: Sequence[str]) -> Sequence[str]:
        """Who is charged in the book."""
        return [EVERYONE] if self.charging.whom == "everyone" else names

    def noise_std(self, clip: float) -> float | npt.NDArray[np.float64]:
        """Standard deviation of what the driver adds to each value of the sum at this clip norm, in real units."""
        if self.adaptive is None:
            return self.noise_multiplier * clip
        std = np.full(self.facts.dimension + 1, self.adaptive.noise_multiplier * clip)
        std[-1] = self.adaptive.bit_noise
        return std

    def terms(self) -> dict[str, Any]:
        """The plan as JSON data, as ledgers and statements show it."""
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
        """Hash of the plan's canonical JSON."""
        return terms_sha256(self.terms())


def secret_cohorts(plans: Sequence[RecordPlan | ClientPlan]) -> bool:
    """Whether one plan needs secret cohorts while the charges of another, or its own, are made by who took part.

    Then figures that follow from those charges must not be published as they are.
    """
    secret = any(p.secret for p in plans if isinstance(p, ClientPlan))
    return secret and any(isinstance(p, RecordPlan) or p.charging.whom == "participants" for p in plans)


def level(privacy: Privacy) -> Privacy | Joint:
    """The section with the constants of the guarantee for whole clients: ``privacy``, or ``privacy.joint`` beside records."""
    return privacy if privacy.joint is None else privacy.joint


def make_mechanism(privacy: Privacy) -> tuple[str, Mechanism]:
    """The configured mechanism with its arguments.

    Raises:
        ConfigError: unknown, of another regime, or wrong arguments.
    """
    regime = privacy.whole_clients
    assert regime is not None
    part = privacy.mechanism or Choice(kind=_DEFAULTS[regime])
    factory = components.find(components.MECHANISMS, part.kind)
    made = factory(**components.check_arguments(factory, part.arguments, "privacy.mechanism"))
    if not isinstance(made, Mechanism):
        raise ConfigError(f"privacy.mechanism.kind: '{part.kind}' is no fedray.privacy.mechanisms.base.Mechanism.")
    if made.regime != regime:
        others = [n for n, m in components.MECHANISMS.parts().items() if m.regime == regime]
        raise ConfigError(
            f"privacy.mechanism.kind: '{part.kind}' is for privacy.regime {made.regime}, not {regime}; use {' or '.join(sorted(others))}."
        )
    return part.kind, made


def plan_clients(config: Config, clients: int, dimension: int, grid: int, largest_rate: float = 1.0, one_rate: bool = True) -> ClientPlan:
    """The plan of a run in which whole clients are protected.

    Args:
        config: with such a regime.
        clients: size of the population, public.
        dimension: values of an update; local guarantees do not depend on it.
        grid: fraction bits of the exact sum.
        largest_rate: the largest rate factor of a group of clients; everyone is charged as if it were theirs.
        one_rate: all groups have that one; without, nothing is said of observers who do not know the cohorts.

    Raises:
        ConfigError: a key is missing or contradicts another.
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
            f"set {path}.delta={rounded_down(1 / (10 * clients)):g} or less.",
            "privacy.delta.too_large",
        )
    if (own.target_epsilon is None) == (own.noise_multiplier is None):
        given = "neither" if own.target_epsilon is None else "both"
        raise ConfigError(f"{path}.target_epsilon, {path}.noise_multiplier: {given} given; give exactly one.")
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
        adaptive=_adaptive(privacy, kind, float(noise), facts),
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
    if cohort.kind not in ("poisson", "fixed", "all", "cyclic"):
        raise PrivacyRefusal(
            f"cohort.kind: no accountant is known for '{cohort.kind}'; with whole clients protected use poisson, fixed, cyclic or all.",
            "privacy.incompatible.client.cohort",
        )
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
    """Bounded participations must not leave later rounds of a charge without clients."""
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


def _adaptive(privacy: Privacy, kind: str, noise_multiplier: float, facts: Facts) -> Adaptive | None:
    section = privacy.adaptive_clip
    if section is None:
        return None
    if kind != "gaussian":
        raise PrivacyRefusal(
            f"privacy.adaptive_clip: the mechanism '{kind}' needs one clip norm for all rounds; use it with regime client and gaussian.",
            f"privacy.incompatible.{kind}.adaptive_clip",
        )
    bit_noise = section.bit_noise if section.bit_noise is not None else facts.cohort / 20
    return Adaptive(section.quantile, section.rate, bit_noise, split_noise(noise_multiplier, bit_noise))
