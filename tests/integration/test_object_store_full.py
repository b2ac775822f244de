"""An object store that is too small for a round: Ray spills to disk, the run ends with the same bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from paths import ROOT

import fedray
from fedray.experiment.cluster import NAMESPACE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: 8.7 million parameters: weights of 35 MB, and two parts of 70 MB a round.
LARGE = ["model={kind: mlp, hidden: [4096, 2048]}", "rounds=3", "privacy={regime: none}", "tracking.enabled=false", "clients.actors=2"]


@pytest.fixture
def small_store() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=NAMESPACE,
    )
    yield
    ray.shutdown()


def sha256(output: Path) -> str:
    result = fedray.run(ROOT / "configs" / "digits.yaml", overrides=LARGE, output=str(output))
    assert result.status == "completed"
    return str(result.summary["model_sha256"])


def test_a_round_that_does_not_fit_is_spilled(small_store: None, tmp_path: Path) -> None:
    found = sha256(tmp_path / "small")
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert list(session.glob("ray_spilled_objects_*/*")), "the store was too small"
    ray.shutdown()
    assert found == sha256(tmp_path / "large")
