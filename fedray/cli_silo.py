"""``fedray silo``: what the operator of a silo does on the silo's own machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from fedray import cli_policy

SITE = click.argument("site", type=click.Path(path_type=Path, dir_okay=False))


class _Silo(click.Group):
    """``fedray silo SITE.yaml`` is ``fedray silo run SITE.yaml``."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.get_command(ctx, args[0]) is not None or not args[0].endswith((".yaml", ".yml"))
        return super().resolve_command(ctx, args if known else ["run", *args])


@click.group("silo", cls=_Silo)
def silo() -> None:
    """Take part in a federation from a machine of one's own, by a SITE.yaml that lies there."""


@silo.command()
@SITE
def run(site: Path) -> None:
    """Dial the federation's gateway, for ever, and train in its runs: fedray silo SITE.yaml. Nothing listens on this machine."""
    from fedray.silos.process import run_silo
    from fedray.silos.siteconfig import read_site

    run_silo(read_site(site))


@silo.command()
@SITE
@click.option(
    "--token", envvar="FEDRAY_TOKEN", prompt="Token", hide_input=True, help="What fedray federation invite printed; asked for if not given."
)
@click.option("--again", is_flag=True, help="Replace an identity that is there; the key of the receipts stays.")
def enrol(site: Path, token: str, again: bool) -> None:
    """Make this silo's keys, and have them certified by the federation that the token names. The keys never leave this machine."""
    from fedray.silos import enrolment
    from fedray.silos.certificates import life_of
    from fedray.silos.enrolment_client import ask
    from fedray.silos.invitations import read_token
    from fedray.silos.siteconfig import read_site

    own, invitation = read_site(site), read_token(token)
    directory = Path(own.identity)
    made = enrolment.enrol(directory, own.client, invitation, lambda *asked: ask(invitation, *asked), datetime.now(UTC), again)
    own.ledger.mkdir(parents=True, exist_ok=True, mode=0o700)  # once: a run whose silo does not find it again must not begin a new one
    serial, _, ends = life_of(made.certificate)
    click.echo(f"silo '{own.client}' is enrolled until {ends:%Y-%m-%d} (serial {serial:x}) in the federation {invitation.federation.hex()}")


@silo.command()
@SITE
@click.option("--now", "at_once", is_flag=True, help="Even if more than a third of the certificate's time is left.")
@click.option("--address", help="HOST:PORT of the enrolment, where it has moved.")
def rotate(site: Path, at_once: bool, address: str | None) -> None:
    """Renew this silo's key and certificate if they end soon; run it daily. A silo that runs goes on, and takes the new ones when it dials next."""
    from fedray.silos import enrolment
    from fedray.silos.certificates import life_of, read_silo_credentials
    from fedray.silos.enrolment_client import ask_again
    from fedray.silos.hostport import Address
    from fedray.silos.siteconfig import read_site

    directory, now = Path(read_site(site).identity), datetime.now(UTC)
    _, _, ends = life_of(read_silo_credentials(directory).certificate)
    if not at_once and not enrolment.rotation_is_due(directory, now):
        click.echo(f"nothing to do: the certificate counts until {ends:%Y-%m-%d}")
        return
    place = Address.of(address or enrolment.address_of(directory), "--address")
    made = enrolment.rotate(directory, lambda *asked: ask_again(directory, place, *asked), now)
    serial, _, ends = life_of(made.certificate)
    click.echo(f"the new certificate counts until {ends:%Y-%m-%d} (serial {serial:x}); the old one counts until it ends")


for _command in (cli_policy.approve_run, cli_policy.check_config, cli_policy.print_digest, cli_policy.print_policy):
    silo.add_command(_command)
