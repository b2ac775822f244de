"""A Ray cluster for the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

_running = False  # whether the cluster of these tests is up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the cluster come first, so that it is started once."""
    items.sort(key=lambda item: "cluster" not in getattr(item, "fixturenames", ()))


@pytest.hookimpl(trylast=True)  # after the test's own fixtures, which end their actors
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Other tests find no Ray running."""
    if "cluster" not in getattr(nextitem, "fixturenames", ()):
        _stop()


def _stop() -> None:
    global _running
    if _running:
        import ray

        ray.shutdown()
        _running = False


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The value of ``FEDRAY_WORK`` in the cluster's processes, which import modules from there, too."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def cluster(work: Path) -> Iterator[None]:
    """A local Ray with six logical CPUs, shared by all tests that ask for it. Its processes have the credentials of the tests' S3 server."""
    global _running
    import logging

    import ray
    from objectstore import ENVIRONMENT

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
        runtime_env={"env_vars": {"PYTHONPATH": f"{Path(__file__).parent}:{work}", "FEDRAY_WORK": str(work), **ENVIRONMENT}},
    )
    _running = True
    yield
    _stop()
