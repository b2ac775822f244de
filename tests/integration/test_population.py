"""A million clients: the driver's memory stays flat and under 1 GiB, sampling and bookkeeping under 100 ms a round."""

from __future__ import annotations

import pytest

from tests.benchmarks import population

ROUNDS, MILLISECONDS, BYTES = 20, 100.0, 2**30


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("regime", population.REGIMES)
def test_a_million_clients_cost_the_driver_little(regime: str) -> None:
    found = population.in_ray(regime, population.CLIENTS, ROUNDS)
    assert found["status"] == "completed"
    assert found["rounds"] == ROUNDS
    assert found["bookkeeping_processor_ms"] < MILLISECONDS  # by the clock the machine's other work would count too
    assert found["driver_uss"]["most_from_start_to_end"] < BYTES
    # Privacy-loss distributions are kept up to 64 MB, and a book remembers whom it charged; nothing else may come with the rounds.
    assert found["growth_after_warm_up"] < 100e6
