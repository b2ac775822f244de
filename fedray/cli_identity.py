"""``fedray identity``: makes the key by which a client of secure sums, or who signs receipts, is known."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fedray.errors import ConfigError


@click.command("identity")
@click.argument("client")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--public", type=click.Path(path_type=Path, file_okay=False), help="Also write DIR/CLIENT.pub, for fedray verify.")
def make_identity(client: str, path: Path, public: Path | None) -> None:
    """Make a client's identity for secure sums or signed receipts: fedray identity CLIENT PATH, on the client's machine.

    PATH gets the private key, which only its owner may read, and which never leaves the machine. The line that is printed goes into the list of
    all clients' public keys (secure.identities), which each client's machine has its own copy of. CLIENT may be driver, for who signs a run.
    """
    from fedray.secure.identities import make_key
    from fedray.storage import write_atomic

    if Path(client).name != client and public is not None:
        raise ConfigError(f"--public: the name '{client}' is no file name; name the client's file yourself, with the printed digits in it.")
    digits = make_key(path)
    if public is not None:
        write_atomic(public / f"{client}.pub", f"{digits}\n".encode())
    click.echo(json.dumps({client: digits}))
