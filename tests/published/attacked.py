"""MNIST dealt to twenty clients of which some attack, as tests of rules against attacks share it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rehearsed import Rehearsed, config_of

from fedray.data.partition import dirichlet, iid
from fedray.data.records import Federation, Records, offsets_of

CLIENTS, RECORDS, ROOT, ROUNDS, SEEDS, FRACTION = 20, 10_000, 100, 15, 3, 0.2
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {},
    "sign_flip": {"kind": "sign_flip", "times": 5.0},
    "gaussian": {"kind": "gaussian", "deviation": 1.0},
    "label_flip": {"kind": "label_flip"},
    "backdoor": {"kind": "backdoor", "target": 0, "share": 0.5},
    "alie": {"kind": "alie", "deviations": 1.5},
    "alie, more than a little": {"kind": "alie", "deviations": 20.0},
    "mimic": {"kind": "mimic"},
}
RULES: dict[str, dict[str, Any]] = {
    "mean": {"kind": "mean"},
    "median": {"kind": "median"},
    "trimmed_mean": {"kind": "trimmed_mean", "share": FRACTION},
    "geometric_median": {"kind": "geometric_median"},
    "krum": {"kind": "krum", "attackers": FRACTION},
    "multi_krum": {"kind": "multi_krum", "attackers": FRACTION},
    "centered_clipping": {"kind": "centered_clipping", "radius": 2.0},
    "bucketing, geometric_median": {"kind": "bucketing", "size": 2, "rule": {"kind": "geometric_median"}},
    "fltrust": {"kind": "fltrust"},
    "reputation": {"kind": "reputation"},
    "nnm, trimmed_mean": {"kind": "nnm", "attackers": FRACTION, "rule": {"kind": "trimmed_mean", "share": FRACTION}},
}
#: The mean of single updates, where a collusion needs these.
SINGLE = {"kind": "trimmed_mean", "share": 0.0}


def mnist(folder: Path) -> tuple[Records, Records]:
    with np.load(folder / "mnist.npz") as found:
        x, y, x_test, y_test = (found[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    some = np.random.default_rng(0).permutation(len(x))[:RECORDS]
    return tuple(Records((a / 255).astype(np.float32), b.astype(np.int64)) for a, b in ((x[some], y[some]), (x_test, y_test)))  # type: ignore[return-value]


def public(folder: Path) -> Federation:
    """A root set: a hundred training images that no client has."""
    with np.load(folder / "mnist.npz") as found:
        x, y = found["x_train"], found["y_train"]
    rows = np.random.default_rng(0).permutation(len(x))[RECORDS : RECORDS + ROOT]
    return of_parts(Records((x / 255).astype(np.float32), y.astype(np.int64)), [rows])


def dealt(train: Records, skew: str, seed: int) -> Federation:
    draws = np.random.default_rng(seed)
    if skew == "iid":
        parts: Sequence[npt.NDArray[np.int64]] = iid(train.y, None, draws, clients=CLIENTS)
    else:
        parts = dirichlet(train.y, None, draws, clients=CLIENTS, alpha=0.5, min_records=50)
    return of_parts(train, parts)


def of_parts(train: Records, parts: Sequence[npt.NDArray[np.int64]]) -> Federation:
    rows = np.concatenate(parts)
    names = [f"client-{k}" for k in range(len(parts))]
    return Federation(names, Records(train.x[rows], train.y[rows]), offsets_of([len(p) for p in parts]), None, None, None, 10)


def trained(
    federation: Federation, rule: dict[str, Any], attack: str, seed: int, rounds: int = ROUNDS, root: Federation | None = None
) -> Rehearsed:
    """A run; one pass over the records is a client's turn, and with a root set as many steps for everyone as the mean client has."""
    malicious = {} if attack == "none" else {"attack": {**ATTACKS[attack], "fraction": FRACTION}}
    part = SINGLE if rule["kind"] == "mean" and ATTACKS[attack].get("kind") in ("alie", "mimic") else rule
    config = config_of({"kind": "fedavg"}, aggregation=part, model={"kind": "mlp", "hidden": [64]}, seed=seed, **malicious)
    turn = {"epochs": 1} if root is None else {"epochs": None, "steps": RECORDS // CLIENTS // 10}
    config = config.model_copy(update={"training": config.training.model_copy(update=turn)})
    run = Rehearsed(config, federation, root)
    for _ in range(rounds):
        run.train([[*range(CLIENTS)]])
    return run
