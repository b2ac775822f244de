from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedray.config import Tracking
from fedray.errors import ConfigError
from fedray.tracking.artifacts import clients_table
from fedray.tracking.journal import METRICS, STATE, State, latest_rows, metric_name, not_finite, points, read_rows
from fedray.tracking.mlflow_store import masked, reason, resolve_uri, unmasked
from fedray.tracking.mlflow_tracker import flat_params
from fedray.tracking.ui import dashboard, dress_experiment, ui_command, ui_links


def state(**shipped: int) -> State:
    return State("sqlite:////x.db", "e", "1", "r", "n", shipped={f"eval/{k}": v for k, v in shipped.items()})


def row(number: int, **metrics: float | None) -> dict[str, object]:
    return {"round": number, "time": 100.25 + number, "metrics": {f"eval/{k}": v for k, v in metrics.items()}}


def test_points_keep_the_recorded_time_and_drop_what_is_not_finite() -> None:
    found = points(row(3, a=1.0, b=math.nan, c=math.inf, d=None))
    assert [(p.key, p.value, p.time, p.round) for p in found] == [("eval/a", 1.0, 103250, 3)]
    assert not_finite([row(2, b=1.0), row(3, b=math.nan, d=None), row(4, b=math.inf)]) == {"eval/b": 3}


def test_only_what_the_server_lacks_is_missing() -> None:
    position = state(a=4)
    every = [p for r in range(1, 7) for p in points(row(r, a=r))] + points(row(4, late=0.5))
    assert [(p.key, p.round) for p in position.missing(every)] == [("eval/a", 5), ("eval/a", 6), ("eval/late", 4)]
    position.advance(position.missing(every))
    assert position.missing(every) == []
    assert position.shipped == {"eval/a": 6, "eval/late": 4}


def test_a_repeated_round_does_not_move_the_position_back() -> None:
    position = state(a=8)
    position.advance(points(row(6, a=0.1)))
    assert position.shipped == {"eval/a": 8}
    assert position.missing(points(row(8, a=0.9))) == []


def test_state_survives_the_disk_and_is_replaced_whole(tmp_path: Path) -> None:
    position = state(a=3)
    position.model = {"sha256": "ab", "version": "2"}
    position.save(tmp_path)
    position.save(tmp_path)
    assert State.load(tmp_path) == position
    assert [p.name for p in tmp_path.iterdir()] == [STATE]
    assert State.load(tmp_path / "elsewhere") is None


def test_a_broken_state_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text("{")
    with pytest.raises(ConfigError, match=r"tracking\.json: cannot be read"):
        State.load(tmp_path)


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    text = json.dumps(row(1, a=1.0)) + "\n\n[]\n" + json.dumps(row(2, a=2.0)) + "\n" + json.dumps(row(3, a=3.0))[:-5]
    (tmp_path / METRICS).write_text(text)
    assert [r["round"] for r in read_rows(tmp_path)] == [1, 2]
    assert list(read_rows(tmp_path / "none")) == []


def test_latest_rows_has_one_row_a_round(tmp_path: Path) -> None:
    rows = [row(1, a=1.0), row(2, a=2.0), row(2, a=2.5, b=1.0), row(3, a=3.0)]
    (tmp_path / METRICS).write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [(r["round"], r["metrics"]) for r in latest_rows(tmp_path)] == [
        (1, {"eval/a": 1.0}),
        (2, {"eval/a": 2.5, "eval/b": 1.0}),
        (3, {"eval/a": 3.0}),
    ]


def test_metric_names_that_mlflow_would_refuse() -> None:
    assert metric_name("eval/auc@0.5 ü") == "eval/auc_0.5 _"
    assert len(metric_name("x" * 400)) == 250


def test_where_a_run_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert resolve_uri(Tracking(), "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    assert resolve_uri(Tracking(), "runs") == "http://env:5000"
    assert resolve_uri(Tracking(uri="sqlite:///my.db"), "runs") == f"sqlite:///{tmp_path}/my.db"


def test_passwords_are_kept_out_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    full = "postgresql://me:p%40ss@db:5432/x"
    assert masked(f"see {full} there") == "see postgresql://me:***@db:5432/x there"
    assert masked("http://host:5000/a@b") == "http://host:5000/a@b"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", full)
    assert unmasked(masked(full)) == full
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        unmasked(masked(full))
    assert "p%40ss" not in reason(ValueError(f"cannot open {full}\n at line 3"))


def test_flat_params() -> None:
    config = {"lr": 0.1, "none": None, "on": True, "betas": [0.9, 0.99], "no": [], "groups": [{"name": "a"}, {"name": "b"}], "in": {"x": 1}}
    assert flat_params({"t": config}) == {
        "t.lr": "0.1",
        "t.on": "true",
        "t.betas": "0.9, 0.99",
        "t.groups.0.name": "a",
        "t.groups.1.name": "b",
        "t.in.x": "1",
    }


def test_the_ui_over_a_store() -> None:
    command = ui_command("sqlite:////r/mlflow.db", port=5123)
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in command
    assert command[command.index("--backend-store-uri") + 1] == "sqlite:////r/mlflow.db"
    assert command[command.index("--port") + 1] == "5123"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    with pytest.raises(ConfigError, match="open that address"):
        ui_command("http://u:secret@host:5000")
    assert ui_links("sqlite:////r/mlflow.db", "3", "abc")["run"].startswith("http://127.0.0.1:5000/#/experiments/3/runs/abc")
    assert "secret" not in str(ui_links("https://u:secret@host", "3", "abc"))
    assert ui_links("databricks", "3", "abc") == {}


def test_the_dashboard_plots_the_headline_against_epsilon() -> None:
    charts = dashboard("eval/auc")["compareRunCharts"]
    against = [c for c in charts if c.get("selectedXAxisMetricKey") == "privacy/epsilon"]
    assert [c["metricKey"] for c in against] == ["eval/auc"]
    sections = {s["uuid"] for s in dashboard("eval/loss")["compareRunSections"]}
    assert {c["metricSectionId"] for c in charts} <= sections


def test_runs_that_cannot_share_an_axis_are_told_of_beside_the_charts() -> None:
    others = {"privacy/unit": "client", "fedray.dataset": "sklearn:digits"}
    set_tags: dict[str, str] = {}

    class Client:
        def search_runs(self, experiments: list[str], text: str, max_results: int) -> list[Any]:
            name, value = text.removeprefix("tags.`").removesuffix("'").split("` != '")
            return [SimpleNamespace(data=SimpleNamespace(tags=others))] if others[name] != value else []

        def set_experiment_tag(self, experiment: str, key: str, value: str) -> None:
            set_tags[key] = value

    def dressed(unit: str) -> tuple[str, str]:
        experiment = SimpleNamespace(experiment_id="1", tags=dict(set_tags))
        dress_experiment(Client(), experiment, "eval/accuracy", {"privacy/unit": unit, "fedray.dataset": "sklearn:digits"})
        section = json.loads(set_tags["mlflow.sharedViewState.fedray"])["compareRunSections"][0]["name"]
        return set_tags["mlflow.note.content"].splitlines()[0], section

    assert dressed("client") == ("How much accuracy does each epsilon buy, and for whom?", "Utility and privacy")
    said, section = dressed("record")
    assert said == "The runs here differ in the protected unit (client, record): compare only runs that are alike in it."
    assert section == "Utility and privacy; runs differ in the protected unit (client, record)"
    set_tags["mlflow.note.content"] = "my own"
    assert dressed("record")[0] == "my own"


def test_the_clients_table_joins_partition_and_statement() -> None:
    partition = {"clients": 2, "rows": [{"client": "a", "records": 5, "classes": [2, 3], "group": "x"}, {"client": "b", "records": 7}]}
    spent = {"unit": "record", "budget": 8.0, "of_this_run": 3, "participations_charged": 3, "rounds_left": 9, "epsilon_rdp": 1.7}
    rows = [{"name": "a", "epsilon": "infinity", **spent}, {"name": "b", "epsilon": 1.50001, **spent, "participations_charged": 5}]
    columns, data = clients_table(partition, {"clients": rows})
    assert columns == ["client", "records", "epsilon", "budget left", "rounds", "rounds left", "group", "rounds of all runs"]
    assert data == [["a", 5, math.inf, None, 3, 9, "x", None], ["b", 7, 1.5001, 6.4999, 3, 9, None, 5]]
    assert clients_table({"clients": 3}, {}) == ([], [])
