"""Who goes alone, and who is left out."""

from __future__ import annotations

import numpy as np

from fedray.clients.messages import ClientTask
from fedray.clients.slots import RoundLog
from fedray.clients.suspects import Suspects
from fedray.clients.work import Queue

TASKS = [ClientTask(k, f"c{k}") for k in range(8)]


def test_suspects_wait_behind_the_others_and_are_taken_alone() -> None:
    suspects = Suspects(2)
    suspects.held_up([TASKS[1], TASKS[4]])
    queue = Queue()
    queue.put(*suspects.last(list(TASKS), np.full(8, 1.0)))
    taken = []
    while queue:
        taken.append([c.index for c in queue.take(1, 0.0, suspects)])
    assert [k for call in taken for k in call] == [0, 2, 3, 5, 6, 7, 1, 4]
    assert taken[-2:] == [[1], [4]]


def test_who_is_known_to_hold_actors_up_goes_last() -> None:
    suspects = Suspects(2)
    suspects.held_up(TASKS[:4])
    suspects.held_up([TASKS[1]])
    clients, _ = suspects.last(list(TASKS), np.full(8, 1.0))
    assert [c.index for c in clients] == [4, 5, 6, 7, 0, 2, 3, 1]


def test_a_turn_that_ends_well_clears_a_client() -> None:
    suspects = Suspects(2)
    suspects.held_up(TASKS[:3])
    suspects.ended_well([0, 2, 7])
    assert [k in suspects for k in range(4)] == [False, True, False, False]
    suspects.ended_well([1])
    assert not suspects


def test_only_who_was_alone_is_given_up_and_then_left_out() -> None:
    suspects = Suspects(0)
    suspects.begin()
    suspects.actor_died(TASKS[:3], False, 1)
    assert [suspects.deaths(k) for k in range(3)] == [0, 0, 0]  # any of them may have done it
    suspects.ended_well([0, 1])
    suspects.actor_died([TASKS[2]], True, 1)
    assert suspects.deaths(2) == 2
    notes = RoundLog()
    assert [c.index for c in suspects.admitted(TASKS[:4], notes)] == [0, 1, 3]
    (report,) = notes.reports
    assert (report.name, report.status) == ("c2", "lost")
    assert report.error == "its actor died 2 times in its turn in round 1, so it is left out for the rest of the run"


def test_deaths_that_are_not_its_own_doing_leave_nobody_out() -> None:
    suspects = Suspects(1)
    for round_ in (1, 2):
        suspects.begin()
        for _ in range(2):
            suspects.actor_died([TASKS[0]], False, round_)
        assert suspects.deaths(0) == 2
        assert suspects.admitted(TASKS[:1], RoundLog()) == TASKS[:1]
