"""The token of a cluster: one secret that its nodes, its dashboard and its jobs API ask for, in a file that only its owner reads.

``python -m cluster.tokens DIR NAME ...`` makes such secrets for the containers of a compose file.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import click

from cluster import commands
from fedray.errors import ConfigError


def token_file(path: str | os.PathLike[str]) -> Path:
    """The token file at ``path``, absolute; made with mode 0600 where there is none.

    Raises:
        ConfigError: it is empty, or others than its owner may read it.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _checked(path)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def token_environment(path: str | os.PathLike[str]) -> dict[str, str | None]:
    """What a node or a client of the cluster needs in its environment: the mode, and where the token lies.

    The mode is never left to Ray, whose default depends on what was once run on the machine. A token in the environment, which
    would come before the file, is taken away (None).
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(Path(path).absolute()), "RAY_AUTH_TOKEN": None}


def bearer(path: str | os.PathLike[str]) -> dict[str, str]:
    """The HTTP header that shows the token to the dashboard and to the jobs API."""
    return {"Authorization": f"Bearer {Path(path).read_text().strip()}"}


def _checked(path: Path) -> Path:
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"token file {path}: others may read it; run `chmod 600 {path}`.")
    if not path.read_text().strip():
        raise ConfigError(f"token file {path}: it is empty; remove it, and a new token is made.")
    return path


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, required=True)
def make(directory: Path, names: tuple[str, ...]) -> None:
    """Make secrets NAMES in DIRECTORY where they are absent, for a compose file to hand to its containers.

    The directory is closed (mode 0700). The files have mode 0444: a container's user, who is none of this machine, reads the one file
    that it is given.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    for name in names:
        path = directory / name
        if not path.exists():
            token_file(path).chmod(0o444)
            click.echo(f"{path}: new")


if __name__ == "__main__":
    commands.run(make)
