"""Secrets travel by reference only, and Ray's token mode follows the token."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedray import credentials
from fedray.errors import ConfigError, FedrayError


def test_a_reference_is_resolved_in_each_process_and_loading_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("p ss=wörd\n")
    monkeypatch.setenv(credentials.SECRETS, json.dumps({"STORE_SECRET": f"file:{tmp_path / 'secret'}"}))
    monkeypatch.setenv("STORE_SECRET", "old")
    for _ in range(2):
        credentials.load()
        assert os.environ["STORE_SECRET"] == "p ss=wörd"


def test_without_references_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(credentials.SECRETS, raising=False)
    before = dict(os.environ)
    credentials.load()
    assert dict(os.environ) == before


def test_a_secret_that_is_missing_on_a_node_is_named_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(credentials.SECRETS, json.dumps({"STORE_SECRET": f"file:{tmp_path / 'none'}"}))
    with pytest.raises(FedrayError, match=r"secret STORE_SECRET: .*/none cannot be read on .*No such file"):
        credentials.load()


@pytest.mark.parametrize(
    "text", ["STORE_SECRET", "STORE_SECRET=hunter2", "STORE_SECRET=file:relative", "=file:/x", "A B=file:/x", "hunter2"]
)
def test_anything_but_a_reference_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        credentials.parse_reference(text)
    assert "hunter2" not in str(refused.value)
    assert "/path/on/the/nodes" in str(refused.value) or "absolute" in str(refused.value)


def test_a_reference_is_taken() -> None:
    assert credentials.parse_reference("STORE_SECRET=file:/run/secrets/a=b") == ("STORE_SECRET", "file:/run/secrets/a=b")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "api_key", "HF_TOKEN", "DB_PASSWORD", "PGPASSWD", "MY_CREDENTIALS"])
def test_variables_that_look_like_secrets_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--secret {name}=file:") as refused:
        credentials.parse_variable(f"{name}=hunter2")
    assert "hunter2" not in str(refused.value)


def test_variables_are_taken_unless_they_hold_an_address_with_a_password() -> None:
    assert credentials.parse_variable("MLFLOW_TRACKING_URI=http://mlflow:5000/a?b=c") == ("MLFLOW_TRACKING_URI", "http://mlflow:5000/a?b=c")
    assert credentials.parse_variable("EMPTY=") == ("EMPTY", "")
    with pytest.raises(ConfigError, match="address with a password") as refused:
        credentials.parse_variable("MLFLOW_TRACKING_URI=http://me:hunter2@mlflow:5000")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match="address with a password"):  # also where it stands in the query of another
        credentials.refuse_password("x", "s3://bucket/a?endpoint_url=http://me:hunter2@store")


@pytest.mark.parametrize("text", ["NAME", "=x", "A-B=x"])
def test_what_is_no_variable_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        credentials.parse_variable(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without a token, and an environment without one."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_token_mode_stays_unset_without_a_token(home: Path) -> None:
    assert credentials.use_ray_token() is None
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_mode_that_asks_for_a_token_needs_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE: asks for a token, and there is none"):
        credentials.use_ray_token()


def test_token_mode_follows_the_token_in_ray_s_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a")
    assert credentials.use_ray_token() == "~/.ray/auth_token"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    (home / "token").write_text("b")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
    assert credentials.use_ray_token() == str(home / "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c")
    assert credentials.use_ray_token() == "RAY_AUTH_TOKEN"


def test_a_mode_that_is_set_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    credentials.use_ray_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_token_file_that_holds_none_is_named(home: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    path = home / "token"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(ConfigError, match=f"RAY_AUTH_TOKEN_PATH: {path} cannot be read, or is empty"):
        credentials.use_ray_token()
