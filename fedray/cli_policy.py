"""The commands of a silo's operator about its policy: print one, check a run's config by it, say yes or no to a run."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import Any

import click

_SITE = click.argument("site", type=click.Path(path_type=Path, dir_okay=False))


@click.command("policy")
def print_policy() -> None:
    """Print a policy to begin with, in which every key stands with what it decides. What a policy does not name is refused."""
    from fedray.silos.defaultpolicy import TEXT

    click.echo(TEXT, nl=False)


@click.command("digest")
@click.argument("name")
def print_digest(name: str) -> None:
    """Print the SHA-256 of the installed file of NAME, python:package.module:name, for the policy's key code. Nothing of it is run."""
    from fedray.silos.installedcode import code_digest, installed_file

    click.echo(f'"{name}": {code_digest(name)}')
    click.echo(str(installed_file(name)), err=True)


@click.command("check")
@_SITE
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
def check_config(site: Path, config: Path, overrides: tuple[str, ...]) -> None:
    """Say whether this silo would take part in a run, and by which lines of its policy not. Neither the federation nor any record is asked.

    Exit code 4 if the run is refused.
    """
    from fedray.configfile import load_config
    from fedray.silos.offlinecheck import check_offline
    from fedray.silos.siteconfig import read_site

    found = check_offline(read_site(site), load_config(config, overrides))
    for line in found.lines:
        click.echo(line)
    sys.exit(4 if found.refused else 0)


@click.command("approve")
@_SITE
@click.argument("terms", required=False)
@click.option("--no", "refuses", is_flag=True, help="Say no; also to a run that was approved, which then stops here.")
@click.option("--show", is_flag=True, help="Print what is asked, and answer nothing.")
@click.option("--who", help="Who decides, for the log; default: the user of this process.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def approve_run(site: Path, terms: str | None, refuses: bool, show: bool, who: str | None, as_json: bool) -> None:
    """Say yes or no to the run whose TERMS (the first digits of their hash) wait here; without TERMS list the runs that were asked for."""
    from fedray.errors import ConfigError
    from fedray.silos.approvals import Approvals
    from fedray.silos.siteconfig import read_site

    approvals = Approvals(Path(read_site(site).state))
    if terms is None:
        rows = [{k: v for k, v in vars(asked).items() if k != "terms"} for asked in approvals.all()]
        click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(map(_row, rows)) or "no run was asked for")
        return
    if show:
        asked = approvals.find(terms)
        click.echo(json.dumps(vars(asked), indent=2) if as_json else _shown(asked.terms))
        return
    name = who or getpass.getuser()
    if not name.strip():
        raise ConfigError("--who: the log must say who decides.")
    decided = approvals.decide(terms, not refuses, name)
    click.echo(json.dumps({"terms": decided.sha256, "answer": decided.answer}) if as_json else _row(vars(decided)))


def _row(asked: dict[str, Any]) -> str:
    answer = f"{asked['answer']}, said {asked['who']} at {asked['when']}" if asked["answer"] else "waits"
    return f"{asked['sha256'][:12]}  {asked['run']}  asked {asked['time']}  {answer}"


def _shown(terms: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(terms, sort_keys=False, allow_unicode=True).rstrip()
