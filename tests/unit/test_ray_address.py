"""Which Ray is joined: every address is checked before anything starts, whether the config or the environment gives it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
from click.testing import CliRunner
from paths import ROOT
from ray._private import services
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from fedray.cli import cli
from fedray.config import RayCluster
from fedray.errors import ConfigError
from fedray.experiment.address import choose_address

HERE = "ab" * 28  # a node's id


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no Ray was noted, with no address in its environment."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(params=["ray.address", "RAY_ADDRESS"])
def given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives an address by the config, or by the environment; returns the settings and the name that an error begins with."""

    def give(address: str, timeout: float = 5.0) -> RayCluster:
        if request.param == "ray.address":
            return RayCluster(address=address, connect_timeout=timeout)
        monkeypatch.setenv("RAY_ADDRESS", address)
        return RayCluster(connect_timeout=timeout)

    give.name = request.param  # type: ignore[attr-defined]
    return give


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):  # type: ignore[misc]
    """A head that is played: it knows nodes, or refuses everybody."""

    def __init__(self, nodes: set[str], refuses: bool = False) -> None:
        self.nodes, self.refuses = nodes, refuses

    def CheckAlive(self, request: Any, context: Any) -> Any:
        if self.refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: Authentication token is missing or incorrect")
        return gcs_service_pb2.CheckAliveReply(ray_version=ray.__version__)

    def GetAllNodeInfo(self, request: Any, context: Any) -> Any:
        wanted = {selector.node_id.hex() for selector in request.node_selectors} & self.nodes
        return gcs_service_pb2.GetAllNodeInfoReply(node_info_list=[gcs_pb2.GcsNodeInfo(node_id=bytes.fromhex(n)) for n in wanted])


@pytest.fixture
def head() -> Iterator[Any]:
    """Starts a played head; returns its address."""
    servers = []

    def start(played: Head) -> str:
        server = grpc.server(ThreadPoolExecutor(2))
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(played, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:9", "nothing answers at 127.0.0.1:9 (Connection refused)"),
        ("ray://127.0.0.1:10001", "is the address of Ray's client server"),
        ("http://127.0.0.1:8265", "is the address of the dashboard"),
        ("nonsense", "'nonsense' should be auto, local, or HOST:PORT"),
        ("127.0.0.1:99999", "should be auto, local, or HOST:PORT"),
        ("127.0.0.1:²", "should be auto, local, or HOST:PORT"),
        (":6379", "should be auto, local, or HOST:PORT"),
        ("a..b:6379", "nothing answers at a..b:6379"),
    ],
)
def test_what_is_no_head_is_refused_in_the_same_words_wherever_it_was_given(given: Any, address: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_address(given(address))
    assert str(refused.value).startswith(f"{given.name}: ")
    assert why in str(refused.value)


def test_what_listens_and_is_no_head_is_refused_within_the_limit(given: Any) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        began = time.monotonic()
        with pytest.raises(ConfigError, match="does not answer as a Ray head .no answer within ray.connect_timeout"):
            choose_address(given(f"127.0.0.1:{silent.getsockname()[1]}", timeout=1.0))
        assert time.monotonic() - began < 60  # and not without end


def test_a_head_that_refuses_the_token_says_what_to_set(given: Any, head: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{given.name}: .*does not let us in .*InvalidAuthToken.*RAY_AUTH_TOKEN_PATH"):
        choose_address(given(head(Head(set(), refuses=True))))


def test_a_cluster_with_a_node_here_is_joined_and_one_without_is_refused(given: Any, head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = head(Head({HERE}))
    monkeypatch.setattr(services, "find_node_ids", lambda: {HERE})
    assert choose_address(given(address)) == address
    monkeypatch.setattr(services, "find_node_ids", lambda: {"cd" * 28})  # of another cluster
    with pytest.raises(ConfigError, match=f"^{given.name}: no node of the Ray cluster .*fedray submit"):
        choose_address(given(address, timeout=1.0))


def test_local_and_nothing_are_a_local_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_address(RayCluster()) is None
    for value in ("", "auto", "local"):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert choose_address(RayCluster()) is None
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert choose_address(RayCluster(address="local")) is None


def test_a_head_noted_by_ray_start_is_joined_where_it_is_there(head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:9")
    assert choose_address(RayCluster()) is None
    monkeypatch.setattr(services, "find_node_ids", lambda: {HERE})
    address = head(Head({HERE}))
    note.write_text(address)
    assert choose_address(RayCluster()) == address


def test_the_command_says_it_in_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    ended = CliRunner().invoke(cli, ["run", str(ROOT / "configs" / "digits.yaml"), "--output", str(tmp_path / "out")])
    assert (ended.exit_code, ended.output.count("\n")) == (2, 1), ended.output
    assert ended.output.startswith("fedray: RAY_ADDRESS: ")
    assert not (tmp_path / "out").exists()
    assert not ray.is_initialized()
