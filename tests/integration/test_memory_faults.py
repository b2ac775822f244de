"""Out of memory: the same logical batch in smaller pieces, the same draws, the same charge."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from pools import Ground
from shortruns import short_run

import fedray
from fedray.privacy.ledger.verification import verify

pytestmark = pytest.mark.slow

GIB = 1 << 30
TRAINING = {"lr": 0.5, "sampling_rate": 0.8, "steps": 5, "expected_batch": 24.0, "engine": "hooks"}


@contextmanager
def local_ray(**system: Any) -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
        _system_config=system,
    )
    try:
        yield
    finally:
        ray.shutdown()


def private_run(output: Path, **sections: Any) -> fedray.Result:
    base: dict[str, Any] = {
        "seed": 0,
        "rounds": 2,
        "data": {"source": "python:pools:data", "holdout": {"fraction": 0.0}},
        "clients": {"actors": 1, "resources": {"cpu": 1.0}},
        "training": TRAINING,
        "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3, "insecure_seed": 4},
    }
    notes: list[str] = []
    result = short_run(output, notes, **base | sections)
    result.summary["notes"] = notes
    return result


def test_a_failed_allocation_halves_the_physical_batch_and_charges_nothing_more(tmp_path: Path) -> None:
    """A real limit on the process: 4 GiB that the system does not give."""
    model = {"kind": "python:pools:model", "most": 7, "eats": 4 * GIB, "limit": 2 * GIB}
    with local_ray():
        short = private_run(tmp_path / "short", model=model)
        ample = private_run(tmp_path / "ample", model={"kind": "python:pools:model"}, training=TRAINING | {"physical_batch": 4})
    assert short.status == "completed"
    assert short.summary["faults"]["client_failures"] == short.summary["faults"]["actor_deaths"] == short.summary["faults"]["retries"] == 0
    assert any("ran short of memory and trains with 4 records at once" in n for n in short.summary["notes"])
    assert short.summary["model_sha256"] == ample.summary["model_sha256"]  # the same draws
    assert short.summary["privacy"]["epsilon"] == ample.summary["privacy"]["epsilon"]
    spent = [dict(s) for s in verify(tmp_path / "short" / "ledger" / "records.jsonl").spent.values()]
    assert spent == [dict(s) for s in verify(tmp_path / "ample" / "ledger" / "records.jsonl").spent.values()]


def test_an_actor_that_ray_kills_for_memory_is_followed_by_one_with_half_the_batch() -> None:
    """Ray's own memory monitor, told to kill when the machine uses 5 GiB more than it does now."""
    memory = psutil.virtual_memory()
    if memory.available < 12 * GIB:
        pytest.skip("needs 12 GiB of free memory")
    threshold = (memory.total - memory.available + 5 * GIB) / memory.total
    with local_ray(memory_usage_threshold=threshold, min_memory_free_bytes=-1, memory_monitor_refresh_ms=100):
        ground = Ground(
            model={"kind": "python:pools:model", "most": 7, "eats": 8 * GIB},
            training={"lr": 0.1, "batch_size": 10, "epochs": 1},
            clients={"resources": {"cpu": 1.0}},
        )
        pool = ground.pool(1, retries=3)
        try:
            pool.wait_ready(90, everyone=True)
            total, _, log = ground.train(pool)
            assert total.count == 8
            assert log.deaths == 2, log.faults  # at 30 records and at 15
            assert all("low on memory" in f.text for f in log.faults if "died" in f.text), log.faults
            assert {r.physical_batch for r in log.reports} == {7}
            assert ground.train(pool, 1)[2].deaths == 0  # it stays with what fits
        finally:
            pool.shutdown()
