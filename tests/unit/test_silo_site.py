"""A silo's site file: strict, and its paths lie beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedray.errors import ConfigError
from fedray.silos.siteconfig import read_site

WHOLE = {
    "client": "hospital-a",
    "gateway": "federation.example.org:7443",
    "identity": "identity",
    "state": "/var/lib/fedray",
    "policy": "policy.yaml",
    "data": "{source: csv:heart.csv, label: target, classes: 2}",
}


def written(directory: Path, **changed: str | None) -> Path:
    lines = [f"{key}: {value}" for key, value in {**WHOLE, **changed}.items() if value is not None]
    path = directory / "site.yaml"
    path.write_text("\n".join(lines))
    return path


def test_paths_lie_beside_the_file_unless_they_are_absolute(tmp_path: Path) -> None:
    site = read_site(written(tmp_path))
    assert (site.identity, site.state, site.policy) == (str(tmp_path / "identity"), "/var/lib/fedray", str(tmp_path / "policy.yaml"))
    assert site.ledger == Path("/var/lib/fedray/ledger")
    assert (site.data.source, site.data.arguments["label"], site.threads, site.device) == ("csv:heart.csv", "target", 1, None)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("client", "../a", "client:"),
        ("client", "a" * 65, "client:"),
        ("gateway", "federation.example.org", "gateway:"),
        ("gateway", "tcp://host:1", "gateway:"),
        ("policy", None, "policy: missing; add it to the file."),
        ("threads", "0", "threads:"),
        ("threads", "yes", "threads:"),
        ("listen", "0.0.0.0:1", "listen: unknown key."),
        ("data", "{label: target}", "data.source: missing"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, key: str, value: str | None, said: str) -> None:
    path = written(tmp_path, **{key: value})
    with pytest.raises(ConfigError) as refused:
        read_site(path)
    assert str(refused.value).startswith(f"{path}: ") and said in str(refused.value)


@pytest.mark.parametrize("host", ["federation.example.org:7443", "10.0.0.1:1", "[::1]:7443", "localhost:65535"])
def test_a_gateway_has_a_host_and_a_port(tmp_path: Path, host: str) -> None:
    assert read_site(written(tmp_path, gateway=f"'{host}'")).gateway == host


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_site(tmp_path / "none.yaml")
