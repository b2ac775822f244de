"""How a round's work is shared out: everyone once, in order, in few calls, and evenly where it is short."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedray.clients.messages import ClientTask
from fedray.clients.work import LEAST, WORTH_A_CALL, Queue


def queue_of(seconds: list[float]) -> Queue:
    queue = Queue()
    half = len(seconds) // 2
    for part in (range(half), range(half, len(seconds))):
        queue.put([ClientTask(n, f"c{n}") for n in part], np.array([seconds[n] for n in part]))
    return queue


def shares(queue: Queue, actors: int) -> list[list[int]]:
    found = []
    while queue:
        found.append([c.index for c in queue.take(actors)])
    return found


@given(st.lists(st.floats(0.0, 100.0), max_size=60), st.integers(1, 8))
def test_everyone_is_handed_out_once_and_in_order(seconds: list[float], actors: int) -> None:
    found = shares(queue_of(sorted(seconds, reverse=True)), actors)
    assert [n for share in found for n in share] == list(range(len(seconds)))
    assert all(found)


@given(st.integers(1, 500), st.integers(1, 16), st.floats(0.0, 1e-5))
def test_short_equal_work_is_one_call_for_each_actor(clients: int, actors: int, seconds: float) -> None:
    queue, found = queue_of([seconds] * clients), list[list[ClientTask]]()
    while queue:
        found.append(queue.take(actors, seconds * sum(map(len, found))))
    assert len(found) <= actors
    assert max(map(len, found)) <= -(-clients // actors)


@given(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=60), st.integers(1, 8))
def test_a_share_is_most_of_what_is_evenly_left_unless_that_is_short(seconds: list[float], actors: int) -> None:
    """Up to the last client of a share, which may reach beyond it."""
    ordered = sorted(seconds, reverse=True)
    left, short = sum(ordered), sum(ordered) <= WORTH_A_CALL * actors
    for taken, share in enumerate(shares(queue_of(ordered), actors)):
        before_last = sum(ordered[n] for n in share[:-1])
        even = left / (max(1, actors - taken) if short else actors)  # one call each, or more
        assert before_last <= (even if short or LEAST <= even <= 2 * WORTH_A_CALL else max(even * 2 / 3, LEAST)) * (1 + 1e-6)
        left -= before_last + ordered[share[-1]]


@given(st.integers(2, 8), st.lists(st.floats(1e-5, 1e-2), min_size=1, max_size=2000), st.randoms(use_true_random=False))
def test_no_share_is_worth_less_than_a_call_but_the_last(actors: int, seconds: list[float], pace: Random) -> None:
    """However long actors really take."""
    ordered = sorted(seconds, reverse=True)
    queue, ends, until = queue_of(ordered), [0.0] * actors, [0.0] * actors
    while queue and sum(seconds) > WORTH_A_CALL * actors:
        now = min(ends)
        actor = ends.index(now)
        share = queue.take(actors, sum(max(0.0, e - now) for e in until))
        worth = sum(ordered[c.index] for c in share)
        assert not queue or worth + ordered[queue.first.index] >= LEAST * (1 - 1e-6) or len(share) == -(-len(seconds) // actors)
        until[actor] = now + worth
        ends[actor] = now + worth * pace.uniform(0.5, 2.0)


@given(st.integers(1, 3000), st.integers(1, 8), st.floats(1e-4, 1e-2))
def test_actors_that_work_as_fast_as_expected_end_together(clients: int, actors: int, each: float) -> None:
    """Whoever is done takes its next share; nobody ends more than a turn and rounding, or a least share, after the first without work."""
    queue, ends = queue_of([each] * clients), [0.0] * actors
    while queue:
        now = min(ends)
        actor = ends.index(now)
        ends[actor] = now + each * len(queue.take(actors, sum(e - now for e in ends)))
    assert max(ends) - min(ends) <= max(2 * each, LEAST + each) + 1e-9


@given(st.integers(2, 8), st.integers(1, 3000), st.floats(1e-4, 1e-1))
def test_an_actor_that_takes_half_as_long_again_as_expected_delays_nobody(actors: int, clients: int, each: float) -> None:
    """All end when they would if the pace had been known, but for a last share."""
    queue, ends = queue_of([each] * clients), [0.0] * actors
    pace = [1.5] + [1.0] * (actors - 1)
    while queue:
        now = min(ends)
        actor = ends.index(now)
        ends[actor] = now + pace[actor] * each * len(queue.take(actors, sum(max(0.0, e - now) for e in ends)))
    ideal = clients * each / sum(1 / p for p in pace)
    assert max(ends) <= ideal + 1.5 * (2 * WORTH_A_CALL + 2 * each)
