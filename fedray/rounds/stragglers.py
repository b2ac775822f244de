"""Simulated stragglers: clients of a cohort that do only some of their passes, or whose updates come too late to count.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, Federated Optimization in Heterogeneous Networks, section 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedray.choices import Stragglers
from fedray.clients.groups import ClientGroup, training_of
from fedray.clients.messages import ClientReport, ClientTask
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.rng import generator


def check_stragglers(config: Config, synchronous: bool) -> None:
    """Refuse stragglers where rounds do not wait for their clients, or where clients have no passes of which to do a part.

    Args:
        config: the run.
        synchronous: each round waits for all clients of its cohort.

    Raises:
        ConfigError: with what to change.
    """
    if config.cohort.stragglers is None:
        return
    if not synchronous or config.pacing.arrival == "simulated":
        raise ConfigError(
            "cohort.stragglers: they are for synchronous rounds with real arrival; under another schedule, or in simulated time, clients have "
            "speeds of their own, so set pacing to {kind: synchronous, arrival: real}, or take cohort.stragglers out."
        )
    parts = {"training": config.training}
    for position, group in enumerate(config.clients.groups):
        path = f"clients.groups.{position}.training"
        parts[path] = training_of(config, group.training, path)
    for path, training in parts.items():
        if training.epochs is None or training.epochs < 2:
            given = "steps" if training.epochs is None else "one pass"
            raise ConfigError(
                f"{path}.epochs: a straggler does some of its client's passes, and here are {given}; set {path}.epochs to 2 or more, or take "
                "cohort.stragglers out."
            )


def most_passes(groups: Sequence[ClientGroup], clients: int) -> npt.NDArray[np.int64]:
    """Each client's ``training.epochs``, int64 ``[clients]``; 1 where there are none."""
    found = np.ones(clients, dtype=np.int64)
    for group in groups:
        found[np.asarray(group.members)] = group.training.epochs or 1
    return found


def straggled(
    stragglers: Stragglers, seed: int, passes: npt.NDArray[np.int64], number: int, cohort: Sequence[ClientTask]
) -> tuple[list[ClientTask], list[ClientReport]]:
    """The clients of a cohort that train, some with fewer passes, and the reports of those whose updates do not count.

    Who straggles, and how far it gets, follows from seed and round, so that two algorithms with one seed meet the same stragglers.

    Args:
        stragglers: the config's section.
        seed: of the run.
        passes: of each client that does not straggle, at least 2; int64 ``[clients]``.
        number: of the round, from 0.
        cohort: of the round.
    """
    draws = generator(seed, "stragglers", number)
    slow = set(draws.permutation(len(cohort))[: round(stragglers.share * len(cohort))].tolist())
    done = draws.integers(1, passes[[client.index for client in cohort]])
    if not stragglers.drop:
        return [client._replace(epochs=int(done[n])) if n in slow else client for n, client in enumerate(cohort)], []
    late = "it straggled, and cohort.stragglers.drop leaves its update out"
    left = [ClientReport(client.index, client.name, "late", error=late) for n, client in enumerate(cohort) if n in slow]
    return [client for n, client in enumerate(cohort) if n not in slow], left
