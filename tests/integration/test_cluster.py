"""Joining and starting Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

TWICE = """
import sys
import ray
from fedray.config import RayCluster
from fedray.experiment.cluster import find_place, joined

local = RayCluster(address="local", cpus=1)
for n in range(2):
    place = find_place(local)
    assert place.own
    with joined(place, local):
        imported = ray.get(ray.remote(lambda: "fedray.clients.host" in sys.modules).remote())
        print("joined", ray.get(ray.put(n)), imported)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print("own", ray.get(ray.put(2)))
"""


@pytest.mark.slow
def test_one_process_may_start_several_clusters_whose_workers_import_beforehand_and_writes_no_token_into_the_home(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TWICE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("joined", "own"))] == ["joined 0 True", "joined 1 True", "own 2"]
    assert not (tmp_path / ".ray" / "auth_token").exists()


BESIDE = """
from fedray.config import RayCluster
from fedray.experiment.cluster import find_place

print("local", find_place(RayCluster(address="auto", cpus=1)).own)
"""


@pytest.mark.usefixtures("cluster")
def test_a_run_does_not_try_to_join_the_local_cluster_of_another(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", BESIDE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "local True" in done.stdout
