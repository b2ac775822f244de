"""Epsilons that published federated code states for itself, and what its noise really costs.

Both figures are by RDP, as the code of their time counted; PLD, which is tighter, is beside them and does not save the claims.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from fedray.privacy.accounting.accountant import bound, calibrate, epsilon
from fedray.privacy.accounting.events import Event, Gaussian, Poisson, SelfComposed

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:opacus")

ROUNDS, UPDATES = 15, 100


@pytest.mark.parametrize(
    ("hospital", "records", "train", "truth"),
    [("cleveland", 303, 199, 1.46), ("hungarian", 261, 172, 1.58), ("switzerland", 46, 30, 4.11), ("va", 130, 85, 2.30)],
)
def test_heart_disease_at_epsilon_one_with_rounds_taken_for_epochs(hospital: str, records: int, train: int, truth: float) -> None:
    """Ogier du Terrail et al. 2022, FLamby, Fed-Heart-Disease under DP-SGD: 15 rounds of 100 updates with batches of 4, delta 1e-4.

    Its strategies calibrate the noise once with ``make_private_with_epsilon(epochs=nrounds)``, so for 15 epochs of
    ceil(train / 4) batches each; what runs is 15 rounds of 100 updates, 1500 steps. ``train`` is the 66 % training
    split of a hospital's records.
    """
    assert abs(train / records - 0.66) < 0.01
    delta, batches = 1e-4, math.ceil(train / 4)
    noise = get_noise_multiplier(
        target_epsilon=1.0, target_delta=delta, sample_rate=1 / batches, epochs=ROUNDS, accountant="rdp", epsilon_tolerance=1e-3
    )
    step = Poisson(Fraction(1, batches), Gaussian(noise))
    believed: dict[Event, int] = {SelfComposed(batches, step): ROUNDS}
    ran: dict[Event, int] = {SelfComposed(UPDATES, step): ROUNDS}
    assert epsilon(believed, delta, "rdp") == pytest.approx(1.0, abs=1e-3)
    assert epsilon(ran, delta, "rdp") == pytest.approx(truth, abs=0.005)
    assert 1.25 < bound(ran, delta) < truth
    enough = calibrate(lambda z: SelfComposed(UPDATES, Poisson(Fraction(1, batches), Gaussian(z))), ROUNDS, delta, 1.0)
    assert enough > noise
    assert bound({SelfComposed(UPDATES, Poisson(Fraction(1, batches), Gaussian(enough))): ROUNDS}, delta) <= 1.0


@pytest.mark.parametrize(("rounds", "truth"), [(1, 1.12), (10, 1.86), (50, 4.02)])
def test_an_engine_made_anew_every_round_forgets_the_rounds_before(rounds: int, truth: float) -> None:
    """A widely copied example: ten clients on CIFAR-10, 4000 training records each, batch 32, one epoch a round, noise 1.0, delta 1e-5.

    125 steps a round at the rate 1/125. The accountant lives in the engine and the engine in the round, so every
    round reports the epsilon of one.
    """
    delta, steps = 1e-5, 4000 // 32
    reported = []
    for _ in range(rounds):
        engine = RDPAccountant()
        for _ in range(steps):
            engine.step(noise_multiplier=1.0, sample_rate=1 / steps)
        reported.append(engine.get_epsilon(delta))
    assert reported == pytest.approx([1.12] * rounds, abs=0.005)
    ran: dict[Event, int] = {SelfComposed(steps, Poisson(Fraction(1, steps), Gaussian(1.0))): rounds}
    assert epsilon(ran, delta, "rdp") == pytest.approx(truth, abs=0.005)
    assert bound(ran, delta) < epsilon(ran, delta, "rdp")
    if rounds > 1:
        assert bound(ran, delta) > 1.12 * 1.4
