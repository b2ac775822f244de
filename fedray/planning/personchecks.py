"""Checks that need to know whose the records are, where the unit of privacy is a person."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedray.config import Privacy
from fedray.data.records import Federation
from fedray.errors import ConfigError, PrivacyRefusal


def check_persons(privacy: Privacy, persons: npt.NDArray[np.int64] | None) -> None:
    """Refuse records that do not say whose they are, where persons are protected.

    Args:
        privacy: the section.
        persons: number of persons at each client; None if it is not known.

    Raises:
        ConfigError: they do not.
    """
    if privacy.person is not None and persons is None:
        raise ConfigError(
            "privacy.person: the records do not say whose they are; name the column with data.person (of a python: source, return (x, y, persons))."
        )


def check_silos_of_persons(privacy: Privacy, federation: Federation) -> None:
    """Refuse a person with records at more clients than the figure for a person counts on, where one process reads all clients' records.

    Raises:
        PrivacyRefusal: there is such a person; the sentence says at how many clients.
    """
    if privacy.person is None or federation.train.persons is None:
        return
    client = np.repeat(np.arange(len(federation.names)), federation.sizes)
    pairs = np.unique(np.stack([federation.train.persons, client]), axis=1)
    most = int(np.unique(pairs[0], return_counts=True)[1].max())
    if most > privacy.max_silos_per_person:
        raise PrivacyRefusal(
            f"privacy.max_silos_per_person: is {privacy.max_silos_per_person}, but a person has records at {most} clients, each of which is charged "
            f"for it; set privacy.max_silos_per_person={most}, or deal each person to one client (data.partition.kind=iid, dirichlet, quantity).",
            "privacy.person.silos",
        )
