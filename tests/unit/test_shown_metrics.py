"""Which metrics MLflow gets, in which order, and with how many digits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.tracking.journal import METRICS, State, points
from fedray.tracking.mlflow_tracker import _Run
from fedray.tracking.shown import CONSTANTS, COUNTERS, Silence, rounded

VALUES = st.floats(0, 1e6, allow_nan=False)


def test_results_come_first_then_epsilon_then_the_rest() -> None:
    names = [
        "round/clients_completed",
        "train/loss_mean",
        "time/round_s",
        "privacy/epsilon_rdp",
        "privacy/epsilon",
        "eval/auc",
        "eval/accuracy",
    ]
    found = points({"round": 1, "time": 1.0, "metrics": dict.fromkeys(names, 1.0)})
    assert [p.key for p in found][:4] == ["eval/auc", "eval/accuracy", "privacy/epsilon", "privacy/epsilon_rdp"]
    assert {p.key for p in found} == set(names)


@given(VALUES)
def test_epsilon_is_never_shown_smaller_than_it_is(value: float) -> None:
    shown = rounded("privacy/epsilon", value)
    assert value <= shown <= value + 1e-4 * (1 + 1e-9)
    assert rounded("privacy/epsilon", shown) == shown


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("eval/accuracy", 0.911111, 0.9111),
        ("eval/loss", 0.00012346, 0.0001235),
        ("time/round_s", 1.23456, 1.235),
        ("traffic/uplink_mb", 0.0026, 0.0026),
        ("round/clients_completed", 123456.0, 123456.0),
        ("train/lr", 0.123456789, 0.123457),
        ("privacy/rounds_left", 12345.0, 12345.0),
    ],
)
def test_digits(name: str, value: float, shown: float) -> None:
    assert rounded(name, value) == shown


class Server:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}
        self.refuse = 0

    def log_batch(self, run_id: str, metrics: Any = ()) -> None:
        if self.refuse:
            self.refuse -= 1
            raise ConnectionError("away")
        for m in metrics:
            self.values.setdefault(m.key, {})[m.step] = m.value


def rows(series: dict[str, list[float]]) -> list[dict[str, Any]]:
    count = len(next(iter(series.values())))
    return [{"round": i + 1, "time": 1.0, "metrics": {k: v[i] for k, v in series.items()}} for i in range(count)]


@given(st.data())
def test_a_counter_or_setting_is_sent_whole_or_not_at_all(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """However rows are batched, wherever the sender is started anew, and whenever the server refuses."""
    folder = tmp_path_factory.mktemp("run")
    count = data.draw(st.integers(1, 12))
    few = st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 3.0]), min_size=count, max_size=count)
    names = ["eval/accuracy", *sorted(COUNTERS)[:3], *CONSTANTS]
    series = {name: data.draw(few) for name in names}
    journal = rows(series)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in journal))
    server, state = Server(), State("sqlite:///x", "e", "1", "r", "n")
    run = _Run(folder, server, state)
    at = 0
    while at < count:
        step = data.draw(st.integers(1, count - at))
        server.refuse = data.draw(st.integers(0, 1))
        if data.draw(st.booleans()):
            run = _Run(folder, server, state)  # a new process reads the rows before again
            at_now = 0
        else:
            at_now = at
        batch = journal[at_now : at + step]
        try:
            run.ship(batch)
        except ConnectionError:
            run.ship(batch)
        at += step
    for name, values in series.items():
        quiet = set(values) == {0.0} if name in COUNTERS else len(set(values)) == 1 if name in CONSTANTS else False
        assert server.values.get(name, {}) == ({} if quiet else {i + 1: v for i, v in enumerate(values)}), name


def test_constant_settings_become_parameters() -> None:
    silence = Silence()
    silence.hear([{"train/lr": 0.1, "privacy/budget": 8.0}, {"train/lr": 0.05, "privacy/budget": 8.0}])
    assert silence.settings == {"privacy.budget": 8.0}


def test_the_params_reach_the_server_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedray.tracking import mlflow_tracker

    monkeypatch.setattr(mlflow_tracker, "send", lambda *args: None)
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows({"privacy/budget": [5.0, 5.0]})))
    sent: list[Any] = []

    class Client(Server):
        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            sent.extend((p.key, p.value) for p in params)

        def get_run(self, run_id: str) -> Any:
            return SimpleNamespace(info=SimpleNamespace(start_time=0))

        def set_terminated(self, run_id: str, status: str, end_time: int | None) -> None:
            pass

    _Run(tmp_path, Client(), State("sqlite:///x", "e", "1", "r", "n")).finish(SimpleNamespace(end_time=None), "FINISHED")  # type: ignore[arg-type]
    assert sent == [("privacy.budget", "5")]
