"""The command that verifies a signed run: ``fedray verify``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_dir")
@click.option(
    "--keys", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="Public keys: NAME.pub, driver.pub."
)
@click.option("--remade", is_flag=True, help="Accept reports, audits and the like that were written after the run.")
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Another run of the same clients, with which their chains of receipts must go together; may be given several times.",
)
@click.pass_context
def verify(context: click.Context, run_dir: str, keys: Path, remade: bool, beside: tuple[Path, ...]) -> None:
    """Verify offline what clients and driver have signed of a run, and all its files. Exit code 1: something is not as it was signed."""
    from fedray.reporting.verifiedrun import verify_run
    from fedray.stores.mirror import local_copy
    from fedray.stores.object_path import location

    with local_copy(location(run_dir, "RUN_DIR"), whole=True) as place:
        found = verify_run(place, keys, remade, beside)
    for fault in found.faults:
        click.echo(f"NOT VERIFIED  {fault}.")
    for sentence in () if found.faults else found.verified:
        click.echo(f"verified      {sentence}")
    for sentence in found.not_covered:
        click.echo(f"not covered   {sentence}")
    if found.faults:
        context.exit(1)
