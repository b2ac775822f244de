"""Compares a run's data with what was registered, and keeps the registration in the run's directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from fedray.clients.pool import Pool
from fedray.data.registration import Registration, differences, settings_of
from fedray.errors import ConfigError, DataError
from fedray.planning.preparation import Prepared
from fedray.rounds.agreed import AgreedData, held_by_actors
from fedray.runfiles import RunFiles
from fedray.storage import read_json, write_json


def agreed_data_of(prepared: Prepared, pool: Pool, data: Sequence[Any], files: RunFiles) -> AgreedData | None:
    """What keeps clients out of rounds that do not hold what they registered; None where nothing was agreed on.

    Hosted clients' records lie in shared memory that nobody can write, so they are compared here, once. Dedicated clients compare what
    they load, whenever they load it.

    Args:
        prepared: the run.
        pool: its actors, which are ready.
        data: the reference of hosted clients' records, in a list.
        files: the run's.

    Raises:
        ConfigError: the run was begun with another registration.
        DataError: no client holds what it registered.
    """
    agreement = next(iter(prepared.agreed.values()), None)
    _keep(files, None if agreement is None else agreement.registration)
    if agreement is None:
        return None
    if prepared.config.clients.apart:
        changed = held_by_actors(pool, prepared.config.clients.start_timeout)
    else:
        found = agreement.changes(ray.get(data[0]))
        changed = found.copy
    if len(now := changed()) == len(prepared.names):
        other = differences(agreement.registration.settings, settings_of(prepared.config))
        ways = f"The settings differ, too: {other}." if other else "Register anew, or bring the data back."
        raise DataError(f"agreed: no client holds the data that it registered. {next(iter(now.values()))} {ways}")
    return AgreedData(agreement.registration.sha256, len(prepared.names), changed)


def _keep(files: RunFiles, registration: Registration | None) -> None:
    """Write the registration beside the run's config, or compare it with the one that the run was begun with."""
    now = None if registration is None else registration.document()
    if files.config.exists() and read_json(files.registration) != now:
        raise ConfigError(
            "--resume: the run was begun with another registration of the data (agreed.registration); bring that back, or give what is another "
            "run another --output."
        )
    if now is not None:
        write_json(files.registration, now)
