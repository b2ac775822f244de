"""System metrics: off by default, named as a side channel, refused where they would tell a secret."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.privacy import rules, statement_text
from fedray.tracking.systemmetrics import SystemMetrics


def config(regime: str = "record", cohort: str = "all", **tracking: Any) -> Any:
    return build_config(
        {
            "name": "x",
            "rounds": 5,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": "softmax"},
            "cohort": {"kind": cohort, **({"fraction": 0.5} if cohort == "poisson" else {})},
            "training": {"sampling_rate": 0.25, "steps": 5, "expected_batch": 30},
            "privacy": {"regime": regime, "noise_multiplier": 2.0, "delta": 1e-5},
            "tracking": tracking,
        }
    )


def test_the_statement_names_the_side_channel_where_they_are_logged() -> None:
    for on in (False, True):
        channels = statement_text.exposure(config(system_metrics=on))["side_channels"]
        assert any("tracking.system_metrics" in text for text in channels) is on


def test_they_are_refused_where_cohorts_are_secret() -> None:
    rules.check(config("record", "poisson", system_metrics=True))
    rules.check(config("client", "all", system_metrics=True))
    with pytest.raises(PrivacyRefusal, match=r"^\[privacy\.incompatible\.client\.system_metrics\] .*; set it to false"):
        rules.check(config("client", "poisson", system_metrics=True))


def test_a_key_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.system_metrics: has no effect"):
        rules.check(config(system_metrics=True, enabled=False))


def test_samples_are_numbered_on() -> None:
    rows: list[Any] = []
    three = threading.Event()

    def log(row: Any) -> None:
        rows.append(row)
        if len(rows) >= 3:
            three.set()

    sampling = SystemMetrics(log, first=7, interval=0.01)
    assert three.wait(60.0)
    sampling.stop()
    assert [row["round"] for row in rows[:3]] == [8, 9, 10]
    assert all(name.startswith("system/") and value >= 0 for row in rows for name, value in row["metrics"].items())


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ConfigError, match=r"tracking\.system_metrics: needs the package psutil"):
        SystemMetrics(print)
