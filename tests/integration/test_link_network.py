"""A silo on a host of its own, behind a firewall that lets nothing in: it is reached by nothing, and what passes is TLS."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from federations import federation
from federations import silo as enrolled
from fencedhosts import Captured, fence, fenced_hosts, listens, reaches, tls_records
from linkends import CLIENT, FLOATS, ORDERS, answer_to
from processes import wait_until

PORT = 7443
SCRIPT = str(Path(__file__).parent / "linkends.py")


def test_a_silo_that_nothing_reaches_answers_orders_over_tls(tmp_path: Path) -> None:
    with fenced_hosts() as hosts:
        coordinator, hospital = hosts.add("coordinator"), hosts.add("a")
        fence(hospital)
        home = federation(tmp_path / "federation", (coordinator.address, "localhost"))
        identity = enrolled(home, CLIENT, tmp_path / "identity")
        (tmp_path / "state").mkdir()
        assert reaches(hospital, coordinator.address, 9) and not reaches(coordinator, hospital.address, 9)
        captured = Captured(coordinator)
        captured.start()
        at = f"{coordinator.address}:{PORT}"
        silo = hospital.run([sys.executable, SCRIPT, "silo", at, str(identity), str(tmp_path / "state")])
        gateway = coordinator.run([sys.executable, SCRIPT, "coordinator", at, str(home), str(tmp_path)])
        wait_until(lambda: (tmp_path / "result-0").exists() or gateway.poll() is not None, "the first order is answered")
        assert listens(hospital) == [], "something listens at the silo"
        assert not any(reaches(coordinator, hospital.address, port, 0.05) for port in (22, 80, 443, PORT, 10001, 50051))
        hospital.cut()  # the cable is pulled for as long as it takes to dial again
        hospital.mend()
        assert gateway.wait(120) == 0 and silo.poll() is None
        silo.kill()
        silo.wait()
        captured.stop()
        for number in range(ORDERS):
            assert (tmp_path / f"result-{number}").read_bytes() == answer_to(number)
        assert set(Counter((tmp_path / "state" / "worked").read_text().split()).values()) == {1}
        streams = captured.streams()
        assert {way[0] for way in streams} == {coordinator.address, hospital.address}
        assert all(PORT in (way[1], way[3]) for way in streams), "something but the link passed"
        assert all(tls_records(data) for data in streams.values())
        assert not any(CLIENT.encode() in data or b"ping" in data for data in streams.values())
        payload = 2 * ORDERS * FLOATS * 4
        passed = sum(map(len, streams.values()))
        assert payload < passed < 1.02 * payload, f"{passed:,} bytes passed for {payload:,}"
