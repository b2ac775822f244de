"""The commands by which a client withdraws its data, or is readmitted: by the directory of its ledger, or by its site file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fedray.stores.object_path import Location

_WORDS = {"withdraw": "has withdrawn its data", "readmit": "is readmitted"}
_why = click.option("--reason", default="", help="Why, for those who read the ledger and for the runs that are told.")
_site = click.argument("site", type=click.Path(path_type=Path, exists=True, dir_okay=False))


def extend(silo: click.Group) -> click.Group:
    """Add the commands of a silo's own machine to the group of ``fedray silo``."""
    silo.add_command(withdraw_silo)
    silo.add_command(readmit_silo)
    return silo


@click.command("withdraw")
@click.argument("directory")
@click.argument("client")
@_why
def withdraw_client(directory: str, client: str, reason: str) -> None:
    """Let nothing be trained, measured or answered on CLIENT's data any more, from now on and also by runs that are under way. DIRECTORY: of
    its ledger, as privacy.ledger names it."""
    from fedray.stores.object_path import location

    _enter("withdraw", location(directory, "DIRECTORY"), client, reason)


@click.command("readmit")
@click.argument("directory")
@click.argument("client")
@_why
def readmit_client(directory: str, client: str, reason: str) -> None:
    """End CLIENT's withdrawal, for runs that start from now on."""
    from fedray.stores.object_path import location

    _enter("readmit", location(directory, "DIRECTORY"), client, reason)


@click.command("withdraw")
@_site
@_why
def withdraw_silo(site: Path, reason: str) -> None:
    """Let nothing be trained, measured or answered on this silo's data any more, from now on and also by runs that are under way."""
    _enter_site("withdraw", site, reason)


@click.command("readmit")
@_site
@_why
def readmit_silo(site: Path, reason: str) -> None:
    """End this silo's withdrawal, for runs that start from now on."""
    _enter_site("readmit", site, reason)


def _enter_site(kind: str, site: Path, reason: str) -> None:
    from fedray.silos.siteconfig import read_site

    found = read_site(site)
    Path(found.state).mkdir(parents=True, exist_ok=True)  # a silo may withdraw before it has taken part in anything
    _enter(kind, found.ledger, found.client, reason)


def _enter(kind: str, directory: Location, client: str, reason: str) -> None:
    from fedray.privacy.ledger.withdrawal import enter

    for found in enter(kind, directory, client, reason):
        how = f"counts from now on, and is entered before the next charge; {found.why}"
        if found.entry is not None:
            how = f"entry {found.entry}{' of a new ledger; this client had none here' if found.new else ''}"
        click.echo(f"{found.book}: client '{client}' {_WORDS[kind]} ({how})")
