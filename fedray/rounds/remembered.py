"""What an aggregation rule remembers beyond a run: a file that the config names, for runs of the same federation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.aggregation.rule import Memory, Rule
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.parameters import Values
from fedray.privacy.ledger.location import unpacked
from fedray.stores.object_path import location
from fedray.tensorfile import read_tensors, write_tensors

_WHERE = "aggregation.remember"


def federation_of(config: Config, names: Sequence[str]) -> str:
    """SHA-256, hexadecimal, of the clients' names and of where their records come from; records that are dealt anew are another federation's."""
    data = json.loads(config.data.model_dump_json(exclude={"holdout", "normalize"}))
    dealt = None if config.data.partition.kind == "natural" else config.seed
    return hashlib.sha256(json.dumps([list(names), data, dealt], sort_keys=True).encode()).hexdigest()


def begun_with(config: Config, rule: Rule[Any], names: Sequence[str], size: int) -> Memory:
    """What a rule remembers before a run's first round: what the last run of this federation has left in its file, if there is one.

    Args:
        config: the run.
        rule: of the run.
        names: of the clients.
        size: of the updates.

    Raises:
        ConfigError: the file is of another federation or rule, or lies where it cannot last.
        FedrayError: the file is damaged.
    """
    begun, path = rule.begin(len(names), size), _path(rule)
    if path is None or not path.exists():
        return begun
    found, about = read_tensors(path)
    if about.get("federation") != federation_of(config, names):
        raise ConfigError(
            f"{_WHERE}: {path} is about another federation (other clients, records or partition); name another file for this one, or none."
        )
    if about.get("rule") != config.aggregation.kind or _form(found) != _form(begun):
        raise ConfigError(f"{_WHERE}: {path} was written by aggregation.kind '{about.get('rule')}'; name another file for this rule.")
    return found


def keep(config: Config, rule: Rule[Any], names: Sequence[str], memory: Mapping[str, Values]) -> None:
    """Write what a rule remembers to its file, where it has one; the file is on disk when this returns.

    Raises:
        FedrayError: it cannot be written.
    """
    path = _path(rule)
    if path is not None:
        write_tensors(path, memory, {"federation": federation_of(config, names), "rule": config.aggregation.kind})


def _form(memory: Mapping[str, Values]) -> dict[str, Any]:
    return {name: (value.dtype.name, value.shape) for name, value in memory.items()}


def _path(rule: Rule[Any]) -> Path | None:
    named = rule.lasting()
    if named is None:
        return None
    where = location(named, _WHERE)
    if not isinstance(where, Path) or unpacked(where):
        why = "would be gone with the job's files" if isinstance(where, Path) else "is no file"
        raise ConfigError(f"{_WHERE}: {named} {why}; give the path of a file on a durable volume of the driver's node.")
    return where
