"""A sum that processes share holds the same bytes as one that a single process adds up, whoever adds what when."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedray.aggregation.exact import BLOCK, MAX_COORDINATE, ExactSum
from fedray.aggregation.shared import SharedMemory, SharedSum
from fedray.errors import UpdateRejected

SIZE = 9
CAPACITY = 1e5
vectors = hnp.arrays(np.float32, SIZE, elements=st.floats(-MAX_COORDINATE, MAX_COORDINATE, width=32))
additions = st.lists(st.tuples(vectors, st.integers(0, 5000), st.integers(0, 2)), max_size=12)


def empty(size: int = SIZE) -> ExactSum:
    return ExactSum.zero(size, CAPACITY)


@given(additions)
@settings(max_examples=150, deadline=None)
def test_any_hand_adds_to_the_same_values_and_knows_its_own_weight(items):
    memory = SharedMemory(SIZE)
    hands, alone = [SharedSum.at(memory.at, empty()) for _ in range(3)], [empty() for _ in range(3)]
    for update, weight, who in items:
        hands[who].add(update, weight)
        alone[who].add(update, weight)
    total = empty()
    for one in alone:
        total.merge(one)
    for hand, one in zip(hands, alone, strict=True):
        assert hand.values.tobytes() == total.values.tobytes()
        assert (hand.weight, hand.count) == (one.weight, one.count)


@given(additions, st.integers(0, SIZE - 1), st.sampled_from([np.nan, np.inf, 1e30]))
@settings(max_examples=50, deadline=None)
def test_what_is_refused_leaves_no_trace(items, at, bad):
    memory = SharedMemory(SIZE)
    shared, before = SharedSum.at(memory.at, empty()), b""
    for update, weight, _ in items:
        shared.add(update, weight)
    before = shared.values.tobytes()
    spoilt = np.ones(SIZE, np.float32)
    spoilt[at] = bad
    with pytest.raises(UpdateRejected):
        shared.add(spoilt)
    assert shared.add_many(np.stack([spoilt]), [1.0])[0] is not None
    assert shared.values.tobytes() == before
    assert shared.count == len(items)


@pytest.mark.parametrize("integers", [False, True])
def test_every_way_to_add_goes_into_the_shared_values(integers):
    memory, start = SharedMemory(SIZE), ExactSum.of_integers(SIZE, 64.0) if integers else empty()
    shared, other, alone = (SharedSum.at(memory.at, start), SharedSum.at(memory.at, start), replace(start, values=start.values.copy()))
    numbers = np.arange(SIZE)
    for total in (shared, alone):
        if integers:
            total.add_integers(numbers)
        else:
            total.add(numbers.astype(np.float32), 3.0)
            total.add_many(np.stack([numbers, numbers + 0.5]).astype(np.float32), [1.0, 2.0])
        total.merge(replace(start, values=numbers * 7, count=1, weight=1.0))
    assert other.values.tobytes() == alone.values.tobytes()


_PROCESS = """
import sys, numpy as np
from fedray.aggregation.exact import ExactSum
from fedray.aggregation.shared import SharedAt, SharedSum
path, token, size, seed = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
total = SharedSum.at(SharedAt(path, token, size), ExactSum.zero(size, 1e5))
rng = np.random.default_rng(seed)
updates = rng.standard_normal((4, size), dtype=np.float32)
print("ready", flush=True)
sys.stdin.readline()  # all begin at once
for n in range(40):
    total.add(updates[n % 4], 1.0 + n)
print(total.weight, total.count)
"""


def test_processes_that_add_at_the_same_time_lose_nothing():
    size = 3 * BLOCK + 17
    memory = SharedMemory(size)
    arguments = [memory.at.path, memory.at.token.hex(), str(size)]
    adding = [
        subprocess.Popen([sys.executable, "-c", _PROCESS, *arguments, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    for process in adding:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    said = [process.communicate("\n", timeout=600)[0].split() for process in adding]
    alone = ExactSum.zero(size, CAPACITY)
    for seed in range(3):
        updates = np.random.default_rng(seed).standard_normal((4, size), dtype=np.float32)
        for n in range(40):
            alone.add(updates[n % 4], 1.0 + n)
    shared = SharedSum.at(memory.at, ExactSum.zero(size, CAPACITY))
    assert shared.values.tobytes() == alone.values.tobytes()
    assert sum(float(weight) for weight, _ in said) == alone.weight
    assert sum(int(count) for _, count in said) == alone.count


def test_no_other_memory_is_taken_for_the_sum():
    memory = SharedMemory(SIZE)
    with pytest.raises(OSError, match="not the memory of this sum"):
        SharedSum.at(replace(memory.at, token=bytes(16)), empty())
    with pytest.raises(OSError, match="not the memory of this sum"):
        SharedSum.at(memory.at, empty(SIZE + 1))
    with pytest.raises(OSError, match="not the memory of this sum"):
        SharedSum.at(replace(memory.at, size=SIZE + 1), empty(SIZE + 1))
    memory.close()
    later = SharedMemory(SIZE)  # most likely behind the same descriptor, and so at the same path
    with pytest.raises(OSError):
        SharedSum.at(memory.at, empty())
    later.close()


def test_it_travels_as_an_ordinary_sum():
    memory = SharedMemory(SIZE)
    shared = SharedSum.at(memory.at, empty())
    shared.add(np.ones(SIZE, np.float32), 2.0)
    sent = pickle.loads(pickle.dumps(shared, protocol=5))
    assert type(sent) is ExactSum
    assert sent.values.tobytes() == shared.values.tobytes()
    assert (sent.weight, sent.count, sent.bits, sent.capacity) == (2.0, 1, shared.bits, CAPACITY)


def test_nothing_of_it_stays_behind():
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    memory = SharedMemory(BLOCK)
    shared = SharedSum.at(memory.at, empty(BLOCK))
    memory.close()
    shared.add(np.ones(BLOCK, np.float32))  # who has it open keeps it
    assert shared.values[-1] == 1 << shared.bits
    del shared, memory
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_mean_that_spends_the_sum_gives_its_memory_back():
    size = 5 * BLOCK + 3
    memory = SharedMemory(size)
    shared, alone = SharedSum.at(memory.at, empty(size)), empty(size)
    update = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    for total in (shared, alone):
        total.add(update, 3.0)
    assert os.stat(memory.at.path).st_blocks * 512 > 8 * size
    assert shared.mean(spend=True).tobytes() == alone.mean().tobytes() == alone.mean(spend=True).tobytes()
    assert os.stat(memory.at.path).st_blocks * 512 <= 8192 + 4096  # all but the first page and the last one, of which a part is no value


@given(additions, st.booleans())
@settings(max_examples=100, deadline=None)
def test_joined_is_merged_without_a_copy_where_one_is_empty(items, start_empty):
    def filled(rows):
        total = empty()
        for update, weight, _ in rows:
            total.add(update, weight)
        return total

    first, second = ([], items) if start_empty else (items[:3], items[3:])
    expected = filled(first)
    expected.merge(filled(second))
    one, other = filled(first), filled(second)
    values = other.values
    joined = one.joined(other)
    assert joined.values.tobytes() == expected.values.tobytes()
    assert (joined.weight, joined.count) == (expected.weight, expected.count)
    if start_empty:
        assert joined.values is values
    other.values.flags.writeable = False  # as what comes from Ray's store
    late = empty().joined(other)
    assert late.values.flags.writeable
