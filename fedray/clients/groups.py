"""Which group each client belongs to, and what that changes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedray.choices import Resources
from fedray.components import nearest
from fedray.config import Config, Training
from fedray.configfile import build_config
from fedray.errors import ConfigError
from fedray.privacy.ledger.location import SILOS


@dataclass(frozen=True)
class ClientGroup:
    """Clients that share settings; ``members`` are client indices in increasing order, a range or packed, for there may be millions."""

    name: str
    members: Sequence[int]
    resources: Resources
    training: Training
    ledger: str
    rate: float
    every: int = 1


def make_groups(config: Config, names: Sequence[str]) -> list[ClientGroup]:
    """All groups, the rest of the clients being the group ``default``.

    Raises:
        ConfigError: unknown client names, a client in two groups, more clients than there are.
    """
    owner = np.full(len(names), -1, dtype=np.int64)  # the group's position; -1 while it is free
    index: dict[str, int] = {}
    groups = []
    for position, section in enumerate(config.clients.groups):
        path = f"clients.groups.{position}"
        if isinstance(section.clients, int):
            if config.data.without:
                raise ConfigError(
                    f"{path}.clients: counts clients in their order, which data.without changes; give the names of this group's clients."
                )
            free = np.flatnonzero(owner < 0)
            if not 1 <= section.clients <= len(free):
                raise ConfigError(f"{path}.clients: asks for {section.clients} clients, but {len(free)} of {len(names)} are free.")
            members = free[: section.clients]
        else:
            index = index or {name: i for i, name in enumerate(names)}
            wanted = [n for n in section.clients if n not in config.data.without]
            unknown = [n for n in wanted if n not in index]
            if unknown:
                raise ConfigError(f"{path}.clients: there is no client '{unknown[0]}'.{nearest(unknown[0], names)}")
            members = np.array(sorted(index[n] for n in wanted), dtype=np.int64)
            if section.clients and not wanted:
                continue
        taken = members[owner[members] >= 0]
        if len(taken):
            other = config.clients.groups[int(owner[taken[0]])].name
            raise ConfigError(f"{path}.clients: client '{names[int(taken[0])]}' is already in group '{other}'.")
        owner[members] = position
        if section.ledger is not None and config.clients.placement == "hosted":
            raise ConfigError(f"{path}.ledger: hosted clients share the run's ledger; set privacy.ledger, or placement: dedicated.")
        groups.append(
            ClientGroup(
                section.name,
                _packed(members),
                section.resources or config.clients.resources,
                training_of(config, section.training, f"{path}.training"),
                _absolute(section.ledger or config.privacy.ledger),
                section.rate,
                section.every,
            )
        )
    rest = np.flatnonzero(owner < 0)
    if len(rest):
        resources, ledger = config.clients.resources, _absolute(config.privacy.ledger)
        groups.append(ClientGroup("default", _packed(rest), resources, config.training, ledger, 1.0))
    return groups


def _packed(indices: npt.NDArray[np.int64]) -> Sequence[int]:
    first, last = int(indices[0]), int(indices[-1])
    return range(first, last + 1) if last - first + 1 == len(indices) else array("q", indices.tobytes())


def _absolute(ledger: str) -> str:
    """A ledger's directory as every actor must mean it, whatever directory it works in."""
    return ledger if ledger in ("run", SILOS) or "://" in ledger else str(Path(ledger).absolute())


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


def group_of(groups: Sequence[ClientGroup], clients: int) -> npt.NDArray[np.int32]:
    """Position of every client's group."""
    found = np.zeros(clients, dtype=np.int32)
    for position, group in enumerate(groups):
        found[np.asarray(group.members)] = position
    return found


def rates(groups: Sequence[ClientGroup], clients: int) -> npt.NDArray[np.float64]:
    """Every client's rate factor."""
    values = np.ones(clients)
    for group in groups:
        values[np.asarray(group.members)] = group.rate
    return values
