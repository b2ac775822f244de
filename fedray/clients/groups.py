"""Which group each client belongs to, and what that changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedray.components import nearest
from fedray.config import Config, Resources, Training
from fedray.configfile import build_config
from fedray.errors import ConfigError


@dataclass(frozen=True)
class ClientGroup:
    """Clients that share settings; ``members`` are client indices in increasing order."""

    name: str
    members: tuple[int, ...]
    resources: Resources
    training: Training
    ledger: str
    rate: float


def make_groups(config: Config, names: Sequence[str]) -> list[ClientGroup]:
    """All groups, the rest of the clients being the group ``default``.

    Raises:
        ConfigError: unknown client names, a client in two groups, more clients than there are.
    """
    index = {name: i for i, name in enumerate(names)}
    taken: dict[int, str] = {}
    groups = []
    for position, section in enumerate(config.clients.groups):
        path = f"clients.groups.{position}"
        if isinstance(section.clients, int):
            free = [i for i in range(len(names)) if i not in taken]
            if not 1 <= section.clients <= len(free):
                raise ConfigError(f"{path}.clients: asks for {section.clients} clients, but {len(free)} of {len(names)} are free.")
            members = free[: section.clients]
        else:
            unknown = [n for n in section.clients if n not in index]
            if unknown:
                raise ConfigError(f"{path}.clients: there is no client '{unknown[0]}'.{nearest(unknown[0], names)}")
            members = sorted(index[n] for n in section.clients)
        for i in members:
            if i in taken:
                raise ConfigError(f"{path}.clients: client '{names[i]}' is already in group '{taken[i]}'.")
            taken[i] = section.name
        if section.ledger is not None and config.clients.placement == "hosted":
            raise ConfigError(f"{path}.ledger: hosted clients share the run's ledger; set privacy.ledger, or placement: dedicated.")
        groups.append(
            ClientGroup(
                section.name,
                tuple(members),
                section.resources or config.clients.resources,
                training_of(config, section.training, f"{path}.training"),
                _absolute(section.ledger or config.privacy.ledger),
                section.rate,
            )
        )
    rest = tuple(i for i in range(len(names)) if i not in taken)
    if rest:
        groups.append(ClientGroup("default", rest, config.clients.resources, config.training, _absolute(config.privacy.ledger), 1.0))
    return groups


def _absolute(ledger: str) -> str:
    """A ledger's directory as every actor must mean it, whatever directory it works in."""
    return ledger if ledger == "run" or "://" in ledger else str(Path(ledger).absolute())


def training_of(config: Config, overrides: dict[str, object], path: str) -> Training:
    """The training section with a group's overrides, validated as a whole."""
    if not overrides:
        return config.training
    raw = config.model_dump(exclude_unset=True)
    raw["training"] = {**raw["training"], **overrides}
    try:
        return build_config(raw).training
    except ConfigError as error:
        raise ConfigError(str(error).replace("training.", f"{path}.")) from None


def rates(groups: Sequence[ClientGroup], clients: int) -> npt.NDArray[np.float64]:
    """Every client's rate factor."""
    values = np.ones(clients)
    for group in groups:
        values[list(group.members)] = group.rate
    return values
