"""Simulated stragglers: who they are, what they train, and what they do not go with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtualray import drive

from fedray.choices import Stragglers
from fedray.clients.messages import ClientTask
from fedray.config import Config
from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.rounds.stragglers import straggled

TRAINING = {"lr": 0.1, "batch_size": 20, "epochs": 4}


def config(**sections: Any) -> Config:
    raw = {
        "name": "t",
        "seed": 3,
        "rounds": 2,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}},
        "model": {"kind": "softmax"},
        "cohort": {"kind": "all", "stragglers": {"share": 0.5}},
        "training": TRAINING,
        "evaluation": {"metrics": []},
        "tracking": {"enabled": False},
    }
    return build_config({**raw, **sections})


@given(
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
    number=st.integers(0, 1000),
    cohort=st.lists(st.integers(0, 19), unique=True, max_size=20),
    most=st.lists(st.integers(2, 30), min_size=20, max_size=20),
)
@settings(max_examples=30)
def test_the_stated_share_straggles_and_does_less_than_all(
    share: float, seed: int, number: int, cohort: list[int], most: list[int]
) -> None:
    tasks, passes = [ClientTask(i, f"c{i}") for i in sorted(cohort)], np.array(most)
    kept, none = straggled(Stragglers(share=share), seed, passes, number, tasks)
    slow = [client for client in kept if client.epochs is not None]
    assert len(slow) == round(share * len(tasks)) and not none
    assert all(1 <= (client.epochs or 0) < passes[client.index] for client in slow)
    assert [client._replace(epochs=None) for client in kept] == tasks
    left, late = straggled(Stragglers(share=share, drop=True), seed, passes, number, tasks)
    assert sorted(report.index for report in late) == [client.index for client in slow]
    assert left == [client for client in kept if client.epochs is None]


def test_a_straggler_trains_its_passes_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all of them get through one pass, the run is that of one pass."""
    told: list[ClientTask] = []
    monkeypatch.setattr(
        "fedray.rounds.arrival.straggled", lambda *given: (told.extend(given[-1]) or [c._replace(epochs=1) for c in given[-1]], [])
    )
    _, _, slow = drive(config(), tmp_path / "a", lambda client: 1.0, 2, monkeypatch)
    monkeypatch.undo()
    one = config(cohort={"kind": "all"}, training={**TRAINING, "epochs": 1, "engine": "plain"})
    _, _, quick = drive(one, tmp_path / "b", lambda client: 1.0, 1, monkeypatch)
    assert len(told) == 12 and slow.tobytes() == quick.tobytes()


def test_a_round_shows_who_was_left_out_and_does_not_depend_on_actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for drop, done in ((True, 3), (False, 6)):
        made = config(cohort={"kind": "all", "stragglers": {"share": 0.5, "drop": drop}})
        rows, _, model = drive(made, tmp_path / f"{drop} 1", lambda client: 1.0, 1, monkeypatch)
        _, _, again = drive(made, tmp_path / f"{drop} 3", lambda client: 1.0, 3, monkeypatch)
        assert model.tobytes() == again.tobytes()
        assert [row["metrics"]["round/clients_completed"] for row in rows] == [done] * 2
        assert [row["metrics"]["round/clients_late"] for row in rows] == [6 - done] * 2


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"training": {"lr": 0.1, "batch_size": 20, "steps": 4}}, r"training\.epochs: .*here are steps"),
        ({"training": {**TRAINING, "epochs": 1}}, r"training\.epochs: .*one pass"),
        ({"clients": {"groups": [{"name": "g", "clients": 2, "training": {"epochs": 1}}]}}, r"clients\.groups\.0\.training\.epochs"),
        ({"pacing": {"kind": "synchronous", "arrival": "simulated"}}, "speeds of their own"),
        ({"training": {**TRAINING, "engine": "lockstep"}}, "some do fewer passes"),
    ],
)
def test_what_stragglers_mean_nothing_with_is_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prepare(config(**sections))


def test_no_regime_accounts_for_them() -> None:
    privacy = {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-2}
    with pytest.raises(PrivacyRefusal) as refused:
        check_only(config(privacy=privacy, algorithm={"kind": "fedavg", "weights": "uniform"}))
    assert refused.value.code == "privacy.incompatible.client.stragglers"
