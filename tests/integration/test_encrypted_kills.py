"""Silos that are killed in every phase of an encrypted sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pools import CLIENTS
from test_secure_kills import Runs, running

from fedray.secure.bfv import BfvScheme
from fedray.secure.consortium import make_consortium_key
from fedray.secure.protocol import GivenUp

pytest.importorskip("tenseal", reason="the extra 'encrypted' is not installed")

PHASES = ("nonce", "train", "confirm", "open")


@pytest.fixture(scope="class")
def runs(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("training")
    make_consortium_key(BfvScheme(), folder / "key")
    yield from running(Runs(folder / "hold", secure={"kind": "bfv", "key": str(folder / "key"), "fewest": 6}))


@pytest.mark.slow
class TestKilled:
    def test_whoever_is_killed_in_whichever_phase_the_sum_is_that_of_the_survivors(self, runs: Runs) -> None:
        for phase in ("none", *PHASES):
            number = runs.begin()
            victims = [number % CLIENTS, (number + 3) % CLIENTS]
            made, clear = runs.attempt(before=runs.killing(phase, victims)), runs.in_the_clear()
            stay = [c for c in range(CLIENTS) if c not in victims or phase in ("none", "confirm", "open")]
            assert made.failed is None
            assert sorted(made.parts) == stay
            assert not any(part.any() for part in made.parts.values())  # nothing that came from a silo can be read
            assert made.total.tobytes() == clear[stay].sum(axis=0).tobytes()
            runs.pools[0].spans(60.0)  # asks everybody, so that those are replaced who were killed when nobody asked them any more

    def test_if_too_many_are_killed_nothing_is_read_and_a_new_attempt_gives_the_sum_or_is_refused(self, runs: Runs) -> None:
        for phase, why in (
            ("nonce", "'nonce', and it takes 6"),
            ("train", "'training', and it takes 6"),
            ("confirm", "'confirm', and it takes 6"),
        ):
            runs.begin()
            made, clear = runs.attempt(before=runs.killing(phase, [1, 4, 6])), runs.in_the_clear()
            assert made.failed is not None
            assert isinstance(made.failed, GivenUp) == (phase == "confirm")
            assert f"of 8 members 5 were left after the phase {why}" in str(made.failed)
            assert made.total is None or not made.total.any()
            again = runs.attempt(1)
            assert (again.failed is None) == (phase != "confirm")
            if phase != "confirm":
                assert again.total.tobytes() == clear.sum(axis=0).tobytes()
