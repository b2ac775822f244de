"""A policy that allows much, a run that it admits, and what changes the one or the other."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import yaml

from fedray.clients.terms import Terms
from fedray.components import ADAPTERS, ALGORITHMS, BOUNDS, COMPRESSIONS, LOSSES, MECHANISMS, METRICS, MODELS, PROTOCOLS
from fedray.config import Config
from fedray.configfile import build_config
from fedray.silos.offlinecheck import terms_for
from fedray.silos.policyconfig import Fact, Policy, RegimeName, parse_policy

#: Noon of a Monday.
NOON = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)

WIDE: dict[str, Any] = {
    "models": ["softmax", "mlp", "logistic"],
    "adapters": ["lora"],
    "algorithms": ["fedavg", "fedprox", "fednova"],
    "losses": ["cross_entropy"],
    "metrics": ["accuracy"],
    "compressions": ["half"],
    "bounds": ["norm"],
    "regimes": ["none", "record", "client", "local", "distributed"],
    "mechanisms": ["gaussian", "local_gaussian", "ddg"],
    "epsilon_run": 8.0,
    "epsilon_total": 16.0,
    "delta": 1e-4,
    "noise_multiplier": 0.8,
    "unmasked": "always",
    "secure": ["secagg"],
    "cohort": 5,
    "facts": ["records", "evaluation", "charged_evaluation"],
    "held_out": 10,
    "evaluations_a_day": 10,
    "hours": "always",
    "rounds": 10,
    "rounds_a_day": 10,
    "approval": False,
}

PLAIN: dict[str, Any] = {
    "name": "asked",
    "rounds": 3,
    "data": {"source": "sklearn:digits"},
    "model": {"kind": "softmax"},
    "training": {"lr": 0.5, "batch_size": 10, "epochs": 1},
}
POISSON = {"lr": 0.5, "sampling_rate": 0.1, "expected_batch": 10, "steps": 2}
RECORD: dict[str, Any] = PLAIN | {"training": POISSON, "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5}}


def policy(**changed: Any) -> Policy:
    """A wide policy with changes, of which None takes a key out; as its file is read."""
    content = {key: value for key, value in (WIDE | changed).items() if value is not None}
    return parse_policy(yaml.safe_dump(content, sort_keys=False), "policy.yaml")


def write_policy(folder: Path, **changed: Any) -> Path:
    """The same as a file in a folder."""
    content = {key: value for key, value in (WIDE | changed).items() if value is not None}
    (folder / "policy.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "policy.yaml"


def allow_all(path: Path, **changed: Any) -> Path:
    """Write a policy that allows every built-in part and every fact, for tests of other things than policies; with changes."""
    rooms = {"models": MODELS, "adapters": ADAPTERS, "algorithms": ALGORITHMS, "losses": LOSSES, "metrics": METRICS, "secure": PROTOCOLS}
    rooms |= {"compressions": COMPRESSIONS, "bounds": BOUNDS, "mechanisms": MECHANISMS}
    content: dict[str, Any] = {key: sorted(room.parts()) for key, room in rooms.items()}
    content |= {"regimes": list(get_args(RegimeName)), "facts": list(get_args(Fact)), "unmasked": "always", "hours": "always"}
    content |= {
        "epsilon_run": 1e6,
        "epsilon_total": 1e6,
        "delta": 0.5,
        "noise_multiplier": 1e-6,
        "cohort": 2,
        "held_out": 1,
        "rounds": 10**6,
    }
    content |= dict.fromkeys(("void_claims", "unsigned_keys", "fine_tune"), True) | dict.fromkeys(
        ("evaluations_a_day", "rounds_a_day"), 10**9
    )
    content |= {"approval": False} | changed
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def config(base: dict[str, Any] = PLAIN, **changed: Any) -> Config:
    """A run's config; the keys of a section that is given are added to it."""
    merged = dict(base)
    for key, value in changed.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return build_config(merged)


def terms(base: dict[str, Any] = PLAIN, **changed: Any) -> Terms:
    """The terms that a silo is sent of such a run."""
    return terms_for(config(base, **changed), "a")
