"""Which ledgers a run or a query may name."""

from __future__ import annotations

from fedray.config import Config
from fedray.errors import PrivacyRefusal
from fedray.privacy.ledger.location import SILOS, ledger_directory


def check_ledgers(config: Config) -> None:
    """Refuse ledgers that forget what was charged.

    Raises:
        PrivacyRefusal: a silo's ledger would be the run's own.
        ConfigError: a ledger's address is none.
    """
    dedicated, remote = config.clients.placement == "dedicated", config.clients.placement == "remote"
    silos = config.privacy.record or config.privacy.regimes == ("local",)
    if remote and silos != (config.privacy.ledger == SILOS):
        should = f"should be '{SILOS}': each silo charges its own, which its site file names" if silos else "is kept by the driver here"
        raise PrivacyRefusal(f"privacy.ledger: {should}.", "privacy.incompatible.remote.ledger")
    if not remote and SILOS in (config.privacy.ledger, *(g.ledger for g in config.clients.groups)):
        raise PrivacyRefusal(
            f"privacy.ledger: '{SILOS}' goes with clients.placement=remote; name a directory.", "privacy.incompatible.remote.ledger"
        )
    settings = {"privacy.ledger": config.privacy.ledger}
    settings |= {f"clients.groups.{i}.ledger": g.ledger for i, g in enumerate(config.clients.groups) if g.ledger is not None}
    for path, setting in settings.items():
        if dedicated and setting == "run":
            raise PrivacyRefusal(
                f"{path}: dedicated clients are silos whose records outlive this run, but a ledger of the run forgets what was spent on them; "
                "name a directory on each silo's durable volume.",
                "privacy.incompatible.dedicated.ledger_run",
            )
        if setting != SILOS:
            ledger_directory(setting, ".")
