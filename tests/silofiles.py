"""Two silos in files, with record-level privacy and lasting ledgers, whose data can be registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedray.config import Config
from fedray.configfile import build_config


def silo_config(folder: Path, **sections: Any) -> Config:
    (folder / "silos").mkdir(exist_ok=True)
    if not any((folder / "silos").iterdir()):
        for name, seed in (("north", 0), ("south", 1)):
            draws = np.random.default_rng(seed)
            rows = [f"{draws.normal():.4f},{draws.normal():.4f},{draws.integers(2)}" for _ in range(20)]
            (folder / "silos" / f"{name}.csv").write_text("\n".join(["u,v,y", *rows]) + "\n")
    return build_config(
        {
            "name": "agreed",
            "rounds": 2,
            "data": {"source": f"csv:{folder / 'silos'}", "label": "y", "classes": 2},
            "agreed": {"registration": str(folder / "agreed.json")},
            "model": {"kind": "softmax"},
            "clients": {"placement": "dedicated"},
            "training": {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 10, "steps": 2},
            "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3, "ledger": str(folder / "books")},
            "tracking": {"enabled": False},
        }
        | sections
    )
