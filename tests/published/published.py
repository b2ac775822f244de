"""Keeping the figures of published-result runs in the repository."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

import fedray
from fedray.runfiles import RunFiles

CURVES = Path(__file__).parent / "curves"


def curve(result: fedray.Result, metric: str) -> list[float]:
    """A metric by round."""
    return [r["metrics"][metric] for r in RunFiles(result.output).rows() if metric in r["metrics"]]


def keep(name: str, result: fedray.Result, facts: dict[str, Any]) -> None:
    """Write the figures of this run to ``curves/NAME.json``."""
    CURVES.mkdir(exist_ok=True)
    content = {
        **facts,
        "accuracy_by_round": [round(a, 4) for a in curve(result, "eval/accuracy")],
        "model_sha256": result.summary["model_sha256"],
        "seconds_per_round": round(result.summary["performance"]["seconds_per_round"], 2),
        "versions": {"fedray": fedray.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    (CURVES / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
