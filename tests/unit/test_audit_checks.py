"""The checks of the record-level mechanism pass what is sound and fail what is not.

False alarms: each statistical check at most one in a million, so these tests about one in ten thousand runs.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from audited import digits

from fedray.audit.checks import adversarial, record_checks
from fedray.audit.findings import Check
from fedray.audit.local_run import subjects
from fedray.audit.probes import Probe
from fedray.audit.statistics import coin_check, independence_check, noise_check, secrecy_check
from fedray.planning.preparation import prepare


def failed(checks: list[Check]) -> list[str]:
    return [c.name for c in checks if not c.passed]


@pytest.mark.parametrize(
    ("engine", "rate", "clipping"),
    [("auto", 0.02, "flat"), ("auto", 0.5, "per_layer"), ("auto", 1.0, "flat"), ("hooks", 0.5, "per_layer"), ("ghost", 0.5, "flat")],
)
def test_a_sound_run_passes_every_check(engine: str, rate: float, clipping: str) -> None:
    settings = (f"training.engine={engine}", f"training.sampling_rate={rate}", "training.steps=3", f"privacy.clipping={clipping}")
    checks = record_checks(subjects(prepare(digits(*settings)))[0], 10)
    assert failed(checks) == [], [c.found for c in checks if not c.passed]
    assert len(checks) == 12


@pytest.mark.parametrize("algorithm", ["{kind: scaffold}", "{kind: fedper, personal: [fc.bias]}"])
def test_a_run_whose_clients_keep_a_state_passes(algorithm: str) -> None:
    prepared = prepare(digits(f"algorithm={algorithm}", "evaluation.metrics=[]", "server.momentum=0"))
    checks = record_checks(subjects(prepared)[0], 10)
    assert failed(checks) == [], [c.found for c in checks if not c.passed]


def test_groups_with_settings_of_their_own_are_checked_apart() -> None:
    prepared = prepare(digits("clients.groups=[{name: few, clients: 2, training: {sampling_rate: 0.1}}]"))
    rates = [float(s.plan.sampling_rate) for s in subjects(prepared)]
    assert rates == [0.1, 0.5]


def test_a_replayable_source_is_named() -> None:
    subject = subjects(prepare(digits("privacy.insecure_seed=1")))[0]
    names = failed(record_checks(subject, 10))
    replayed = ["noise differs by client, round, attempt", "coins do not follow from the run's seed"]
    assert names == ["source of noise and coins", *replayed]


def test_an_epsilon_beyond_the_target_is_named() -> None:
    subject = subjects(prepare(digits("privacy.target_epsilon=2", "privacy.noise_multiplier=null")))[0]
    wrong = replace(subject, plan=replace(subject.plan, noise_multiplier=subject.plan.noise_multiplier / 2))
    assert failed(record_checks(wrong, 10)) == ["epsilon of the plan"]


def test_the_probe_counts_who_was_drawn() -> None:
    subject = subjects(prepare(digits()))[0]
    probe = Probe(subject, [np.eye(7, dtype=np.float32) * 9], noise_multiplier=0.0, sampling_rate=Fraction(1), steps=4)
    np.testing.assert_allclose(probe.sum(), 4.0, rtol=1e-5)


def test_adversarial_gradients_are_what_they_say() -> None:
    gradients = adversarial(50, np.random.default_rng(0))
    assert gradients.shape == (8, 50)
    assert not np.isfinite(gradients[-2:]).all(axis=1).any()
    assert np.isfinite(gradients[:-2]).all()


@pytest.mark.parametrize(("scale", "passes"), [(1.0, True), (0.9, False), (1.1, False), (0.0, False)])
def test_noise_of_another_size_is_found(scale: float, passes: bool) -> None:
    noise = np.random.default_rng(1).standard_normal(20_000) * scale
    assert noise_check("noise", noise * 3.0, 3.0).passed is passes


def test_noise_of_another_law_is_found() -> None:
    draws = np.random.default_rng(2)
    uniform = draws.uniform(-np.sqrt(3), np.sqrt(3), 20_000)
    assert not noise_check("noise", uniform, 1.0).passed
    assert not noise_check("noise", draws.standard_normal(20_000) + 0.1, 1.0).passed
    assert not noise_check("noise", np.full(20_000, np.nan), 1.0).passed


def test_noise_used_twice_is_found() -> None:
    draws = np.random.default_rng(3)
    a, b = draws.standard_normal((2, 20_000))
    assert independence_check("noise", {"a": a, "b": b}).passed
    assert not independence_check("noise", {"a": a, "b": 0.9 * b + 0.1 * a}).passed
    assert not independence_check("noise", {"a": np.tile(a[:10_000], 2), "b": b}).passed


Draw = Any


def shuffled(draws: np.random.Generator, steps: int, n: int, q: float) -> Draw:
    """Fixed-size batches without replacement."""
    return np.stack([draws.permutation(n) < round(q * n) for _ in range(steps)])


def repeated(draws: np.random.Generator, steps: int, n: int, q: float) -> Draw:
    return np.repeat(draws.random((steps // 2, n)) < q, 2, axis=0)


def ordered(draws: np.random.Generator, steps: int, n: int, q: float) -> Draw:
    return draws.random((steps, n)) < np.linspace(0.5 * q, 1.5 * q, n)


def blocks(draws: np.random.Generator, steps: int, n: int, q: float) -> Draw:
    return np.repeat(draws.random((steps, n // 8)) < q, 8, axis=1)


@pytest.mark.parametrize("q", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("sampler", [shuffled, repeated, ordered, blocks])
def test_batches_that_are_no_coins_are_found(sampler: Any, q: float) -> None:
    draws = np.random.default_rng(4)
    assert coin_check("coins", draws.random((256, 400)) < q, q).passed
    assert not coin_check("coins", sampler(draws, 256, 400, q), q).passed


@pytest.mark.parametrize("q", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_coins_that_are_tossed_again_with_the_same_outcome_are_found(q: float) -> None:
    """All of them, or one in three: of 30,000 coins, of which 30 or more come out the rarer way."""
    draws = np.random.default_rng(5)
    first, fresh = draws.random((30, 1000)) < q, draws.random((30, 1000)) < q
    partly = np.where(np.arange(30)[:, None] % 3 == 0, first, fresh)
    assert secrecy_check("coins", {"a": (first, fresh)}, q).passed
    assert not secrecy_check("coins", {"a": (first, fresh), "b": (first, first)}, q).passed
    assert not secrecy_check("coins", {"a": (first, partly)}, q).passed
    assert secrecy_check("coins", {"a": (first, first)}, 1.0).passed
