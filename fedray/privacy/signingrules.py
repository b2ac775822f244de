"""Which runs clients and driver can sign."""

from __future__ import annotations

from fedray.config import Config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.secure.keyfiles import check_absolute


def check_signing(config: Config) -> None:
    """Refuse signed receipts where no client could sign for itself, or where receipts would show what the guarantee hides.

    Raises:
        PrivacyRefusal: whole clients are protected.
        ConfigError: clients are hosted, or a path depends on where a process runs.
    """
    signing, whole = config.clients.signing, config.privacy.whole_clients
    if signing is None:
        return
    if config.clients.placement == "hosted":
        raise ConfigError(
            "clients.signing: a hosted client has no process of its own that could sign for it, and no key that the driver's machine does not hold; "
            "set clients.placement=dedicated, or take it out."
        )
    if whole is not None:
        raise PrivacyRefusal(
            "clients.signing: receipts show who took part in which round, and a digest of what each client sent, which the guarantee for whole "
            "clients keeps from everybody but the driver; set privacy.regime=record, or take it out.",
            f"privacy.incompatible.{whole}.signing",
        )
    if config.sweep is not None:
        raise ConfigError(
            "clients.signing: trials of a sweep run side by side, and a client's file of receipts is held by one run at a time; take it out, and sign "
            "the run that you keep."
        )
    given = {"key": signing.key, "chain": signing.chain}
    if config.clients.placement == "remote" and any(given.values()):
        name = next(name for name, path in given.items() if path)
        raise ConfigError(
            f"clients.signing.{name}: a silo signs by the key of its own identity, and keeps its receipts in its own state; take it out."
        )
    if config.clients.placement == "dedicated" and not signing.key:
        raise ConfigError("clients.signing.key: missing; name each client's private key, such as /etc/fedray/{client}.pem.")
    for name, path in {**given, "driver": signing.driver}.items():
        if path:
            check_absolute(f"clients.signing.{name}", path)
