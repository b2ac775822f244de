"""Checks and canaries for whole clients: they audit how the driver turns a cohort's updates into a released mean.

The audited function is ``round_of(updates) -> released``: it clips each update, sums, adds noise and divides by the public constant. Its
argument is the cohort's updates, float32 ``[d]`` each; the cohort may be empty.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from fedray.aggregation.exact import grid_bits
from fedray.audit import bounds
from fedray.audit.findings import ERRORS, FALSE_ALARM, Attack, Check
from fedray.audit.statistics import coin_check, guarded, independence_check, noise_check, secrecy_check
from fedray.clients.messages import RoundTask
from fedray.exchange import Exchange, Field
from fedray.parameters import Vector
from fedray.privacy import release as release_of_run
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.csprng import noise_source
from fedray.privacy.mechanisms.central import BandedFactorization
from fedray.privacy.mechanisms.streams import band_coefficients
from fedray.rng import generator
from fedray.rounds.cohort import Population, Sampler
from fedray.updates.stage import At

Floats = npt.NDArray[np.float64]
RoundOf = Callable[[Sequence[Vector]], Vector]

#: Number of standard deviations that a Gaussian exceeds with probability below 1e-9.
_FAR = 6.5
_COHORT, _COHORTS = 50, 256
#: Number of rounds whose noise on the adaptive clip's bits is measured.
_BITS = 1000
#: Length of a synthetic update, and largest number of updates in one sum.
DIMENSION, _CAPACITY = 10_000, 4096
#: Norm of a canary's update before clipping, in clip norms.
_HUGE = 100.0


@dataclass(frozen=True)
class AuditedRelease:
    """The driver's release of a round under client-level privacy, and its claimed constants.

    Attributes:
        round_of: runs one round; each call draws new noise.
        dimension: length d of an update.
        clip: L2 bound of a client's update in the sum.
        noise_multiplier: standard deviation of one round's noise on the sum, divided by ``clip``.
        denominator: public constant by which the noised sum is divided.
        rate: probability with which a client joins a cohort; 1 if no amplification is claimed.
        separation: least number of rounds between two participations of a client.
        most: largest number of rounds in which a client may take part; None for all rounds.
        at_clients: whether each client adds noise, in which case an empty cohort means one client with a zero update; else the driver does.
    """

    round_of: RoundOf
    dimension: int
    clip: float
    noise_multiplier: float
    denominator: float
    rate: float = 1.0
    separation: int = 1
    most: int | None = None
    at_clients: bool = False

    def std(self, cohort: int) -> float:
        """Standard deviation of the noise on the sum over ``cohort`` clients, in clip norms."""
        return self.noise_multiplier * (math.sqrt(max(cohort, 1)) if self.at_clients else 1.0)


def release_checks(release: AuditedRelease) -> list[Check]:
    """All checks of the driver's release, on synthetic updates; the dimension should be 1000 or more."""
    checks: list[tuple[str, Callable[[str, AuditedRelease], Check]]] = [
        ("noise of an empty cohort", partial(_noise, cohort=0)),
        ("noise of a large cohort", partial(_noise, cohort=_COHORT)),
        ("noise differs by round", _rounds),
        ("clip of adversarial updates", _clip),
        ("every client counts once", _count),
    ]
    return [guarded(name, partial(check, name, release)) for name, check in checks]


def _noise(name: str, release: AuditedRelease, cohort: int) -> Check:
    silent = [np.zeros(release.dimension, dtype=np.float32)] * cohort
    return noise_check(name, _sum(release, silent), release.std(cohort))


def _rounds(name: str, release: AuditedRelease) -> Check:
    return independence_check(name, {f"round {r}": _sum(release, []) for r in range(3)})


def _clip(name: str, release: AuditedRelease) -> Check:
    """The component of the sum along an update's direction is at most the clip norm, and an update with NaNs adds nothing."""
    d = release.dimension
    draws = generator(0, "audit", "updates")
    sparse = np.zeros(d)
    sparse[d // 2] = 1e8
    worst, where = 0.0, ""
    for kind, update in (("dense", draws.standard_normal(d) * 1e6), ("even", np.full(d, 1e3)), ("sparse", sparse)):
        along = update / np.linalg.norm(update)
        share = float(_sum(release, [update.astype(np.float32)]) @ along)
        worst, where = max((worst, where), (abs(share), kind)) if np.isfinite(share) else (float("inf"), kind)
    broken = np.full(d, np.nan, dtype=np.float32)
    finite = bool(np.isfinite(_sum(release, [broken])).all())
    allowed = 1.0 + _FAR * release.noise_multiplier
    found = f"{worst:.3f} clip norms at most along its direction ({where}; noise allows {allowed:.3f})"
    return Check(name, worst <= allowed and finite, found if finite else "an update that is not finite is released", FALSE_ALARM)


def _count(name: str, release: AuditedRelease) -> Check:
    """The sum of n equal updates of norm C has the norm n C, for small and large n."""
    d = release.dimension
    along = np.full(d, 1 / np.sqrt(d))
    worst = 0.0
    for cohort in (1, _COHORT):
        update = (along * release.clip * 0.999).astype(np.float32)
        off = abs(float(_sum(release, [update] * cohort) @ along) - cohort * 0.999)
        worst = max(worst, off / release.std(cohort) * release.noise_multiplier)
    allowed = _FAR * release.noise_multiplier + 1e-3
    return Check(
        name, worst <= allowed, f"sums of equal updates are off by {worst:.3f} clip norms (noise allows {allowed:.3f})", FALSE_ALARM
    )


def cohort_checks(plan: ClientPlan, sampler: Sampler, insecure_seed: int | None) -> list[Check]:
    """Check that Poisson cohorts are independent and secret, with the run's sampler on the driver's coins."""
    clients, rate = plan.facts.clients, float(plan.facts.rate or 0)

    def drawn() -> npt.NDArray[np.bool_]:
        release = release_of_run.Release(plan, insecure_seed)
        cohorts = np.zeros((_COHORTS, clients), dtype=np.bool_)
        for number, row in enumerate(cohorts):
            row[sampler(Population.of(np.ones(clients, dtype=np.bool_), np.ones(clients), number), release.coins(number))] = True
        return cohorts

    first = drawn()
    return [
        coin_check("cohorts are independent coins", first, rate),
        secrecy_check("cohorts do not follow from the run's seed", {"a new start": (first, drawn())}, rate),
    ]


def bit_check(plan: ClientPlan, insecure_seed: int | None) -> Check:
    """Check the noise on the sum of the adaptive clip's bits, which the public clip norms after empty cohorts reveal.

    Args:
        plan: plan with an adaptive clip norm.
        insecure_seed: the run's ``privacy.insecure_seed``.
    """
    adaptive = plan.adaptive
    assert adaptive is not None
    capacity = float(max(plan.facts.clients, _CAPACITY))
    small = replace(plan, facts=replace(plan.facts, dimension=1, grid=grid_bits(capacity)))
    sums = np.empty(_BITS)
    for number in range(_BITS):
        driver = release_of_run.Release(small, insecure_seed)
        driver.begin(number)
        total = RoundTask(number, capacity, driver.stages(number)).empty_sum(Exchange((Field("model", 1),)))
        driver.mean(total.values, total.bits, number)
        below = adaptive.quantile - math.log(driver.clip / plan.clip) / adaptive.rate
        sums[number] = (below - 0.5) * plan.facts.cohort
    return noise_check("noise of the adaptive clip's bits", sums, adaptive.bit_noise)


def client_attacks(release: AuditedRelease, rounds: int, canaries: int, epsilon: float, delta: float, seed: int) -> list[Attack]:
    """Canary clients with random directions at the clip norm, of which half are members; the attack uses the sum of all releases.

    Args:
        release: the audited mechanism.
        rounds: number of released rounds.
        canaries: number of canaries; one fair coin each decides whether it is a member, which joins a round with probability ``release.rate``.
        epsilon, delta: proven guarantee for one client over these rounds.
        seed: seed of directions and coins.

    Returns:
        One attack. The lower bound is that of one run (Steinke et al. 2023); the estimate compares the members' cosines with the sum of all
        releases to N(0, 1/d) (Andrew et al. 2023, algorithm 3).
    """
    d, draws = release.dimension, generator(seed, "audit", "clients")
    directions = draws.standard_normal((canaries, d)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    included = draws.random(canaries) < 0.5
    total = np.zeros(d)
    times, most = np.zeros(canaries, dtype=np.int64), rounds if release.most is None else release.most
    for number in range(rounds):
        due = (np.arange(canaries) - number) % release.separation == 0
        here = np.flatnonzero(included & due & (times < most) & (draws.random(canaries) < release.rate))
        times[here] += 1
        total += release.round_of([directions[i] * np.float32(_HUGE * release.clip) for i in here]).astype(np.float64)
    length = float(np.linalg.norm(total))
    cosines = directions.astype(np.float64) @ total / (length if length > 0 else 1.0)
    each = max(2, canaries // 4)
    order = np.argsort(cosines, kind="stable")
    correct = int(included[order[-each:]].sum() + (~included[order[:each]]).sum())
    inside, outside = cosines[included], cosines[~included]
    enough = min(len(inside), len(outside)) > 1
    estimate = bounds.from_scores(inside, 0.0, float(1 / np.sqrt(d)), delta) if enough else None
    at_least = bounds.from_scores_alike(inside, outside, delta, ERRORS) if enough else 0.0
    facts = {"canaries": canaries, "rounds": rounds, "delta": delta, "guesses": 2 * each, "correct": correct}
    curves = {"inside": inside, "outside": outside}
    lower = bounds.one_run(canaries, 2 * each, correct, delta)
    return [Attack("canary clients, all releases", lower, estimate, epsilon, facts, curves, at_least=at_least)]


def driver_release(plan: ClientPlan, insecure_seed: int | None, fresh: bool) -> AuditedRelease:
    """The driver's and the clients' parts of a round of the run, with updates of a synthetic dimension.

    Args:
        plan: plan of the regime ``client``.
        insecure_seed: the run's ``privacy.insecure_seed``.
        fresh: whether each round begins a new charge, so that its noise is independent of other rounds (for checks); else a charge covers as
            many rounds as in the run (for canaries).
    """
    capacity = float(max(plan.facts.clients, _CAPACITY))
    facts = replace(plan.facts, dimension=DIMENSION, grid=grid_bits(capacity))
    # The clip norm must not change during the audit; the noise is that of the adaptive mechanism.
    adaptive = plan.adaptive and replace(plan.adaptive, rate=1e-12)
    own = replace(plan, facts=facts, adaptive=adaptive)
    driver, rounds = release_of_run.Release(own, insecure_seed), itertools.count()

    def round_of(updates: Sequence[Vector]) -> Vector:
        number = next(rounds)
        if fresh or driver.due(number):
            driver.begin(number)
        (stage,) = stages = driver.stages(number)
        total = RoundTask(number, capacity, stages).empty_sum(Exchange((Field("model", DIMENSION),)))
        for i, update in enumerate(updates):
            total.add(stage.out(update, At(number, 0, i, noise_source(insecure_seed, number, f"update-{i}"))).values)
        return driver.mean(total.values, total.bits, number)

    z, span = (plan.noise_multiplier if adaptive is None else adaptive.noise_multiplier), plan.charging.span
    if isinstance(plan.mechanism, BandedFactorization):  # noise of the first round of a matrix
        z /= float(band_coefficients(span, plan.mechanism.band)[0])
    sampling, charging = plan.facts.sampling, plan.charging
    rate = float(plan.facts.rate) if plan.facts.rate is not None else plan.facts.cohort / plan.facts.clients if sampling == "fixed" else 1.0
    return AuditedRelease(
        round_of,
        DIMENSION,
        plan.clip,
        z,
        plan.denominator,
        rate if span == 1 else 1.0,
        math.ceil(plan.facts.clients / plan.facts.cohort) if sampling == "cyclic" else charging.separation,
        plan.participations * charging.most,
    )


def client_release(plan: ClientPlan, insecure_seed: int | None) -> AuditedRelease:
    """The clients' part of the local Gaussian mechanism, with updates of a synthetic dimension; a round releases the sum of their messages."""
    facts, rounds = replace(plan.facts, dimension=DIMENSION), itertools.count()

    def round_of(updates: Sequence[Vector]) -> Vector:
        number = next(rounds)
        stage = plan.mechanism.client(plan.noise_multiplier, plan.clip, facts, False, number)
        total = np.zeros(DIMENSION)
        for i, update in enumerate(updates or [np.zeros(DIMENSION, dtype=np.float32)]):
            total += stage.out(update, At(number, 0, i, noise_source(insecure_seed, number, f"update-{i}"))).values
        return total.astype(np.float32)

    return AuditedRelease(round_of, DIMENSION, plan.clip, plan.noise_multiplier, 1.0, at_clients=True)


def _sum(release: AuditedRelease, updates: Sequence[Vector]) -> Floats:
    """A round's noised sum, in clip norms."""
    return release.round_of(updates).astype(np.float64) * (release.denominator / release.clip)
