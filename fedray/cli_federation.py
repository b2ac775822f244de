"""``fedray federation``: what the coordinator of silos outside the cluster does: its identity, invitations, enrolment, revocation."""

from __future__ import annotations

import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

_DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.group("federation")
def federation() -> None:
    """Coordinate silos outside the cluster: make a federation, invite its silos, serve their enrolment, revoke them."""


@federation.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--name", "names", multiple=True, required=True, help="Host name or address by which silos reach the gateway; several times.")
def init(directory: Path, names: tuple[str, ...]) -> None:
    """Make a federation in DIRECTORY, which is clients.gateway.identity of its runs.

    authority/key.pem in it signs the silos' certificates: whoever has it can pass for any silo. Runs do not need it; keep it where enrolment is served.
    """
    from fedray.silos.admission import create
    from fedray.silos.certificates import FEDERATION, fingerprint

    create(directory, names, datetime.now(UTC))
    click.echo(f"federation {fingerprint((directory / FEDERATION).read_bytes()).hex()} in {directory}")


@federation.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--name", "names", multiple=True, help="A further name of the gateway; several times.")
def renew(directory: Path, names: tuple[str, ...]) -> None:
    """Give the gateway a new certificate; silos need nothing new, and gateways that run read it by themselves."""
    from fedray.silos.admission import renew_gateway
    from fedray.silos.certificates import life_of, read_gateway_credentials

    every = renew_gateway(directory, names, datetime.now(UTC))
    _, _, ends = life_of(read_gateway_credentials(directory).certificate)
    click.echo(f"the gateway's certificate names {', '.join(every)} and counts until {ends:%Y-%m-%d}")


@federation.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("client")
@click.option("--address", help="HOST:PORT of the enrolment as the silo reaches it; default: the gateway's first name, port 7444.")
@click.option("--hours", default=72.0, show_default=True, type=click.FloatRange(min=0.1, max=24 * 90), help="How long the token counts.")
@click.option("--new-signing-key", is_flag=True, help="The silo may come with another key for its receipts than it had.")
def invite(directory: Path, client: str, address: str | None, hours: float, new_signing_key: bool) -> None:
    """Print a token with which CLIENT enrols once. Who has it can join as CLIENT: give it to the silo's operator by a way that nobody else reads."""
    from fedray.silos import admission
    from fedray.silos.certificates import hosts_of, read_gateway_credentials
    from fedray.silos.enrolment_client import PORT
    from fedray.silos.hostport import Address

    if address is None:
        address = str(Address(hosts_of(read_gateway_credentials(directory).certificate)[0], PORT))
    Address.of(address, "--address")
    made = admission.invite(directory, client, address, datetime.now(UTC), hours, new_signing_key)
    click.echo(made.token())


@federation.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--listen", default="0.0.0.0:7444", show_default=True, help="HOST:PORT.")
def enrolment(directory: Path, listen: str) -> None:
    """Serve enrolment and rotation to silos, until it is stopped; one line for each request."""
    from fedray.silos.enrolment_service import EnrolmentService
    from fedray.silos.hostport import Address

    def log(line: str) -> None:
        click.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}")

    with EnrolmentService(directory, Address.of(listen, "--listen"), log) as service:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        log(f"enrolment listens on {Address(str(service.server_address[0]), service.server_port)}")
        service.serve_forever()


@federation.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("client")
def revoke(directory: Path, client: str) -> None:
    """Revoke all certificates of CLIENT, at once and for open connections, too, and take its invitations back."""
    from fedray.silos import admission

    count = admission.revoke(directory, client, datetime.now(UTC))
    click.echo(f"{count} certificate{'' if count == 1 else 's'} of '{client}' that still counted, revoked")


@federation.command("list")
@click.argument("directory", type=_DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_silos(directory: Path, as_json: bool) -> None:
    """Print until when the gateway's certificate counts, and of each silo its state and the serial numbers of its certificates that count."""
    from fedray.silos.admission import members, summary
    from fedray.silos.certificates import hosts_of, life_of, read_gateway_credentials

    silos, gateway = [summary(member, datetime.now(UTC)) for member in members(directory)], read_gateway_credentials(directory).certificate
    _, _, ends = life_of(gateway)
    if as_json:
        click.echo(json.dumps({"gateway": {"names": hosts_of(gateway), "ends": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}, "silos": silos}, indent=2))
        return
    click.echo(f"the gateway's certificate names {', '.join(hosts_of(gateway))} and counts until {ends:%Y-%m-%d}")
    width = max([len(one["client"]) for one in silos], default=0)
    for one in silos:
        click.echo("  ".join([f"{one['client']:<{width}}", one["state"], *(f"serial {serial}" for serial in one["serials"])]))
