"""Rows as Prometheus metrics, and the dashboard over them."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from paths import ROOT

from fedray.tracking import gauges
from fedray.tracking.gauges import EXPORTED, ROWS, Gauges

GRAFANA = ROOT / "cluster" / "grafana"
SERIES = re.compile(r"\bray_\w+")


class Recorder:
    """Stands for one of Ray's metrics; keeps what it is told."""

    def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.keys = name, set(tag_keys)
        self.told: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self.keys
        self.told.append((value, tags))

    inc = set


def recorded(monkeypatch: Any) -> dict[str, Recorder]:
    made: dict[str, Recorder] = {}

    def metric(exported: gauges.Exported) -> Recorder:
        return made.setdefault(exported.name, Recorder(exported.name, exported.text, ("experiment", "run", *exported.tags)))

    monkeypatch.setattr(gauges.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(gauges, "_metric", metric)
    return made


def test_outside_ray_nothing_happens():
    exporter = Gauges("experiment", "run", 3)
    exporter.listen("row", {"round": 1, "time": 0.0, "metrics": {"time/round_s": 1.0}})
    exporter.listen("note", "something")


def test_a_row_is_exported_in_base_units_with_its_tags(monkeypatch):
    made = recorded(monkeypatch)
    exporter = Gauges("hospitals", "heart-2", 7)
    metrics = {
        "time/round_s": 0.5,
        "round/clients_completed": 9,
        "round/clients_late": 0,
        "traffic/uplink_mb": 2.5,
        "privacy/epsilon": 1.5,
        "privacy/joint/epsilon": 0.5,
        "eval/accuracy": 0.75,
        "eval/loss": float("nan"),
        "train/lr": 0.1,
    }
    exporter.listen("row", {"round": 4, "time": 1e9, "metrics": metrics})
    base = {"experiment": "hospitals", "run": "heart-2"}
    told = {name: recorder.told for name, recorder in made.items() if recorder.told}
    assert told == {
        "fedray_rounds_planned": [(7.0, base)],
        "fedray_round": [(4.0, base)],
        "fedray_last_round_timestamp_seconds": [(1e9, base)],
        "fedray_round_seconds": [(0.5, base)],
        "fedray_clients": [(9.0, {**base, "outcome": "completed"})],
        "fedray_bytes": [(2.5e6, {**base, "direction": "up"})],
        "fedray_epsilon": [(1.5, {**base, "guarantee": "first"}), (0.5, {**base, "guarantee": "second"})],
        "fedray_evaluation": [(0.75, {**base, "metric": "accuracy"})],
    }


def test_series_of_one_name_have_the_same_kind_and_labels():
    for exported in EXPORTED:
        alike = {(e.counter, tuple(e.tags), e.text) for e in EXPORTED if e.name == exported.name}
        assert len(alike) == 1, exported.name


def test_nothing_is_exported_that_is_not_named():
    """A new metric of a row, such as one that counts clients, reaches Prometheus only by being listed."""
    assert not any(key.startswith("eval/") for key in ROWS)
    assert {key.split("/")[0] for key in ROWS} == {"time", "round", "traffic", "privacy"}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return found + [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]


def test_the_dashboard_names_only_what_is_exported():
    dashboard = json.loads((GRAFANA / "fedray.json").read_text())
    own = {name for text in expressions(dashboard) for name in SERIES.findall(text) if name.startswith("ray_fedray_")}
    assert own == {e.series for e in EXPORTED}  # and leaves nothing out


def test_the_dashboard_has_the_fields_that_grafana_asks_for():
    dashboard = json.loads((GRAFANA / "fedray.json").read_text())
    assert {"uid", "title", "schemaVersion", "version", "time", "templating", "panels", "tags"} <= set(dashboard)
    panels = dashboard["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert {"type", "title", "datasource", "fieldConfig", "options", "targets"} <= set(panel)
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")") and target["expr"].count("{") == target["expr"].count("}")
    variables = {v["name"] for v in dashboard["templating"]["list"]}
    used = {name for text in expressions(dashboard) for name in re.findall(r"\$(?!__)\{?(\w+)", text)}
    assert used | {"datasource"} == variables


def test_prometheus_finds_the_nodes_where_ray_notes_them():
    config = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
