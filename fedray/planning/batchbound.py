"""Batches that are no larger than the smallest client, so that a step of each client is of as many records."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.config import Config
from fedray.errors import ConfigError


def bounded(config: Config, sizes: npt.NDArray[np.int64] | None) -> tuple[Config, list[str]]:
    """The config with the batch sizes that ``training.batch_bound`` leaves, those of groups of clients among them, and what is said of it.

    Args:
        config: the run.
        sizes: number of training records of each client, int64 ``[clients]``; None where the clients alone know. A client without records
            takes no step and bounds nothing.

    Raises:
        ConfigError: there is a bound of nothing, or one that nobody knows before the run.
    """
    training, groups = config.training, config.clients.groups
    if training.batch_bound is None:
        for i, group in enumerate(groups):
            if "batch_bound" in group.training:
                raise ConfigError(f"clients.groups.{i}.training.batch_bound: the bound is of all clients; set training.batch_bound.")
        return config, []
    if training.batch_size is None:
        raise ConfigError("training.batch_bound: bounds training.batch_size; give it, or take the bound out.")
    if sizes is None:
        raise ConfigError(
            "training.batch_bound: with dedicated clients each one alone knows how many records it has; ask them for the smallest number, and set "
            "training.batch_size to it."
        )
    smallest = int(sizes[sizes > 0].min(initial=np.iinfo(np.int64).max))
    given = [size for size in (training.batch_size, *(group.training.get("batch_size") for group in groups)) if size is not None]
    if max(given) <= smallest:
        return config, []
    own = [group.model_copy(update={"training": _lowered(group.training, smallest)}) for group in groups]
    found: dict[str, Any] = {
        "training": training.model_copy(update=_lowered({"batch_size": training.batch_size}, smallest)),
        "clients": config.clients.model_copy(update={"groups": own}),
    }
    said = f"training.batch_size: {max(given)} is lowered to {smallest}, the number of records of the smallest client."
    return config.model_copy(update=found), [said]


def _lowered(section: dict[str, Any], smallest: int) -> dict[str, Any]:
    size = section.get("batch_size")
    return section if size is None else {**section, "batch_size": min(int(size), smallest)}
