"""Hospitals on three hosts with addresses of their own, submitted from a fourth; then the same with faults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults import Fault, lines, run_with
from hospitals import INSIDE, SITES, Federation, config, federation, listing
from paths import ROOT

from cluster.hosts import Hosts, missing
from cluster.tokens import token_file
from fedray.privacy.ledger.verification import verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROUNDS = 30


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Iterator[Federation]:
    why = missing()
    if why:
        pytest.skip(why)
    root = tmp_path_factory.mktemp("hospitals")
    with Hosts("t") as hosts, federation(hosts, token_file(root / "ray_token"), root, real_data, ROUNDS) as made:
        yield made


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> dict[str, Any]:
    """The summary of the same run on one machine without faults."""
    root = tmp_path_factory.mktemp("reference")
    (root / "inside.py").write_text(INSIDE)
    (root / "hospitals.yaml").write_text(yaml.safe_dump(config(f"csv:{real_data / 'heart'}", str(root / "ledger"), ROUNDS, pinned=False)))
    line = [sys.executable, "-m", "fedray", "run", "hospitals.yaml", "ray.address=local", "--output", "out"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{root}"}
    subprocess.run(line, cwd=root, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((root / "out" / "summary.json").read_text())
    return summary


def check(hospitals: Federation, output: Path, reference: dict[str, Any]) -> None:
    summary = json.loads((output / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["model_sha256"] == reference["model_sha256"]
    assert [row["round"] for row in lines(output)] == list(range(1, ROUNDS + 1))
    run = json.loads((output / "run.json").read_text())["id"]
    for site, names in SITES.items():
        for name in names:
            book = hospitals.ledger(site) / f"{name}.jsonl"
            verify(book)
            entries = [e for e in map(json.loads, book.read_text().splitlines()) if str(e.get("job", "")).startswith(f"{run}/")]
            charged = {e["round"] for e in entries if e["kind"] == "reserve"}
            assert charged == set(range(ROUNDS)), f"{name}: rounds {set(range(ROUNDS)) - charged} were trained and not charged"


def test_each_hospital_is_read_on_its_own_node_and_only_a_token_lets_in(hospitals: Federation, reference: dict[str, Any]) -> None:
    for site, names in SITES.items():
        assert listing(hospitals.sites[site], "/mnt/heart") == [f"{name}.csv" for name in sorted(names)]
    for other in (hospitals.head, hospitals.desk):
        assert listing(other, "/mnt/heart") == []
    output = hospitals.root / "first"
    wrong = hospitals.root / "wrong_token"
    token_file(wrong)
    for token, answer in ((wrong, "refuses the token"), (hospitals.root / "none", "token")):
        process = hospitals.submit(output, env={"RAY_AUTH_TOKEN_PATH": str(token), "HOME": str(hospitals.root)})
        told, _ = process.communicate(timeout=600)
        assert process.returncode == 2, told
        assert answer in told
    assert not output.exists()
    done = run_with(hospitals, output, [])
    check(hospitals, output, reference)
    for site, names in SITES.items():
        seen = hospitals.inside(site)
        assert seen
        assert {s["host"] for s in seen} == {f"t-{site}"}
        assert {tuple(s["sees"]) for s in seen} == {tuple(f"{name}.csv" for name in sorted(names))}
        assert {p.stem for p in hospitals.ledger(site).glob("*.jsonl")} == set(names)
    assert done["submissions"] == 1


def test_a_host_is_lost_one_is_cut_off_and_the_head_is_restarted(hospitals: Federation, reference: dict[str, Any]) -> None:
    output = hospitals.root / "faults"
    faults = [Fault("host", "north", 3, 5.0), Fault("cut", "south", 10, 30.0), Fault("head", "north", 18, 5.0)]
    done = run_with(hospitals, output, faults)
    assert done["struck"] == faults
    check(hospitals, output, reference)
    named = (output / "faults.jsonl").read_text()
    assert "t-north" in named
    assert "t-south" in named
    assert "head does not answer" in named
    report = subprocess.run([sys.executable, "-m", "fedray", "report", str(output)], capture_output=True, text=True, timeout=600)
    assert report.returncode == 0, report.stderr
    assert "head does not answer" in (output / "report.md").read_text()


#: A clock that is wrong by SKEW seconds, for every process into which it is loaded.
SKEW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long skew(void) { const char *text = getenv("SKEW"); return text ? atol(text) : 0; }

int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int found = real(id, t);
    if (!found && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += skew();
    return found;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return t ? (*t = now.tv_sec) : now.tv_sec;
}
"""


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_hosts_clock_is_wrong(hours: int, hospitals: Federation, reference: dict[str, Any], tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("a wrong clock takes gcc")
    (tmp_path / "skew.c").write_text(SKEW)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "skew.so", "skew.c", "-ldl"], cwd=tmp_path, check=True)
    wrong = {"LD_PRELOAD": str(tmp_path / "skew.so"), "SKEW": str(hours * 3600)}
    host = hospitals.sites["south"]
    host.kill()
    host.boot()
    told = host.run(["date", "+%s"], env=wrong, stdout=subprocess.PIPE, text=True).communicate(timeout=600)[0]
    assert abs(int(told) - time.time() - hours * 3600) < 60
    hospitals.start_site("south", wrong)
    try:
        output = hospitals.root / f"clock{hours}"
        run_with(hospitals, output, [])
        check(hospitals, output, reference)
    finally:
        host.kill()
        host.boot()
        hospitals.start_site("south")
