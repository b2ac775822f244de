"""Rows come out at the node's metrics endpoint, as Prometheus reads it."""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from paths import ROOT

from fedray.tracking.gauges import EXPORTED, ROWS, Gauges

ROW = re.compile(r"^(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)$")


class Exporter:
    """Stands for the driver actor: a worker process with the callback."""

    def __init__(self) -> None:
        self._gauges = Gauges("hospitals", "heart-2", 9)

    def rows(self, number: int) -> None:
        metrics = dict.fromkeys(ROWS, 2.0) | {"eval/accuracy": 0.75}
        for round_ in range(1, number + 1):
            self._gauges.listen("row", {"round": round_, "time": time.time(), "metrics": metrics})


def scraped(until: str, limit: float = 60.0) -> dict[str, dict[str, float]]:
    """Series name to label text to value, as soon as one has the name ``until``."""
    (node,) = ray.nodes()
    address, end = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", time.monotonic() + limit
    while True:
        found: dict[str, dict[str, float]] = {}
        try:
            text = urllib.request.urlopen(address, timeout=5).read().decode()
        except OSError:
            text = ""
        for line in text.splitlines():
            if match := ROW.match(line):
                found.setdefault(match["name"], {})[match["labels"]] = float(match["value"])
        if until in found:
            return found
        assert time.monotonic() < end, f"no {until} at {address}"
        ray.wait([ray.put(None)], timeout=0.5)


@pytest.mark.slow
def test_prometheus_sees_what_the_driver_tells():
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
        _system_config={"metrics_report_interval_ms": 500},
        runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT / 'tests'}:{Path(__file__).parent}"}},
    )
    try:
        exporter = ray.remote(num_cpus=0)(Exporter).remote()
        ray.get(exporter.rows.remote(3))
        found = scraped("ray_fedray_evaluation")
    finally:
        ray.shutdown()

    def values(series: str, **labels: str) -> list[float]:
        wanted = [f'{k}="{v}"' for k, v in labels.items()] + ['experiment="hospitals"', 'run="heart-2"']
        return [v for text, v in found[series].items() if all(label in text for label in wanted)]

    assert values("ray_fedray_round") == [3.0]
    assert values("ray_fedray_rounds_planned") == [9.0]
    assert values("ray_fedray_clients_total", outcome="late") == [6.0]
    assert values("ray_fedray_bytes_total", direction="down") == [6e6]
    assert values("ray_fedray_epsilon", guarantee="second") == [2.0]
    assert values("ray_fedray_evaluation", metric="accuracy") == [0.75]
    assert {e.series for e in EXPORTED} <= set(found)

    dashboard = json.loads((ROOT / "cluster" / "grafana" / "fedray.json").read_text())
    asked = {n for p in dashboard["panels"] for t in p.get("targets", []) for n in re.findall(r"\bray_\w+", t["expr"])}
    assert asked - set(found) == set(), "the dashboard asks for series that Ray does not export"
