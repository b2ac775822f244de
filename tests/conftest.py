"""Shared by all tests.

The environment is set before anything imports ray: a first local cluster would otherwise write a
token into the developer's home directory and change how later clusters behave.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from paths import ROOT

if TYPE_CHECKING:
    import torch
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise the tests beside take the actors' share of the processor
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

# How long an example takes says something about the machine, not about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


#: Files of tests/integration whose tests start no Ray.
RAYLESS = (
    "test_ledger_kills.py",
    "test_link_crowd.py",
    "test_link_fuzz.py",
    "test_link_identity.py",
    "test_link_kills.py",
    "test_link_network.py",
    "test_lying_driver.py",
    "test_plan_cli.py",
    "test_tracking_mlflow.py",
)


def together(nodeid: str) -> str:
    """What a test shares with those that run in the same process, one at a time: Ray, its file's servers and folders, or nothing."""
    path = nodeid.partition("::")[0]
    folder, _, name = path.removeprefix("tests/").partition("/")
    if folder == "integration" and name not in RAYLESS:
        return "ray"
    return nodeid if folder in ("unit", "property") else path


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def own_store() -> Iterator[None]:
    """A test that names an MLflow store for its process (``mlflow.set_tracking_uri`` does, in the environment) names it for itself alone."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes with one thread within the module, so that its sums have one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that is tested: FEDRAY_TEST_DEVICE, by default the CPU."""
    from elsewhere import DEVICE

    return DEVICE


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: FEDRAY_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("FEDRAY_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FEDRAY_DATA to a folder with mnist.npz, cifar10-*.parquet, heart/")
    return folder
