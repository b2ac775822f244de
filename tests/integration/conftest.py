"""A Ray cluster for the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray with six logical CPUs, shared by the tests of a module; tests of other modules find none running."""
    import logging

    import ray

    from fedray.experiment.cluster import NAMESPACE

    ray.init(
        address="local",
        num_cpus=6,
        resources={"site_1": 2},
        labels={"region": "eu"},
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=NAMESPACE,
        object_store_memory=300 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},  # for python: parts of the tests
    )
    yield
    ray.shutdown()
