"""Silos enrol and rotate over the network: real processes, real TLS, and peers that do what they should not."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from federations import federation, now, silo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedray.cli import cli
from fedray.errors import FedrayError
from fedray.silos import admission
from fedray.silos.certificates import IDENTITY, peer_client, read_gateway_credentials, read_silo_credentials
from fedray.silos.enrolment_client import Address, ask, ask_again
from fedray.silos.enrolment_service import EnrolmentService


@contextmanager
def serving(home: Path) -> Iterator[tuple[Address, list[str]]]:
    """Enrolment on a free port; yields its address and its log."""
    log: list[str] = []
    with EnrolmentService(home, Address("127.0.0.1", 0), log.append) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Address("localhost", service.server_port), log
        finally:
            service.shutdown()
            thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return federation(tmp_path / "federation")


def site(tmp_path: Path, client: str) -> Path:
    path = tmp_path / f"{client}.yaml"
    keys = f"client: {client}\ngateway: localhost:7443\nidentity: {client}\nstate: {client}-state\npolicy: policy.yaml\n"
    path.write_text(keys + "data: {source: sklearn:iris}\n")
    return path


def fedray(*words: object, ends: int = 0) -> str:
    done: Result = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == ends, done.output
    return done.output


def test_a_coordinator_and_a_silo_by_their_commands(tmp_path: Path) -> None:
    """The whole of it as its users do it; enrolment is a process of its own, which SIGTERM ends."""
    home, own = tmp_path / "federation", site(tmp_path, "hospital-a")
    fedray("federation", "init", home, "--name", "localhost")
    command = [sys.executable, "-m", "fedray", "federation", "enrolment", str(home), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as served:
        try:
            assert served.stdout is not None
            port = re.search(r"listens on 127\.0\.0\.1:(\d+)", served.stdout.readline())
            assert port is not None
            token = fedray("federation", "invite", home, "hospital-a", "--address", f"localhost:{port[1]}").strip()
            assert "invited until" in fedray("federation", "list", home)
            assert "is enrolled until" in fedray("silo", "enrol", own, "--token", token)
            assert "enrolled already" in fedray("silo", "enrol", own, "--token", token, ends=2)
            before = read_silo_credentials(tmp_path / "hospital-a")
            assert "nothing to do" in fedray("silo", "rotate", own)
            assert "the new certificate counts" in fedray("silo", "rotate", own, "--now")
            after = read_silo_credentials(tmp_path / "hospital-a")
            assert after.key != before.key
            gateway = read_gateway_credentials(home)
            assert {peer_client(one.certificate, gateway, now()) for one in (before, after)} == {"hospital-a"}
            (listed,) = json.loads(fedray("federation", "list", home, "--json"))["silos"]
            assert listed["client"] == "hospital-a"
            assert len(listed["serials"]) == 2
            assert fedray("federation", "revoke", home, "hospital-a").startswith("2 certificates")
            assert "is revoked" in fedray("silo", "rotate", own, "--now", ends=1)
            assert "revoked on" in fedray("federation", "list", home)
            served.terminate()
            assert served.wait(30) == 0
            log = served.stdout.read()
        finally:
            served.kill()
    assert "has a new certificate (enrol)" in log
    assert "has a new certificate (renew)" in log
    assert "refused: the certificate of silo 'hospital-a'" in log
    assert token not in log


def test_a_stolen_token_is_worth_nothing_after_its_use_and_the_second_is_told(home: Path, tmp_path: Path) -> None:
    with serving(home) as (address, log):
        token = admission.invite(home, "a", str(address), now()).token()
        for name, ends in (("first", 0), ("second", 1)):
            (tmp_path / name).mkdir()
            said = fedray("silo", "enrol", site(tmp_path / name, "a"), "--token", token, ends=ends)
        assert "was used on" in said
        assert "if that was not you" in said
        assert any("refused: the token was used" in line for line in log)


def test_the_token_is_sent_to_nobody_but_the_federation_that_it_names(home: Path, tmp_path: Path) -> None:
    """Somebody in the middle, with an authority of his own for the same names, gets no request."""
    other = federation(tmp_path / "other")
    invitation = admission.invite(home, "a", "localhost:1", now())
    with serving(other) as (address, log):
        redirected = admission.Invitation("a", str(address), invitation.federation, invitation.secret)
        with pytest.raises(FedrayError, match="is not the federation that the token names"):
            ask(redirected, b"", b"")
        assert log == []
        # And where he shows the right authority's certificate, which is no secret, TLS finds that he has no certificate of it.
        (other / "federation.pem").write_bytes((home / "federation.pem").read_bytes())
        with pytest.raises(FedrayError, match="does not count here"):
            ask(redirected, b"", b"")
        assert not any("refused" in line for line in log)


def test_a_rotation_without_a_certificate_or_with_a_strangers_is_refused(home: Path, tmp_path: Path) -> None:
    own, other = silo(home, "a", tmp_path / "a"), federation(tmp_path / "other")
    stranger = silo(other, "a", tmp_path / "stranger")
    (stranger / "federation.pem").write_bytes((own / "federation.pem").read_bytes())
    with serving(home) as (address, _):
        with pytest.raises(FedrayError):
            ask_again(stranger, address, b"", b"")
        with pytest.raises(FedrayError, match="refuses: the request is no request"):
            ask_again(own, address, b"", b"")
        assert b"401" in talk(home, address, b"POST /renew HTTP/1.0\r\nContent-Length: 26\r\n\r\n" + b'{"request":"","proof":""}\n')


def test_the_causes_of_failure_are_named(home: Path, tmp_path: Path) -> None:
    own = silo(home, "a", tmp_path / "a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(FedrayError, match=f"localhost:{port}: does not answer .*refused"):
        ask_again(own, Address("localhost", port), b"", b"")
    expired = federation(tmp_path / "expired", when=now() - timedelta(days=400))
    with pytest.raises(FedrayError, match="the gateway's certificate ended on .*fedray federation renew"):
        EnrolmentService(expired, Address("127.0.0.1", 0), lambda line: None)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    named = federation(elsewhere / "federation", names=("elsewhere.example",))
    own_there = silo(named, "a", elsewhere / "a", address="elsewhere.example:7444")
    with serving(named) as (address, _), pytest.raises(FedrayError, match=r"localhost:.*[Hh]ostname.*its name is not in the certificate"):
        ask_again(own_there, address, b"", b"")
    (own / "enrolment.json").unlink()
    assert "does not say where certificates are renewed" in fedray("silo", "rotate", site(tmp_path, "a"), "--now", ends=2)


def talk(home: Path, address: Address, said: bytes) -> bytes:
    """What the service answers to bytes that are sent by TLS; nothing if it hangs up."""
    context = ssl.create_default_context(cadata=(home / "federation.pem").read_text())
    with socket.create_connection((address.host, address.port), 10) as raw, context.wrap_socket(raw, server_hostname=address.host) as line:
        answer = b""
        with suppress(OSError):
            line.sendall(said)
            socket.socket.shutdown(line, socket.SHUT_WR)  # SSLSocket.shutdown would give up TLS for reading, too
        with suppress(OSError):
            while got := line.recv(4096):
                answer += got
    return answer


REQUESTS = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda verb, path, length, body: f"{verb} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n".encode() + body,
        st.sampled_from(["GET", "POST", "PUT"]),
        st.sampled_from(["/enrol", "/renew", "/federation", "/../authority/key.pem", "/"]),
        st.one_of(st.integers(-1, 1 << 40), st.text("0123456789-x", max_size=4)),
        st.one_of(
            st.binary(max_size=100),
            st.dictionaries(st.sampled_from(["request", "proof", "secret"]), st.text(max_size=40)).map(lambda d: json.dumps(d).encode()),
        ),
    ),
)


def test_malformed_requests_end_nothing_and_tell_nothing(home: Path, tmp_path: Path) -> None:
    silo(home, "a", tmp_path / "a")
    secrets = [(home / "authority/key.pem").read_bytes(), (home / IDENTITY).read_bytes()[:200]]
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with serving(home) as (address, log):

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(REQUESTS)
        def bombard(said: bytes) -> None:
            answer = talk(home, address, said)
            assert not any(secret in answer for secret in secrets)
            assert b"Traceback" not in answer

        bombard()
        for raw in (b"", b"\x16\x03\x01", b"GET / HTTP/1.0\r\n\r\n"):  # no TLS at all
            with socket.create_connection((address.host, address.port), 10) as line:
                line.sendall(raw)
        assert not any("\n" in line for line in log)
        token = admission.invite(home, "b", str(address), now()).token()
        assert "is enrolled until" in fedray("silo", "enrol", site(tmp_path, "b"), "--token", token)
    assert {path: path.read_bytes() for path in before} == before


def test_peers_that_are_silent_keep_nobody_waiting(home: Path, tmp_path: Path) -> None:
    with serving(home) as (address, _):
        silent = [socket.create_connection((address.host, address.port), 10) for _ in range(10)]
        token = admission.invite(home, "a", str(address), now()).token()
        assert "is enrolled until" in fedray("silo", "enrol", site(tmp_path, "a"), "--token", token)
        for line in silent:
            line.close()
