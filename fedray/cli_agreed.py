"""The commands about the data that the parties have agreed on: ``fedray register`` and ``fedray opening``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fedray.errors import ConfigError
from fedray.storage import write_json

_SHOWN = 20


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The registration, a JSON file.")
@click.option("--client", "clients", multiple=True, help="Register only this client, whose data are here; may be given several times.")
@click.option("--join", "parts", multiple=True, type=click.Path(path_type=Path), help="Add the clients of another registration.")
def register(config: Path | None, overrides: tuple[str, ...], out: Path, clients: tuple[str, ...], parts: tuple[Path, ...]) -> None:
    """Register the data of a CONFIG's clients: root, count and schema. Each part is made where its data are, then all are joined."""
    from fedray.configfile import load_config
    from fedray.data.registration import joined, read_registration
    from fedray.planning.registered import register as make

    if config is None and not parts:
        raise click.UsageError("give a CONFIG whose data are registered, or --join parts that are")
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    made = [] if config is None else [make(load_config(config, overrides), clients)]
    whole = joined([*made, *(read_registration(part) for part in parts)])
    if out.exists() and out.resolve() not in {part.resolve() for part in parts}:
        raise ConfigError(f"--out {out}: is there, and a registration is not replaced; name another file, or delete it.")
    write_json(out, whole.document())
    for name, entry in list(whole.clients.items())[:_SHOWN]:
        click.echo(f"{name}: {entry.records:,} records, root {entry.root}")
    if len(whole.clients) > _SHOWN:
        click.echo(f"... and {len(whole.clients) - _SHOWN} more clients")
    click.echo(f"schema sha256 {whole.schema.sha256}")
    click.echo(f"registration sha256 {whole.sha256} in {out}; all parties should have this one")
