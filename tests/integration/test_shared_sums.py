"""Actors of a node share one sum: the same bytes as with a sum each, and nothing is counted twice whoever is lost when."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pools import CLIENTS, Ground
from processes import wait_until
from shortruns import short_run

from fedray.aggregation.exact import ExactSum
from fedray.clients.inbox import LARGE
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.pool import RoundLog

SHARED: dict[str, Any] = {"part_bytes": LARGE + 1, "charged": False}
ACTORS = 3


class Runs(Ground):
    def __init__(self, clients: Any = None, **model: Any) -> None:
        sections = {} if clients is None else {"clients": clients}
        super().__init__(model={"kind": "python:sharedparts:model", **model}, **sections)

    def train(self, pool: Any, number: int = 0, **settings: Any) -> tuple[ExactSum, list[list[int]], RoundLog]:
        size = 8 * self.model.facts.layout.size  # what the driver would say, but for the threshold
        if "charged" in settings:
            settings = settings | {"part_bytes": size}
        return super().train(pool, number, **settings)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.clients.inbox.LARGE", 0)


@pytest.fixture(scope="module")
def expected(cluster: Any) -> bytes:
    """The sum's bytes with a sum an actor."""
    calm = Runs()
    pool = calm.pool(ACTORS)
    try:
        pool.wait_ready(60.0, True)
        total, parts, _ = calm.train(pool)
        assert len(parts) == ACTORS
        return total.values.tobytes()
    finally:
        pool.shutdown()


def rounds_of(ground: Runs, number: int = 1, **settings: Any) -> list[tuple[ExactSum, list[list[int]], RoundLog]]:
    pool = ground.pool(ACTORS)
    try:
        pool.wait_ready(60.0, True)
        return [ground.train(pool, 0, **(SHARED | settings)) for _ in range(number)]
    finally:
        pool.shutdown()


def test_the_same_bytes_in_one_part(expected: bytes, tmp_path: Path) -> None:
    for total, parts, log in rounds_of(Runs(opened=str(tmp_path)), 3):
        assert len(parts) == 1
        assert (log.deaths, log.retries) == (0, 0)
        assert total.values.tobytes() == expected
    assert len(list(tmp_path.iterdir())) == ACTORS  # all of them had it open


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"charged": True}, {"deadline": 60.0}])
def test_not_where_nobody_asked_or_who_is_late_may_be_adding(expected: bytes, tmp_path: Path, settings: Any) -> None:
    ((total, parts, _),) = rounds_of(Runs(opened=str(tmp_path)), **settings)
    assert len(parts) == ACTORS
    assert total.values.tobytes() == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("who", [pytest.param("keeper", marks=pytest.mark.slow), "other"])
def test_an_actor_that_is_lost_takes_the_sum_with_it(expected: bytes, tmp_path: Path, who: str) -> None:
    """It had added its update, and nobody knows."""
    (total, parts, log), (again, parts_again, log_again) = rounds_of(Runs(dies=who, mark=str(tmp_path / "mark")), 2)
    assert (tmp_path / "mark").exists()
    assert log.deaths == 1
    assert log.retries > 1  # not only the client in whose turn it died
    assert any("lay in the same sum" in fault.text for fault in log.faults)
    assert sorted(client for part in parts for client in part) == list(range(CLIENTS))
    assert total.values.tobytes() == expected
    assert (len(parts_again), log_again.deaths) == (1, 0)  # in the next round there is one again
    assert again.values.tobytes() == expected


@pytest.mark.slow
def test_what_is_still_being_trained_for_a_lost_sum_is_trained_again(expected: bytes, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    last = CLIENTS - 1
    ground = Runs(dies="any", mark=str(tmp_path / "mark"), hold=str(hold), whose=last)
    pool, found = ground.pool(ACTORS), list[Any]()
    pool.wait_ready(60.0, True)
    seen, log = list[int](), RoundLog()
    total = ExactSum.zero(ground.model.facts.layout.size, 1e4)

    def train() -> None:
        cohort = [ClientTask(i, name) for i, name in enumerate(ground.prepared.names)]
        for part in pool.train(cohort, RoundTask(0, 1e4), ground.weights, log, **(SHARED | {"part_bytes": 8 * len(total.values)})):
            total.merge(part.total)
            seen.extend(part.clients)
        found.append(True)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        wait_until(lambda: log.deaths == 1, "the death of an actor")
        hold.unlink()
        thread.join(60)
    finally:
        hold.unlink(missing_ok=True)
        pool.shutdown()
    assert found
    assert Counter(seen) == Counter(range(CLIENTS))
    attempts = {r.index: r.attempt for r in log.reports if r.status == "done"}
    assert attempts[last] > 0  # its update lay in the lost sum, though its actor lives
    assert total.values.tobytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("why", "parts"), [("no memory", ACTORS), ("no entry", 2)])
def test_an_actor_that_cannot_share_has_a_sum_of_its_own(expected: bytes, tmp_path: Path, why: str, parts: int) -> None:
    ((total, arrived, log),) = rounds_of(Runs(dies=why, mark=str(tmp_path / "mark")))
    assert len(arrived) == parts
    assert log.deaths == 0
    assert total.values.tobytes() == expected


run = partial(
    short_run,
    seed=1,
    rounds=2,
    data={"source": "python:pools:data", "holdout": {"fraction": 0.0}},
    clients={"actors": 2, "resources": {"cpu": 1.0}},
    evaluation={"every": 0},
)


@pytest.mark.usefixtures("cluster")
class TestRuns:
    def test_a_run_shares_where_a_second_try_costs_nothing(self, tmp_path: Path) -> None:
        (opened := tmp_path / "opened").mkdir()
        model = {"kind": "python:sharedparts:model", "opened": str(opened), "large": True}
        result = run(tmp_path / "run", model=model)
        assert result.status == "completed"
        assert len(list(opened.iterdir())) >= 2  # an actor or two, and the driver, which reads it where it lies

    @pytest.mark.slow
    def test_a_run_with_a_sum_an_actor_gives_the_same_model(self, tmp_path: Path) -> None:
        prints = []
        for large in (True, False):
            model = {"kind": "python:sharedparts:model", "large": large}
            prints.append(run(tmp_path / f"run{large}", model=model).summary["model_sha256"])
        assert prints[0] == prints[1]

    @pytest.mark.slow
    def test_not_where_it_is_charged(self, tmp_path: Path) -> None:
        (opened := tmp_path / "opened").mkdir()
        model = {"kind": "python:sharedparts:model", "opened": str(opened), "large": True}
        training = {"lr": 0.1, "sampling_rate": 0.5, "steps": 2, "expected_batch": 10.0}
        privacy = {"regime": "record", "noise_multiplier": 1.0, "clip": 1.0, "delta": 1e-3, "ledger": str(tmp_path / "ledger")}
        result = run(tmp_path / "run", model=model, training=training, privacy=privacy)
        assert result.status == "completed"
        assert not list(opened.iterdir())
