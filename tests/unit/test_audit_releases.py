"""Whole clients: the checks of a driver's release, and canary clients.

False alarms: each check at most one in a million.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedray.audit.releases import AuditedRelease, client_attacks, release_checks
from fedray.parameters import Vector
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Gaussian

D, C, Z, DENOMINATOR = 4000, 0.5, 1.5, 10.0


def mechanism(
    seed: int = 0,
    clip: Callable[[Any], Any] | None = None,
    std: Callable[[int], float] = lambda cohort: Z * C,
    denominator: Callable[[int], float] = lambda cohort: DENOMINATOR,
    z: float = Z,
) -> AuditedRelease:
    """A Gaussian release, sound unless told otherwise."""
    draws = np.random.default_rng(seed)

    def joint(update: Any) -> Any:
        norm = np.linalg.norm(update)
        return update * min(1.0, C / norm) if np.isfinite(norm) and norm > 0 else np.zeros(D)

    def round_of(updates: Sequence[Vector]) -> Vector:
        total = sum(((clip or joint)(u.astype(np.float64)) for u in updates), np.zeros(D))
        noised = total + draws.standard_normal(D) * std(len(updates))
        return (noised / denominator(len(updates))).astype(np.float32)

    return AuditedRelease(round_of, D, C, z, DENOMINATOR)


def failed(release: AuditedRelease) -> list[str]:
    return [c.name for c in release_checks(release) if not c.passed]


@pytest.mark.parametrize("seed", range(5))
def test_a_sound_release_passes(seed: int) -> None:
    assert failed(mechanism(seed)) == []


def test_what_is_wrong_is_named() -> None:
    no_noise = mechanism(std=lambda cohort: 0.0)
    assert {"noise of an empty cohort", "noise of a large cohort", "noise differs by round"} <= set(failed(no_noise))
    by_cohort = mechanism(std=lambda cohort: Z * C * max(cohort, 1) / DENOMINATOR)
    assert {"noise of an empty cohort", "noise of a large cohort"} <= set(failed(by_cohort))
    survivors = mechanism(denominator=lambda cohort: max(cohort, 1))
    assert "every client counts once" in failed(survivors)
    per_coordinate = mechanism(clip=lambda u: np.clip(np.nan_to_num(u), -C, C))
    assert "clip of adversarial updates" in failed(per_coordinate)
    unguarded = mechanism(clip=lambda u: u * min(1.0, C / max(np.linalg.norm(u), 1e-9)))
    assert failed(unguarded) == ["clip of adversarial updates"]


def test_noise_used_twice_is_named() -> None:
    kept = np.random.default_rng(1).standard_normal(D) * Z * C / DENOMINATOR
    repeated = AuditedRelease(lambda updates: kept.astype(np.float32), D, C, Z, DENOMINATOR)
    assert "noise differs by round" in failed(repeated)


def attack(z: float, scale: float, seed: int) -> Any:
    epsilon = accountant.bound({Gaussian(z): 5}, 1e-5)
    release = mechanism(seed, std=lambda cohort: z * C * scale, z=z)
    return client_attacks(release, rounds=5, canaries=400, epsilon=epsilon, delta=1e-5, seed=seed)[0]


def test_canary_clients_estimate_epsilon_and_the_bound_stays_below() -> None:
    """z = 9 in five rounds is epsilon 0.92; the fit to some 200 cosines gives 0.7 to 2.4 in eight of ten cases, above 2.8 in one of 25."""
    found = [attack(9.0, 1.0, seed) for seed in range(5)]
    assert not any(f.violated for f in found)
    assert {f.verdict for f in found} == {"consistent"}
    assert min(f.estimate for f in found) > 0.0
    assert np.median([f.estimate for f in found]) < 3 * found[0].epsilon  # by chance in one case of 1,700


def test_canary_clients_find_noise_that_is_far_too_small() -> None:
    found = attack(9.0, 1 / 9, 0)
    assert found.violated and found.verdict == "VIOLATED"
    assert attack(9.0, 1 / 4, 0).verdict in ("VIOLATED", "estimate suspicious")
    assert attack(9.0, 0.0, 0).violated
