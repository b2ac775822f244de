"""Says whether a resumed run is the same run, and which keys of its config have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedray.config import Config
from fedray.configfile import build_config, dump_config, flat, parse_yaml
from fedray.errors import ConfigError, shortened
from fedray.runfiles import RunFiles
from fedray.tracking.mlflow_store import masked

#: Sections that do not decide the model's bytes; :func:`_deciding` adds those of their keys that do.
_FREE = ("ray", "tracking", "checkpoint", "evaluation", "rounds", "clients", "cohort", "experiment", "name", "agreed", "sweep")


def identity(config: Config, digest: str) -> str:
    """Return the SHA-256, hexadecimal, of all settings that decide the model's bytes and of the data's digest."""
    return hashed(json.loads(config.model_dump_json()), digest)


def same_run(files: RunFiles, stored: object, config: Config, digest: str) -> bool:
    """Whether the run in ``files``, whose checkpoint has the identity ``stored``, is that of ``config`` on data with this digest.

    A version of fedray with further keys reads an older run's ``config.yaml`` with their defaults, if the checkpoint vouches for that file.
    """
    if stored == identity(config, digest):
        return True
    try:
        raw = parse_yaml(files.config.read_text(encoding="utf-8"), "config.yaml")
        return stored == hashed(raw, digest) and identity(build_config(raw), digest) == identity(config, digest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError):
        return False


def hashed(raw: Mapping[str, Any], digest: str) -> str:
    """Return the identity of a config as plain data, with the keys that it has."""
    return hashlib.sha256(json.dumps([_deciding(raw), digest], sort_keys=True).encode()).hexdigest()


def _deciding(raw: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in raw.items() if k not in _FREE}
    kept["groups"] = [{k: g[k] for k in ("clients", "rate", "every", "training") if k in g} for g in raw["clients"]["groups"]]
    kept["cohort"] = {k: v for k, v in raw["cohort"].items() if k not in ("deadline", "grace", "retries", "min_clients")}
    if raw.get("pacing", {}).get("arrival") == "simulated":
        kept["cohort"]["deadline"] = raw["cohort"]["deadline"]
    return kept


def another_run(files: RunFiles, config: Config, where: object) -> ConfigError:
    """Return the error for a resume whose config or data is not that of the run in ``files``; it lists changed keys, then and now."""
    try:
        then = dict(flat(_deciding(parse_yaml(files.config.read_text(encoding="utf-8"), "config.yaml"))))
        now = dict(flat(_deciding(parse_yaml(masked(dump_config(config)), "config"))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError):
        then, now = {}, {}
    changes = _changes(then, now)
    begins = f"--resume: the config or the data differs from that of the run in {where} in what decides the model: "
    ends = "Undo the change, or give what is another run another --output."
    if config.privacy.regimes and config.privacy.ledger == "run":
        ends = "Undo the change. Another run keeps a ledger of its own, so first name one in privacy.ledger that all runs on these records share."
    if not changes:
        return ConfigError(f"{begins}every key is as it was, so it is the data (or the run's config.yaml was changed). {ends}")
    return ConfigError(f"{begins}{changes}. {ends}")


def differences(then: Config, now: Config) -> str:
    """Return the keys in which two configs differ, each with both values."""
    return _changes(*(dict(flat(parse_yaml(masked(dump_config(config)), "config"))) for config in (then, now)))


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [key for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key)]
    return "; ".join(f"{key} was {_shown(then.get(key))} and is {_shown(now.get(key))}" for key in keys)


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, default=str))
