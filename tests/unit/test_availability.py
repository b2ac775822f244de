"""Groups that come every so many rounds, and traces of when each client is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtualray import drive

from fedray.config import Config
from fedray.configfile import build_config
from fedray.errors import ConfigError, DataError, PrivacyRefusal
from fedray.planning.forecast import Participation
from fedray.planning.planner import rows_of
from fedray.planning.preparation import prepare
from fedray.rounds.availability import Availability, read_traces

NAMES = [f"client-{k:04}" for k in range(6)]
UNIFORM = {"kind": "fedavg", "weights": "uniform"}
WHOLE = {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-2}


def config(**sections: Any) -> Config:
    raw = {
        "name": "t",
        "seed": 3,
        "rounds": 6,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}},
        "model": {"kind": "softmax"},
        "training": {"lr": 0.1, "batch_size": 40, "steps": 1},
        "evaluation": {"metrics": []},
        "tracking": {"enabled": False},
    }
    return build_config({**raw, **sections})


def traced(folder: Path, **of: list[Any]) -> str:
    """A file in which all clients but those in ``of`` are there in all of 1000 rounds."""
    file = folder / "traces.json"
    file.write_text(json.dumps({name: of.get(name.replace("-", "_"), [[1, 1000]]) for name in NAMES}))
    return str(file)


def sampled(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["metrics"]["round/clients_sampled"] for row in rows]


def test_a_group_comes_every_so_many_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = {"groups": [{"name": "monthly", "clients": 6, "every": 3}]}
    rows, _, _ = drive(config(clients=clients), tmp_path / "a", lambda client: 1.0, 2, monkeypatch)
    assert sampled(rows) == [6, 0, 0, 6, 0, 0]


def test_clients_train_when_their_traces_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = traced(tmp_path, client_0000=[2, [4, 5]], client_0001=[[1, 2]])
    for kind in ({"kind": "all"}, {"kind": "fixed", "size": 6}):
        rows, _, _ = drive(config(cohort={**kind, "availability": file}), tmp_path / kind["kind"], lambda client: 1.0, 2, monkeypatch)
        assert sampled(rows) == [5, 6, 4, 5, 5, 4]


@given(
    intervals=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20), st.integers(0, 5)), max_size=12),
    every=st.integers(1, 4),
    number=st.integers(0, 30),
)
@settings(max_examples=30)
def test_traces_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, intervals: list[tuple[int, int, int]], every: int, number: int
) -> None:
    folder = tmp_path_factory.mktemp("traces")
    rows = [(k, first, first + more) for k, first, more in intervals] + [(k, 25, 25) for k in range(6)]
    (folder / "a.csv").write_text("client,first,last\n" + "".join(f"client-000{k},{a},{b}\n" for k, a, b in rows))
    (folder / "b.csv").write_text("client,round\n" + "".join(f"client-000{k},{r}\n" for k, a, b in rows for r in range(a, b + 1)))
    (folder / "c.json").write_text(json.dumps({f"client-000{k}": [[a, b] for j, a, b in rows if j == k] for k in range(6)}))
    there = [any(j == k and a <= number + 1 <= b for j, a, b in rows) and number % every == 0 for k in range(6)]
    for name in ("a.csv", "b.csv", "c.json"):
        assert Availability(np.full(6, every), read_traces(str(folder / name), NAMES)).at(number).tolist() == there


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "client,first\nclient-0000,1\n", "has the columns client, first; a .csv has the columns"),
        ("t.csv", "client,round\nclient-9,1\n", r"line 2: there is no client 'client-9'. Did you mean"),
        ("t.csv", "client,first,last\nclient-0000,5,3\n", "rounds 5 to 3 of client 'client-0000' are no interval"),
        ("t.csv", "client,round\nclient-0000,0\n", "rounds count from 1"),
        ("t.csv", "client,round\nclient-0000,soon\n", "'soon' is no round"),
        ("t.csv", "client,round\nclient-0000,1\nclient-0002,1\n", r"says nothing of client 'client-0001' \(and of 3 others\)"),
        ("t.json", "[1, 2]", "is not as expected; .* a .json maps each client"),
        ("t.json", "{", "is no JSON"),
        ("t.json", '{"client-0000": [[1, 2, 3]]}', "neither a round nor"),
        ("t.json", '{"client-0000": [1.5]}', "1.5 is no round"),
    ],
)
def test_bad_traces_are_refused_in_one_sentence(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        read_traces(str(tmp_path / name), NAMES)
    with pytest.raises(DataError, match="No such file"):
        read_traces(str(tmp_path / "none.csv"), NAMES)


def test_a_rate_without_coins_is_refused() -> None:
    groups = {"groups": [{"name": "g", "clients": 2, "rate": 0.43}]}
    with pytest.raises(ConfigError, match=r"clients\.groups\.0\.rate: .*cohort\.kind=poisson, or clients\.groups\.0\.every"):
        prepare(config(clients=groups))
    prepare(config(clients=groups, cohort={"kind": "poisson", "fraction": 1.0}))


def test_without_rounds_nobody_is_away() -> None:
    groups = {"groups": [{"name": "g", "clients": 2, "every": 2}]}
    with pytest.raises(ConfigError, match="there are no rounds in which some are away"):
        prepare(config(clients=groups, pacing={"kind": "fedbuff", "buffer": 2, "concurrency": 3}))


def test_other_traces_are_another_run(tmp_path: Path) -> None:
    found = set()
    for rounds in ([1], [2]):
        found.add(prepare(config(cohort={"kind": "all", "availability": traced(tmp_path, client_0000=rounds)})).away_digest)
    assert len(found | {prepare(config()).away_digest}) == 3


def test_whole_clients_are_charged_as_if_they_were_always_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = {"kind": "poisson", "fraction": 0.5, "min_clients": 0}
    away = {**cohort, "availability": traced(tmp_path, client_0000=[1])}
    rest = {"privacy": {**WHOLE, "insecure_seed": 1}, "algorithm": UNIFORM, "rounds": 2}
    usual, with_traces = prepare(config(cohort=cohort, **rest)), prepare(config(cohort=away, **rest))
    assert usual.client_plan is not None and with_traces.client_plan is not None
    assert usual.client_plan.terms() == with_traces.client_plan.terms()
    assert any("counts as public" in said for said in with_traces.warnings)
    rows, _, _ = drive(config(cohort=away, **rest), tmp_path / "run", lambda client: 1.0, 2, monkeypatch)
    assert rows[-1]["metrics"]["privacy/epsilon"] == pytest.approx(usual.client_plan.planned_epsilon, rel=1e-3)


@pytest.mark.parametrize("cohort", [{"kind": "fixed", "size": 3}, {"kind": "poisson", "fraction": 0.5, "cap": 3}])
def test_cohorts_of_a_fixed_size_from_fewer_clients_are_refused_under_client_privacy(tmp_path: Path, cohort: dict[str, Any]) -> None:
    groups = {"groups": [{"name": "g", "clients": 3, "every": 2}]}
    for sections in ({"cohort": {**cohort, "availability": traced(tmp_path)}}, {"cohort": cohort, "clients": groups}):
        with pytest.raises(PrivacyRefusal, match="each of the others is drawn more often") as refused:
            prepare(config(privacy=WHOLE, algorithm=UNIFORM, **sections))
        assert refused.value.code == "privacy.incompatible.client.rates"


def test_clients_that_come_less_often_are_planned_so() -> None:
    """Records are charged when their client takes part, so the noise of a group is found for the rounds in which it can."""
    clients = {"groups": [{"name": "monthly", "clients": 2, "every": 3}]}
    training = {"lr": 0.1, "sampling_rate": 0.1, "steps": 1, "expected_batch": 20}
    privacy = {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-4}
    prepared = prepare(config(clients=clients, training=training, privacy=privacy))
    assert [plan.participations for plan in prepared.plans if plan is not None] == [2, 6]
    ((_, rows),) = rows_of(prepared, [])
    assert {row.group: row.participation.worst for row in rows} == {"monthly": 2, "default": 6}


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(1, 7))
@settings(max_examples=30)
def test_the_forecast_counts_the_rounds_in_which_a_client_can_come(rounds: int, rate: float, every: int) -> None:
    possible = -(-rounds // every)
    sparse, dense = Participation(rounds, rate, every), Participation(possible, rate)
    assert sparse.worst == dense.worst == possible
    assert sparse.expected == pytest.approx(rate * possible)
    assert all(sparse.above(k) == dense.above(k) for k in range(possible))
