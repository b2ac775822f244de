"""Stages: what an update goes through gives the same total however clients are dealt to actors, and error feedback loses nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedray import components
from fedray.clients.messages import PartialSum, RoundTask, added_up
from fedray.exchange import Exchange, Field
from fedray.privacy.csprng import InsecureSeeded
from fedray.privacy.mechanisms.central import Clipped
from fedray.privacy.mechanisms.discrete import Grid
from fedray.privacy.mechanisms.distributed import RingStep
from fedray.privacy.mechanisms.local_noise import GaussianStep, PrivUnitStep
from fedray.updates.drive import Drive
from fedray.updates.half import HalfPrecision
from fedray.updates.norm import NormBound, l2_norm
from fedray.updates.pipeline import passed_all, sent_bytes
from fedray.updates.qsgd import Qsgd
from fedray.updates.randk import RandK
from fedray.updates.sign import Sign
from fedray.updates.stage import At, Stage
from fedray.updates.topk import TopK

SIZE = 12
GRID = Grid(SIZE, 1.0, 1e3, 32, False, 2, 12, 1.0)
CHAINS: dict[str, tuple[Stage, ...]] = {
    "topk": (TopK(0.25, feedback=False),),
    "topk with feedback": (TopK(0.25),),
    "randk": (RandK(0.25),),
    "randk with feedback": (RandK(0.25, feedback=True),),
    "sign": (Sign(feedback=False),),
    "sign with feedback": (Sign(),),
    "qsgd": (Qsgd(3, block=5),),
    "drive": (Drive(block=8),),
    "half": (HalfPrecision(),),
    "bfloat16": (HalfPrecision("bfloat16"),),
    "norm": (NormBound(0.5),),
    "both": (TopK(0.5), NormBound(0.5)),
    "clip": (TopK(0.25, feedback=False), Clipped(1.0, 1e-6, True)),
    "ring": (NormBound(2.0), RingStep(GRID, "ddg", 0)),
    "ring of public values": (RandK(0.25), NormBound(2.0), RingStep(GRID, "ddg", 0)),
    "local": (NormBound(2.0), GaussianStep(1.0, 0.1), TopK(0.25, feedback=False)),
    "local levels": (GaussianStep(1.0, 0.1), Qsgd()),
    "privunit": (PrivUnitStep(1.0, 4.0),),
}
vectors = hnp.arrays(np.float32, SIZE, elements=st.floats(-100, 100, width=32))


def at(client: int, **more: Any) -> At:
    return At(3, 0, client, InsecureSeeded(1, 3, f"update-{client}"), **more)


def test_every_stage_of_the_rooms_is_among_these() -> None:
    tried = {type(stage) for chain in CHAINS.values() for stage in chain}
    assert tried >= {part for room in (components.COMPRESSIONS, components.BOUNDS) for part in room.parts().values()}


@pytest.mark.parametrize("name", CHAINS)
@given(st.lists(vectors, min_size=1, max_size=6), st.randoms(use_true_random=False), st.integers(1, 3), st.booleans())
@settings(max_examples=25)
def test_any_split_and_any_order_give_the_same_total(name: str, updates: list[Any], random: Any, actors: int, sparse: bool) -> None:
    stages = CHAINS[name]
    task, exchange = RoundTask(3, 12.0, stages, clients=12), Exchange((Field("model", SIZE),))

    def part_of(clients: list[int]) -> PartialSum:
        part = PartialSum(3, task.empty_sum(exchange), clients, sparse=sparse)
        for client in clients:
            values = passed_all(stages, updates[client], at(client), {}).values
            if task.integer:
                part.total.add_integers(values)
            else:
                part.total.add(values)
        return part

    straight = part_of(list(range(len(updates))))
    shuffled = random.sample(range(len(updates)), len(updates))
    parts = [pickle.loads(pickle.dumps(part_of(shuffled[k::actors]))) for k in range(actors)]
    random.shuffle(parts)
    scattered = pickle.loads(pickle.dumps(added_up(parts)))
    assert scattered.total.values.tobytes() == straight.total.values.tobytes()
    assert (scattered.total.count, scattered.total.weight) == (straight.total.count, straight.total.weight)
    assert sorted(scattered.clients) == list(range(len(updates)))


@pytest.mark.parametrize("name", CHAINS)
@given(vectors)
@settings(max_examples=25)
def test_what_leaves_has_the_size_that_is_stated(name: str, update: Any) -> None:
    stages, size = CHAINS[name], SIZE
    before = update.tobytes()
    for stage in stages:
        size = stage.size(size)
    values = passed_all(stages, update, at(0), {}).values
    assert values.shape == (size,)
    assert update.tobytes() == before
    if stages[-1].support == "own":  # a position and a value for each
        assert np.count_nonzero(values) * 8 <= sent_bytes(stages, SIZE)
    if stages[-1].support == "public":
        assert np.count_nonzero(values) * 4 <= sent_bytes(stages, SIZE)
    assert 0 < sent_bytes(stages, SIZE) <= 4 * size


KEEPING: dict[str, Callable[[float], Stage]] = {"topk": TopK, "randk": lambda share: RandK(share, feedback=True), "sign": lambda _: Sign()}


@pytest.mark.parametrize("name", KEEPING)
@given(st.lists(vectors, min_size=1, max_size=20), st.floats(0.01, 1.0))
@settings(max_examples=100)
def test_error_feedback_loses_nothing(name: str, updates: list[Any], share: float) -> None:
    """What was sent and what is kept add up to the updates: in each turn an addition and a subtraction per value are rounded, and nothing else."""
    stage, state = KEEPING[name](share), dict[str, Any]()
    sent, rounding = np.zeros(SIZE), np.zeros(SIZE)
    for number, update in enumerate(updates):
        passed = stage.out(update, At(number, 0, 0, InsecureSeeded(1, number, 0), state=state))
        assert passed.state is not None
        state = {key: vector.astype(np.float64) for key, vector in passed.state.items()}
        rounding += 2.0**-24 * (np.abs(passed.values + state["error"]) + np.abs(state["error"]))
        sent += passed.values
        state = dict(passed.state)
        if isinstance(stage, TopK | RandK):
            assert np.count_nonzero(passed.values) <= stage.number(SIZE)
            assert not (passed.values[state["error"] != 0]).any()
    whole = np.sum(np.stack(updates).astype(np.float64), 0)
    assert (np.abs(sent + state["error"] - whole) <= 1.001 * rounding + 1e-12).all()  # float64 sums of at most 20 such values


@given(vectors, st.floats(1e-3, 1e3))
@settings(max_examples=100)
def test_a_bound_holds_and_leaves_small_updates_alone(update: Any, norm: float) -> None:
    bounded = passed_all((NormBound(norm),), update, at(0), {}).values
    assert l2_norm(bounded) <= norm
    if l2_norm(update) <= norm * (1 - 1e-9):
        assert bounded.tobytes() == update.tobytes()
    else:
        np.testing.assert_allclose(bounded, update * np.float32(norm / l2_norm(update)), rtol=1e-5, atol=1e-30)
