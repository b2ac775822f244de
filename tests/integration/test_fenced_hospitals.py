"""Four hospitals and a coordinator on five addresses, with firewalls that let nothing in at the hospitals; one command each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fencedhosts import Captured, fence, fenced_hosts, listens, reaches, tls_records
from processes import wait_until
from remotesilos import HEART, HOSPITAL, SiloProcesses
from test_remote_silos import AGREED, NOISED, PLAIN

from cluster.hosts import Host
from fedray.runfiles import RunFiles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HEART.is_dir(), reason=f"the four hospitals' files are not in {HEART}"),
]

RUN: dict[str, Any] = {"name": "heart", "rounds": 3, "model": {"kind": "logistic"}, "tracking": {"enabled": False}}
PORTS = (22, 80, 443, 6379, 7443, 7444, 8265, 10001, 50051)


@pytest.mark.parametrize("kind", ["plain", "noised"])
def test_hospitals_that_nothing_reaches_train_what_four_actors_train(tmp_path: Path, kind: str) -> None:
    names = sorted(path.stem for path in HEART.glob("*.csv"))
    sections = dict({"plain": PLAIN, "noised": NOISED}[kind])
    sections["training"] = {**sections["training"], "loss": "binary_cross_entropy"} | ({"batch_size": 4} if kind == "plain" else {})
    private = {"delta": 1e-4, **sections.get("privacy", {})} if kind == "noised" else {}
    own = {name: {"source": f"csv:{HEART / name}.csv", **HOSPITAL} for name in names}
    with fenced_hosts() as hosts:
        coordinator, homes = hosts.add("coordinator"), {name: hosts.add(name) for name in names}
        for home in homes.values():
            fence(home)
        those = SiloProcesses(tmp_path, own, coordinator.address, {name: home.run for name, home in homes.items()})
        for name in names:
            those.start(name)
        captured = Captured(coordinator)
        captured.start()
        data = {"source": f"silos:{','.join(names)}", "classes": 2, **AGREED}
        privacy = {"privacy": {**private, "delta": 1e-4, "ledger": "silos"}} if private else {}
        found = start(coordinator, tmp_path / "found", **{**sections, **RUN, **privacy}, data=data, clients=those.clients)
        wait_until(lambda: found.poll() is not None or len(rows(tmp_path / "found")) > 0, "the first round is over", 300.0)
        answered = {(name, port) for name, home in homes.items() for port in PORTS if reaches(coordinator, home.address, port, 0.05)}
        listening = {name: listens(home) for name, home in homes.items()}
        assert found.wait(300) == 0, (tmp_path / "found.log").read_text()
        captured.stop()
        for name in names:
            those.kill(name)
        privacy = {"privacy": {**private, "delta": 1e-4, "ledger": str(tmp_path / "books")}} if private else {}
        dedicated = {"placement": "dedicated", "resources": {"cpu": 0.25}}
        whole = {"source": f"csv:{HEART}", **HOSPITAL, **AGREED}
        expected = start(coordinator, tmp_path / "expected", **{**sections, **RUN, **privacy}, data=whole, clients=dedicated)
        assert expected.wait(300) == 0, (tmp_path / "expected.log").read_text()
    summaries = [RunFiles(tmp_path / one).read_summary() for one in ("found", "expected")]
    assert summaries[0] and summaries[1] and summaries[0]["model_sha256"] == summaries[1]["model_sha256"]
    assert not answered and not any(listening.values())
    streams = captured.streams()
    assert {way[0] for way in streams} == {coordinator.address, *(home.address for home in homes.values())}
    assert all(those.port in (way[1], way[3]) for way in streams), "something but the link passed"
    assert all(tls_records(stream) for stream in streams.values())


def start(host: Host, output: Path, **config: Any) -> Any:
    """``fedray run`` on a host, with a Ray of its own there."""
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "fedray", "run", str(path), "--output", str(output), "ray.address=local"]
    with output.with_suffix(".log").open("wb") as log:
        return host.run(command, stdout=log, stderr=log, env={"RAY_ADDRESS": None})


def rows(output: Path) -> list[Any]:
    return RunFiles(output).rows() if (output / "metrics.jsonl").exists() else []
