"""Distributed noise under secure aggregation: the sum is the one in the clear with the same noise, and the noise is enough whoever drops out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from securesums import ORDER, Attempt

from fedray.configfile import build_config
from fedray.parameters import Vector
from fedray.planning.preparation import prepare
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.csprng import noise_source
from fedray.privacy.release import Release
from fedray.secure.protocol import TooFew
from fedray.secure.secagg import SecAgg
from fedray.updates.stage import At

#: Clients, those with whose noise alone the guarantee holds, and who drops out in which phase.
COHORTS: dict[int, tuple[int, dict[str, list[int]]]] = {
    10: (7, {"shares": [3], "train": [8], "unmask": [0]}),
    100: (80, {"keys": [5], "shares": [17, 40], "train": [60, 61, 62, 99], "consistency": [7], "unmask": [8, 9]}),
}
KINDS = ("ddg", "skellam")


@cache
def plan_of(kind: str, clients: int) -> ClientPlan:
    config: dict[str, Any] = {
        "name": "t",
        "rounds": 3,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": clients}},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 8, "steps": 2},
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
        "cohort": {"kind": "all", "min_clients": COHORTS[clients][0]},
        "privacy": {"regime": "distributed", "mechanism": {"kind": kind}, "noise_multiplier": 2.0, "delta": 1e-3},
        "secure": {"kind": "secagg"},
    }
    plan = prepare(build_config(config)).client_plan
    assert plan is not None
    return plan


def sent(plan: ClientPlan, seed: int | None, updates: np.ndarray) -> np.ndarray:
    """What the clients send, int64 ``[clients, size]``; with a seed the noise can be repeated."""
    (stage,) = Release(plan, seed).stages(0)
    return np.stack([stage.out(update, At(0, 0, i, noise_source(seed, 0, f"update-{i}"))).values for i, update in enumerate(updates)])


def released(plan: ClientPlan, total: np.ndarray) -> Vector:
    """What the driver makes of a sum."""
    release = Release(plan)
    release.begin(0)
    return release.mean(total, 0, 0)


@pytest.mark.parametrize("clients", COHORTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_that_of_the_survivors_in_the_clear_with_the_same_noise(kind: str, clients: int) -> None:
    plan, (least, drops) = plan_of(kind, clients), COHORTS[clients]
    updates = np.random.default_rng(1).normal(0.0, 0.05, (clients, plan.facts.dimension)).astype(np.float32)
    values = sent(plan, 5, updates)
    outcome = Attempt(SecAgg(), values, drops, replace(ORDER, least=least)).run()
    assert not outcome.refusals
    assert set(range(clients)) - set(outcome.survivors) == {m for phase in ("keys", "shares", "train") for m in drops.get(phase, ())}
    clear = sent(plan, 5, updates)[outcome.survivors].sum(axis=0)
    assert outcome.total.tobytes() == clear.tobytes()
    assert released(plan, outcome.total).tobytes() == released(plan, clear).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_of_the_fewest_survivors_is_that_of_the_plan(kind: str) -> None:
    """650 values: their standard deviation is within 15 % with a probability of more than 1 - 10**-6."""
    plan, (least, _) = plan_of(kind, 10), COHORTS[10]
    values = sent(plan, None, np.zeros((10, plan.facts.dimension), dtype=np.float32))
    assert plan.mechanism.grid(plan.noise_multiplier, plan.facts).shares == least  # type: ignore[attr-defined]
    planned = plan.noise_multiplier * plan.clip / plan.denominator
    for survivors in (least, 10):
        outcome = Attempt(SecAgg(), values, {"train": range(survivors, 10)}, replace(ORDER, least=least)).run()
        measured = float(released(plan, outcome.total).std())
        assert measured == pytest.approx(planned * (survivors / least) ** 0.5, rel=0.15)


def test_with_fewer_survivors_than_the_noise_needs_the_clients_keep_the_sum_to_themselves() -> None:
    """Whatever the driver's own threshold is: the clients know that of the plan."""
    least, lax = COHORTS[10][0], SecAgg(threshold=0.51, fewest=3, colluding=0.0)
    order, values, drops = replace(ORDER, least=least), np.zeros((10, 5), dtype=np.int64), {"train": range(least - 1, 10)}
    with pytest.raises(TooFew, match="of 10 members 6 were left after the phase 'training', and it takes 7"):
        Attempt(lax, values, drops, order).run()
    forcing = Attempt(lax, values, drops, replace(order, least=1))
    forcing.members = [lax.member(order, number) for number in range(10)]
    with pytest.raises(TooFew):
        forcing.run()
    assert sorted(forcing.refusals) == list(range(least - 1))
    assert all("the sum is said to be that of 6 members, and it takes 7" in reason for reason in forcing.refusals.values())
