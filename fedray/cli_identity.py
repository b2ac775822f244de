"""``fedray identity``: makes the key by which a client of secure sums is known."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("identity")
@click.argument("client")
@click.argument("path", type=click.Path(path_type=Path))
def make_identity(client: str, path: Path) -> None:
    """Make a client's identity for secure sums: fedray identity CLIENT PATH, on the client's machine.

    PATH gets the private key, which only its owner may read, and which never leaves the machine. The line that is printed goes into the list of
    all clients' public keys (secure.identities), which each client's machine has its own copy of.
    """
    from fedray.secure.identities import make_key

    click.echo(json.dumps({client: make_key(path)}))
