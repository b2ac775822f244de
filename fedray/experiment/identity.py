"""Says whether a resumed run is the same run, and which keys of its config have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedray.config import Config
from fedray.configfile import dump_config, flat, parse_yaml
from fedray.errors import ConfigError, shortened
from fedray.runfiles import RunFiles
from fedray.tracking.mlflow_store import masked

#: Sections that do not decide the model's bytes; :func:`_deciding` adds those of their keys that do.
_FREE = ("ray", "tracking", "checkpoint", "evaluation", "rounds", "clients", "cohort", "experiment", "name", "agreed", "sweep")


def identity(config: Config, digest: str) -> str:
    """Return the SHA-256, hexadecimal, of all settings that decide the model's bytes and of the data's digest."""
    return hashlib.sha256(json.dumps([_deciding(json.loads(config.model_dump_json())), digest], sort_keys=True).encode()).hexdigest()


def _deciding(raw: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in raw.items() if k not in _FREE}
    kept["groups"] = [{k: g.get(k, 1) for k in ("clients", "rate", "every", "training")} for g in raw["clients"]["groups"]]
    kept["cohort"] = {k: v for k, v in raw["cohort"].items() if k not in ("deadline", "grace", "retries", "min_clients")}
    if raw.get("pacing", {}).get("arrival") == "simulated":
        kept["cohort"]["deadline"] = raw["cohort"]["deadline"]
    return kept


def another_run(files: RunFiles, config: Config | None, where: object) -> ConfigError:
    """Return the error for a resume whose config or data is not that of the run in ``files``; it lists changed keys, then and now."""
    try:
        then = dict(flat(_deciding(parse_yaml(files.config.read_text(encoding="utf-8"), "config.yaml"))))
        now = then if config is None else dict(flat(_deciding(parse_yaml(masked(dump_config(config)), "config"))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError):
        then, now = {}, {}
    changes = _changes(then, now)
    begins = f"--resume: the config or the data differs from that of the run in {where} in what decides the model: "
    ends = "Undo the change, or give what is another run another --output."
    if config is not None and config.privacy.regimes and config.privacy.ledger == "run":
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
