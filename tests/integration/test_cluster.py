"""Joining and starting Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

TWICE = """
import ipaddress
import sys
import psutil
import ray
from fedray.config import RayCluster
from fedray.experiment.cluster import find_place, joined

def heard_by_others():
    "Processes of ours that listen on more than loopback."
    ours = {p.pid: p.name() for p in [psutil.Process(), *psutil.Process().children(recursive=True)]}
    listening = [c for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.pid in ours]
    assert listening
    return [(ours[c.pid], c.laddr) for c in listening if not ipaddress.ip_address(c.laddr.ip.removeprefix("::ffff:")).is_loopback]

local = RayCluster(address="local", cpus=1)
for n in range(2):
    place = find_place(local)
    assert place.own
    with joined(place, local):
        imported = ray.get(ray.remote(lambda: "fedray.clients.host" in sys.modules).remote())
        print("joined", ray.get(ray.put(n)), imported, heard_by_others())
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print("own", ray.get(ray.put(2)))
"""


@pytest.mark.slow
def test_one_process_may_start_several_clusters_that_only_it_reaches_whose_workers_import_beforehand_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    """The directory for temporary files has the longest path that is allowed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    base = Path(f"/tmp/fr{os.getpid()}".ljust(29, "x"))
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "TMPDIR": str(base), "RAY_ADDRESS": "nonsense"}
    done = subprocess.run([sys.executable, "-c", TWICE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("joined", "own"))] == [
        "joined 0 True []",
        "joined 1 True []",
        "own 2",
    ]
    assert not (tmp_path / ".ray" / "auth_token").exists()
    assert list(base.glob("fedray-*")) == []
    shutil.rmtree(base)


BESIDE = """
from fedray.config import RayCluster
from fedray.experiment.cluster import find_place

print("local", find_place(RayCluster(address="auto", cpus=1)).own)
"""


@pytest.mark.usefixtures("cluster")
def test_a_run_does_not_try_to_join_the_local_cluster_of_another(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", BESIDE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "local True" in done.stdout
