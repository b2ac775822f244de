"""The commands about the data that the parties have agreed on: ``fedray register`` and ``fedray opening``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.core import ParameterSource

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


def open_run(context: click.Context, run: Path, opens: bool, records: int | None) -> None:
    """``fedray audit --open``: all three steps of an opening, where the clients' data and salts can be read."""
    from fedray.audit.opened import conclude
    from fedray.audit.opened import open_run as opened

    given = {key for key in context.params if context.get_parameter_source(key) is ParameterSource.COMMANDLINE}
    if not opens:
        raise click.UsageError("--records: goes with --open")
    if others := sorted(given - {"target", "opens", "records"}):
        raise click.UsageError(f"--open: takes a run and --records, but no {', '.join(others)}")
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    found = opened(run, records)
    for one in found:
        click.echo(str(one))
    conclude(found)


@click.group()
def opening() -> None:
    """Open registered records to an auditor: challenge (auditor), answer (data holder), check (auditor)."""


@opening.command()
@click.argument("registration", type=click.Path(path_type=Path))
@click.option("--records", type=int, help="How many records each client opens; default 100.", default=100)
@click.option("--all", "everything", is_flag=True, help="All records, which shows that there are no others.")
@click.option("--client", "clients", multiple=True, help="Ask only this client; may be given several times.")
@click.option("--seed", default="", help="64 hexadecimal digits, such as of a public beacon; default: drawn by the system.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The challenge, a JSON file.")
def challenge(registration: Path, records: int, everything: bool, clients: tuple[str, ...], seed: str, out: Path) -> None:
    """Draw which records of a REGISTRATION are opened."""
    from fedray.data.openings import Challenge
    from fedray.data.registration import read_registration

    drawn = Challenge.draw(read_registration(registration), None if everything else records, clients, seed)
    write_json(out, drawn.document())
    click.echo(f"challenge sha256 {drawn.sha256} in {out}")


@opening.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--challenge", "asked", type=click.Path(path_type=Path), required=True, help="The auditor's challenge.")
@click.option("--client", "clients", multiple=True, help="Answer only for this client, whose data are here; may be given several times.")
@click.option("--hashes", is_flag=True, help="Show each record's hash in place of the record.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The answer, a JSON file.")
def answer(config: Path, overrides: tuple[str, ...], asked: Path, clients: tuple[str, ...], hashes: bool, out: Path) -> None:
    """Answer a challenge from a CONFIG's data: the records asked for are REVEALED, with their proofs."""
    from fedray.audit.opened import answers_of
    from fedray.configfile import load_config
    from fedray.data.openings import read_challenge
    from fedray.data.registration import read_registration
    from fedray.stores.object_path import location

    resolved = load_config(config, overrides)
    if resolved.agreed is None:
        raise ConfigError("agreed.registration: name the registration that the challenge is for.")
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    registration = read_registration(location(resolved.agreed.registration, "agreed.registration"))
    found = answers_of(resolved, read_challenge(asked), registration, clients, hashes)
    write_json(out, found)
    what = "hashes of records" if hashes else "records"
    click.echo(f"{out} shows {sum(map(len, found['clients'].values()))} {what} of {', '.join(found['clients'])} to whoever reads it")


@opening.command()
@click.argument("registration", type=click.Path(path_type=Path))
@click.argument("answers", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--challenge", "asked", type=click.Path(path_type=Path), required=True, help="The challenge that was answered.")
@click.option("--run", type=click.Path(path_type=Path), help="Also compare with the roots in this run's ledger.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="What was found, as a JSON file.")
def check(registration: Path, answers: tuple[Path, ...], asked: Path, run: Path | None, out: Path | None) -> None:
    """Check ANSWERS against a REGISTRATION. Exit code 1 where something is not as it was registered."""
    from fedray.audit.opened import conclude, result, with_ledger
    from fedray.data.openings import check_answers, read_answer, read_challenge
    from fedray.data.registration import read_registration

    agreed, drawn = read_registration(registration), read_challenge(asked)
    found = check_answers(drawn, agreed, [read_answer(path) for path in answers])
    found = found if run is None else with_ledger(found, agreed, run)
    if out is not None:
        write_json(out, result(drawn, found))
    for one in found:
        click.echo(str(one))
    conclude(found)
