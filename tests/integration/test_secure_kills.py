"""Silos that are killed in every phase of a secure sum, and what the driver receives from a single one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pools import CLIENTS, Ground
from processes import wait_until
from securepool import Attempt, Silos, nothing

from fedray.secure.protocol import GivenUp
from fedray.secure.secagg_member import SEALED
from fedray.secure.wire import unpack

PHASES = ("keys", "shares", "train", "consistency", "unmask")
Before = Callable[[str, Attempt], None]


class Runs:
    """A run with secure sums, and the same run without, both by hand; rounds go on from test to test."""

    def __init__(self, hold: Path, **sections: Any) -> None:
        self.hold, self.number = hold, -1
        model = {"kind": "python:pools:model", "hold": str(hold)}
        self.silos, plain = Silos(model=model, **sections), Ground(model=model, clients={"resources": {"cpu": 0.5}})
        self.pools = self.silos.silos(), plain.pool(1)

    def begin(self) -> int:
        """Wait for all actors; the next round's number."""
        for pool in self.pools:
            pool.wait_ready(240.0, True)
        self.number += 1
        return self.number

    def attempt(self, attempt: int = 0, before: Before = nothing) -> Attempt:
        self.pools[0].wait_ready(240.0, True)
        return self.silos.attempt(self.pools[0], self.number, attempt, before)

    def in_the_clear(self) -> Any:
        return self.silos.in_the_clear(self.pools[1], self.number)

    def killing(self, at: str, clients: list[int]) -> Before:
        """Ends the processes of these clients just before they are asked in a phase, or while they train."""

        def before(phase: str, attempt: Attempt) -> None:
            if phase == at == "train":
                self.hold.touch()
                threading.Thread(target=kill_at_work, args=(attempt, clients, self.hold)).start()
            elif phase == at:
                attempt.kill(clients)

        return before


def kill_at_work(attempt: Attempt, clients: list[int], hold: Path) -> None:
    """End the processes of these clients while they train, and let the others go on then."""
    handles = [attempt.slot(client).handle for client in clients]

    def at_work() -> bool:
        return all(ray.get([h.at_work.options(concurrency_group="control").remote() for h in handles]))

    wait_until(at_work, "all of them train", 60)
    attempt.kill(clients)
    hold.unlink()


def running(made: Runs) -> Iterator[Runs]:
    """The runs, until a fixture ends."""
    yield made
    for pool in made.pools:
        pool.shutdown()


@pytest.fixture(scope="class")
def runs(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    yield from running(Runs(tmp_path_factory.mktemp("training") / "hold"))


@pytest.mark.slow
class TestKilled:
    def test_whoever_is_killed_in_whichever_phase_the_sum_is_that_of_the_survivors(self, runs: Runs) -> None:
        for phase in ("none", *PHASES):
            number = runs.begin()
            victims = [number % CLIENTS, (number + 3) % CLIENTS]
            made, clear = runs.attempt(before=runs.killing(phase, victims)), runs.in_the_clear()
            stay = [c for c in range(CLIENTS) if c not in victims or phase in ("none", "consistency", "unmask")]
            assert made.failed is None
            assert sorted(made.parts) == stay
            assert made.total.tobytes() == clear[stay].sum(axis=0).tobytes()
            assert sorted(r.index for r in made.log.reports if r.status == "lost") == [c for c in range(CLIENTS) if c not in stay]

    def test_if_too_many_are_killed_nothing_is_read_and_a_new_attempt_gives_the_sum_or_is_refused(self, runs: Runs) -> None:
        victims = [1, 4, 6]
        for phase in PHASES:
            number = runs.begin()
            made, clear = runs.attempt(before=runs.killing(phase, victims)), runs.in_the_clear()
            assert made.failed is not None
            assert isinstance(made.failed, GivenUp) == (phase == "unmask")
            named = {"train": "training"}.get(phase, phase)
            assert f"of 8 members 5 were left after the phase '{named}', and it takes 6" in str(made.failed)
            assert not made.parts or not (made.total == clear[sorted(made.parts)].sum(axis=0)).any()
            again = runs.attempt(1)
            if phase == "unmask":
                assert again.failed is not None
                why = {r.index for r in again.log.reports if f"it has helped to read a sum of round {number + 1} already" in r.error}
                assert why == set(range(CLIENTS)) - set(victims)  # whose processes remember nothing
            else:
                assert again.failed is None
                assert again.total.tobytes() == clear.sum(axis=0).tobytes()
        runs.begin()
        after = runs.attempt()
        assert after.failed is None
        assert after.total.tobytes() == runs.in_the_clear().sum(axis=0).tobytes()


def chi_square(values: Any) -> float:
    """Of bytes against the uniform distribution, with 255 degrees of freedom: 100 to 460 with a probability of 1 - 10**-12 at least."""
    counts = np.bincount(values, minlength=256)
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


@pytest.mark.slow
def test_what_the_driver_receives_from_one_silo_is_uniform_and_differs_from_run_to_run(cluster: Any) -> None:
    """A megabyte of one masked update, and all sealed shares, as they have come through Ray."""
    wide = {"kind": "mlp", "hidden": [18_000]}  # 4 features and 2 classes: 126,002 values
    received, sealed = [], []
    for _ in range(2):
        silos = Silos(model=wide)
        pool = silos.silos()
        try:
            pool.wait_ready(240.0, True)
            made = silos.attempt(pool, 0)
        finally:
            pool.shutdown()
        assert made.failed is None
        received += [made.parts[0], made.parts[5]]
        sealed += [share for answer in made.said["shares"].values() for share in unpack(answer, SEALED).values()]
        assert not (made.parts[0] == made.total).any()
    for vector in received:
        assert vector.nbytes >= 10**6
        assert 100 < chi_square(vector.view(np.uint8)) < 460
    for i, one in enumerate(received):
        for other in received[:i]:
            assert not (one == other).any()
            assert 100 < chi_square((one - other).view(np.uint8)) < 460
    assert len(set(sealed)) == len(sealed) == 2 * CLIENTS * (CLIENTS - 1)
    assert 100 < chi_square(np.frombuffer(b"".join(sealed), dtype=np.uint8)) < 460
