"""Tokens, certificates and the arguments of the local cluster; no Ray is started here."""

from __future__ import annotations

import datetime
import io
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from paths import ROOT

import cluster.local
from cluster.local import Here, describe, local, on_this_machine, workers
from cluster.ray_hosts import NodeEnded, Ports, RayNode, started
from cluster.tls import make_authority, make_host, needs_renewal, tls, tls_environment
from cluster.tokens import bearer, token_environment, token_file
from fedray.errors import ConfigError, FedrayError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = token_file(tmp_path / "keys" / "token")
    first = path.read_text()
    assert len(first) == 64
    assert mode(path) == 0o600
    assert token_file(path).read_text() == first
    assert token_file(tmp_path / "other").read_text() != first
    assert bearer(path) == {"Authorization": f"Bearer {first}"}
    assert first not in str(token_environment(path))
    assert token_environment(path)["RAY_AUTH_MODE"] == "token"


def test_a_token_that_others_can_read_or_that_is_empty_is_refused(tmp_path: Path) -> None:
    path = token_file(tmp_path / "token")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        token_file(path)
    path.chmod(0o600)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        token_file(path)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """A TLS handshake in memory; raises ssl.SSLError where a side refuses the other."""
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(here, there, server_hostname=name), server.wrap_bio(there, here, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
                end.read(1)
            except ssl.SSLWantReadError:
                continue


def contexts(directory: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's context that each ask for a certificate of the authority in ``directory``."""
    made = []
    for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER):
        context = ssl.SSLContext(protocol)
        context.load_verify_locations(directory / "ca.pem")
        context.load_cert_chain(directory / f"{host}.pem", directory / f"{host}.key")
        context.verify_mode = ssl.CERT_REQUIRED
        made.append(context)
    return made[0], made[1]


def test_hosts_of_one_authority_trust_each_other_and_nobody_else(tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    for directory in (ours, others):
        make_authority(directory)
        make_host(directory, ["head.example", "10.0.0.1"])
        assert mode(directory / "ca.key") == mode(directory / "head.example.key") == 0o600
        assert mode(directory) == 0o700
    client, server = contexts(ours, "head.example")
    stranger, _ = contexts(others, "head.example")
    for name in ("head.example", "10.0.0.1", "127.0.0.1"):
        handshake(client, server, name)
    with pytest.raises(ssl.SSLError, match="IP address mismatch"):
        handshake(client, server, "10.0.0.2")
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(stranger, server, "head.example")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(client, contexts(others, "head.example")[1], "head.example")


def test_certificates_are_renewed_when_a_third_of_their_life_is_left_or_a_name_is_new(tmp_path: Path) -> None:
    make_authority(tmp_path)
    assert needs_renewal(tmp_path, ["10.0.0.1"], 90)
    path = make_host(tmp_path, ["10.0.0.1"], 90)
    assert not needs_renewal(tmp_path, ["10.0.0.1"], 90)
    assert needs_renewal(tmp_path, ["10.0.0.1", "head.example"], 90)
    make_host(tmp_path, ["10.0.0.1"], 29)
    assert needs_renewal(tmp_path, ["10.0.0.1"], 90)
    end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    assert abs(end - datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=29)) < datetime.timedelta(minutes=5)
    make_host(tmp_path, ["10.0.0.1"], 90)
    for file in ("ca.pem", "ca.key"):
        (tmp_path / file).unlink()
    make_authority(tmp_path)
    assert needs_renewal(tmp_path, ["10.0.0.1"], 90), "it is of the authority before"


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    make_authority(tmp_path, days=30)
    with pytest.raises(ConfigError, match="before a certificate of 90 days"):
        make_host(tmp_path, ["10.0.0.1"], 90)


def test_the_certificate_command_makes_what_is_missing_and_checks(tmp_path: Path) -> None:
    line = [str(tmp_path), "--host", "head.example,10.0.0.1", "--host", "10.0.0.2"]
    assert "head.example: new" in CliRunner().invoke(tls, line, catch_exceptions=False).output
    before = (tmp_path / "10.0.0.2.pem").read_bytes()
    assert CliRunner().invoke(tls, line).output == "head.example: valid\n10.0.0.2: valid\n"
    assert (tmp_path / "10.0.0.2.pem").read_bytes() == before
    assert CliRunner().invoke(tls, [*line, "--check"]).exit_code == 0
    with pytest.raises(FedrayError, match=r"10\.0\.0\.3 are missing") as caught:
        CliRunner().invoke(tls, [*line, "--host", "10.0.0.3", "--check"], catch_exceptions=False)
    assert caught.value.exit_code == 1
    assert CliRunner().invoke(tls, [str(tmp_path), "--host", "ca"]).exit_code == 2
    environment = tls_environment(tmp_path, "10.0.0.2")
    assert all(Path(path).exists() for name, path in environment.items() if name != "RAY_USE_TLS")


def test_each_worker_gets_its_resources_and_labels_in_order() -> None:
    wanted = workers(3, 2, None, [{"site_1": 1}, {"site_2": 1}], [{"region": "eu"}])
    assert [w.resources for w in wanted] == [{"site_1": 1}, {"site_2": 1}, {}]
    assert [w.labels for w in wanted] == [{"region": "eu"}, {}, {}]
    with pytest.raises(ConfigError, match="--resources: given 2 times for 1 workers"):
        workers(1, 2, None, [{"a": 1}, {"b": 1}], [])


@pytest.mark.parametrize("bad", ["site_1=1", "[1]"])
def test_resources_that_are_no_json_object_are_refused(bad: str) -> None:
    result = CliRunner().invoke(local, ["--resources", bad])
    assert result.exit_code == 2
    assert bad in result.output


def test_each_node_of_one_machine_has_a_directory_of_its_own_which_ray_unpacks_jobs_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def up(host: Here, *args: Any, options: list[str], **more: Any) -> Any:
        given.extend(option.removeprefix("--temp-dir=") for option in options if option.startswith("--temp-dir="))
        return SimpleNamespace(process=SimpleNamespace(pid=0, terminate=lambda: None, poll=lambda: 0))

    for name in ("start_head", "start_worker"):
        monkeypatch.setattr(cluster.local, name, up)
    monkeypatch.setattr(cluster.local, "_adopt_orphans", lambda: None)
    monkeypatch.setattr(cluster.local, "_children", set)
    with on_this_machine(workers(12, 1, None, [], []), tmp_path / "token", Ports(1, 2), 10**8):
        pass
    assert len(set(given)) == 13
    socket = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert all(len(f"{directory}/{socket}") <= 103 for directory in given), "sockets' paths are limited"


#: A parent that adopts orphans: how many of its children have ended and are not waited for.
ADOPTS = """
import os, subprocess, time
from cluster.local import _adopt_orphans, _children, _reaping

def ended():
    return [pid for pid in _children() if open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"]

_adopt_orphans()
own = subprocess.Popen(["true"])
subprocess.run(["sh", "-c", "(sleep 0.1 &) ; (sleep 0.1 &)"], check=True)
limit = time.monotonic() + 60
while len(ended()) < 3 and time.monotonic() < limit:
    time.sleep(0.01)
print(len(ended()))
with _reaping({own.pid}):
    while len(ended()) > 1 and time.monotonic() < limit:
        time.sleep(0.01)
print(len(ended()), own.wait())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="adopting is Linux'")
def test_adopted_children_that_end_are_waited_for_and_nodes_are_left_to_their_makers() -> None:
    done = subprocess.run([sys.executable, "-c", ADOPTS], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("3\n1 0\n", "")


def test_what_is_printed_to_export_includes_tls_where_it_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process: Any = None
    head = RayNode(Here("head"), process, Ports(), "127.0.0.1:6379", "http://127.0.0.1:8265", tmp_path / "token", io.BytesIO())
    wanted = tls_environment(tmp_path, "host")
    for name in wanted:
        monkeypatch.delenv(name, raising=False)
    assert "TLS" not in describe([head])
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    assert {f"export {name}={value}" for name, value in wanted.items()} <= set(describe([head]).splitlines())


def test_a_node_that_gave_up_on_a_busy_machine_is_started_once_more() -> None:
    attempts: list[int] = []

    def start(failures: int) -> Any:
        attempts.append(failures)
        if len(attempts) <= failures:
            raise NodeEnded("`ray start` ended with 1")
        return "up"

    assert started(lambda: start(1)) == "up"
    attempts.clear()
    with pytest.raises(NodeEnded):
        started(lambda: start(2))
    assert len(attempts) == 2
