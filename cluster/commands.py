"""How the commands of `cluster` end: an error is one sentence, and its exit code."""

from __future__ import annotations

import sys

import click

from fedray.errors import FedrayError


def run(command: click.Command) -> None:
    """Run a click command on the arguments of this process."""
    try:
        command.main()
    except FedrayError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
