"""By whom, with which command and on which commit a run was started, and that no secret is among it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.credentials import cleaned, cleaned_value, looks_secret
from fedray.experiment import origin
from fedray.experiment.origin import COMMIT, OPERATOR, Origin, job_variables

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=6, max_size=20).filter(lambda word: any(c.isalpha() for c in word))


@given(WORDS, WORDS)
def test_a_secret_is_nowhere_in_what_is_cleaned(user: str, secret: str) -> None:
    secret = f"s3cr3t{secret}"
    for text in (
        f"tracking.uri=http://{user}:{secret}@mlflow:5000",
        f"data.source=parquet:s3://{secret}@bucket/x",
        f"data.url=https://host/x?token={secret}&a=1",
        f"model.api_key={secret}",
        f"model={{kind: x, access_token: {secret}}}",
        f"data.password: '{secret}'",
        f"hf_{secret:a<30}",
    ):
        assert secret not in cleaned(text), text
        assert "***" in cleaned(text)


@pytest.mark.parametrize(
    "text",
    [
        "data.tokens=512",
        "rounds=5",
        "http://host:5000/a@b",
        "--secret HF_TOKEN=file:/run/secrets/hf",
        "sqlite:////x/mlflow.db",
        "data.keys=null",
        "training: {lr: 0.1}",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert cleaned(text) == text


def test_a_long_value_is_cleaned_without_trying_each_letter_as_the_beginning_of_a_name() -> None:
    """Such tries would take hours; a name may still begin after any sign that no name has."""
    value = "x" * 10**6
    assert cleaned_value("long", value) == value
    assert cleaned(f"{value}_token=abc, {value}='key': abc") == f"{value}_token=***, {value}='key': ***"
    assert looks_secret(b"\n" * 10**6) is None
    assert looks_secret(b"\n\n \t machine a login b password c") == "a password"


def test_a_value_is_cleaned_by_its_name() -> None:
    assert cleaned_value("model.api_key", "abc") == "***"
    assert cleaned_value("training.lr", "0.1") == "0.1"


def test_the_command_is_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/bin/fedray", "run", "c.yaml", "privacy={regime: none}", "tracking.uri=http://me:pw@h:5000"])
    monkeypatch.setenv(OPERATOR, "")
    found = Origin.here(["privacy={regime: none}", "tracking.uri=http://me:pw@h:5000"])
    assert found.command == "fedray run c.yaml 'privacy={regime: none}' 'tracking.uri=http://me:***@h:5000'"
    assert found.overrides == ("privacy={regime: none}", "tracking.uri=http://me:***@h:5000")
    assert found.operator is None
    assert "mlflow.user" not in found.tags()
    monkeypatch.setenv(OPERATOR, "ana")
    assert Origin.here().tags()["mlflow.user"] == "ana"


def test_the_commit_and_whether_it_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.delenv(COMMIT, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert (Origin.here().commit, Origin.here().clean) == (None, None)
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "x")
    clean = Origin.here()
    assert clean.commit is not None and len(clean.commit) == 40 and clean.clean
    (tmp_path / "new").write_text("not part of the repository")
    assert Origin.here().clean
    (tmp_path / "a").write_text("2")
    changed = Origin.here()
    assert (changed.commit, changed.clean) == (clean.commit, False)
    assert changed.tags()["fedray.clean"] == "false"
    monkeypatch.setattr(origin, "_git", lambda *words: None)
    assert Origin.here().commit is None
    monkeypatch.setenv(COMMIT, f"{clean.commit}+changes")
    assert (Origin.here().commit, Origin.here().clean) == (clean.commit, False)


def test_a_job_is_told_what_its_own_directory_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPERATOR, "ana")
    monkeypatch.setenv(COMMIT, "abc+changes")
    assert job_variables() == {OPERATOR: "ana", COMMIT: "abc+changes"}
