"""The plan of a query: noised integer sums over records, released once by each client and charged as one Gaussian.

A record contributes an integer vector to each statistic. A statistic's contributions are bounded in L2 norm by a public integer, and its sum
gets independent discrete Gaussian noise on every value. All statistics of a query are one vector, in which each has a share of the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Any, ClassVar

from fedray.config import Config, Privacy
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Adjacency, Event, Gaussian
from fedray.privacy.clientplan import Plan
from fedray.privacy.mechanisms.exactgaussian import EXTRA
from fedray.privacy.recordplan import Purpose, check_target, rng_of, terms_sha256

_LARGEST = 1 << 96


@dataclass(frozen=True)
class NoisedSum:
    """The public constants of one statistic's sum.

    Attributes:
        name: of the statistic.
        size: number of its values.
        squared_sensitivity: largest squared L2 norm of one record's contribution, in grid units.
        variance: parameter of the discrete Gaussian noise on each value, in squared grid units.
    """

    name: str
    size: int
    squared_sensitivity: int
    variance: int


def noised_sums(noise_multiplier: float, sums: Sequence[tuple[str, int, int, float]]) -> tuple[NoisedSum, ...]:
    """The least noise at which the release of all sums together is that of one Gaussian of this noise multiplier.

    With s(i) the squared sensitivity of sum i and v(i) its variance, the joint squared sensitivity in units of the noise is the total of
    s(i) / (v(i) - EXTRA), which must be at most 1 / noise_multiplier**2. Computed in rationals, and rounded towards more noise.

    Args:
        noise_multiplier: above 0.
        sums: of each its name, size, squared sensitivity (in grid units, at least 1) and share of the budget, above 0; shares are relative.

    Raises:
        ConfigError: so much noise has no sampler.
    """
    total, z2 = sum(Fraction(share) for *_, share in sums), Fraction(noise_multiplier) ** 2
    made = tuple(NoisedSum(name, size, s, EXTRA + ceil(s * z2 * total / Fraction(share))) for name, size, s, share in sums)
    largest = max(made, key=lambda one: one.variance)
    if largest.variance >= _LARGEST:
        raise ConfigError(
            f"queries.{largest.name}: needs noise of {largest.variance**0.5:.3g} grid units on each value, which is beyond the sampler; ask for "
            "less in one query, or spend more epsilon."
        )
    assert sum(Fraction(one.squared_sensitivity, one.variance - EXTRA) for one in made) * z2 <= 1
    return made


@dataclass(frozen=True)
class QueryPlan:
    """Public constants of a query. None of them depends on a client's records.

    Attributes:
        noise_multiplier: of the Gaussian that the query is charged as.
        delta, target_epsilon, max_silos_per_person, accountant, accountant_version, interval, rng: see
            :class:`fedray.privacy.recordplan.RecordPlan`.
        budget: epsilon above which no client may be charged; None if there is no limit.
        sums: the statistics, in the order of the config.
        extra_variance: variance of the discrete Gaussians above that of the Gaussian that is charged, in squared grid units.
    """

    noise_multiplier: float
    delta: float
    budget: float | None
    target_epsilon: float | None
    max_silos_per_person: int
    accountant: str
    accountant_version: str
    interval: float
    rng: str
    sums: tuple[NoisedSum, ...]
    extra_variance: int = EXTRA

    purpose: ClassVar[Purpose] = "query"
    unit: ClassVar[str] = "record"
    adjacency: ClassVar[Adjacency] = "zero_out"
    clip: ClassVar[float] = 1.0
    steps: ClassVar[int] = 1
    max_participations: ClassVar[int | None] = None

    def event(self, noise_multiplier: float | None = None, steps: int | None = None) -> Event:
        """The event that the query is charged, or would be with another noise multiplier. ``steps`` changes nothing: a query has none."""
        return Gaussian(noise_multiplier or self.noise_multiplier)

    @property
    def planned_epsilon(self) -> float:
        """Epsilon of the query for a client without earlier charges."""
        return accountant.bound({self.event(): 1}, self.delta, self.interval)

    def terms(self) -> dict[str, Any]:
        """The plan as JSON data, for ledgers and statements."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sums"}
        sums = [{**asdict(one), "variance": str(one.variance), "squared_sensitivity": str(one.squared_sensitivity)} for one in self.sums]
        kind = {"unit": self.unit, "adjacency": self.adjacency, "regime": "record", "mechanism": "discrete_gaussian_sums"}
        return {**kind, "clip": self.clip, **values, "sums": sums}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of :meth:`terms`."""
        return terms_sha256(self.terms())


#: Whatever a ledger's account charges by.
AnyPlan = Plan | QueryPlan


def plan_queries(config: Config, sums: Sequence[tuple[str, int, int, float]]) -> QueryPlan:
    """The plan of a query.

    Args:
        config: the query's, with ``privacy.regime: record``.
        sums: see :func:`noised_sums`.

    Raises:
        ConfigError: a key of the privacy section is missing or contradicts another key.
    """
    privacy = config.privacy
    if privacy.delta is None:
        raise ConfigError("privacy.delta: is needed with privacy.regime record; at most 1 / (10 x records) of every client.")
    check_target(privacy, "privacy")
    noise = privacy.noise_multiplier
    if noise is None:
        noise = accountant.calibrate(Gaussian, 1, privacy.delta, privacy.target_epsilon or 0.0)
    return QueryPlan(
        noise_multiplier=float(noise),
        delta=privacy.delta,
        budget=privacy.budget if privacy.budget is not None else privacy.target_epsilon,
        target_epsilon=privacy.target_epsilon,
        max_silos_per_person=privacy.max_silos_per_person,
        accountant="pld",
        accountant_version=accountant.accountant_version(),
        interval=accountant.INTERVAL,
        rng=rng_of(config),
        sums=noised_sums(noise, sums),
    )


_USED = {"regime", "target_epsilon", "noise_multiplier", "budget", "delta", "ledger", "max_silos_per_person", "insecure_seed"}


def check_query_privacy(privacy: Privacy) -> None:
    """Refuse a privacy section that a query cannot honour.

    Raises:
        PrivacyRefusal: the regime protects whole clients.
        ConfigError: a key that only training reads.
    """
    if privacy.whole_clients is not None:
        raise PrivacyRefusal(
            f"privacy.regime: {privacy.whole_clients} protects a whole client, whose sum over its records has no bound that leaves an answer "
            "among few clients; ask under privacy.regime=record, which protects each record against the server too.",
            f"privacy.incompatible.{privacy.whole_clients}.queries",
        )
    if privacy.person is not None:
        raise PrivacyRefusal(
            "privacy.person: a query bounds what one record contributes, and a person may have several; ask without privacy.person, with a ledger "
            "of records.",
            "privacy.incompatible.person.queries",
        )
    defaults = Privacy()
    unread = [name for name in Privacy.model_fields if name not in _USED and getattr(privacy, name) != getattr(defaults, name)]
    if unread:
        raise ConfigError(f"privacy.{unread[0]}: belongs to training, and a query does not read it; take it out.")
