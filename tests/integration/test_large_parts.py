"""Large parts of one node reach the driver one after the other, and one that waits for its turn is not forgotten when its actor dies."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from pools import CLIENTS, Ground

from fedray.clients.inbox import LARGE as BYTES
from fedray.clients.inbox import Inbox
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.pool import Pool, RoundLog
from fedray.clients.rounds import Round
from fedray.clients.slots import Slot

LARGE = {"part_bytes": BYTES + 1}


@pytest.fixture
def ground(cluster: Any) -> Ground:
    return Ground()


@pytest.fixture
def pool(ground: Ground) -> Any:
    pool = ground.pool(2)
    pool.wait_ready(60.0, True)
    yield pool
    pool.shutdown()


def test_one_is_on_its_way_at_a_time(ground: Ground, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ground.train(pool)[0]
    on_the_way: list[int] = []
    send = Inbox.send

    def watched(parts: Inbox, slots: Any, *rest: Any) -> list[str]:
        complete = send(parts, slots, *rest)
        on_the_way.append(len(parts.travelling) + sum(s.doing == "handing over" for s in slots))
        return complete

    monkeypatch.setattr(Inbox, "send", watched)
    total, parts, _ = ground.train(pool, **LARGE)
    assert len(parts) == 2
    assert max(on_the_way) == 1
    assert total.values.tobytes() == expected.values.tobytes()


def test_clients_whose_part_waits_are_trained_again_when_its_actor_dies(
    ground: Ground, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ground.train(pool)[0]
    must_wait, trained, killed = Round._must_wait, list[bool](), list[Slot]()

    def watched(round_: Round, slot: Slot) -> bool:
        if not trained and sum(len(s.held) for s in pool.slots) < CLIENTS:
            return True  # nobody hands over before all clients are trained, so that one actor must wait for the other
        trained.append(True)
        waits = must_wait(round_, slot)
        if waits and not killed:
            assert slot.idle and slot.info is not None
            os.kill(slot.info.pid, signal.SIGKILL)
            killed.append(slot)
        return waits

    monkeypatch.setattr(Round, "_must_wait", watched)
    total, parts, log = ground.train(pool, **LARGE)
    assert len(killed) == 1
    assert (log.deaths, log.count("done")) == (1, CLIENTS)
    assert sorted(client for part in parts for client in part) == list(range(CLIENTS))
    assert total.values.tobytes() == expected.values.tobytes()


@pytest.mark.slow
def test_everyone_ends_once_where_the_deadline_passes_while_a_part_waits(ground: Ground) -> None:
    pool = ground.pool(2, grace=0.0)
    pool.wait_ready(60.0, True)
    try:
        ground.train(pool)
        log, arrived = RoundLog(), list[int]()
        cohort = [ClientTask(i, name) for i, name in enumerate(ground.prepared.names)]
        arriving = pool.train(cohort, RoundTask(1, 1e4), ground.weights, log, deadline=0.05, **LARGE)
        for part in arriving:
            if not arrived:  # the driver is slow with the first; meanwhile the deadline passes
                time.sleep(0.2)
            arrived += part.clients
        assert sorted(r.index for r in log.reports) == list(range(CLIENTS))
        assert sorted(arrived) == sorted(r.index for r in log.reports if r.status == "done")
        assert ground.train(pool, 2)[0].count == CLIENTS  # and the next round begins afresh
    finally:
        pool.shutdown()
