"""From where a run was started: by whom, with which command, on which commit. Noted with each start, without secrets."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fedray.credentials import cleaned

#: Names the operator in place of the user who is logged in; empty: the operator is withheld.
OPERATOR = "FEDRAY_OPERATOR"

#: The commit from which a job was submitted, whose own directory holds no repository: ``HASH`` or ``HASH+changes``.
COMMIT = "FEDRAY_COMMIT"

_GIT_PATIENCE = 5.0


@dataclass(frozen=True)
class Origin:
    """Where a start comes from. Every text is without secrets.

    Attributes:
        command: the command line.
        overrides: what the command changed in the config, ``key.path=value`` each.
        host: name of the machine on which the command ran.
        operator: who started it; None if that is withheld or not known.
        commit: of the git repository in which the command ran, hexadecimal; None without one.
        clean: whether all files of the repository were as in that commit; None without one.
    """

    command: str = ""
    overrides: tuple[str, ...] = ()
    host: str = ""
    operator: str | None = None
    commit: str | None = None
    clean: bool | None = None

    @classmethod
    def here(cls, overrides: Sequence[str] = ()) -> Origin:
        """Of this process."""
        commit, clean = _repository()
        return cls(_command(), tuple(map(cleaned, overrides)), socket.gethostname(), _operator(), commit, clean)

    @property
    def revision(self) -> str | None:
        """The commit with a mark for changes, as :data:`COMMIT` has it."""
        return self.commit if self.commit is None or self.clean else f"{self.commit}+changes"

    def tags(self) -> dict[str, str]:
        """What is known, as tags of the MLflow run."""
        short = [PurePath(word).name for word in self.command.split(" ")[:3]]
        found = {
            "fedray.command": self.command,
            "fedray.overrides": " ".join(self.overrides),
            "fedray.host": self.host,
            "fedray.commit": self.commit,
            "fedray.clean": None if self.clean is None else str(self.clean).lower(),
            "mlflow.source.name": " ".join(short),  # MLflow shows only what follows a slash
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": self.commit,
            "mlflow.user": self.operator,
        }
        return {name: value for name, value in found.items() if value}


def job_variables() -> dict[str, str]:
    """Environment variables that tell a job by whom and from which commit it was submitted."""
    origin = Origin.here()
    return {OPERATOR: origin.operator or ""} | ({COMMIT: origin.revision} if origin.revision else {})


def _command() -> str:
    program, *words = sys.argv or [""]
    path = Path(program)
    named = (
        ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name] if path.suffix != ".py" else ["python", path.name]
    )
    return shlex.join(cleaned(word) for word in [*named, *words])


def _operator() -> str | None:
    given = os.environ.get(OPERATOR)
    if given is not None:
        return given.strip() or None
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the user has no name, as in a container
        return None


def _repository() -> tuple[str | None, bool | None]:
    given, _, changes = os.environ.get(COMMIT, "").strip().partition("+")
    if given:
        return given, not changes
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return (None, None) if not commit or changed is None else (commit, not changed)


def _git(*words: str) -> str | None:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=_GIT_PATIENCE, env=environment)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
