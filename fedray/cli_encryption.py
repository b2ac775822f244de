"""``fedray encryption-key``: makes the secret key that the clients of encrypted sums share."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("encryption-key")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--kind", type=click.Choice(["bfv", "ckks"]), default="bfv", show_default=True, help="secure.kind of the runs that it is for."
)
def make_encryption_key(path: Path, kind: str) -> None:
    """Make the secret key of a consortium for encrypted sums: fedray encryption-key PATH, on one client's machine.

    Copy the file to all other clients' machines by a way that nobody else reads, with the mode 0600, and name it in secure.key. Whoever runs the
    driver must not have it.
    """
    from fedray.components import PROTOCOLS
    from fedray.secure.consortium import make_consortium_key

    make_consortium_key(PROTOCOLS.parts()[kind].scheme, path)
