"""Makes the registration of a config's data, and checks the one that a config names before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedray.clients.agreement import Agreement
from fedray.clients.groups import ClientGroup, group_of, make_groups
from fedray.components import nearest
from fedray.config import Config
from fedray.data.commitment import load_salt
from fedray.data.dataset import client_names, load_client, load_federation, per_silo
from fedray.data.records import ClientData, positions
from fedray.data.registration import Registration, differences, enter, joined, read_registration, settings_of
from fedray.errors import ConfigError
from fedray.stores.object_path import location


def salts_of(config: Config, ledger: str) -> str:
    """Directory of a client's salt: beside the ledger that names the root of its records, or where the config says.

    Args:
        config: the run; with a section ``agreed``, or for a registration.
        ledger: the client's ledger, which its group names.

    Raises:
        ConfigError: the config names no directory, or two.
    """
    named = None if config.agreed is None else config.agreed.salts
    if named is not None and config.privacy.record and ledger != "run":
        raise ConfigError(
            f"agreed.salts: the salts lie beside the ledger {ledger}, which names the same roots; leave agreed.salts out, or privacy.ledger."
        )
    if named is None and (ledger == "run" or not config.privacy.regimes):
        raise ConfigError(
            "agreed.salts: the secret salts of the registration need a directory that outlives runs, at each place that holds records; name one."
        )
    return named if named is not None else ledger


def agreed_data(config: Config, names: Sequence[str], groups: Sequence[ClientGroup]) -> tuple[dict[str, Agreement], list[str]]:
    """What each group of clients has agreed on, by the group's name, and warnings; empty without a section ``agreed``.

    Args:
        config: the run.
        names: the clients' names.
        groups: of the clients.

    Raises:
        ConfigError: the registration cannot be read, or lacks a client.
    """
    if config.agreed is None:
        return {}, []
    where = config.agreed.registration
    registration = read_registration(location(where, "agreed.registration"))
    for name in names:
        if name not in registration.clients:
            hint = nearest(name, list(registration.clients))
            raise ConfigError(f"agreed.registration: {where} lacks client '{name}'; let it register and join its part.{hint}")
    differing = differences(registration.settings, settings_of(config))
    said = [f"The data were registered with other settings, which may change the records: {differing}."] if differing else []
    quiet = config.privacy.whole_clients is not None
    return {g.name: Agreement(registration, salts_of(config, g.ledger), quiet) for g in groups}, said


def register(config: Config, only: Sequence[str] = ()) -> Registration:
    """Register the data of a config's clients. Salts that are not there yet are made.

    Args:
        config: names the data, and with ``agreed.salts`` or ``privacy.ledger`` the directory of the salts.
        only: the clients whose data are read here; all if there are none.

    Raises:
        ConfigError: there is no such client, or no directory for salts.
        DataError: the data or a salt cannot be used.
    """
    own = config.clients.apart

    def entered(data: ClientData, directory: str) -> Registration:
        salt = load_salt(location(directory, "agreed.salts"), data.name if own else "records")
        return enter(data, salt, settings_of(config))

    return joined([entered(data, directory) for data, directory in held(config, only)])


def held(config: Config, only: Sequence[str] = ()) -> Iterator[tuple[ClientData, str]]:
    """The data of clients that are read here, each with the directory of its salt; see :func:`register`."""
    names = client_names(config.data, config.seed)
    for name in only:
        if name not in names:
            raise ConfigError(f"there is no client '{name}' among the {len(names)} of {config.data.source}.{nearest(name, names)}")
    groups = make_groups(config, names)
    places, index = group_of(groups, len(names)), positions(names)
    federation = None if per_silo(config.data) and config.clients.apart else load_federation(config.data, config.seed)
    for name in only or names:
        data = load_client(config.data, config.seed, name) if federation is None else federation.client(index(name))
        yield data, salts_of(config, groups[int(places[index(name)])].ledger)
