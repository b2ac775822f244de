"""Memory stays flat over 300 rounds, in the driver and the actors, and the object store does not grow."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from paths import ROOT

import fedray

ROUNDS, WARM_UP = 300, 60
KEPT = Path(__file__).parent / "results" / "memory.json"


def private_bytes(title: str) -> dict[int, int]:
    """Unshared memory of this cluster's processes with that Ray title, by pid."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            if line.startswith("ray::") and title in line:
                found[process.pid] = process.memory_full_info().uss
        except psutil.Error:
            continue
    return found


def store_bytes() -> float:
    """MiB in the object store, as Ray counts it."""
    from ray._private.internal_api import memory_summary

    found = re.search(r"Plasma memory usage ([\d.]+) MiB", memory_summary(stats_only=True))
    assert found is not None
    return float(found.group(1))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = []

    def listen(kind: str, value: Any) -> None:
        if kind == "row" and value["round"] % 20 == 0:
            driver, clients = private_bytes("Experiment"), private_bytes("ClientHost")
            samples.append(
                {
                    "round": value["round"],
                    "driver": sum(driver.values()),
                    "actors": sum(clients.values()),
                    "n": len(clients),
                    "store_mib": store_bytes(),
                }
            )

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20)
    try:
        overrides = [f"rounds={ROUNDS}", "privacy.target_epsilon=30.0", "model={kind: mlp, hidden: [256]}", "training.lr=1.0"]
        result = fedray.run(ROOT / "configs" / "digits.yaml", overrides=overrides, output=str(tmp_path / "run"), callbacks=[listen])
    finally:
        ray.shutdown()
    assert result.summary["rounds"] == ROUNDS
    warm = next(s for s in samples if s["round"] >= WARM_UP)
    last = samples[-1]
    KEPT.parent.mkdir(exist_ok=True)
    growth = {name: last[name] / warm[name] for name in ("driver", "actors")}
    KEPT.write_text(json.dumps({"rounds": ROUNDS, "growth_after_warm_up": growth, "samples": samples}, indent=1) + "\n")
    assert warm["n"] == last["n"] == 2
    assert growth["driver"] <= 1.05
    assert growth["actors"] <= 1.05
    # A sample may fall between a round's put and its release, so medians are compared.
    stored = [s["store_mib"] for s in samples if s["round"] >= WARM_UP]
    assert statistics.median(stored[-5:]) <= statistics.median(stored[:5]) + 1.0
