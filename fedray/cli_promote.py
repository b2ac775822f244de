"""The command that gives a verified model an alias: ``fedray promote``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--alias", default="champion", show_default=True, help="The alias of the registered model.")
@click.option("--without-audit", is_flag=True, help="Also promote a run that was not audited.")
@click.option(
    "--keys", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Of a signed run: its public keys (fedray verify)."
)
def promote(run_dir: Path, alias: str, without_audit: bool, keys: Path | None) -> None:
    """Set an alias of a run's registered model, where its statement, ledger, audit and signatures verify; else say why not (exit code 1)."""
    from fedray.experiment.promotion import promote as give

    click.echo(give(run_dir, alias, without_audit, keys))
